"""Charts of studies with two classes, and of how honest the probabilities of every arm are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput
from stda.show.charts import arm_axis, colour, legend_above
from stda.show.figures import GREY, INK, figure, show
from stda.show.tables import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "auroc": "AUROC",
    "sensitivity_fixed": "sensitivity\n(threshold from validation)",
    "specificity_reached": "specificity reached\n(same threshold)",
}


def two_class(table: pd.DataFrame, *, alt: str, caption: str = "") -> None:
    """Show AUROC, sensitivity at the fixed specificity and the specificity reached of every arm, with intervals.

    ``table`` is that of measure.two_class_table.  Without rows (a study of more classes) a sentence says so.
    """
    if not len(table):
        text("This study has more than two classes, so there is no single sensitivity to draw.")
        return
    show(two_class_figure(table), alt=alt, caption=caption)


def two_class_figure(table: pd.DataFrame) -> Figure:
    """Draw what :func:`two_class` shows."""
    _require(table, ["arm", "kind", *(f"{name}{end}" for name in PANELS for end in ("", "_low", "_high"))])
    fig, axes = figure(1, len(PANELS), height=1.5 + 0.34 * len(table))
    for ax, (metric, name) in zip(axes[0], PANELS.items(), strict=True):
        for y, row in enumerate(table.to_dict("records")):
            synthetic = row["kind"] == "synthetic"
            look = {"color": colour(1 if synthetic else 0)}
            ax.plot([row[f"{metric}_low"], row[f"{metric}_high"]], [y, y], linewidth=2.2, solid_capstyle="butt", **look)
            ax.plot(row[metric], y, "^" if synthetic else "o", markersize=7.5, **look)
        arm_axis(ax, list(table["arm"]) if ax is axes[0, 0] else [""] * len(table))
        ax.locator_params(axis="x", nbins=4)
        ax.set_xlabel(name)
    for kind, marker, i in (("without synthetic images", "o", 0), ("with synthetic images", "^", 1)):
        axes[0, 0].plot([], [], marker, color=colour(i), label=kind)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, fontsize=9.5)
    return fig


def calibration(table: pd.DataFrame, *, alt: str, measure: str = "ece", caption: str = "") -> None:
    """Show a measure of calibration of every arm before and after temperature scaling, joined by a line.

    ``table`` is that of measure.calibration_table; ``measure`` is ece, brier or nll.
    """
    show(calibration_figure(table, measure=measure), alt=alt, caption=caption)


def calibration_figure(table: pd.DataFrame, *, measure: str = "ece") -> Figure:
    """Draw what :func:`calibration` shows."""
    _require(table, ["arm", "measure", "temperature", "before", "after"])
    rows = table[table["measure"] == measure].sort_values("before", kind="stable").reset_index(drop=True)
    if rows.empty:
        raise BadInput(f"There is no measure {measure!r} to draw; choose one of {sorted(set(table['measure']))}.")
    names = {"ece": "expected calibration error", "brier": "Brier score", "nll": "negative log likelihood (nats)"}
    fig, axes = figure(height=1.4 + 0.34 * len(rows))
    ax = axes[0, 0]
    y = np.arange(len(rows))
    ax.hlines(y, rows["before"], rows["after"], color=GREY, linewidth=1.6, zorder=1)
    look = {"linestyle": "none", "markersize": 8}
    ax.plot(rows["before"], y, "o", color=INK, markerfacecolor="white", label="as trained", **look)
    ax.plot(rows["after"], y, "s", color=colour(0), label="after temperature scaling", **look)
    for i, temperature in enumerate(rows["temperature"]):
        ax.text(1.02, i, f"T = {temperature:.2f}", transform=ax.get_yaxis_transform(), va="center", fontsize=9.5)
    arm_axis(ax, list(rows["arm"]))
    _from_zero(ax)
    ax.set_xlabel(f"{names.get(measure, measure)}, mean over replicates (less is better)")
    legend_above(ax, columns=2)
    return fig


def _from_zero(ax: Axes) -> None:
    """Begin the axis at zero, which is where honest probabilities of very many images would lie."""
    ax.set_xlim(left=0)
    ax.margins(x=0.06)


def _require(table: pd.DataFrame, columns: list[str]) -> None:
    missing = [c for c in columns if c not in table]
    if missing or not len(table):
        raise BadInput(f"The table has {len(table)} rows and no column {missing}; it has {list(table.columns)}.")
