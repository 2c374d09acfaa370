"""Charts of what synthetic images are worth: the exchange rate on a learning curve, and the sweep of amounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.exchange import ALL, exchange_texts
from stda.measure.sweep import LEAST, saturation_sentence
from stda.show.charts import DASHES, arm_axis, colour
from stda.show.figures import GREY, INK, STYLE, figure, show
from stda.show.tables import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("*", "D", "^", "s", "P", "X")
MOST_CLASSES = 7  # small panels; the rarest classes come first
COLUMNS = 4  # of the small panels
ROOM = 1.35  # factor by which the axis goes on beyond the curve, where open intervals point


def exchange(curve: pd.DataFrame, table: pd.DataFrame, *, alt: str, caption: str = "") -> None:
    """Show the learning curve, the arms with synthetic images on it, and what their images are worth.

    ``curve`` is the table of measure.learning_curve, ``table`` that of measure.exchange_table.  Top: a dot per arm of
    the curve with its interval as a band, and every synthetic arm at its score.  Middle: where it lies on the axis of
    real lesions, with its interval; an arrow is an open end.  Below: the recall of each class over its own lesions, at
    most seven, rarest first.  With one of the tables empty a sentence says that there is nothing to draw.
    """
    if not len(curve) or not len(table):
        text("There is no exchange rate to draw: it takes arms on parts of the real lesions and a synthetic arm.")
        return
    show(exchange_figure(curve, table), alt=alt, caption=caption)


def exchange_figure(curve: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Draw what :func:`exchange` shows."""
    _require(curve, ["class", "metric", "arm", "lesions", "mean", "low", "high", "fitted"])
    _require(table, ["arm", "class", "score", "lesions", "worth_lesions", "low_lesions", "high_lesions", "beyond"])
    arms = list(dict.fromkeys(table["arm"]))
    sizes = curve[curve["class"] != ALL].groupby("class")["lesions"].max().sort_values(kind="stable")
    classes = [name for name in sizes.index if name in set(table["class"])][:MOST_CLASSES]
    rows = -(-len(classes) // COLUMNS)
    heights = [3.3 + 0.3 * len(arms), 0.3 + 1.75 * rows]
    fig, (main, strip), panels = _layout(heights if classes else heights[:1], rows, strip=0.25 + 0.3 * len(arms))

    whole = table[table["class"] == ALL].set_index("arm")
    _curve(main, curve[curve["class"] == ALL], whole, arms)
    main.set_ylabel(curve.loc[curve["class"] == ALL, "metric"].iloc[0].replace("_", " "))
    main.tick_params(axis="x", labelbottom=False)
    _strip(strip, main, whole, arms)
    for ax, name in zip(panels, classes, strict=False):
        own = table[table["class"] == name].set_index("arm")
        _curve(ax, curve[curve["class"] == name], own, arms, bars=True)
        ax.set_title(f"recall of {name}", fontsize=9.5)
    for ax in panels[len(classes) :]:
        ax.set_axis_off()
    return fig


def sweep(table: pd.DataFrame, *, alt: str, caption: str = "") -> None:
    """Show each metric of measure.sweep_table against the amount of added images, a line per family with intervals.

    The amount is logarithmic, with 0 at the left edge; the limit of augmentation on the fly is a dashed line.  Families
    with fewer than three amounts are not drawn; when none is left, a sentence says how to run a sweep.
    """
    drawn = _swept(table)
    if not len(drawn):
        text(saturation_sentence(pd.DataFrame({"words": []})))
        return
    show(sweep_figure(drawn), alt=alt, caption=caption)


def sweep_figure(table: pd.DataFrame) -> Figure:
    """Draw what :func:`sweep` shows."""
    _require(table, ["family", "amount", "metric", "mean", "low", "high"])
    drawn = _swept(table)
    if not len(drawn):
        raise BadInput(f"No family of the sweep has {LEAST} amounts of added images: there is no line to draw.")
    metrics = list(dict.fromkeys(drawn["metric"]))
    fig, axes = figure(1, len(metrics), height=3.7)
    for ax, metric in zip(axes[0], metrics, strict=True):
        rows = drawn[drawn["metric"] == metric]
        amounts = rows.loc[(rows["amount"] > 0) & np.isfinite(rows["amount"]), "amount"]
        zero = amounts.min() / 2.5  # where nothing added stands on the logarithmic axis
        for i, (family, members) in enumerate(rows.groupby("family", sort=False)):
            _family(ax, members, zero, i, str(family))
        ax.set_xscale("log")
        _ticks(ax, [zero, *_round_numbers(amounts.min(), amounts.max())], [0])
        ax.set_xlim(zero / 1.3, amounts.max() * 1.3)
        ax.set_xlabel("images added in total (logarithmic)")
        ax.set_ylabel(metric.replace("_", " "))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, fontsize=9.5)
    return fig


def _family(ax: Axes, members: pd.DataFrame, zero: float, i: int, family: str) -> None:
    """Draw one line of the sweep, shifted a little so that intervals of two families do not hide each other."""
    look = {"color": colour(i), "marker": MARKERS[(i + 1) % len(MARKERS)], "markersize": 5}
    limit = members[np.isinf(members["amount"])]
    line = members[np.isfinite(members["amount"])].sort_values("amount")
    x = np.where(line["amount"] > 0, line["amount"], zero) * 1.03**i
    below, above = line["mean"] - line["low"], line["high"] - line["mean"]
    known = np.isfinite(below) & np.isfinite(above)
    bars = np.vstack([below.where(known, 0.0), above.where(known, 0.0)])
    ax.errorbar(x, line["mean"], yerr=bars, capsize=3, elinewidth=1.1, linestyle=DASHES[i % 2], label=family, **look)
    if len(limit):
        value = limit["mean"].iloc[0]
        ax.axhline(value, color=colour(i), linestyle=DASHES[2], linewidth=1.3, label=f"{family}, on the fly")


def _swept(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the families with enough amounts above none."""
    if not len(table):
        return table
    added = table[(table["amount"] > 0) & np.isfinite(table["amount"])]
    amounts = added.groupby("family")["amount"].nunique()
    return table[table["family"].isin(amounts.index[amounts >= LEAST])]


def _curve(ax: Axes, curve: pd.DataFrame, table: pd.DataFrame, arms: list[str], *, bars: bool = False) -> None:
    """Draw a learning curve with its band, and the synthetic arms that have a place on it."""
    curve = curve.sort_values("lesions")
    x = curve["lesions"].to_numpy(dtype=float)
    known = curve["low"].notna()
    ax.fill_between(x[known], curve["low"][known], curve["high"][known], color=GREY, alpha=0.15, linewidth=0)
    ax.plot(x, curve["fitted"], color=INK, linewidth=1.4)
    ax.plot(x, curve["mean"], "o", color=INK, markersize=4.5)
    ax.set_xscale("log")
    ax.set_xlim(x.min() / ROOM, x.max() * ROOM)
    _ticks(ax, _apart(x, 3 if bars else 8))
    left = ax.get_xlim()[0]
    for i, arm in enumerate(arms):
        if arm not in table.index:
            continue
        row = table.loc[arm]
        if not np.isfinite(row["worth_lesions"]):
            ax.axhline(row["score"], color=colour(i), linestyle=DASHES[2], linewidth=1)
            continue
        at = max(row["lesions"] + row["worth_lesions"], left)
        if bars:
            _interval(ax, row, row["score"], i)
        else:
            ax.plot([left, at], [row["score"]] * 2, color=colour(i), linestyle=DASHES[2], linewidth=1)
        ax.plot(at, row["score"], MARKERS[i % len(MARKERS)], color=colour(i), markersize=_size(i), zorder=4)


def _strip(ax: Axes, main: Axes, table: pd.DataFrame, arms: list[str]) -> None:
    """Draw each arm's place on the axis of real lesions with its interval, and its worth in images as words."""
    ax.set_xscale("log")
    ax.set_xlim(main.get_xlim())
    arm_axis(ax, arms)
    words = exchange_texts(table.reset_index())["worth in real images"]
    bottom = main.get_ylim()[0]
    for i, arm in enumerate(arms):
        row = table.loc[arm]
        if not np.isfinite(row["worth_lesions"]):  # no place on the curve: the row tells whose line is whose
            ax.axhline(i, color=colour(i), linestyle=DASHES[2], linewidth=1)
        else:
            at = max(row["lesions"] + row["worth_lesions"], ax.get_xlim()[0])
            _interval(ax, row, i, i)
            ax.plot(at, i, MARKERS[i % len(MARKERS)], color=colour(i), markersize=_size(i), zorder=4)
            ax.plot([at, at], [-0.6, i], color=colour(i), linestyle=DASHES[2], linewidth=1)
            main.plot([at, at], [bottom, row["score"]], color=colour(i), linestyle=DASHES[2], linewidth=1)
        said = words[i] if np.isfinite(row["worth"]) else row["words"]
        ax.text(1.02, i, said, transform=ax.get_yaxis_transform(), va="center", color=INK, fontsize=9)
    main.set_ylim(bottom=bottom)
    own = table["lesions"].unique()
    if len(own) == 1 and own[0] > 0:
        for part in (main, ax):
            part.axvline(own[0], color=GREY, linewidth=1, linestyle=DASHES[1], zorder=1)
        main.text(own[0], 1.01, "train fold", transform=main.get_xaxis_transform(), ha="center", color=GREY, fontsize=9)
    _ticks(ax, main.get_xticks())
    ax.set_xlabel("real lesions (logarithmic); at the right: worth in real images")


def _interval(ax: Axes, row: pd.Series, y: float, i: int) -> None:
    """Draw an interval in lesions at height ``y``; an open end goes to the edge of the picture as an arrow."""
    left, right = ax.get_xlim()
    low, high = row["lesions"] + row["low_lesions"], row["lesions"] + row["high_lesions"]
    ends = [max(low, left), min(high, right)]
    ax.plot(ends, [y, y], color=colour(i), linewidth=2, solid_capstyle="butt", alpha=0.8)
    for end, edge, marker in ((low, left, "<"), (high, right, ">")):
        if np.isinf(end):
            ax.plot(edge, y, marker, color=colour(i), markersize=5.5, clip_on=False, zorder=4)


def _size(i: int) -> float:
    return 11 if MARKERS[i % len(MARKERS)] == "*" else 7


def _layout(heights: list[float], rows: int, *, strip: float) -> tuple[Figure, np.ndarray, list[Axes]]:
    """Return the figure, its large axes and those of the classes, which share no columns with the large ones."""
    import matplotlib

    fig, _ = figure(height=sum(heights))
    fig.clear()
    with matplotlib.rc_context(STYLE):
        parts = fig.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        large = parts[0].subplots(2, 1, height_ratios=[heights[0] - strip - 0.6, strip])
        if len(heights) == 1:
            return fig, large, []
        small = parts[1].subplots(rows, COLUMNS, squeeze=False).ravel()
    parts[1].supxlabel("real lesions of the class (logarithmic)", fontsize=10, x=0.01, ha="left")
    return fig, large, list(small)


def _apart(values: np.ndarray, most: int) -> list[float]:
    """Return the last of the rising values and those before it that leave room for their labels."""
    least = (values[-1] / values[0]) ** (0.99 / most)
    kept = [values[-1]]
    for value in values[-2::-1]:
        if kept[-1] / value >= least and kept[-1] > value:
            kept.append(value)
    return kept[::-1]


def _round_numbers(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten within the range, or the powers alone when they are many; never none."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    fine = [p * f for p in powers for f in (1, 2, 5) if low <= p * f <= high]
    chosen = fine if len(fine) <= 7 else [p for p in powers if low <= p <= high]
    return chosen or [low, high]


def _ticks(ax: Axes, places: list[float], labels: list[int] | tuple = ()) -> None:
    """Put ticks at these places and nowhere else; ``labels`` replace the first ones."""
    words = [f"{place:.0f}" for place in places]
    words[: len(labels)] = [str(label) for label in labels]
    ax.set_xticks(places, words)
    ax.minorticks_off()


def _require(table: pd.DataFrame, columns: list[str]) -> None:
    missing = [c for c in columns if c not in table]
    if missing or not len(table):
        raise BadInput(f"The table has {len(table)} rows and no column {missing}; it has {list(table.columns)}.")
