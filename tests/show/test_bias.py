import numpy as np
import pandas as pd
import pytest

from stda import BadInput, show
from stda.show import bias

ALT = "Shares of pictures with an artefact by set, with intervals"


def shares(seen=True):
    table = pd.DataFrame({"artefact": ["hair", "hair", "ruler", "ruler"], "set": ["real", "wgan"] * 2})
    number = [0.3, 0.4, np.nan, np.nan] if seen else [np.nan] * 4
    return table.assign(detected=number, low=np.array(number) - 0.1, high=np.array(number) + 0.1)


def rates():
    table = pd.DataFrame({"altered": np.repeat(["hair", "frame", "mirrored"], 2), "arm": ["balanced", "wgan"] * 3})
    table = table.assign(switched=0.3, low=0.2, high=0.4, light=[0.1, 0.1, 0.2, 0.2, np.nan, np.nan])
    return table.assign(than_baseline=["is the baseline", "more"] * 3)


def test_shares_have_a_row_per_artefact_that_can_be_seen():
    ax = bias.prevalence_figure(shares()).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["hair"]
    points = [line.get_xdata()[0] for line in ax.lines]
    assert points == [0.3, 0.4]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["real", "wgan"]


def test_nothing_to_see_is_a_sentence(capsys):
    show.prevalence(shares(seen=False), alt=ALT)
    assert "No artefact can be seen" in capsys.readouterr().out
    with pytest.raises(BadInput, match="none can be seen"):
        bias.prevalence_figure(shares(seen=False))


def test_rates_have_a_panel_per_artefact_with_a_scale():
    fig = bias.switch_rates_figure(rates())
    assert [ax.get_title(loc="left") for ax in fig.axes if ax.get_visible()] == ["hair", "frame"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["balanced", "wgan"]
    with pytest.raises(BadInput, match="no switch rate"):
        bias.switch_rates_figure(rates().assign(light=np.nan))


def test_figures_need_alternative_texts():
    with pytest.raises(BadInput, match="alt text"):
        show.switch_rates(rates(), alt="")
    with pytest.raises(BadInput, match="alt text"):
        show.prevalence(shares(), alt="")
