import pandas as pd
import pytest

from stda import BadInput
from stda.show import rulers


def test_growth_has_a_panel_per_measure_with_its_numbers_of_images():
    rows = [
        {"n": n, "measure": m, "mean": v, "low": v - 1, "high": v + 1}
        for m, v in (("FID", 9), ("KID", 0))
        for n in (25, 50)
    ]
    fig = rulers.growth_figure(pd.DataFrame(rows))
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["FID, real against real", "KID, real against real"]
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["25", "50"]
    assert fig.axes[0].lines[-1].get_ydata().tolist() == [9, 9]


def test_the_heat_map_writes_signed_spreads_in_the_order_of_the_table():
    rows = {
        "set": ["real", "real", "blurred", "blurred"],
        "measure": ["KID", "recall", "KID", "recall"],
        "worse": [0.0, -0.3, 123.4, float("nan")],
    }
    ax = rulers.faults_figure(pd.DataFrame(rows)).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["real", "blurred"]
    assert [t.get_text() for t in ax.texts] == ["0", "0", "+123"]


def test_a_table_without_its_columns_is_a_sentence():
    for draw in (rulers.growth_figure, rulers.faults_figure):
        with pytest.raises(BadInput, match="no column"):
            draw(pd.DataFrame({"set": ["a"]}))
