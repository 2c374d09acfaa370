"""Charts of what a synthetic image's label is worth and of how repeatable training is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput
from stda.show.charts import DASHES, arm_axis, colour, legend_above
from stda.show.figures import GREY, INK, figure, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# word, colour and marker say the same thing three times, as for the verdicts
CLAIMS = {
    "supported": {"colour": "#007a5a", "marker": "^"},
    "contradicted": {"colour": "#b84a00", "marker": "v"},
    "undecided": {"colour": GREY, "marker": "o"},
}


def agreement(
    fidelity: pd.DataFrame,
    *,
    alt: str,
    x: str = "iteration",
    panel: str = "",
    by: Sequence[str] = ("labeller", "agrees_with"),
    label: str = "share that agrees",
    caption: str = "",
) -> None:
    """Show shares with their intervals against the strength of the style, a line per value of the columns ``by``.

    ``fidelity`` is the table of measure.label_fidelity or, with ``by=["against"]``, of measure.flip_rate; ``x`` names
    its column of the strength and ``panel`` one that gets a panel for each value, such as the weight.
    """
    show(agreement_figure(fidelity, x=x, panel=panel, by=by, label=label), alt=alt, caption=caption)


def agreement_figure(
    fidelity: pd.DataFrame, *, x: str, panel: str, by: Sequence[str], label: str = "share that agrees"
) -> Figure:
    """Draw what :func:`agreement` shows."""
    _require(fidelity, [x, *by, "share", "low", "high", *([panel] if panel else [])])
    panels = list(fidelity.groupby(panel, sort=True)) if panel else [("", fidelity)]
    lines = fidelity[list(by)].drop_duplicates().to_numpy().tolist()
    fig, axes = figure(1, len(panels), height=3.6)
    for ax, (value, rows) in zip(axes[0], panels, strict=True):
        for i, names in enumerate(lines):
            own = rows[(rows[list(by)].to_numpy() == names).all(1)].sort_values(x)
            _share(ax, own, x, i, ": ".join(dict.fromkeys(names)))
        ax.set_xticks(sorted(rows[x].unique()))
        ax.set_xlabel(f"{x.replace('_', ' ')}{f' ({panel} {value:g})' if panel else ''}")
        ax.set_ylim(-0.02, 1.02)
    axes[0, 0].set_ylabel(label)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, fontsize=9.5)
    return fig


def confidence_curve(curve: pd.DataFrame, *, alt: str, caption: str = "") -> None:
    """Show what a confidence filter buys and costs: agreement of the kept images, and their share.

    ``curve`` is the table of measure.confidence_curve; bands are its intervals.
    """
    show(confidence_curve_figure(curve), alt=alt, caption=caption)


def confidence_curve_figure(curve: pd.DataFrame) -> Figure:
    """Draw what :func:`confidence_curve` shows."""
    _require(curve, ["threshold", "agrees_with", "kept", "share", "low", "high"])
    fig, axes = figure(1, 2, height=3.6)
    left, right = axes[0]
    for i, (name, rows) in enumerate(curve.groupby("agrees_with", sort=False)):
        _share(left, rows, "threshold", i, str(name), marker="")
    kept = curve.drop_duplicates("threshold")
    right.plot(kept["threshold"], kept["kept"], color=INK)
    left.set_ylabel("share that agrees, of the kept images")
    right.set_ylabel("share of the images that is kept")
    for ax in (left, right):
        ax.set_ylim(-0.02, 1.02)
        ax.set_xlabel("lowest confidence that is kept")
    legend_above(left, columns=2)
    return fig


def repeatability(spreads: pd.DataFrame, trainings: pd.DataFrame, *, alt: str, caption: str = "") -> None:
    """Show every training beside the mean of its arm, and each arm's variance ratio to the baseline with its interval.

    ``spreads`` is the table of measure.spread_table, ``trainings`` that of measure.training_scores.
    """
    show(repeatability_figure(spreads, trainings), alt=alt, caption=caption)


def repeatability_figure(spreads: pd.DataFrame, trainings: pd.DataFrame) -> Figure:
    """Draw what :func:`repeatability` shows."""
    _require(spreads, ["arm", "spread", "sd", "variance_ratio", "low", "high", "verdict"])
    _require(trainings, ["arm", "deviation"])
    fig, axes = figure(1, 2, height=1.5 + 0.36 * len(spreads))
    left, right = axes[0]
    for y, row in enumerate(spreads.itertuples()):
        values = trainings.loc[trainings["arm"] == row.arm, "deviation"].to_numpy()
        left.plot(values, np.full(len(values), y), "o", color=colour(0), alpha=0.55, markersize=6)
        if np.isfinite(row.sd):
            left.plot([-row.sd, row.sd], [y + 0.3, y + 0.3], color=INK, linewidth=2.2, solid_capstyle="butt")
        _ratio(right, row, y, "baseline" if y == 0 else row.verdict)
    names = list(spreads["arm"])
    arm_axis(left, names)
    arm_axis(right, [""] * len(names))
    left.locator_params(axis="x", nbins=5)
    left.set_xlabel(f"score of each training minus its mean\n({spreads['spread'].iloc[0]}; bar: ± standard deviation)")
    right.set_xscale("log")
    right.axvline(1, color=INK, linewidth=1)
    right.set_xlabel(f"variance over that of '{names[0]}'\n(left of 1: more repeatable)")
    _ratio_axis(right, spreads)
    return fig


def _ratio(ax: Axes, row: object, y: int, word: str) -> None:
    look = CLAIMS.get(word, CLAIMS["undecided"])
    if np.isfinite(row.variance_ratio):
        face = look["colour"] if word in ("supported", "contradicted") else "white"
        ax.plot(
            row.variance_ratio, y, look["marker"], color=look["colour"], markerfacecolor=face, markersize=8, zorder=3
        )
        ends = [max(row.low, 1e-6), min(row.high, 1e6)]
        ax.plot(ends, [y, y], color=look["colour"], linewidth=2.2, solid_capstyle="butt")
    elif word != "baseline":
        word = "too few trainings"
    ax.text(1.02, y, word, transform=ax.get_yaxis_transform(), va="center", color=look["colour"], fontsize=9.5)


def _ratio_axis(ax: Axes, spreads: pd.DataFrame) -> None:
    """Show the ratios and their intervals within a thousandfold either way; what is wider leaves the picture."""
    ends = spreads[["low", "high", "variance_ratio"]].to_numpy(dtype=float)
    ends = np.clip(ends[np.isfinite(ends) & (ends > 0)], 1e-3, 1e3)
    low, high = min([0.5, *ends]), max([2.0, *ends])
    ax.set_xlim(low / 1.2, high * 1.2)
    if high / low < 30:  # few powers of ten: name the steps between them too
        ax.set_xticks([t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10) if low <= t <= high])
        ax.minorticks_off()
    ax.xaxis.set_major_formatter("{x:g}")


def _share(ax: Axes, rows: pd.DataFrame, x: str, i: int, label: str, *, marker: str = "o") -> None:
    look = {"color": colour(i), "linestyle": DASHES[i % len(DASHES)]}
    ax.plot(rows[x], rows["share"], marker=marker, markersize=5, label=label, **look)
    ax.fill_between(rows[x], rows["low"], rows["high"], color=colour(i), alpha=0.13, linewidth=0)


def _require(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [c for c in columns if c not in table]
    if missing or not len(table):
        raise BadInput(f"The table has {len(table)} rows and no column {missing}; it has {list(table.columns)}.")
