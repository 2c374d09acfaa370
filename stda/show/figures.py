"""Figures for notebooks and reports: every one has alt text, is closed after it was shown, and reads on white paper."""

from __future__ import annotations

import base64
import functools
import html
import io
import math
import re
import sys
from collections.abc import Sequence
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
GAP = 6  # pixels between the cells of a mosaic
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
    masks: np.ndarray | None = None,
) -> Figure:
    """Draw what :func:`grid` displays; one screen pixel of the figure is one pixel of the enlarged images.

    The edge of ``masks``, uint8 ``(N, H, W)`` with 255 inside, is drawn as a line over each image.
    """
    images = checked_pixels(images)
    n, height, width = images.shape[:3]
    left = room_for(row_labels or ())
    columns, zoom = _grid_shape(n, width, WIDTH * DPI - left, columns, zoom)
    rows = math.ceil(n / columns)
    titles, row_labels = _lengths("titles", titles, (n, columns)), _lengths("row_labels", row_labels, (rows,))

    # cells grow with their titles, so that words never run into each other
    each_titled = len(titles) == n and n > columns
    cell_width = max([width * zoom, *(text_width(t) for t in titles)]) + GAP
    line = max((16 * t.count("\n") + 20 for t in titles), default=0)
    cell_height = height * zoom + GAP + (line if each_titled else 0)
    top = 0 if each_titled else line
    canvas = (left + columns * cell_width, top + rows * cell_height)

    fig, ax = _pixel_figure(*canvas)
    for i, image in enumerate(images):
        x, y = left + (i % columns) * cell_width, top + (i // columns) * cell_height + (line if each_titled else 0)
        x += (cell_width - GAP - width * zoom) / 2
        _cell(ax, _enlarge(image, zoom), x, y, titles[i] if i < len(titles) else "")
        if masks is not None:
            outline(ax, masks[i], x, y, zoom)
        if i % columns == 0 and row_labels:
            ax.text(left - 8, y + height * zoom / 2, row_labels[i // columns], fontsize=9, ha="right", va="center")
    ax.set(xlim=(0, canvas[0]), ylim=(canvas[1], 0))
    return fig


def _cell(ax: Axes, image: np.ndarray, x: float, y: float, title: str) -> None:
    """Draw an image whose corner lies at x, y, and its title above it."""
    height, width = image.shape[:2]
    ax.imshow(image, extent=(x, x + width, y + height, y), interpolation="nearest")
    if title:
        ax.text(x + width / 2, y - 3, title, fontsize=9, ha="center", va="bottom", linespacing=1.1)


def outline(ax: Axes, mask: np.ndarray, x: float, y: float, zoom: float = 1) -> None:
    """Draw the edge of a mask ``(H, W)`` (255 inside, 0 outside) whose corner lies at x, y; nothing where it is empty.

    A dark line in a pale one shows on dark and on pale pictures, and no reader needs its colour.
    """
    from matplotlib.patheffects import withStroke

    padded = np.pad(np.asarray(mask, dtype=float), 1)  # a lesion that leaves the picture is closed at its border
    if padded.max() < 128:
        return
    across, down = (zoom * (np.arange(k) - 0.5) for k in padded.shape[::-1])
    lines = ax.contour(x + across, y + down, padded, levels=[127.5], colors="black", linewidths=0.9, zorder=3)
    lines.set_path_effects([withStroke(linewidth=2.3, foreground="white", alpha=0.85)])


def room_for(row_labels: Sequence[str]) -> int:
    """Return how many pixels at the left of a mosaic its row labels take."""
    return max((text_width(str(label)) for label in row_labels), default=-14) + 14


@functools.cache
def text_width(text: str, size: float = 9) -> int:
    """Return the width in pixels of the longest line of a text at a font size in points."""
    from matplotlib.textpath import TextPath

    points = [TextPath((0, 0), line, size=size).get_extents().width for line in text.split("\n") if line.strip()]
    return math.ceil(max(points, default=0) * DPI / 72 * 1.03) + 3  # letters drawn on whole pixels run a little wider


def wrapped(text: str, width: float, size: float = 9) -> str:
    """Break the lines of a text so that none is wider than ``width`` pixels; a word that is too long is hyphenated."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in re.findall(r"[^\s_/-]*[\s_/-]?", paragraph):  # also after hyphen, slash and underscore
            if line and text_width((line + word).rstrip(), size) > width:
                lines.append(line.rstrip())
                line = ""
            while len(word) > 2 and text_width(word.rstrip(), size) > width:
                fits = [k for k in range(1, len(word) - 1) if text_width(f"{word[:k]}-", size) <= width]
                k = max(fits, default=1)
                lines.append(f"{word[:k]}-")
                word = word[k:]
            line += word
        lines.append(line.rstrip())
    return "\n".join(lines)


def checked_pixels(images: np.ndarray) -> np.ndarray:
    """Return uint8 images ``(N, H, W, 3)``; raise when they are not, or none."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise BadInput(f"A grid takes uint8 images (N, H, W, 3) with N > 0; got {images.dtype} {images.shape}.")
    return images


def _grid_shape(n: int, width: int, room: float, columns: int | None, zoom: int | None) -> tuple[int, int]:
    """Choose what was not given: images near 96 px wide, rows near the width of a report."""
    if zoom is None:
        widest = room / columns - GAP if columns else 96
        zoom = max(1, min(round(128 / width), int(widest / width)))
    if columns is None:
        columns = max(1, min(n, int(room / (width * zoom + GAP))))
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
