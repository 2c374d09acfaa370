import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from stda import BadInput, show
from stda.show.leakage import COLOURS, inflation_figure


def table():
    rows = pd.DataFrame({"class": ["all classes", "DF", "MEL", "NV"], "honest": [0.6, 0.5, 0.4, 0.9], "arm": "wgan"})
    rows = rows.assign(leaky=[0.7, 0.5, 0.7, np.nan], low=-0.1, high=0.4, leaked_share=[0.4, 0.2, 0.6, 0.3])
    return rows.assign(inflation=rows["leaky"] - rows["honest"], verdict=["undecided"] * 2 + ["inflated", "undecided"])


def test_classes_follow_their_leaked_share_and_lines_join_the_two_scores():
    ax = inflation_figure(table(), arm="wgan").axes[0]
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == ["all classes (40% leaked)", "MEL (60% leaked)", "DF (20% leaked)"]  # NV cannot be compared
    joined = [line.get_xdata().tolist() for line in ax.lines[:3]]
    np.testing.assert_allclose(joined, [[0.6, 0.7], [0.4, 0.7], [0.5, 0.5]])
    assert [to_hex(line.get_color()) for line in ax.lines[:2]] == [COLOURS["undecided"], COLOURS["inflated"]]
    words = [text.get_text() for text in ax.texts]
    assert words[1].startswith("+0.30")
    assert words[1].endswith("inflated")


def test_without_shares_the_classes_keep_their_order():
    ax = inflation_figure(table().assign(leaked_share=np.nan), arm="wgan").axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["all classes", "DF", "MEL"]


def test_an_arm_without_numbers_and_a_missing_alt_text_are_refused():
    with pytest.raises(BadInput, match="no inflation to draw"):
        inflation_figure(table(), arm="nst")
    with pytest.raises(BadInput, match="alt text"):
        show.inflation(table(), arm="wgan", alt="")
