"""Charts of what the measures see: how they move with the number of images, and which fault which one finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stda import BadInput
from stda.show.charts import colour
from stda.show.figures import GREY, figure, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def growth(table: pd.DataFrame, *, alt: str, caption: str = "") -> None:
    """Show measures of equal distributions against the number of images, with one standard deviation as a band.

    ``table`` is that of measure.growth_table; each measure has its panel, because their units differ.
    """
    show(growth_figure(table), alt=alt, caption=caption)


def growth_figure(table: pd.DataFrame) -> Figure:
    """Draw what :func:`growth` shows."""
    _require(table, ["n", "measure", "mean", "low", "high"])
    measures = list(table.groupby("measure", sort=False))
    fig, axes = figure(1, len(measures), height=3.2)
    for i, (ax, (measure, rows)) in enumerate(zip(axes[0], measures, strict=True)):
        ax.axhline(0, color=GREY, linewidth=1)
        ax.fill_between(rows["n"], rows["low"], rows["high"], color=colour(i), alpha=0.2, linewidth=0)
        ax.plot(rows["n"], rows["mean"], "o-", color=colour(i))
        ax.set_xscale("log", base=2)
        ax.set_xticks(rows["n"], [str(n) for n in rows["n"]])
        ax.set_xlabel("real images on each side")
        ax.set_title(f"{measure}, real against real", loc="left", fontweight="bold")
    return fig


def faults(table: pd.DataFrame, *, alt: str, limit: float = 10, caption: str = "") -> None:
    """Show which measure sees which planted fault: a heat map of ``worse`` in the table of measure.ruler_table.

    A cell says by how many spreads of real images the set is worse (+) or better than real ones; colours
    end at ``limit``.
    """
    show(faults_figure(table, limit=limit), alt=alt, caption=caption)


def faults_figure(table: pd.DataFrame, *, limit: float = 10) -> Figure:
    """Draw what :func:`faults` shows."""
    import seaborn

    _require(table, ["set", "measure", "worse"])
    cells = table.pivot_table(index="set", columns="measure", values="worse", sort=False, dropna=False)
    words = cells.map(lambda value: "" if pd.isna(value) else f"{value:+.0f}".replace("-", "\N{MINUS SIGN}"))
    words = words.replace({"+0": "0", "\N{MINUS SIGN}0": "0"})
    fig, axes = figure(height=1.5 + 0.4 * len(cells), width=min(9.0, 2.4 + 0.72 * cells.shape[1]))
    look = {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit, "annot": words, "fmt": "", "annot_kws": {"fontsize": 9.5}}
    bar = {"label": "worse than real images, in their spreads", "fraction": 0.05, "extend": "both"}
    seaborn.heatmap(cells, ax=axes[0, 0], cbar_kws=bar, **look)
    axes[0, 0].grid(False)
    axes[0, 0].set(xlabel="", ylabel="")
    axes[0, 0].tick_params(length=0, rotation=0)
    axes[0, 0].set_xticklabels([str(name).replace(" ", "\n") for name in cells.columns])
    return fig


def _require(table: pd.DataFrame, columns: list[str]) -> None:
    missing = [name for name in columns if name not in table]
    if missing or not len(table):
        raise BadInput(f"The table has {len(table)} rows and no column {missing}; it has {list(table.columns)}.")
