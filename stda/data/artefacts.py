"""Insert artefacts into pictures, and change their light as strongly without any artefact.

What a classifier answers after a hair, a ruler, a dark rim or a black frame was drawn over a picture, and did not
before, it answers because of the artefact: counterfactual bias insertion (Mikolajczyk, Grochowski and Kwasigroch 2021,
IEEE Access 9).  Hair, ruler and rim are those of the phantom (:mod:`stda.data.phantom_draw`).
"""

from __future__ import annotations

import numpy as np

from stda import BadInput
from stda.data import phantom_draw
from stda.study import sub_seed

INSERTED = ("hair", "ruler", "vignette", "frame")
NATIVE = 128  # pixels at which a layer is drawn before it is averaged down, as the phantom's pictures are
FRAME_SIDES = ((0,), (1,), (2,), (3,), (0, 2), (1, 3), (0, 1, 2, 3))  # in quarter turns from the upper side
FRAME_WIDTH = (0.03, 0.10)  # of the side
BLACK = 12.0  # brightest grey level of a frame
LIGHT = "light like "  # before the artefact's name: an uneven light as strong as it
MIRRORED = "mirrored"
STRONGEST = 8.0  # light that leaves one side black and the other white
HALVINGS = 13  # of the interval in which the strength of the light lies: finer than a grey level
CHUNK = 2**16  # pixels lit together


def insert(images: np.ndarray, kind: str, *, seed: int) -> np.ndarray:
    """Draw an artefact over each picture, uint8 ``(N, H, H, 3)`` to a new array of that shape.

    ``kind`` is one of :data:`INSERTED`.  Where and how strongly is drawn anew for every picture, from ``seed``, the
    kind and the picture's row alone, so that row k looks the same however many rows follow it.  Layers are blended
    with antialiased cover in stored levels.

    Raises:
        BadInput: an unknown kind, or images that are not square uint8 RGB.
    """
    if kind not in INSERTED:
        raise BadInput(f"Artefact '{kind}' is not known; insert one of {', '.join(INSERTED)}.")
    size = _checked(images)
    drawn = np.empty_like(images)
    for k, image in enumerate(images):
        rng = np.random.default_rng(sub_seed(seed, "insert", kind, k))
        cover, colour = _layer(kind, size, rng)
        picture = image.astype(np.float32)
        drawn[k] = np.rint(picture + cover[..., None] * (colour - picture))
    return drawn


def uneven_light(images: np.ndarray, like: np.ndarray, *, seed: int) -> np.ndarray:
    """Brighten one side and darken the other until the pixels changed as much as from ``images`` to ``like``.

    This is the scale of :func:`insert`: light ``exp(a p)`` along a random direction, with p from -1 to 1 across the
    picture and ``a`` such that the root mean square difference to the picture is that of the artefact (to a grey
    level).  A smooth change says nothing of the lesion and adds no structure.  A black picture cannot be lit: it stays.
    Both arrays are uint8 ``(N, H, H, 3)``; raises BadInput where they are not of one shape.
    """
    size = _checked(images)
    if like.shape != images.shape or like.dtype != np.uint8:
        raise BadInput(f"The artefacts are {like.dtype} {like.shape}, the images {images.shape}: insert into these.")
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    angles = [np.random.default_rng(sub_seed(seed, "light", k)).uniform(0, 2 * np.pi) for k in range(len(images))]
    together = max(1, CHUNK // (size * size))
    lit = np.empty_like(images)
    for start in range(0, len(images), together):
        part = slice(start, start + together)
        angle = np.array(angles[part], np.float32)[:, None, None, None]
        plane = np.cos(angle) * axis[:, None] + np.sin(angle) * axis[:, None, None]
        lit[part] = np.rint(_lit_like(images[part].astype(np.float32), like[part].astype(np.float32), plane))
    return lit


def alterations(images: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Return all altered versions of these pictures by name: each artefact, the light that is its scale, and mirrored.

    A mirrored lesion is the same lesion, so an answer that changes there hung by a thread.  Another seed, other
    drawings; the same seed, the same ones for every classifier.
    """
    inserted = {kind: insert(images, kind, seed=seed) for kind in INSERTED}
    light = {LIGHT + kind: uneven_light(images, drawn, seed=seed) for kind, drawn in inserted.items()}
    return inserted | light | {MIRRORED: np.ascontiguousarray(images[:, :, ::-1])}


def _lit_like(pictures: np.ndarray, like: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """Find each picture's strength by halving the interval, float32 ``(n, H, H, 3)`` in 0..255."""
    wanted = _difference(pictures, like)
    low, high = np.zeros_like(wanted), np.full_like(wanted, STRONGEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = _difference(pictures, _lit(pictures, plane, middle)) >= wanted
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return _lit(pictures, plane, low)


def _lit(pictures: np.ndarray, plane: np.ndarray, strength: np.ndarray) -> np.ndarray:
    return np.clip(pictures * np.exp(strength * plane), 0, 255)


def _difference(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(pictures - others).mean(axis=(1, 2, 3), keepdims=True))


def _checked(images: np.ndarray) -> int:
    """Return the side of square uint8 RGB pictures."""
    shape = images.shape
    if images.dtype != np.uint8 or images.ndim != 4 or shape[-1] != 3 or shape[1] != shape[2]:
        raise BadInput(f"Artefacts are drawn on square uint8 images (N, H, H, 3); got {images.dtype} {shape}.")
    return shape[1]


def _layer(kind: str, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return how much a layer covers, float32 ``(size, size)`` in 0..1, and its colour in grey levels, ``(3,)``."""
    if kind == "frame":
        return _frame(size, rng), np.full(3, rng.uniform(0, BLACK), np.float32)
    fine = max(NATIVE, size)
    if kind == "vignette":
        cover, colour = 1 - phantom_draw.rim(fine, rng), np.zeros(3)
    else:
        draw = phantom_draw.hair_layer if kind == "hair" else phantom_draw.ruler_layer
        cover, colour = draw(fine, rng)
    return _shrunk(cover, size), (255 * colour).astype(np.float32)


def _frame(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a black bar along one side, two opposite ones or all; the inner edge covers its pixel in part."""
    width = rng.uniform(*FRAME_WIDTH) * size
    bar = np.clip(width - np.arange(size, dtype=np.float32), 0, 1)[:, None] * np.ones(size, np.float32)
    sides = FRAME_SIDES[rng.integers(len(FRAME_SIDES))]
    return np.max([np.rot90(bar, turns) for turns in sides], axis=0)


def _shrunk(cover: np.ndarray, size: int) -> np.ndarray:
    """Average a fine layer down to ``size`` pixels."""
    from PIL import Image

    fine = Image.fromarray(np.ascontiguousarray(cover, np.float32))
    return np.asarray(fine if fine.width == size else fine.resize((size, size), Image.Resampling.BOX))
