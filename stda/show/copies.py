"""The chart of copying: near copies, authenticity and the membership attack, each beside its scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stda import BadInput
from stda.show.charts import arm_axis, colour
from stda.show.figures import GREY, INK, figure, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of a panel: the columns of the value and of its interval, and what stands below it
PANELS = {
    "near copies": (("rate", "rate_low", "rate_high"), "share of images"),
    "authenticity": (("authenticity", "authenticity_low", "authenticity_high"), "share of images"),
    "membership attack": (("auc", "low", "high"), "AUC (0.5: chance)"),
}


def copies(copying: pd.DataFrame, attack: pd.DataFrame, *, alt: str, caption: str = "") -> None:
    """Show near copies, authenticity and the membership attack with their intervals, a row per space and set.

    ``copying`` is the table of measure.copying_table, whose first set holds the held-out images (grey, hollow: the
    scale), ``attack`` that of measure.membership_table.  A set is flagged by a filled triangle: copies by its
    ``copying``, the attack by an interval above 0.5.
    """
    show(copies_figure(copying, attack), alt=alt, caption=caption)


def copies_figure(copying: pd.DataFrame, attack: pd.DataFrame) -> Figure:
    """Draw what :func:`copies` shows."""
    needed = {"set", "space", "copying", *PANELS["near copies"][0], *PANELS["authenticity"][0]}
    needed_of_attack = {"set", "space", *PANELS["membership attack"][0]}
    missing = sorted(needed - set(copying)) + sorted(needed_of_attack - set(attack))
    if missing or not len(copying):
        raise BadInput(f"The tables of copying have {len(copying)} rows and no column {missing}.")
    held_out, keys = copying["set"].iloc[0], ["space", "set"]
    rows = copying.merge(attack[[*keys, *PANELS["membership attack"][0]]], on=keys, how="left", sort=False)
    flags = {
        "near copies": rows["copying"],
        "authenticity": pd.Series(False, index=rows.index),
        "membership attack": rows["low"] > 0.5,
    }
    fig, axes = figure(1, len(PANELS), height=1.7 + 0.3 * len(rows))
    for i, (ax, (title, (columns, below))) in enumerate(zip(axes[0], PANELS.items(), strict=True)):
        for y, row in rows.iterrows():
            if pd.notna(row[columns[0]]):
                _mark(ax, y, row[list(columns)].tolist(), scale=row["set"] == held_out, flagged=flags[title][y])
        arm_axis(ax, [f"{row['set']}, {row['space']}" if i == 0 else "" for _, row in rows.iterrows()])
        ax.set_title(title, loc="left", fontweight="bold")
        ax.locator_params(axis="x", nbins=4)
        ax.set_xlabel(below)
    axes[0, 2].axvline(0.5, color=INK, linewidth=1, zorder=0)
    return fig


def _mark(ax: Axes, y: int, values: list[float], *, scale: bool, flagged: bool) -> None:
    value, low, high = values
    shade = GREY if scale else colour(3 if flagged else 0)
    ax.plot([low, high], [y, y], color=shade, linewidth=2.2, solid_capstyle="butt")
    ax.plot(value, y, "^" if flagged else "o", color=shade, markerfacecolor="white" if scale else shade, markersize=7)
