"""Figures on artefacts: how often pictures have them, and how often an answer switches when one is inserted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stda import BadInput
from stda.show.charts import arm_axis, colour, legend_above
from stda.show.figures import GREY, figure, show
from stda.show.tables import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^DvPX"
SPACING = 0.2  # between the sets of one artefact


def prevalence(table: pd.DataFrame, *, alt: str, caption: str = "") -> None:
    """Show the share of pictures with each artefact by set, as detected, with its interval.

    ``table`` is that of :func:`stda.measure.prevalence_table`.  Artefacts that cannot be seen are left out; without
    any, a sentence says so.
    """
    if table["detected"].isna().all():
        text("No artefact can be seen at this size, so there is no share to draw.")
        return
    show(prevalence_figure(table), alt=alt, caption=caption)


def prevalence_figure(table: pd.DataFrame) -> Figure:
    """Draw what :func:`prevalence` shows."""
    rows = table.dropna(subset=["detected"])
    if rows.empty:
        raise BadInput("There is no share of an artefact to draw: none can be seen at this size.")
    artefacts, sets = list(dict.fromkeys(rows["artefact"])), list(dict.fromkeys(rows["set"]))
    fig, axes = figure(height=1.2 + len(artefacts) * max(0.45, 0.22 * len(sets)))
    ax = axes[0, 0]
    for i, name in enumerate(sets):
        part = rows[rows["set"] == name]
        y = [artefacts.index(a) + SPACING * (i - (len(sets) - 1) / 2) for a in part["artefact"]]
        ax.hlines(y, part["low"], part["high"], color=colour(i), linewidth=2)
        ax.plot(part["detected"], y, MARKERS[i % len(MARKERS)], color=colour(i), label=name, markersize=6)
    legend_above(ax)
    arm_axis(ax, artefacts)
    ax.set_xlim(left=0)
    ax.set_xlabel("share of pictures in which the detector finds it, with interval")
    return fig


def switch_rates(rates: pd.DataFrame, *, alt: str, caption: str = "") -> None:
    """Show, a panel per artefact, how often each arm's answers switch, and under an equally strong light (grey bar).

    ``rates`` is the table of :func:`stda.measure.switch_rates`; alterations without such a scale are left out.
    """
    show(switch_rates_figure(rates), alt=alt, caption=caption)


def switch_rates_figure(rates: pd.DataFrame) -> Figure:
    """Draw what :func:`switch_rates` shows."""
    rows = rates.dropna(subset=["light"])
    if rows.empty:
        raise BadInput("No artefact was inserted, or none with its scale: there is no switch rate to draw.")
    artefacts, arms = list(dict.fromkeys(rows["altered"])), list(dict.fromkeys(rows["arm"]))
    columns = min(2, len(artefacts))
    n_rows = -(-len(artefacts) // columns)
    fig, axes = figure(n_rows, columns, height=n_rows * (0.9 + 0.3 * len(arms)) + 0.3)
    for ax in axes.flat[len(artefacts) :]:
        ax.set_visible(False)
    for ax, name in zip(axes.flat, artefacts, strict=False):
        _panel(ax, rows[rows["altered"] == name].set_index("arm").loc[arms])
        ax.set_title(name, loc="left", fontweight="bold")
        arm_axis(ax, arms)
    for ax in axes[-1]:
        ax.set_xlabel("share of answers that switch")
    for ax in axes[:, 1:].flat:
        ax.tick_params(axis="y", labelleft=False)
    return fig


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    for y, row in enumerate(rows.itertuples()):
        decided = row.than_baseline in ("more", "fewer")
        shade = colour(1) if row.than_baseline == "more" else colour(0)
        ax.plot([row.low, row.high], [y, y], color=shade, linewidth=2)
        ax.plot(
            row.switched,
            y,
            "^" if decided else "o",
            color=shade,
            markersize=7,
            markerfacecolor=shade if decided else "white",
        )
        ax.plot([row.light, row.light], [y - 0.3, y + 0.3], color=GREY, linewidth=2.5)
    ax.set_xlim(left=0)
