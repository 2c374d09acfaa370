import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from stda import BadInput, show
from stda.show import charts

ALT = "A chart that is only here to be tested."
ARMS = [("nst", 0.05, "helps"), ("dcgan", -0.05, "harms"), ("wgan", 0.0, "equivalent"), ("pggan", 0.015, "undecided")]
VERDICTS = [
    {"arm": arm, "baseline": "balanced", "metric": "balanced_accuracy", "verdict": verdict}
    | {"difference": middle, "low": middle - 0.02, "high": middle + 0.02}
    for arm, middle, verdict in ARMS
]
METRICS = pd.DataFrame(
    [
        {"replicate": r, "arm": arm, "split": split, "metric": "balanced_accuracy", "value": 0.1 * (i + 1) + 0.01 * r}
        for (i, arm), r, split in itertools.product(enumerate(["none", "classic", "wgan"]), range(2), ["val", "test"])
    ]
)


@pytest.fixture
def shown(monkeypatch):
    figures = []
    monkeypatch.setattr("stda.show.charts.show", lambda fig, *, alt, caption="": figures.append(fig))
    return figures


def texts(fig):
    return [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]


def test_effects_draws_each_arm_with_word_interval_and_band():
    fig = charts.effects_figure(VERDICTS, smallest_effect=0.03)
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["nst", "dcgan", "wgan", "pggan"]
    intervals = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
    np.testing.assert_allclose(intervals, [[v["low"], v["high"]] for v in VERDICTS])
    assert [t.get_text().split()[0] for t in ax.texts] == [v["verdict"] for v in VERDICTS]
    np.testing.assert_allclose([ax.patches[0].get_x(), ax.patches[0].get_width()], [-0.03, 0.06])
    markers = [line.get_marker() for line in ax.lines if line.get_marker() != "None"]
    assert len(set(markers)) == 4


def test_effects_labels_do_not_overlap_and_are_readable():
    fig = charts.effects_figure(VERDICTS * 3, smallest_effect=0.03)
    fig.draw_without_rendering()
    for ax in fig.axes:
        boxes = [t.get_window_extent() for t in [*ax.texts, *ax.get_yticklabels()]]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert all(box.x0 >= 0 and box.x1 <= fig.bbox.width + 1 for box in boxes)
    assert min(t.get_fontsize() for t in texts(fig)) >= 9


def test_effects_without_a_difference_says_so():
    with pytest.raises(BadInput, match="no verdict to draw"):
        charts.effects_figure([], smallest_effect=0.02)
    with pytest.raises(BadInput, match="no verdict to draw"):
        charts.effects_figure([{**VERDICTS[0], "difference": None}], smallest_effect=0.02)


def bands(*rows):
    names = ["arm", "against", "kind", "difference", "low", "high"]
    return pd.DataFrame([(*row, 0.01, -0.01, 0.03) for row in rows], columns=names)


def test_effects_draw_shared_placebos_below_the_arms_and_own_ones_beneath_theirs():
    everyone = [(arm, "duplicates", "placebo") for arm, *_ in ARMS] + [(arm, "oracle", "oracle") for arm, *_ in ARMS]
    table = bands(("nst", "nst-shuffled", "placebo"), *everyone, ("gone", "gone-shuffled", "placebo"))
    fig = charts.effects_figure(VERDICTS, smallest_effect=0.03, placebos=table)
    ax = fig.axes[0]
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == ["nst", "nst-shuffled", "dcgan", "wgan", "pggan", "duplicates", "oracle"]
    words = [t.get_text().split()[0] for t in ax.texts]
    assert words == ["helps", "placebo", "harms", "equivalent", "undecided", "placebo", "oracle"]
    at = dict(zip(names, ax.get_yticks(), strict=True))
    reach = {name: (c.get_datalim(ax.transData).y0, c.get_datalim(ax.transData).y1) for name, c in strips(ax, at)}
    assert reach["nst-shuffled"][0] == -0.5  # it reaches up to its own arm
    assert reach["nst-shuffled"][1] < at["dcgan"] - 0.5 + 1e-9
    assert reach["duplicates"][0] == reach["oracle"][0] == -0.5  # all arms: the whole figure


def strips(ax, at):
    """The pale bands, each with the lane that it ends in."""
    for collection in ax.collections:
        if collection.get_alpha() is not None and collection.get_alpha() < 0.1:
            bottom = collection.get_datalim(ax.transData).y1
            np.testing.assert_allclose(collection.get_datalim(ax.transData).intervalx, [-0.01, 0.03])
            yield min(at, key=lambda name: abs(at[name] - bottom)), collection


def test_placebos_of_several_arms_but_not_all_are_drawn_by_each():
    table = bands(("nst", "duplicates", "placebo"), ("dcgan", "duplicates", "placebo"))
    fig = charts.effects_figure(VERDICTS, smallest_effect=0.03, placebos=table)
    names = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert names == ["nst", "duplicates", "dcgan", "duplicates", "wgan", "pggan"]


@pytest.mark.parametrize("n", [1, 4, 8])
def test_effects_with_bands_do_not_overlap(n):
    verdicts = [{**VERDICTS[i % 4], "arm": f"arm-{i}"} for i in range(n)]
    own = [(f"arm-{i}", f"arm-{i}-{k}", "placebo") for i in range(n) for k in ("shuffled", "wrong")]
    table = bands(*own, *((f"arm-{i}", "oracle", "oracle") for i in range(n)))
    fig = charts.effects_figure(verdicts, smallest_effect=0.03, placebos=table)
    fig.draw_without_rendering()
    ax = fig.axes[0]
    boxes = [t.get_window_extent() for t in [*ax.texts, *ax.get_yticklabels()]]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= fig.bbox.width + 1 for box in boxes)


def test_effects_without_placebos_are_drawn_as_ever():
    plain, empty = (charts.effects_figure(VERDICTS, smallest_effect=0.03, placebos=p) for p in (None, bands()))
    assert [t.get_text() for t in empty.axes[0].texts] == [t.get_text() for t in plain.axes[0].texts]
    assert not empty.axes[0].collections


def test_arms_are_sorted_by_their_test_mean(shown):
    show.arms(METRICS, alt=ALT, lines={"chance": 0.125})
    ax = shown[0].axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["wgan", "classic", "none"]
    assert [t.get_text() for t in ax.texts] == ["0.305", "0.205", "0.105"]
    assert ax.get_legend().get_texts()[0].get_text() == "chance (0.125)"
    with pytest.raises(BadInput, match="no 'auroc'"):
        show.arms(METRICS, alt=ALT, metric="auroc")


def test_loss_curves_draw_the_running_mean(shown):
    history = pd.DataFrame({"step": range(1, 11), "loss": np.arange(10.0), "norm": np.ones(10)})
    show.loss_curves(history, {"losses": ["loss"], "norms": ["norm"]}, alt=ALT, smooth=2)
    raw, mean = shown[0].axes[0].lines
    np.testing.assert_allclose(raw.get_ydata(), np.arange(10))
    np.testing.assert_allclose(mean.get_ydata(), [0, *(np.arange(9) + 0.5)])
    assert shown[0].axes[1].get_title(loc="left") == "norms"
    with pytest.raises(BadInput, match="no column"):
        show.loss_curves(history, ["missing"], alt=ALT)


def test_loss_curves_by_class_and_with_gaps(shown):
    history = pd.DataFrame({"step": [1, 2, 3] * 2, "label": list("aaabbb"), "loss": [1, np.nan, 3, 4, 5, np.inf]})
    show.loss_curves(history, ["loss"], alt=ALT, by="label")
    ax = shown[0].axes[0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [1, 3])


@pytest.mark.parametrize("log", [False, True])
def test_class_counts_write_the_numbers(shown, log):
    counts = pd.DataFrame({"train": [50, 7], "test": [10, 2]}, index=["NV", "DF"])
    show.class_counts(counts, alt=ALT, log=log)
    labels = {t.get_text() for t in shown[0].axes[0].texts}
    assert labels == ({"50", "7", "10", "2"} if log else {"60", "9"})
    show.class_counts(counts["train"], alt=ALT)
    assert shown[1].axes[0].get_legend() is None


def test_recall_heatmap_writes_every_number(shown):
    show.recall_heatmap(
        pd.DataFrame([[0.1, np.nan], [0.9, 1.0]], index=["none", "nst"], columns=["MEL", "NV"]), alt=ALT
    )
    assert [t.get_text() for t in shown[0].axes[0].texts] == ["0.10", "0.90", "1.00"]  # a missing value stays blank


def test_reliability_against_a_plain_count(shown):
    rng = np.random.default_rng(0)
    sure = np.append(rng.random(200), 1.0)
    hit = (rng.random(201) < sure).astype(float)
    show.reliability({"arm": sure}, {"arm": hit}, alt=ALT, bins=5)
    line = shown[0].axes[0].lines[1]
    for k, y in enumerate(line.get_ydata()):
        inside = (sure >= k / 5) & ((sure < (k + 1) / 5) | (k == 4))
        assert y == pytest.approx(hit[inside].mean())


def test_effects_without_any_verdict_say_so(monkeypatch):
    said = []
    monkeypatch.setattr(charts, "text", said.append)
    show.effects(pd.DataFrame(columns=["arm", "difference", "low", "high"]), smallest_effect=0.02, alt=ALT)
    assert "No arm with synthetic images" in said[0]
