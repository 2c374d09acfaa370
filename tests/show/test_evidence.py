import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from stda import BadInput, show
from stda.show import evidence

ALT = "A chart that is only here to be tested."
SPREADS = pd.DataFrame(
    {
        "arm": ["balanced", "nst", "wgan", "classic"],
        "spread": "within replicates",
        "sd": [0.02, 0.01, np.nan, 0.03],
        "variance_ratio": [np.nan, 0.25, np.nan, 2.0],
        "low": [np.nan, 0.1, np.nan, 0.5],
        "high": [np.nan, 0.7, np.nan, np.inf],
        "verdict": ["", "supported", "undecided", ""],
    }
)
TRAININGS = pd.DataFrame({"arm": np.repeat(SPREADS["arm"], 3), "deviation": np.tile([-0.02, 0.0, 0.02], 4)})
LABELS = pd.DataFrame(
    [
        {"iteration": i, "weight": w, "labeller": "pseudo-label", "agrees_with": a, "share": s}
        for (i, s), w, a in itertools.product([(5, 0.2), (15, 0.4), (30, 0.5)], [1.0, 10.0], ["style", "content"])
    ]
).assign(low=lambda t: t["share"] - 0.1, high=lambda t: t["share"] + 0.1)
CURVE = pd.DataFrame(
    {"threshold": [0.0, 0.5, 0.0, 0.5], "agrees_with": ["style", "style", "other", "other"], "kept": [1, 0.4, 1, 0.4]}
).assign(share=[0.2, 0.6, 0.3, np.nan], low=[0.1, 0.4, 0.2, np.nan], high=[0.3, 0.8, 0.4, np.nan])


def texts(fig):
    return [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]


def check_readable(fig):
    fig.draw_without_rendering()
    assert min(t.get_fontsize() for t in texts(fig)) >= 9
    for ax in fig.axes:
        boxes = [t.get_window_extent() for t in [*ax.texts, *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label]]
        assert all(box.x1 <= fig.bbox.width + 1 for box in boxes)
        words = [t.get_window_extent() for t in [*ax.texts, *ax.get_yticklabels()]]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(words, 2))


def test_agreement_has_a_panel_per_weight_and_a_line_per_reference():
    fig = evidence.agreement_figure(LABELS, x="iteration", panel="weight", by=["labeller", "agrees_with"])
    assert len(fig.axes) == 2
    for ax in fig.axes:
        np.testing.assert_allclose([line.get_ydata() for line in ax.lines], [[0.2, 0.4, 0.5]] * 2)
        assert [line.get_label() for line in ax.lines] == ["pseudo-label: style", "pseudo-label: content"]
        assert len({line.get_linestyle() for line in ax.lines}) == 2  # not by colour alone
    check_readable(fig)


def test_agreement_without_a_panel_is_one_chart():
    rows = LABELS[LABELS["weight"] == 1.0]
    fig = evidence.agreement_figure(rows, x="iteration", panel="", by=["agrees_with"])
    assert len(fig.axes) == 1
    check_readable(fig)


def test_confidence_curve_shows_agreement_and_cost():
    fig = evidence.confidence_curve_figure(CURVE)
    left, right = fig.axes
    assert [line.get_label() for line in left.lines] == ["style", "other"]
    np.testing.assert_allclose(right.lines[0].get_ydata(), [1, 0.4])
    check_readable(fig)


def test_repeatability_shows_each_training_and_each_ratio_with_its_word():
    fig = evidence.repeatability_figure(SPREADS, TRAININGS)
    left, right = fig.axes
    dots = [line for line in left.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [3, 3, 3, 3]
    words = [t.get_text() for t in right.texts]
    assert words[:3] == ["baseline", "supported", "too few trainings"]
    assert [t.get_text() for t in left.get_yticklabels()] == list(SPREADS["arm"])
    assert np.isfinite(right.get_xlim()).all()  # an interval may reach infinity, the axis may not
    check_readable(fig)


def test_repeatability_without_any_ratio_is_drawn_too():
    nothing = SPREADS.assign(variance_ratio=np.nan, low=np.nan, high=np.nan)
    check_readable(evidence.repeatability_figure(nothing, TRAININGS))


def test_all_are_shown_with_alt_text(monkeypatch):
    seen = []
    monkeypatch.setattr(evidence, "show", lambda fig, *, alt, caption="": seen.append(alt))
    show.agreement(LABELS, x="iteration", panel="weight", alt=ALT)
    show.confidence_curve(CURVE, alt=ALT)
    show.repeatability(SPREADS, TRAININGS, alt=ALT)
    assert seen == [ALT] * 3


def test_a_table_of_another_kind_is_one_sentence():
    with pytest.raises(BadInput, match="no column"):
        show.confidence_curve(LABELS, alt=ALT)
    with pytest.raises(BadInput, match="0 rows"):
        show.agreement(LABELS.iloc[:0], alt=ALT)
