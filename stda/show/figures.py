"""Figures for notebooks and reports: every one has alt text, is closed after it was shown, and reads on white paper."""

from __future__ import annotations

import base64
import html
import io
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stda import BadInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; the pale ones come last because they fade on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
GREY = "#5f6368"
INK = "#1f2328"
DPI = 110
WIDTH = 8.0  # inches: the column of the report
SHORTEST_ALT = 20  # characters; less than that cannot say what a figure shows

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same letters
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "axes.edgecolor": "#8a9097",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
}


def figure(rows: int = 1, columns: int = 1, *, height: float = 3.2, width: float = WIDTH) -> tuple[Figure, np.ndarray]:
    """Make an empty figure in the house style, outside pyplot's global list.

    Returns the figure and its axes as an array ``(rows, columns)``; sizes are in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        axes = made.subplots(rows, columns, squeeze=False)
    return made, axes


def require_alt(alt: str) -> str:
    """Return the alt text on one line; raise when it is missing or too short to stand for the figure."""
    text = " ".join(str(alt or "").split())
    if len(text) < SHORTEST_ALT:
        raise BadInput(
            f"A figure needs alt text of at least {SHORTEST_ALT} characters, got {text!r}: "
            "say in one sentence what a reader would see."
        )
    return text


def png(fig: Figure) -> bytes:
    """Return the figure as PNG bytes that depend on nothing but the figure."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        fig.savefig(stream, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def show(fig: Figure, *, alt: str, caption: str = "") -> None:
    """Display a matplotlib figure with its alt text, then close it.

    The PNG carries ``{"image/png": {"alt": alt}}`` for the report; its plain text is ``Figure: <alt>``, the same in
    every run.  Raises BadInput (a ValueError) when the alt text is missing or shorter than 20 characters.
    """
    alt = require_alt(alt)
    show_png(png(fig), alt=alt, caption=caption)
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(fig)


def show_png(data: bytes, *, alt: str, caption: str = "") -> None:
    """Display PNG bytes with alt text, and the caption below."""
    from IPython.display import display

    alt = require_alt(alt)
    bundle = {"image/png": base64.b64encode(data).decode("ascii"), "text/plain": f"Figure: {alt}"}
    display(bundle, metadata={"image/png": {"alt": alt}}, raw=True)
    if caption:
        words = {"text/html": f'<p class="stda-caption">{html.escape(caption)}</p>', "text/plain": caption}
        display(words, raw=True)


def grid(
    images: np.ndarray,
    *,
    alt: str,
    titles: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    columns: int | None = None,
    caption: str = "",
    zoom: int | None = None,
) -> None:
    """Display uint8 images ``(N, H, W, 3)`` side by side, each pixel enlarged to ``zoom`` x ``zoom`` (nearest).

    ``titles`` has N entries, one above each image; or as many as columns, then they head the columns.  ``row_labels``
    stand at the left of each row.  Without ``columns`` and ``zoom`` the grid fills the width of a report.
    """
    show(mosaic(images, titles=titles, row_labels=row_labels, columns=columns, zoom=zoom), alt=alt, caption=caption)


def mosaic(
    images: np.ndarray,
    *,
    titles: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    columns: int | None = None,
    zoom: int | None = None,
) -> Figure:
    """Draw what :func:`grid` displays; one screen pixel of the figure is one pixel of the enlarged images."""
    images = _pixels(images)
    n, height, width = images.shape[:3]
    left = max((text_width(str(label)) for label in row_labels or ()), default=-14) + 14
    columns, zoom = _grid_shape(n, width, WIDTH * DPI - left, columns, zoom)
    rows = math.ceil(n / columns)
    titles = _lengths("titles", titles, (n, columns))
    row_labels = _lengths("row_labels", row_labels, (rows,))

    # cells grow with their titles, so that words never run into each other
    each_titled = len(titles) == n and n > columns
    cell_width = max([width * zoom, *(text_width(t) for t in titles)]) + 6
    line = max((16 * t.count("\n") + 20 for t in titles), default=0)
    cell_height = height * zoom + 6 + (line if each_titled else 0)
    top = 0 if each_titled else line
    canvas = (left + columns * cell_width, top + rows * cell_height)

    fig, ax = _pixel_figure(*canvas)
    for i, image in enumerate(images):
        x, y = left + (i % columns) * cell_width, top + (i // columns) * cell_height + (line if each_titled else 0)
        x += (cell_width - 6 - width * zoom) / 2
        ax.imshow(_enlarge(image, zoom), extent=(x, x + width * zoom, y + height * zoom, y), interpolation="nearest")
        if i < len(titles):
            middle = x + width * zoom / 2
            ax.text(middle, y - 3, titles[i], fontsize=9, ha="center", va="bottom", linespacing=1.1)
        if i % columns == 0 and row_labels:
            ax.text(left - 8, y + height * zoom / 2, row_labels[i // columns], fontsize=9, ha="right", va="center")
    ax.set_xlim(0, canvas[0])
    ax.set_ylim(canvas[1], 0)
    return fig


def attribution_grid(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    *,
    alt: str,
    row_labels: Sequence[str] | None = None,
    caption: str = "Red speaks for the target class, blue against it; each map has its own symmetric range.",
    zoom: int | None = None,
) -> None:
    """Display one row per image: the image, then its attribution map by each method.

    ``images`` uint8 ``(N, H, W, 3)``; ``maps`` name to relevances ``(N, H, W)`` or ``(N, C, H, W)`` (summed over
    channels), any range: white is zero, full colour the 99.5th percentile of each map's absolute values.
    """
    columns = [np.asarray(images), *(coloured(np.asarray(values, dtype=np.float64)) for values in maps.values())]
    for name, column in zip(maps, columns[1:], strict=True):
        if column.shape != columns[0].shape:
            raise BadInput(f"The maps of {name!r} have shape {column.shape[:3]}, the images {columns[0].shape[:3]}.")
    cells = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
    titles = ["image", *(name.replace("_", "\n") for name in maps)]
    fig = mosaic(cells, titles=titles, row_labels=row_labels, columns=len(columns), zoom=zoom)
    show(fig, alt=alt, caption=caption)


def text_width(text: str, size: float = 9) -> int:
    """Return the width in pixels of the longest line of a text at a font size in points."""
    from matplotlib.textpath import TextPath

    points = [TextPath((0, 0), line, size=size).get_extents().width for line in text.split("\n") if line.strip()]
    return math.ceil(max(points, default=0) * DPI / 72 * 1.03) + 3  # letters drawn on whole pixels run a little wider


def coloured(values: np.ndarray, *, together: bool = False) -> np.ndarray:
    """Colour maps ``(N, H, W)`` or ``(N, C, H, W)`` as uint8 RGB: red for positive, blue for negative, white for zero.

    Full colour is the 99.5th percentile of the absolute values, of each map or, ``together``, of all of them.
    """
    import matplotlib

    values = np.nan_to_num(values.sum(axis=1) if values.ndim == 4 else values)
    largest = np.percentile(np.abs(values), 99.5, axis=None if together else (1, 2), keepdims=True)
    scaled = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0).clip(-1, 1)
    return matplotlib.colormaps["RdBu_r"]((scaled + 1) / 2, bytes=True)[..., :3]


def _pixels(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise BadInput(f"A grid takes uint8 images (N, H, W, 3) with N > 0; got {images.dtype} {images.shape}.")
    return images


def _grid_shape(n: int, width: int, room: float, columns: int | None, zoom: int | None) -> tuple[int, int]:
    """Choose what was not given: images near 96 px wide, rows near the width of a report."""
    if zoom is None:
        widest = room / columns - 6 if columns else 96
        zoom = max(1, min(round(128 / width), int(widest / width)))
    if columns is None:
        columns = max(1, min(n, int(room / (width * zoom + 6))))
    return min(columns, n), zoom


def _lengths(name: str, words: Sequence[str] | None, allowed: tuple[int, ...]) -> list[str]:
    words = [str(word) for word in words] if words is not None else []
    if words and len(words) not in allowed:
        raise BadInput(f"{name} has {len(words)} entries; a grid of this shape takes {' or '.join(map(str, allowed))}.")
    return words


def _pixel_figure(width: float, height: float) -> tuple[Figure, Axes]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        ax = fig.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    return fig, ax


def _enlarge(image: np.ndarray, zoom: int) -> np.ndarray:
    return image.repeat(zoom, axis=0).repeat(zoom, axis=1)
