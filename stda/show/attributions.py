"""Pictures of attribution maps: methods by images, hits and errors of every class, one image through all arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stda import BadInput
from stda.show.figures import DPI, GAP, INK, WIDTH, checked_pixels, mosaic, room_for, show, text_width, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "RdBu_r"  # red for, white nothing, blue against: told apart by colour-blind readers
LABEL_WIDTH = 140  # pixels that a row label may take before it is broken into lines
PICTURE = 112  # pixels that a picture is wide at most, where the page has room
FULL = 2 / 3  # of the room must be filled, or pixels are not enlarged by a whole number
KEY = {"width": 120, "height": 10, "room": 44}  # pixels of the colour bar, and of the space below the pictures
AGAINST, FOR = "against the class", "for the class"
HIT, MISS = "\N{CHECK MARK}", "\N{BALLOT X}"


def attribution_grid(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    *,
    alt: str,
    titles: Sequence[str] | None = None,
    masks: np.ndarray | None = None,
    together: bool = False,
    caption: str = "",
) -> None:
    """Display the images and below them their attribution maps, a row per method, as wide as the page allows.

    ``images`` uint8 ``(N, H, W, 3)``; ``maps`` title of a method to relevances ``(N, H, W)`` or ``(N, C, H, W)``
    (summed over channels), any range; ``titles`` N texts above the images; ``masks`` uint8 ``(N, H, W)``, 255 in the
    lesion, whose outline is drawn.  White is zero, full colour the 99.5th percentile of the absolute values of each
    map or, ``together``, of all maps of a method.  Raises BadInput for shapes that do not fit.
    """
    show(attribution_grid_figure(images, maps, titles=titles, masks=masks, together=together), alt=alt, caption=caption)


def attribution_grid_figure(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    *,
    titles: Sequence[str] | None = None,
    masks: np.ndarray | None = None,
    together: bool = False,
) -> Figure:
    """Draw what :func:`attribution_grid` displays."""
    images = checked_pixels(images)
    relevances = {name: _relevance(name, values, images) for name, values in maps.items()}
    masks = _masks(masks, images)
    labels = ["image", *(wrapped(name, LABEL_WIDTH) for name in maps)]
    width, cell = _widths(images, len(images), room_for(labels))
    rows = [_sized(images, width)]
    rows += [_seen(values, width, together=together) for values in relevances.values()]
    fig = mosaic(
        np.concatenate(rows),
        titles=None if titles is None else [wrapped(str(title), cell) for title in titles],
        row_labels=labels,
        columns=len(images),
        zoom=1,
        masks=None if masks is None else np.concatenate([_sized(masks, width)] * len(rows)),
    )
    return _keyed(fig, room_for(labels), "Each method" if together else "Each map", outlined=masks is not None)


def gallery(
    images: np.ndarray,
    labels: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    *,
    alt: str,
    maps: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    n: int = 3,
    classes: Sequence[str] | None = None,
    caption: str = "",
) -> None:
    """Display for every true class, a row each, the ``n`` surest hits and the ``n`` surest errors, map beside picture.

    ``images`` uint8 ``(N, H, W, 3)`` with true and predicted label and the probability of the predicted one, in [0, 1];
    ``maps`` and ``masks`` as in :func:`attribution_grid`.  Above each stands the probability, above an error also the
    class that was named.  ``classes`` is the order of the rows (default: sorted).  Raises BadInput for what does not
    fit together.
    """
    fig = gallery_figure(images, labels, predicted, confidence, maps=maps, masks=masks, n=n, classes=classes)
    show(fig, alt=alt, caption=caption)


def gallery_figure(
    images: np.ndarray,
    labels: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    *,
    maps: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    n: int = 3,
    classes: Sequence[str] | None = None,
) -> Figure:
    """Draw what :func:`gallery` displays."""
    images = checked_pixels(images)
    true, said, sure = np.asarray(labels, dtype=str), np.asarray(predicted, dtype=str), np.asarray(confidence, float)
    if not len(true) == len(said) == len(sure) == len(images) or n < 1 or not np.isfinite(sure).all():
        raise BadInput("A gallery needs a label, a prediction and a finite confidence for every image, and n >= 1.")
    chosen, titles, heads = [], [], []
    for name in classes or np.unique(true):
        of_class = true == name
        n_right = (of_class & (said == name)).sum()
        heads.append(wrapped(f"{name}\n{n_right} of {of_class.sum()} right", LABEL_WIDTH))
        for right in (True, False):
            rows = np.flatnonzero(of_class & ((said == true) == right))
            rows = rows[np.argsort(-sure[rows], kind="stable")][:n]
            words = [f"{HIT} {sure[i]:.2f}" if right else f"{MISS} {said[i]} {sure[i]:.2f}" for i in rows]
            titles += [*words, *["none" if not words else ""] * (n > len(words)), *[""] * (n - len(words) - 1)]
            chosen += [*rows, *[-1] * (n - len(rows))]
    pictures, edges, cell = _pairs(images, maps, masks, 2 * n, room_for(heads))
    pictures, edges = np.append(pictures, np.full_like(pictures[:1], 255), 0), np.append(edges, 0 * edges[:1], 0)
    titles = [wrapped(title, cell) for title in titles]
    fig = mosaic(pictures[chosen], titles=titles, row_labels=heads, columns=2 * n, zoom=1, masks=edges[chosen])
    return fig if maps is None else _keyed(fig, room_for(heads), "Each map", outlined=masks is not None)


def through_arms(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    predicted: Mapping[str, str],
    *,
    label: str,
    alt: str,
    confidence: Mapping[str, float] | None = None,
    mask: np.ndarray | None = None,
    together: bool = False,
    caption: str = "",
) -> None:
    """Display one image, then its map by every arm with what the arm said and whether that is right.

    ``image`` uint8 ``(H, W, 3)`` of the class ``label``; ``maps`` arm to relevances ``(H, W)`` or ``(C, H, W)``;
    ``predicted`` arm to class, ``confidence`` to its probability; ``mask`` uint8 ``(H, W)``, 255 in the lesion.  Every
    map has its own range or, ``together``, all have one.  Raises BadInput for shapes and arms that do not fit.
    """
    fig = through_arms_figure(
        image, maps, predicted, label=label, confidence=confidence, mask=mask, together=together
    )  # fmt: skip
    show(fig, alt=alt, caption=caption)


def through_arms_figure(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    predicted: Mapping[str, str],
    *,
    label: str,
    confidence: Mapping[str, float] | None = None,
    mask: np.ndarray | None = None,
    together: bool = False,
) -> Figure:
    """Draw what :func:`through_arms` displays."""
    images = checked_pixels(np.asarray(image)[None])
    masks = _masks(None if mask is None else np.asarray(mask)[None], images)
    lost = [arm for arm in maps if arm not in predicted or (confidence is not None and arm not in confidence)]
    if lost or not maps:
        raise BadInput(f"There are maps of {len(maps)} arms, but no prediction of {lost}: give both for every arm.")
    relevances = [_relevance(arm, np.asarray(values)[None], images) for arm, values in maps.items()]
    columns = min(len(maps) + 1, int(WIDTH * DPI / (PICTURE + GAP)))
    width, cell = _widths(images, columns, 0)
    titles = [wrapped(f"image\n{label}", cell)]
    for arm in maps:
        words = f"{arm}\n{HIT if predicted[arm] == label else MISS} {predicted[arm]}"
        titles.append(wrapped(words if confidence is None else f"{words} {confidence[arm]:.2f}", cell))
    seen = _seen(np.concatenate(relevances), width, together=together)
    edges = None if masks is None else np.concatenate([_sized(masks, width)] * len(titles))
    pictures = np.concatenate([_sized(images, width), seen])
    fig = mosaic(pictures, titles=titles, columns=columns, zoom=1, masks=edges)
    return _keyed(fig, GAP, "The figure" if together else "Each map", outlined=masks is not None)


def coloured(values: np.ndarray, *, together: bool = False) -> np.ndarray:
    """Colour maps ``(N, H, W)`` or ``(N, C, H, W)`` as uint8 RGB: red for positive, blue for negative, white for zero.

    Full colour is the 99.5th percentile of the absolute values, of each map or, ``together``, of all of them; where
    that is zero because almost nothing has relevance, their maximum.  A value that is not a number is white.
    """
    import matplotlib

    values = np.nan_to_num(values.sum(axis=1) if values.ndim == 4 else values)
    axis = None if together else (1, 2)
    largest = np.percentile(np.abs(values), 99.5, axis=axis, keepdims=True)
    largest = np.where(largest > 0, largest, np.abs(values).max(axis=axis, keepdims=True))
    scaled = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0).clip(-1, 1)
    return matplotlib.colormaps[COLOURS]((scaled + 1) / 2, bytes=True)[..., :3]


def _relevance(name: str, values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return relevances summed over channels, float32 ``(N, H, W)``; raise unless they fit the images."""
    values = np.asarray(values, dtype=np.float32)
    values = values.sum(axis=1) if values.ndim == 4 else values
    if values.shape != images.shape[:3]:
        raise BadInput(f"The maps of '{name}' have shape {values.shape}, the images {images.shape[:3]}: give one each.")
    if not np.isfinite(values).all():
        raise BadInput(f"The maps of '{name}' hold values that are not finite: they cannot be drawn, make them again.")
    return values


def _masks(masks: np.ndarray | None, images: np.ndarray) -> np.ndarray | None:
    """Return masks uint8 ``(N, H, W)``; raise unless they fit the images."""
    if masks is None:
        return None
    masks = np.asarray(masks)
    if masks.dtype != np.uint8 or masks.shape != images.shape[:3] or not np.isin(masks, (0, 255)).all():
        wanted = f"uint8 {images.shape[:3]}, 255 inside and 0 outside"
        raise BadInput(f"Masks of these images are {wanted}; got {masks.dtype} {masks.shape}.")
    return masks


def _pairs(
    images: np.ndarray, maps: np.ndarray | None, masks: np.ndarray | None, columns: int, left: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return every picture with its map at its side, the masks of both, and the room of a cell's words."""
    masks, relevance = _masks(masks, images), None if maps is None else _relevance("the gallery", maps, images)
    width, cell = _widths(images, columns, left, side_by_side=1 if maps is None else 2)
    pictures = _sized(images, width)
    edges = np.zeros(pictures.shape[:3], np.uint8) if masks is None else _sized(masks, width)
    if relevance is None:
        return pictures, edges, cell
    gap = np.full((*pictures.shape[:2], 2, 3), 255, np.uint8)
    pairs = np.concatenate([pictures, gap, _seen(relevance, width)], axis=2)
    return pairs, np.concatenate([edges, 0 * gap[..., 0], edges], axis=2), cell


def _widths(images: np.ndarray, columns: int, left: int, *, side_by_side: int = 1) -> tuple[int, int]:
    """Return how wide a picture is drawn and how wide its title may be, so that the columns fill a page at most."""
    cell = int((WIDTH * DPI - left) / columns) - GAP
    room = min(PICTURE, (cell - 2 * (side_by_side - 1)) // side_by_side)
    whole = room // images.shape[2] * images.shape[2]
    return (whole if whole >= FULL * room else room), cell


def _seen(values: np.ndarray, width: int, *, together: bool = False) -> np.ndarray:
    """Colour maps ``(N, H, W)`` and bring them to a width: averages are taken of relevances, not of colours."""
    return _sized(coloured(_sized(values, min(width, values.shape[2])), together=together), width)


def _sized(values: np.ndarray, width: int) -> np.ndarray:
    """Bring ``(N, H, W)`` or ``(N, H, W, 3)`` to a width: pixels are repeated to enlarge it, averaged to shrink it."""
    from PIL import Image

    size = (width, max(1, round(values.shape[1] * width / values.shape[2])))
    how = Image.Resampling.NEAREST if width >= values.shape[2] else Image.Resampling.BOX
    return np.stack([np.asarray(Image.fromarray(v).resize(size, how)) for v in values])


def _keyed(fig: Figure, left: float, whose: str, *, outlined: bool) -> Figure:
    """Add a line below the pictures that says what colours and outline mean."""
    import matplotlib

    ax = fig.axes[0]
    words = f"{whose} has its own symmetric range." + (" The line is the outline of the lesion." if outlined else "")
    x, y = left + text_width(AGAINST) + 8, ax.get_ylim()[0]
    end = x + KEY["width"] + 8 + text_width(FOR)
    wide = max(ax.get_xlim()[1], end, left + text_width(words)) + 4
    fig.set_size_inches(wide / DPI, (y + KEY["room"]) / DPI)
    ax.set_xlim(0, wide)
    ax.set_ylim(y + KEY["room"], 0)
    bar = matplotlib.colormaps[COLOURS](np.linspace(0, 1, KEY["width"]), bytes=True)[None, :, :3]
    ax.imshow(bar, extent=(x, x + KEY["width"], y + 6 + KEY["height"], y + 6), interpolation="nearest")
    middle = {"y": y + 6 + KEY["height"] / 2, "va": "center", "fontsize": 9, "color": INK}
    ax.text(x - 8, s=AGAINST, ha="right", **middle)
    ax.text(x + KEY["width"] + 8, s=FOR, ha="left", **middle)
    ax.text(left, y + KEY["room"] - 12, words, va="center", fontsize=9, color=INK)
    return fig
