"""Charts of what attribution maps are worth and of where classifiers look; the maps are in attributions.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput
from stda.explain.perturbation import mean_interval
from stda.show.charts import DASHES, arm_axis, colour
from stda.show.figures import DPI, GREY, INK, WIDTH, figure, show, wrapped
from stda.show.tables import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = "#c9ced4"
REFERENCES = {  # orders that a map must beat
    "random": {"color": GREY, "linestyle": DASHES[1]},
    "input magnitude": {"color": INK, "linestyle": DASHES[2]},
}
MEASURES = {"spearman": "rank correlation with the map before", "ssim": "structural similarity to the map before"}
ARMS = 7  # arms that one chart tells apart
ALIKE = 1e-3  # probability: mean curves that differ by less are one line
LITTLE = 1 / 2  # of the top of the axis: an axis whose curves all stay above does not begin at zero
ANSWERS = {
    "more": {"color": "#007a5a", "marker": "^"},
    "less": {"color": "#b84a00", "marker": "v"},
    "equivalent": {"color": "#0072B2", "marker": "s"},
    "no difference seen": {"color": GREY, "marker": "o", "markerfacecolor": "white"},
    "undecided": {"color": GREY, "marker": "D", "markerfacecolor": "white"},
}


def perturbation_curves(
    curves: pd.DataFrame,
    *,
    alt: str,
    titles: Mapping[str, str] | None = None,
    best: int = 4,
    caption: str = "",
) -> None:
    """Show how the probability falls while regions are replaced, most relevant first: a panel per replacement.

    ``curves`` is that of explain.perturbation_curves for one arm: ``method, replace, ranking, order, image, regions,
    probability``.  The mean over images and random orders is drawn.  Methods whose ranking is recomputed have colours,
    and so have the ``best`` others beside them, by the area over the curve in the panels that all methods have; the
    first has the broadest line, so that close curves are all seen.  Methods with the same curves (to :data:`ALIKE`)
    count once, under the name of the first.  At most seven have colours; random and input-magnitude orders are the
    references, all others pale.  The first and random have a band of plus and minus one standard error over images.
    Each row has its own scale, which begins at 0 unless all its curves stay in the upper half.  ``titles`` are names
    for the legend.  Raises BadInput for several arms.
    """
    show(perturbation_curves_figure(curves, titles=titles, best=best), alt=alt, caption=caption)


def perturbation_curves_figure(
    curves: pd.DataFrame, *, titles: Mapping[str, str] | None = None, best: int = 4
) -> Figure:
    """Draw what :func:`perturbation_curves` shows."""
    keys = ["replace", "ranking"]
    _require(curves, ["method", *keys, "image", "regions", "probability"])
    if "arm" in curves and curves["arm"].nunique() > 1:
        raise BadInput(f"The curves are of {curves['arm'].nunique()} arms: draw one figure for each of them.")
    means = curves.groupby([*keys, "method", "image", "regions"], sort=False)["probability"].mean().unstack("regions")
    panels = list(dict.fromkeys(zip(curves["replace"], curves["ranking"], strict=True)))
    alike = _coloured(curves, best)
    chosen, tried = list(alike), set(curves["method"]) - set(REFERENCES)
    names = {name: _titled(name, titles) for name in (*REFERENCES, *tried)}
    names |= {name: f"{names[name]} (and {n} alike)" for name, n in alike.items() if n}
    looks = dict(REFERENCES)
    for i, name in enumerate(chosen):
        looks[name] = {"color": colour(i), "linewidth": 1.4 + 0.5 * (len(chosen) - 1 - i), "zorder": 3 + 0.1 * i}
    several = curves["ranking"].nunique() > 1  # a row for each replacement then
    columns = 2 if several or len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    fig, axes = figure(rows, columns, height=0.9 + (2.5 if rows < 3 else 2) * rows)
    for ax, key in _panels(axes, panels):
        for name, values in _with_references(means, *key).items():
            _curve(ax, values, looks.get(name), names[name], band=name in ("random", *chosen[:1]))
        ax.set_title(f"{key[0]}, {key[1]} ranking" if several else key[0], loc="left")
        ax.xaxis.get_major_locator().set_params(integer=True)
    for row in axes:
        low, high = zip(*(ax.get_ylim() for ax in row if ax.axison), strict=True)
        for ax in row:
            ax.set_ylim(min(low) if min(low) > LITTLE * max(high) else 0, max(high))
    if others := len(tried) - len(chosen) - sum(alike.values()):
        axes[0, 0].plot([], [], color=PALE, label=f"other methods ({others})")
    fig.supxlabel("regions replaced", fontsize=10)
    fig.supylabel("class probability" + (", each row on its own scale" if rows > 1 else ""), fontsize=10)
    _legend(fig, order=[names[name] for name in (*chosen, *REFERENCES)])
    return fig


def _coloured(curves: pd.DataFrame, best: int) -> dict[str, int]:
    """Return the methods to colour, largest area over the curve first, and how many others each stands for.

    A method whose ranking is recomputed while that of others is not comes on top of ``best``.
    """
    table = curves.groupby(["replace", "ranking", "regions", "method"])["probability"].mean().unstack("method")
    table = table.drop(columns=list(REFERENCES), errors="ignore")
    common = table.dropna()
    level = common.mean()  # all curves start at the same value: the lower, the larger the area above
    extra = table.notna().sum() > len(common)
    alike: dict[str, int] = {}
    for name in sorted(table, key=lambda name: (not extra[name], level[name])):
        same = next((known for known in alike if (table[known] - table[name]).abs().max() < ALIKE), name)
        alike[same] = alike.get(same, -1) + 1
    chosen = list(alike)[: min(int(extra[list(alike)].sum()) + best, ARMS)]
    return {name: alike[name] for name in sorted(chosen, key=level.get)}


def _with_references(means: pd.DataFrame, replace: str, ranking: str) -> dict[str, np.ndarray]:
    """Return the curves ``(images, steps)`` of a panel by method; a reference is never recomputed, so it is in both."""
    curves = {}
    for name, rows in means.loc[replace].groupby("method", sort=False):
        own = rows[rows.index.get_level_values("ranking") == ranking]
        if len(own) or name in REFERENCES:
            curves[name] = (own if len(own) else rows).to_numpy()
    return curves


def _curve(ax: Axes, values: np.ndarray, look: dict | None, name: str, *, band: bool) -> None:
    """Draw the mean of curves ``(images, steps)``, pale without a look; the band is its standard error over images."""
    mean, steps = values.mean(axis=0), np.arange(values.shape[1])
    if look is None:
        ax.plot(steps, mean, color=PALE, linewidth=0.9, zorder=1)
        return
    ax.plot(steps, mean, label=name, **{"zorder": 3} | look)
    if band and len(values) > 1:
        error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
        ax.fill_between(steps, mean - error, mean + error, color=look["color"], alpha=0.15, linewidth=0, zorder=2)


def sanity_curves(
    table: pd.DataFrame,
    *,
    alt: str,
    titles: Mapping[str, str] | None = None,
    measure: str = "spearman",
    caption: str = "",
) -> None:
    """Show how alike a map stays while the network is randomised from the top: a panel per method.

    ``table`` is that of explain.randomisation_table: ``method, layer, randomised, image`` and the column ``measure``;
    layers drawn alone, not one after the other, are drawn by their place from the top.  Each line is the mean over
    images of an arm (at most seven), the lines of the other methods are pale in every panel.  A map that stays near 1
    does not depend on what the network has learned.
    """
    show(sanity_curves_figure(table, titles=titles, measure=measure), alt=alt, caption=caption)


def sanity_curves_figure(
    table: pd.DataFrame, *, titles: Mapping[str, str] | None = None, measure: str = "spearman"
) -> Figure:
    """Draw what :func:`sanity_curves` shows."""
    _require(table, ["method", "layer", "randomised", measure])
    alone = table["randomised"].nunique() < table["layer"].nunique()
    table = table if "arm" in table else table.assign(arm="")
    table = table.assign(step=pd.factorize(table["layer"])[0])
    arms = _few(table)
    means = table.groupby(["method", "arm", "step"], sort=False)[measure].mean().unstack("step")
    means = means.sort_index(axis=1)
    methods = list(dict.fromkeys(table["method"]))
    columns = min(4, len(methods))
    rows = -(-len(methods) // columns)
    fig, axes = figure(rows, columns, height=0.8 + 1.35 * rows + (0.9 if rows == 1 else 0))
    lowest = min(-0.1, float(means.min().min()) - 0.05)
    for ax, method in _panels(axes, methods):
        ax.plot(means.columns, means.to_numpy().T, color=PALE, linewidth=0.6, zorder=1)
        ax.axhline(0, color=INK, linewidth=0.8, zorder=2)
        for i, arm in enumerate(arms):
            if (method, arm) in means.index:
                look = {"color": colour(i), "linestyle": DASHES[i % len(DASHES)], "linewidth": 2, "zorder": 3}
                ax.plot(means.columns, means.loc[(method, arm)], label=arm, **look)
        ax.set_title(wrapped(_titled(method, titles), WIDTH * DPI / columns - 50, 9.5), fontsize=9.5, loc="left")
        ax.set_ylim(lowest, 1.05)
        ax.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        place = methods.index(method)
        ax.tick_params(labelbottom=place + columns >= len(methods), labelleft=place % columns == 0)
    words = "layer randomised alone, counted from the top" if alone else "layers randomised, from the top"
    fig.supxlabel(words, fontsize=10)
    fig.supylabel(MEASURES.get(measure, measure), fontsize=10)
    if len(arms) > 1:
        _legend(fig)
    return fig


def attention(table: pd.DataFrame, *, alt: str, titles: Mapping[str, str] | None = None, caption: str = "") -> None:
    """Show by how much more or less each arm looks at the lesion and at artefacts: rows arms, a panel per object.

    ``table`` is that of measure.attention_table: ``arm, against, what, method, difference, low, high, answer``;
    differences are of shares of positive relevance.  With several methods each arm has a row for each.  An arm that was
    not compared is left out; without any row a sentence says so.  Raises BadInput for an unknown answer.
    """
    if not len(table) or not np.isfinite(table["difference"]).any():
        text("No arm was compared with another, so there is no difference in attention to draw.")
        return
    show(attention_figure(table, titles=titles), alt=alt, caption=caption)


def attention_figure(table: pd.DataFrame, *, titles: Mapping[str, str] | None = None) -> Figure:
    """Draw what :func:`attention` shows."""
    _require(table, ["arm", "against", "what", "method", "difference", "low", "high", "answer"])
    table = table[np.isfinite(table["difference"])]
    unknown = sorted(set(table["answer"]) - set(ANSWERS))
    if unknown or not len(table):
        raise BadInput(f"There are {len(table)} finite differences; answers are {', '.join(ANSWERS)}, not {unknown}.")
    several = table["method"].nunique() > 1
    keys = list(dict.fromkeys(zip(table["arm"], table["method"], strict=True)))
    names = [f"{arm}, {_titled(method, titles)}" if several else arm for arm, method in keys]
    objects = list(dict.fromkeys(table["what"]))
    low, high = _scale(table)  # one for all panels
    fig, axes = figure(1, len(objects), height=1.5 + 0.3 * len(names))
    for ax, what in zip(axes[0], objects, strict=True):
        ax.axvline(0, color=INK, linewidth=1)
        for row in table[table["what"] == what].to_dict("records"):
            y = keys.index((row["arm"], row["method"]))
            look = ANSWERS[row["answer"]]
            ax.plot([row["low"], row["high"]], [y, y], color=look["color"], linewidth=2.2, solid_capstyle="butt")
            ax.plot(row["difference"], y, linestyle="", markersize=7, zorder=4, **look)
            for end, beyond, marker in ((low, row["low"] < low, "<"), (high, row["high"] > high, ">")):
                if beyond:
                    ax.plot(end, y, marker=marker, color=look["color"], markersize=6)
        arm_axis(ax, names if ax is axes[0, 0] else [""] * len(names))
        ax.locator_params(axis="x", nbins=3 if len(objects) > 2 else 5)
        ax.set_title(what, loc="left")
        ax.set_xlim(low, high)
    for word, look in ANSWERS.items():
        if word in set(table["answer"]):
            axes[0, 0].plot([], [], linestyle="", label=word, **look)
    against = " / ".join(dict.fromkeys(table["against"].astype(str)))
    fig.supxlabel(f"difference in the share of positive relevance, to '{against}'", fontsize=10)
    _legend(fig)
    return fig


def _scale(table: pd.DataFrame) -> tuple[float, float]:
    """Return the ends of the axis: zero, all differences, and all intervals but a few very wide ones."""
    ends = table[["low", "high"]]
    ends = ends.where(ends.abs() <= 10 * ends.abs().median(axis=None))  # what is wider goes beyond, with an arrow
    low = min(table["difference"].min(), ends["low"].fillna(0).min(), -0.01)
    high = max(table["difference"].max(), ends["high"].fillna(0).max(), 0.01)
    return low - 0.08 * (high - low), high + 0.08 * (high - low)


def focus(table: pd.DataFrame, *, alt: str, titles: Mapping[str, str] | None = None, caption: str = "") -> None:
    """Show how far the relevance inside the lesion goes beyond the lesion's share of the area, a row per method.

    ``table`` is that of explain.focus_table: ``method, group, gain``, and ``arm`` (at most seven).  ``gain`` is, image
    by image, the share of positive relevance inside the lesion minus the share of the area, in -1..1: a map that
    spreads its relevance evenly has 0, and lesions of different sizes add no spread.  A dot is the mean over images
    whose map has positive relevance, its line the 95% interval (Student's, lesions as the unit; one lesion
    has none).  The number is the mean over arms, the method with the largest is on top.  BadInput without a gain.
    """
    show(focus_figure(table, titles=titles), alt=alt, caption=caption)


def focus_figure(table: pd.DataFrame, *, titles: Mapping[str, str] | None = None) -> Figure:
    """Draw what :func:`focus` shows."""
    _require(table, ["method", "group", "gain"])
    table = table if "arm" in table else table.assign(arm="")
    table = table[np.isfinite(table["gain"])]
    if not len(table):
        raise BadInput("No map has positive relevance, so there is no share inside the lesion to draw.")
    arms = _few(table)
    means = table.groupby("method")["gain"].mean().sort_values(ascending=False, kind="stable")
    fig, axes = figure(height=1.3 + (0.16 + 0.13 * len(arms)) * len(means))
    ax = axes[0, 0]
    ax.axvline(0, color=INK, linestyle=DASHES[1], linewidth=1.2, label="relevance spread evenly")
    for i, arm in enumerate(arms):
        for y, method in enumerate(means.index):
            rows = table[(table["method"] == method) & (table["arm"] == arm)]
            if not len(rows):
                continue
            mean, (low, high) = rows["gain"].mean(), mean_interval(rows["gain"].to_numpy(), rows["group"].to_numpy())
            at = y + (i - (len(arms) - 1) / 2) * 0.6 / len(arms)
            ax.plot([low, high], [at, at], color=colour(i), linewidth=2.2, solid_capstyle="butt")
            ax.plot(mean, at, "os^vDPX"[i], color=colour(i), markersize=6, zorder=3)
        if len(arms) > 1:
            ax.plot([], [], "os^vDPX"[i], color=colour(i), label=arm)
    for y, mean in enumerate(means):
        words = f"{round(mean, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")  # a negative zero is a zero
        ax.text(1.02, y, words, transform=ax.get_yaxis_transform(), va="center", fontsize=9.5)
    arm_axis(ax, [_titled(method, titles) for method in means.index])
    ax.set_xlabel("share of relevance inside the lesion, beyond its share of the area")
    _legend(fig)
    return fig


def _require(table: pd.DataFrame, columns: list[str]) -> None:
    missing = [column for column in columns if column not in table]
    if missing or not len(table):
        raise BadInput(f"The table has {len(table)} rows and no column {missing}; it has {list(table.columns)}.")


def _few(table: pd.DataFrame) -> list[str]:
    """Return the arms of a table; raise where they are more than a chart tells apart."""
    arms = list(dict.fromkeys(table["arm"]))
    if len(arms) > ARMS:
        raise BadInput(f"The table has {len(arms)} arms, a chart tells {ARMS} apart: choose some of them.")
    return arms


def _panels(axes: np.ndarray, keys: list) -> Iterator[tuple[Axes, object]]:
    """Yield an axis for every key and switch off those that are left over."""
    flat = list(axes.flat)
    for ax in flat[len(keys) :]:
        ax.set_axis_off()
    yield from zip(flat, keys, strict=False)


def _titled(name: str, titles: Mapping[str, str] | None) -> str:
    return (titles or {}).get(name, name.replace("_", " "))


def _legend(fig: Figure, *, order: Sequence[str] = ()) -> None:
    """Put one legend for all panels above them; names in ``order`` come first."""
    found = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = sorted(found, key=lambda label: order.index(label) if label in order else len(order))
    fig.legend(
        [found[label] for label in labels], labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9.5
    )
