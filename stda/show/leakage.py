"""The figure on leakage: what each class scores on new lesions, and what a split by image makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput
from stda.show.charts import arm_axis, colour, legend_above
from stda.show.figures import GREY, INK, figure, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"inflated": "#b84a00", "deflated": "#0072B2", "undecided": GREY}


def inflation(table: pd.DataFrame, *, arm: str, alt: str, caption: str = "") -> None:
    """Show for one arm how far each class is moved by a split that tears lesions apart: honest dot to leaky diamond.

    ``table`` is that of :func:`stda.measure.inflation_table`.  The first row is the score over all classes, then come
    the recalls, the class with the largest leaked share first.  A bold line is a difference that is not chance.
    """
    show(inflation_figure(table, arm=arm), alt=alt, caption=caption)


def inflation_figure(table: pd.DataFrame, *, arm: str) -> Figure:
    """Draw what :func:`inflation` shows."""
    rows = table[table["arm"] == arm].dropna(subset=["inflation"])
    if rows.empty:
        raise BadInput(f"Arm '{arm}' has no inflation to draw; the arms are {sorted(set(table['arm']))}.")
    classes = rows.iloc[1:].sort_values("leaked_share", ascending=False, kind="stable", na_position="last")
    rows = pd.concat([rows.iloc[:1], classes])
    fig, axes = figure(height=1.5 + 0.36 * len(rows))
    ax = axes[0, 0]
    for y, (_, row) in enumerate(rows.iterrows()):
        shade = COLOURS[row["verdict"]]
        width = 1.4 if row["verdict"] == "undecided" else 3.2
        ax.plot([row["honest"], row["leaky"]], [y, y], color=shade, linewidth=width, zorder=1)
        words = f"{row['inflation']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]  {row['verdict']}"
        words = words.replace("-", "\N{MINUS SIGN}")
        ax.text(1.02, y, words, transform=ax.get_yaxis_transform(), va="center", color=shade, fontsize=9.5)
    y = np.arange(len(rows))
    ax.plot(rows["honest"], y, "o", color=INK, markersize=7, label="split by lesion (honest)")
    ax.plot(rows["leaky"], y, "D", color=colour(1), markersize=6.5, label="split by image (leaky)")
    legend_above(ax)
    shares = [f" ({share:.0%} leaked)" if np.isfinite(share) else "" for share in rows["leaked_share"]]
    arm_axis(ax, [f"{name}{share}" for name, share in zip(rows["class"], shares, strict=True)])
    ax.axhline(0.5, color=GREY, linewidth=0.8)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel(
        f"recall of arm '{arm}' on test, on top its score over all classes\n(leaked: lesion also in training)"
    )
    return fig
