"""The charts of the study: each takes plain tables, draws one figure, and shows it with its alt text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput
from stda.show.figures import GREY, INK, PALETTE, figure, show
from stda.show.tables import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# word, colour and marker say the same thing three times: no reader depends on colour
VERDICTS = {
    "helps": {"colour": "#007a5a", "marker": "^", "symbol": "▲"},
    "harms": {"colour": "#b84a00", "marker": "v", "symbol": "▼"},
    "equivalent": {"colour": "#0072B2", "marker": "s", "symbol": "■"},
    "undecided": {"colour": GREY, "marker": "o", "symbol": "○"},
}
# what an arm is held against: colour, hatch and line say the same thing, and so does the word
BANDS = {
    "placebo": {"colour": "#E69F00", "ink": "#8a5a00", "hatch": "////", "dashes": (0, (4, 2))},
    "oracle": {"colour": "#CC79A7", "ink": "#8f3f6d", "hatch": "....", "dashes": (0, (1, 1.2))},
}
LANE = 0.7  # height of a band's lane, where an arm's row is 1
N_COLOURS = len(PALETTE) - 1
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


def colour(i: int) -> str:
    """Return the i-th colour for lines and bars, beginning again after the seventh: the yellow fades on white."""
    return PALETTE[i % N_COLOURS]


def loss_curves(
    history: pd.DataFrame,
    columns: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    alt: str,
    smooth: int = 0,
    by: str = "",
    x: str = "step",
    caption: str = "",
) -> None:
    """Show columns of a training history over steps: the raw values pale, their running mean on top.

    ``columns`` is a list (one panel) or panel title to list.  The mean runs over ``smooth`` rows; 0 takes a fiftieth of
    the history.  ``by`` names a column, such as the class, whose values are drawn as separate curves.
    """
    panels = dict(columns) if isinstance(columns, Mapping) else {"": list(columns)}
    missing = [c for cs in panels.values() for c in cs if c not in history]
    if missing or not len(history):
        raise BadInput(f"The history has {len(history)} rows and no column {missing}; it has {list(history.columns)}.")
    fig, axes = figure(1, len(panels), height=3.4)
    for ax, (title, names) in zip(axes[0], panels.items(), strict=True):
        i = 0
        groups = list(history.groupby(by, sort=True)) if by else [("", history)]
        for group, rows in groups:
            for name in names:
                _curve(ax, rows, name, x=x, smooth=smooth, label=_joined(str(group), name, len(names)), i=i)
                i += 1
        ax.set_xlabel(x if x in history else "record")
        ax.yaxis.set_major_formatter("{x:.3g}")  # the full number at each tick: a "1e6" on top would hit the legend
        ax.set_title(title, loc="left", fontweight="bold", pad=6 + 15 * -(-i // (4 if len(panels) == 1 else 2)))
        legend_above(ax, columns=4 if len(panels) == 1 else 2)
    show(fig, alt=alt, caption=caption)


def _joined(group: str, name: str, n_names: int) -> str:
    words = name.replace("_", " ")
    return words if not group else (group if n_names == 1 else f"{group}: {words}")


def _curve(ax: Axes, rows: pd.DataFrame, name: str, *, x: str, smooth: int, label: str, i: int) -> None:
    steps = rows[x].to_numpy() if x in rows else np.arange(len(rows))
    values = rows[name].astype(float)
    window = smooth or max(1, len(values) // 50)
    dashes = DASHES[i // N_COLOURS % len(DASHES)]
    if window > 1:
        ax.plot(steps, values, color=colour(i), alpha=0.25, linewidth=0.8)
        values = values.rolling(window, min_periods=1).mean()
    known = values.notna()  # a loss that is written every so often is drawn as one line, not as lost points
    ax.plot(steps[known], values[known], color=colour(i), label=label, linestyle=dashes)


def legend_above(ax: Axes, *, columns: int = 4) -> None:
    """Put the legend between title and axes, where it covers no data."""
    ax.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, borderaxespad=0.1,
        handlelength=1.6, columnspacing=1.2, handletextpad=0.5, labelspacing=0.25, frameon=False, fontsize=9.5,
    )  # fmt: skip


def effects(
    verdicts: pd.DataFrame | Sequence[Mapping],
    *,
    smallest_effect: float,
    alt: str,
    metric: str = "",
    placebos: pd.DataFrame | None = None,
    caption: str = "",
) -> None:
    """Show each arm's paired difference to the baseline with its interval, the smallest effect as a band, the verdict.

    ``verdicts`` has arm, baseline, metric, difference, low, high, verdict (as verdict.json); ``metric`` picks one
    (default: the first row's).  Differences are in units of the metric.  ``placebos`` (measure.placebo_bands) adds what
    placebos and oracles change against the same baseline: those that all arms share are bands across the figure, named
    below the arms; an arm's own are bands across its row, named beneath it.  Without any verdict a sentence says so.
    """
    if not len(verdicts):
        text("No arm with synthetic images was run, so there is no difference to draw.")
        return
    fig = effects_figure(verdicts, smallest_effect=smallest_effect, metric=metric, placebos=placebos)
    show(fig, alt=alt, caption=caption)


def effects_figure(
    verdicts: pd.DataFrame | Sequence[Mapping],
    *,
    smallest_effect: float,
    metric: str = "",
    placebos: pd.DataFrame | None = None,
) -> Figure:
    """Draw what :func:`effects` shows."""
    rows = pd.DataFrame(verdicts)
    rows = rows.dropna(subset=["difference", "low", "high"]) if len(rows) else rows
    if rows.empty:
        raise BadInput("There is no verdict to draw; the study has no synthetic arm that was compared.")
    metric = metric or str(rows["metric"].iloc[0])
    rows = rows[rows["metric"] == metric].reset_index(drop=True)
    lanes = _lanes(rows, placebos)
    fig, axes = figure(height=1.3 + 0.42 * sum(lane["height"] for lane in lanes))
    ax = axes[0, 0]
    ax.axvspan(-smallest_effect, smallest_effect, color="#e8eef7", zorder=0)
    ax.axvline(0, color=INK, linewidth=1)
    for lane in lanes:
        if "kind" in lane:
            _band(ax, lane)
        else:
            _effect(ax, lane["y"], lane["row"])
    _lane_axis(ax, lanes)
    baselines = " / ".join(dict.fromkeys(rows["baseline"].astype(str)))
    band = f"shaded: within ±{smallest_effect:g}, the smallest effect of interest"
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlabel(f"difference in {metric.replace('_', ' ')} to '{baselines}'\n({band})")
    return fig


def _lanes(rows: pd.DataFrame, placebos: pd.DataFrame | None) -> list[dict]:
    """Lay out the arms from the top, beneath each the bands of its own, at the bottom those that all arms share."""
    bands = [] if placebos is None else placebos[placebos["arm"].isin(rows["arm"])].to_dict("records")
    users: dict[str, set[str]] = {}
    for band in bands:
        users.setdefault(band["against"], set()).add(band["arm"])
    everyone = {name for name, arms_of in users.items() if arms_of == set(rows["arm"]) and len(arms_of) > 1}
    lanes, top = [], -0.5

    def add(name: str, height: float, **content: object) -> None:
        nonlocal top
        lanes.append({"name": name, "y": top + height / 2, "height": height, **content})
        top += height

    for _, row in rows.iterrows():
        block = top
        add(row["arm"], 1.0, row=row)
        for band in bands:
            if band["arm"] == row["arm"] and band["against"] not in everyone:
                add(band["against"], LANE, kind=band["kind"], row=band, reach=block)
    shared = {band["against"]: band for band in bands if band["against"] in everyone}
    for name, band in shared.items():
        add(name, LANE, kind=band["kind"], row=band, reach=-0.5)
    return lanes


def _lane_axis(ax: Axes, lanes: list[dict]) -> None:
    """Write the names of arms and bands at the left, bands in their ink."""
    names = [lane["name"] for lane in lanes]
    arm_axis(ax, names)
    ax.set_yticks([lane["y"] for lane in lanes], names)
    ax.set_ylim(lanes[-1]["y"] + lanes[-1]["height"] / 2 + 0.1, -0.6)
    for lane, tick in zip(lanes, ax.get_yticklabels(), strict=True):
        tick.set_color(BANDS[lane["kind"]]["ink"] if "kind" in lane else INK)


def _effect(ax: Axes, y: float, row: pd.Series) -> None:
    """Draw an arm's difference with its interval, and the verdict in words at the right."""
    look = VERDICTS.get(row["verdict"], VERDICTS["undecided"])
    ax.plot([row["low"], row["high"]], [y, y], color=look["colour"], linewidth=2.2, solid_capstyle="butt", zorder=3)
    face = "white" if row["verdict"] == "undecided" else look["colour"]
    ax.plot(row["difference"], y, look["marker"], color=look["colour"], markerfacecolor=face, markersize=8, zorder=4)
    _beside(ax, y, row["verdict"], row, look["colour"])


def _band(ax: Axes, lane: dict) -> None:
    """Draw a placebo's or oracle's interval as a hatched band in its lane, paler above it, and its mean as a line."""
    row, look, y = lane["row"], BANDS[lane["kind"]], lane["y"]
    low, high, bottom = row["low"], row["high"], y + lane["height"] * 0.36
    ax.fill_between([low, high], lane["reach"], bottom, color=look["colour"], alpha=0.06, linewidth=0, zorder=0.5)
    ax.fill_between(
        [low, high], y - lane["height"] * 0.36, bottom, facecolor=look["colour"], alpha=0.5, linewidth=0,
        hatch=look["hatch"], edgecolor="white", zorder=1,
    )  # fmt: skip
    ax.vlines(
        row["difference"], lane["reach"], bottom, color=look["ink"], linewidth=1.1, linestyle=look["dashes"], zorder=1.5
    )
    _beside(ax, y, lane["kind"], row, look["ink"])


def _beside(ax: Axes, y: float, word: str, row: Mapping, shade: str) -> None:
    words = f"{word}  {_signed(row['difference'])} [{_signed(row['low'])}, {_signed(row['high'])}]"
    ax.text(1.02, y, words, transform=ax.get_yaxis_transform(), va="center", color=shade, fontsize=9.5)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def arm_axis(ax: Axes, names: list[str]) -> None:
    """Write the names at the left, the first on top, a row each."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)


def arms(
    metrics: pd.DataFrame,
    *,
    alt: str,
    metric: str = "balanced_accuracy",
    split: str = "test",
    lines: Mapping[str, float] | None = None,
    caption: str = "",
) -> None:
    """Show a metric by arm: a dot per replicate and a bar at their mean, best arm on top.

    ``metrics`` has replicate, arm, split, metric, value (as metrics.csv).  ``lines`` are named reference values, such
    as chance or the ceiling.
    """
    show(arms_figure(metrics, metric=metric, split=split, lines=lines), alt=alt, caption=caption)


def arms_figure(
    metrics: pd.DataFrame,
    *,
    metric: str = "balanced_accuracy",
    split: str = "test",
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """Draw what :func:`arms` shows."""
    rows = metrics[(metrics["metric"] == metric) & (metrics["split"] == split)]
    if rows.empty:
        raise BadInput(f"There is no {metric!r} on split {split!r} to draw; known: {sorted(set(metrics['metric']))}.")
    means = rows.groupby("arm")["value"].mean().sort_values(ascending=False, kind="stable")
    fig, axes = figure(height=1.15 + 0.36 * len(means) + (0.25 if lines else 0))
    ax = axes[0, 0]
    for y, (arm, mean) in enumerate(means.items()):
        values = rows.loc[rows["arm"] == arm, "value"].to_numpy()
        ax.plot(values, np.full(len(values), y), "o", color=colour(0), alpha=0.55, markersize=6)
        ax.plot([mean, mean], [y - 0.32, y + 0.32], color=INK, linewidth=2.2)
        ax.text(1.02, y, f"{mean:.3f}", transform=ax.get_yaxis_transform(), va="center", fontsize=9.5)
    for i, (name, value) in enumerate((lines or {}).items()):
        ax.axvline(value, color=colour(i + 1), linestyle=DASHES[1], label=f"{name} ({value:.3f})")
    if lines:
        legend_above(ax, columns=3)
    arm_axis(ax, list(means.index))
    ax.set_xlabel(f"{metric.replace('_', ' ')} ({split}): a dot per replicate, the bar and the number their mean")
    return fig


def class_counts(
    counts: pd.DataFrame | pd.Series, *, alt: str, unit: str = "images", log: bool = False, caption: str = ""
) -> None:
    """Show images per class as stacked bars: index the classes, columns the parts, such as train, val, test.

    ``log`` takes a logarithmic axis, and then side-by-side bars, because stacked logarithms mislead.
    """
    frame = counts.to_frame(unit) if isinstance(counts, pd.Series) else counts
    each = 0.8 / frame.shape[1] if log else 0.72
    fig, axes = figure(height=1.2 + len(frame) * (0.16 * frame.shape[1] + 0.14 if log else 0.32))
    ax = axes[0, 0]
    start = np.zeros(len(frame))
    for i, part in enumerate(frame.columns):
        y = np.arange(len(frame)) + ((i - (frame.shape[1] - 1) / 2) * each if log else 0)
        bars = ax.barh(y, frame[part], each, left=None if log else start, color=colour(i), label=str(part))
        start = start + frame[part].to_numpy()
        if log:
            ax.bar_label(bars, padding=3, fontsize=9)
    if not log:
        ax.bar_label(bars, labels=[f"{total:g}" for total in start], padding=3, fontsize=9)
    if log:
        ax.set_xscale("log")
        ax.set_xlim(left=0.8)
        ax.xaxis.set_major_formatter("{x:g}")
    ax.margins(x=0.09)
    if frame.shape[1] > 1:
        legend_above(ax, columns=4)
    arm_axis(ax, [str(name) for name in frame.index])
    ax.set_xlabel(unit + (" (logarithmic)" if log else ""))
    show(fig, alt=alt, caption=caption)


def recall_heatmap(recalls: pd.DataFrame, *, alt: str, label: str = "recall", caption: str = "") -> None:
    """Show a table of values in [0, 1] as a heat map with the numbers in it: index the arms, columns the classes."""
    import seaborn

    fig, axes = figure(height=1.0 + 0.36 * len(recalls), width=min(8.0, 2.2 + 0.75 * recalls.shape[1]))
    look = {"cmap": "cividis", "vmin": 0, "vmax": 1, "annot": True, "fmt": ".2f", "annot_kws": {"fontsize": 9.5}}
    seaborn.heatmap(recalls.astype(float), ax=axes[0, 0], cbar_kws={"label": label, "fraction": 0.05}, **look)
    axes[0, 0].grid(False)
    axes[0, 0].tick_params(length=0, rotation=0)
    show(fig, alt=alt, caption=caption)


def reliability(
    confidence: Mapping[str, np.ndarray],
    correct: Mapping[str, np.ndarray],
    *,
    alt: str,
    bins: int = 10,
    caption: str = "",
) -> None:
    """Show how often predictions are right at each confidence: name to ``(N,)`` confidences in [0, 1] and 0/1 hits.

    A point is a bin of equal width with at least one prediction; its area grows with their number.
    """
    fig, axes = figure(height=4.2, width=5.2)
    ax = axes[0, 0]
    ax.plot([0, 1], [0, 1], color=GREY, linestyle=DASHES[1], linewidth=1, label="calibrated")
    for i, name in enumerate(confidence):
        sure, hit = np.asarray(confidence[name], dtype=float), np.asarray(correct[name], dtype=float)
        which = np.minimum((sure * bins).astype(int), bins - 1)
        count = np.bincount(which, minlength=bins)
        full = count > 0
        x = np.bincount(which, sure, bins)[full] / count[full]
        y = np.bincount(which, hit, bins)[full] / count[full]
        ax.plot(x, y, color=colour(i), linewidth=1.2, label=name)
        ax.scatter(x, y, s=12 + 160 * count[full] / len(sure), color=colour(i), alpha=0.7, linewidths=0)
    ax.set_xlabel("confidence of the predicted class")
    ax.set_ylabel("share that is right")
    legend_above(ax, columns=3)
    show(fig, alt=alt, caption=caption)
