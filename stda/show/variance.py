"""The chart of where the variance of a score comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput
from stda.show.charts import arm_axis
from stda.show.figures import GREY, INK, PALETTE, figure, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    "split": (PALETTE[0], ""),
    "test sampling": (PALETTE[4], "...."),
    "generator": (PALETTE[1], "////"),
    "classifier": (PALETTE[2], "\\\\\\\\"),
}
COLUMNS = ("arm", "part", "sd", "low", "high", "share")


def variance_parts(table: pd.DataFrame, *, alt: str, caption: str = "") -> None:
    """Show the share of each part in the variance of every arm, and the parts as standard deviations with intervals.

    ``table`` is that of measure.variance_table.  At the left a stacked bar per arm; at the right, for the arms pooled
    by kind (without them: for every arm), a dot and interval per part in units of the metric.
    """
    show(variance_parts_figure(table), alt=alt, caption=caption)


def variance_parts_figure(table: pd.DataFrame) -> Figure:
    """Draw what :func:`variance_parts` shows; with one split there are no shares, and the left panel is left out."""
    missing = [column for column in COLUMNS if column not in table]
    if missing or not len(table):
        raise BadInput(f"The table has {len(table)} rows and no column {missing}; it has {list(table.columns)}.")
    names = list(dict.fromkeys(table["arm"]))
    pooled = [name for name in names if name.startswith("all ")] or names
    lines = table["arm"].isin(pooled).sum() + len(pooled)
    panels = 2 if table["share"].notna().any() else 1
    fig, axes = figure(1, panels, height=1.6 + max(0.34 * len(names) * (panels - 1), 0.27 * lines))
    if panels == 2:
        _shares(axes[0, 0], table, names)
        fig.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9.5)
    _deviations(axes[0, -1], table, pooled)
    return fig


def _look(part: str) -> tuple[str, str]:
    """Return colour and hatch of a part; a joined one has the colour of its first name and the hatches of all."""
    parts = part.split(" + ")
    return LOOKS[parts[0]][0], "".join(LOOKS[name][1] for name in parts)


def _shares(ax: Axes, table: pd.DataFrame, names: list[str]) -> None:
    """Draw a stacked bar per arm; an arm with one split has none, and says so."""
    order = list(LOOKS)
    parts = sorted(dict.fromkeys(table["part"]), key=lambda part: order.index(part.split(" + ")[0]))
    shares = table.pivot(index="arm", columns="part", values="share").reindex(index=names, columns=parts)
    start = np.zeros(len(names))
    for part in parts:
        shade, hatch = _look(part)
        width = shares[part].fillna(0.0).to_numpy()
        look = {"color": shade, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
        ax.barh(range(len(names)), width, 0.66, left=start, label=part, **look)
        start = start + width
    for y in np.flatnonzero(shares.isna().all(axis=1)):
        ax.text(0.01, y, "one split: no shares", va="center", color=GREY, fontsize=9.5)
    arm_axis(ax, names)
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of the variance")


def _deviations(ax: Axes, table: pd.DataFrame, names: list[str]) -> None:
    """Draw the parts of the named arms as dots with intervals, a line each; an interval may leave the picture."""
    labels, y, farthest = [], 0.0, 3 * float(table["sd"].max()) or 1.0
    for name in names:
        labels.append((y, name, "bold"))
        for row in table[table["arm"] == name].itertuples():
            y += 1.0
            shade = _look(row.part)[0]
            if np.isfinite(row.high):
                ax.plot([row.low, row.high], [y, y], color=shade, linewidth=2.2, solid_capstyle="butt")
                if row.high > farthest:
                    ax.plot(farthest, y, ">", color=shade, markersize=7, clip_on=False, zorder=4)
            ax.plot(row.sd, y, "o", color=shade, markersize=7, zorder=3)
            labels.append((y, row.part.replace(" + classifier", "\n+ classifier"), "normal"))
        y += 1.2
    ax.set_yticks([at for at, _, _ in labels], [text for _, text, _ in labels])
    for tick, (_, _, weight) in zip(ax.get_yticklabels(), labels, strict=True):
        tick.set_fontweight(weight)
        tick.set_color(INK)
    ax.set_ylim(y - 0.5, -0.6)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(-0.02 * farthest, farthest)
    ax.locator_params(axis="x", nbins=4)
    ax.set_xlabel("standard deviation of the metric\n(an arrow: the interval goes on)")
