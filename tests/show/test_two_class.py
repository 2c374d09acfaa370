import importlib
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from stda import BadInput, show
from stda.show.two_class import calibration_figure, two_class_figure

ALT = "Dots with intervals of every arm, one row per arm."
ARMS = ["wgan-mix-confident", "balanced", "none"]
TABLE = pd.DataFrame({"arm": ARMS, "kind": ["synthetic", "real", "real"]})
for place, name in enumerate(("auroc", "sensitivity_fixed", "specificity_reached")):
    middle = np.array([0.95, 0.9, np.nan]) - 0.1 * place
    TABLE[[name, f"{name}_low", f"{name}_high"]] = np.stack([middle, middle - 0.03, middle + 0.04], 1)
CALIBRATION = pd.DataFrame(
    {"arm": [a for a in ARMS for _ in "xy"], "measure": ["ece", "nll"] * 3, "temperature": [2.5, 2.5, 1, 1, 0.7, 0.7]}
).assign(before=[0.15, 0.7, 0.02, 0.4, 0.06, 0.5], after=[0.04, 0.5, 0.02, 0.4, 0.03, 0.45])


def check_readable(fig):
    fig.draw_without_rendering()
    words = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]
    assert min(t.get_fontsize() for t in words) >= 9
    for ax in fig.axes:
        boxes = [t.get_window_extent() for t in [*ax.texts, *ax.get_yticklabels(), ax.xaxis.label] if t.get_text()]
        assert all(box.x0 >= -1 and box.x1 <= fig.bbox.width + 1 for box in boxes)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    labels = [ax.xaxis.label.get_window_extent() for ax in fig.axes]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(labels, 2))


def test_two_classes_have_a_panel_per_measure_and_a_marker_per_kind():
    fig = two_class_figure(TABLE)
    assert [ax.get_xlabel().split("\n")[0] for ax in fig.axes] == ["AUROC", "sensitivity", "specificity reached"]
    lines = fig.axes[0].lines
    assert lines[0].get_xdata() == pytest.approx([0.92, 0.99])
    assert (lines[1].get_xdata(), lines[1].get_marker()) == ([0.95], "^")
    assert lines[3].get_marker() == "o"
    check_readable(fig)


def test_calibration_joins_before_and_after_and_writes_the_temperature():
    fig = calibration_figure(CALIBRATION)
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["balanced", "none", "wgan-mix-confident"]
    assert ax.lines[0].get_xdata().tolist() == [0.02, 0.06, 0.15]
    assert ax.lines[1].get_xdata().tolist() == [0.02, 0.03, 0.04]
    assert [t.get_text() for t in ax.texts] == ["T = 1.00", "T = 0.70", "T = 2.50"]
    assert "likelihood" in calibration_figure(CALIBRATION, measure="nll").axes[0].get_xlabel()
    check_readable(fig)


def test_more_classes_are_a_sentence(monkeypatch):
    said = []
    monkeypatch.setattr(importlib.import_module("stda.show.two_class"), "text", said.append)
    show.two_class(TABLE.iloc[:0], alt=ALT)
    assert "more than two classes" in said[0]


def test_what_cannot_be_drawn_is_a_sentence():
    with pytest.raises(BadInput, match="no column"):
        two_class_figure(TABLE.drop(columns="auroc"))
    with pytest.raises(BadInput, match="no measure 'mce'"):
        calibration_figure(CALIBRATION, measure="mce")
    with pytest.raises(BadInput, match="0 rows"):
        calibration_figure(CALIBRATION.iloc[:0])
