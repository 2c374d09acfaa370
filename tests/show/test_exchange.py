import importlib
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from stda import BadInput, show

module = importlib.import_module("stda.show.exchange")
ALT = "A chart that is only here to be tested."
SIZES = np.array([125, 250, 500, 1000, 1500])
CLASSES = {"all": 1.0, "df": 0.02, "mel": 0.2, "bkl": 0.3}


def curve(classes=CLASSES, spread=0.03):
    rows = []
    for name, share in classes.items():
        metric = "balanced_accuracy" if name == "all" else f"recall_{name}"
        for i, n in enumerate(SIZES):
            row = {"class": name, "metric": metric, "arm": f"curve-{i}", "real": 2 * n * share, "lesions": n * share}
            mean = 0.5 + 0.08 * i
            rows.append(row | {"mean": mean, "low": mean - spread, "high": mean + spread, "fitted": mean})
    return pd.DataFrame(rows)


def table(arms=("wgan", "dcgan"), classes=CLASSES, worth=(0.3, -0.4, 0.0, 0.5, -0.875, 0.1)):
    rows = []
    for (i, arm), (name, share) in itertools.product(enumerate(arms), classes.items()):
        n, m = 1000 * share, 1000 * share * worth[i]
        beyond = {0.5: "more than", -0.875: "less than"}.get(worth[i], "")
        low = -np.inf if worth[i] == -0.875 else m - 0.3 * n
        row = {"arm": arm, "class": name, "metric": "x", "score": 0.7 + 0.2 * worth[i], "lesions": n, "added": n}
        row |= {"worth_lesions": m, "low_lesions": low, "high_lesions": np.inf if worth[i] > 0.2 else m + 0.3 * n}
        row |= {"worth": 2 * m, "low": 2 * low, "high": 2 * row["high_lesions"], "worth_each": 2 * worth[i]}
        rows.append(row | {"beyond": beyond, "words": "worth real images", "replicates": 3})
    return pd.DataFrame(rows)


@pytest.fixture
def shown(monkeypatch):
    figures = []
    monkeypatch.setattr(module, "show", lambda fig, *, alt, caption="": figures.append(fig))
    return figures


def visible(fig):
    """Return all texts that are drawn: matplotlib also keeps labels of ticks outside the axes."""
    fig.draw_without_rendering()
    hidden = set()
    for axis in itertools.chain.from_iterable((ax.xaxis, ax.yaxis) for ax in fig.axes):
        low, high = sorted(axis.get_view_interval())
        hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]


def test_exchange_draws_the_curve_and_each_arm_where_it_is_worth(shown):
    show.exchange(curve(), table(), alt=ALT)
    main, strip, *small = shown[0].axes
    dots = next(line for line in main.lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots.get_xdata(), SIZES)
    star = next(line for line in strip.lines if line.get_marker() == "*")
    np.testing.assert_allclose([star.get_xdata()[0], star.get_ydata()[0]], [1300, 0])
    bars = [line for line in strip.lines if line.get_linewidth() == 2 and len(line.get_xdata()) == 2]
    np.testing.assert_allclose(bars[0].get_xdata(), [1000, strip.get_xlim()[1]])  # open: to the edge
    np.testing.assert_allclose(bars[1].get_xdata(), [300, 900])
    assert [line.get_marker() for line in strip.lines].count(">") == 1
    assert [t.get_text() for t in strip.get_yticklabels()] == ["wgan", "dcgan"]
    assert [ax.get_title() for ax in small[:3]] == ["recall of df", "recall of mel", "recall of bkl"]
    assert main.get_xlim() == strip.get_xlim()


@pytest.mark.parametrize("n_arms", [1, 6])
def test_exchange_labels_are_readable_and_within_the_picture(n_arms):
    names = ["wgan", "dcgan", "nst-pretrain", "pggan", "wgan-confident", "nst"][:n_arms]
    classes = {**CLASSES, **{f"class{i}": 0.05 * (i + 1) for i in range(6)}}
    fig = module.exchange_figure(curve(classes), table(names, classes))
    texts = visible(fig)
    assert min(t.get_fontsize() for t in texts) >= 9
    boxes = [t.get_window_extent() for t in texts]
    assert all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= fig.bbox.width + 1 and b.y1 <= fig.bbox.height + 1 for b in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert len(titles) == 7
    assert titles[0] == "recall of df"  # rarest first, the commonest left out


def test_exchange_without_a_rate_or_without_classes():
    warnings.simplefilter("error")
    flat = table().assign(worth=np.nan, worth_lesions=np.nan, low=np.nan, high=np.nan, words="the curve does not rise")
    flat[["low_lesions", "high_lesions"]] = np.nan
    fig = module.exchange_figure(curve(), flat)
    assert [t.get_text() for t in fig.axes[1].texts] == ["the curve does not rise"] * 2
    only = module.exchange_figure(curve({"all": 1.0}), table(classes={"all": 1.0}))
    assert len(only.axes) == 2
    with pytest.raises(BadInput, match="no column"):
        module.exchange_figure(curve().drop(columns="fitted"), table())


def test_nothing_to_draw_is_said(monkeypatch, shown):
    said = []
    monkeypatch.setattr(module, "text", said.append)
    show.exchange(curve().iloc[:0], table().iloc[:0], alt=ALT)
    show.sweep(amounts().iloc[:0], alt=ALT)
    show.sweep(amounts()[amounts()["amount"] < 400], alt=ALT)
    assert "no exchange rate to draw" in said[0]
    assert ["No sweep was run" in words for words in said] == [False, True, True]
    assert not shown
    with pytest.raises(BadInput, match="no line to draw"):
        module.sweep_figure(amounts()[amounts()["amount"] < 400])


def amounts():
    families = {"classic augmentation": [0, 100, 400, 1600, np.inf], "wgan": [0, 100, 200, 400], "dcgan": [0, 100]}
    rows = [
        {"family": family, "amount": float(a), "arm": f"{family}-{a}", "metric": metric, "mean": 0.5 + 0.05 * i}
        for family, steps in families.items()
        for i, a in enumerate(steps)
        for metric in ("sensitivity", "specificity")
    ]
    found = pd.DataFrame(rows)
    return found.assign(low=found["mean"] - 0.04, high=found["mean"] + 0.04, replicates=3)


def test_sweep_draws_the_families_with_enough_amounts_and_the_limit(shown):
    show.sweep(amounts(), alt=ALT)
    fig = shown[0]
    assert [ax.get_ylabel() for ax in fig.axes] == ["sensitivity", "specificity"]
    words = [t.get_text() for t in fig.legends[0].get_texts()]
    assert set(words) == {"classic augmentation", "classic augmentation, on the fly", "wgan"}
    ax = fig.axes[0]
    limit = next(line for line in ax.lines if line.get_label().endswith("on the fly"))
    assert list(limit.get_ydata()) == pytest.approx([0.7, 0.7])
    line = ax.containers[0].lines[0]
    np.testing.assert_allclose(
        line.get_xdata().astype(float), [40, 100, 400, 1600]
    )  # nothing added stands left of the smallest
    np.testing.assert_allclose(line.get_ydata().astype(float), [0.5, 0.55, 0.6, 0.65])
    assert ax.get_xticklabels()[0].get_text() == "0"
    boxes = [t.get_window_extent() for t in visible(fig)]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_sweep_of_one_replicate_without_intervals_is_drawn():
    warnings.simplefilter("error")
    fig = module.sweep_figure(amounts().assign(low=np.nan, high=np.nan))
    assert len(fig.axes) == 2
