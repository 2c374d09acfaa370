import itertools

import numpy as np
import pandas as pd
import pytest

from stda import BadInput, show
from stda.show.variance import variance_parts_figure

ALT = "A chart that is only here to be tested."
PARTS = ("split", "test sampling", "generator", "classifier")


def table(arms=("none", "wgan", "all real"), parts=PARTS, shares=(0.4, 0.3, 0.2, 0.1), high=0.04):
    rows = [
        {"arm": arm, "part": part, "sd": 0.02, "low": 0.01, "high": np.nan if "test" in part else high, "share": share}
        for arm in arms
        for part, share in zip(parts, shares, strict=True)
    ]
    return pd.DataFrame(rows)


def test_a_stacked_bar_per_arm_and_a_dot_per_part_of_the_pooled_ones():
    left, right = variance_parts_figure(table()).axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["none", "wgan", "all real"]
    widths = {c.get_label(): [bar.get_width() for bar in c] for c in left.containers}
    assert list(widths) == list(PARTS)
    np.testing.assert_allclose(list(widths.values()), [[share] * 3 for share in (0.4, 0.3, 0.2, 0.1)])
    ends = [bar.get_x() + bar.get_width() for bar in left.containers[-1]]
    np.testing.assert_allclose(ends, 1)
    assert [t.get_text() for t in right.get_yticklabels()] == ["all real", *PARTS]
    intervals = [line.get_xdata() for line in right.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(intervals, [[0.01, 0.04]] * 3)  # test sampling has none


def test_without_pooled_arms_every_arm_has_its_dots():
    _, right = variance_parts_figure(table(arms=("none", "wgan"))).axes
    assert [t.get_text() for t in right.get_yticklabels()] == ["none", *PARTS, "wgan", *PARTS]


def test_an_interval_that_leaves_the_picture_ends_in_an_arrow():
    assert sum(line.get_marker() == ">" for line in variance_parts_figure(table(high=9.0)).axes[1].lines) == 3
    assert not any(line.get_marker() == ">" for line in variance_parts_figure(table()).axes[1].lines)


def test_one_split_has_no_shares_and_one_panel():
    alone = table(parts=("classifier", "test sampling"), shares=(np.nan, np.nan))
    assert len(variance_parts_figure(alone).axes) == 1
    both = pd.concat([table(arms=("none",)), alone[alone["arm"] == "wgan"]])
    assert [t.get_text() for t in variance_parts_figure(both).axes[0].texts] == ["one split: no shares"]


def test_names_stay_in_the_picture_and_apart():
    joined = table(parts=("split + generator + classifier", "test sampling"), shares=(0.7, 0.3))
    fig = variance_parts_figure(joined)
    fig.draw_without_rendering()
    boxes = [t.get_window_extent() for ax in fig.axes for t in ax.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= fig.bbox.width + 1 for box in boxes)


def test_a_score_that_never_varies_is_drawn():
    flat = table().assign(sd=0.0, low=0.0, high=0.0, share=np.nan)
    assert len(variance_parts_figure(flat).axes) == 1


def test_the_figure_needs_its_table_and_alt_text():
    with pytest.raises(BadInput, match="no column"):
        show.variance_parts(pd.DataFrame({"arm": ["none"]}), alt=ALT)
    with pytest.raises(BadInput, match="alt text"):
        show.variance_parts(table(), alt="")
