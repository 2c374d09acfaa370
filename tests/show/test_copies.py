import numpy as np
import pandas as pd
import pytest

from stda import BadInput, show
from stda.show.copies import copies_figure

ALT = "A chart that is only here to be tested."
COPYING = pd.DataFrame(
    [
        {
            "set": name,
            "space": space,
            "rate": rate,
            "rate_low": rate / 2,
            "rate_high": rate + 0.1,
            "copying": rate > 0.1,
        }
        for space in ("pixels", "features")
        for name, rate in (("real (validation)", 0.01), ("wgan", 0.02), ("thief", 0.8))
    ]
).assign(rate_high=lambda t: t["rate"] + 0.1, authenticity=0.5, authenticity_low=0.4, authenticity_high=0.6)
ATTACK = COPYING[COPYING["set"] != "real (validation)"][["set", "space"]].assign(
    auc=[0.5, 0.7, np.nan, 0.7], low=[0.4, 0.6, np.nan, 0.6], high=[0.6, 0.8, np.nan, 0.8]
)


def test_every_set_and_space_has_a_row_and_what_is_flagged_a_triangle():
    fig = copies_figure(COPYING, ATTACK)
    fig.draw_without_rendering()
    left, middle, right = fig.axes
    assert [t.get_text() for t in left.get_yticklabels()][:3] == [
        "real (validation), pixels", "wgan, pixels", "thief, pixels"
    ]  # fmt: skip
    markers = [[line.get_marker() for line in ax.lines if line.get_marker() != "None"] for ax in fig.axes]
    assert markers == [list("oo^oo^"), list("oooooo"), list("o^^")]
    points = [line.get_xdata()[0] for line in right.lines if line.get_marker() != "None"]
    assert points == [0.5, 0.7, 0.7]  # an unknown AUC is not drawn
    assert middle.get_title(loc="left") == "authenticity"


def test_it_is_shown_with_its_alt_text(capsys):
    show.copies(COPYING, ATTACK, alt=ALT)
    assert ALT in capsys.readouterr().out


def test_missing_columns_are_a_sentence():
    with pytest.raises(BadInput, match=r"no column \['copying', 'auc'\]"):
        copies_figure(COPYING.drop(columns="copying"), ATTACK.drop(columns="auc"))
