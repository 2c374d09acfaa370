"""Charts of what tells synthetic from real images: places in the picture, and spatial frequencies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput
from stda.show.attributions import coloured
from stda.show.charts import DASHES, colour, legend_above
from stda.show.figures import GREY, figure, mosaic, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def told_by_place(aucs: Mapping[str, np.ndarray], *, alt: str, caption: str = "") -> None:
    """Show how well each place of the picture alone tells a set from real images: name to AUC ``(h, w)`` in [0, 1]."""
    show(told_by_place_figure(aucs), alt=alt, caption=caption)


def told_by_place_figure(aucs: Mapping[str, np.ndarray]) -> Figure:
    """Draw what :func:`told_by_place` shows: a heat map per set on one scale, with numbers while they are few."""
    import seaborn

    fig, axes = figure(1, len(aucs), height=2.9, width=min(8.0, 3.1 * len(aucs) + 0.4))
    for ax, (name, values) in zip(axes[0], aucs.items(), strict=True):
        few = max(values.shape) <= 8
        look = {"cmap": "cividis", "vmin": 0.5, "vmax": 1.0, "annot": few, "fmt": ".2f", "square": True}
        seaborn.heatmap(
            values, ax=ax, xticklabels=False, yticklabels=False, cbar=False, annot_kws={"fontsize": 8.5}, **look
        )
        ax.grid(False)
        ax.set_title(name)
    return fig


def evidence_maps(images: np.ndarray, maps: np.ndarray, *, alt: str, caption: str = "") -> None:
    """Show images and below each the map of what speaks for synthetic (red) and for real (blue), on one scale.

    ``images`` uint8 ``(N, H, W, 3)``; ``maps`` ``(N, h, w)`` of any range, enlarged to the images.
    """
    images = np.asarray(images)
    if len(images) != len(maps) or maps.ndim != 3:
        raise BadInput(f"Evidence needs a map (h, w) for each of {len(images)} images; got maps {maps.shape}.")
    from scipy.ndimage import zoom

    height, width = images.shape[1:3]
    large = zoom(maps, (1, height / maps.shape[1], width / maps.shape[2]), order=1, mode="nearest", grid_mode=True)
    cells = np.concatenate([images, coloured(large, together=True)])
    fig = mosaic(cells, columns=len(images), row_labels=["image", "evidence"], zoom=max(1, round(56 / height)))
    show(fig, alt=alt, caption=caption)


def spectra(table: pd.DataFrame, *, alt: str, caption: str = "") -> None:
    """Show the power of each set over that of real images at every spatial frequency (measure.spectrum_table)."""
    show(spectra_figure(table), alt=alt, caption=caption)


def spectra_figure(table: pd.DataFrame) -> Figure:
    """Draw what :func:`spectra` shows: ratios on a logarithmic axis with intervals, real images in grey."""
    missing = {"set", "waves", "ratio", "low", "high"} - set(table)
    if missing:
        raise BadInput(f"A table of spectra lacks {sorted(missing)}; pass what measure.spectrum_table gave.")
    from matplotlib.ticker import LogLocator

    fig, axes = figure(height=3.4)
    ax, shade_of = axes[0, 0], 0
    for name, rows in table.groupby("set", sort=False):
        real = str(name).startswith("real")
        shade = GREY if real else colour(shade_of)
        shade_of += not real
        ax.plot(rows["waves"], rows["ratio"], color=shade, linestyle=DASHES[1] if real else "-", label=name)
        ax.fill_between(rows["waves"], rows["low"], rows["high"], color=shade, alpha=0.18, linewidth=0)
    ax.axhline(1, color=GREY, linewidth=0.8)
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, 0.5), max(high, 2))  # what real images differ by fills no chart
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")
    ax.set_xlabel("waves across the picture")
    ax.set_ylabel("power over that of real images")
    legend_above(ax)
    return fig
