"""Images of asked classes from a generator that knows none: draw until a classifier sees the asked class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stda.generators.adversarial.sampling import RENDER_BATCH
from stda.generators.pairs import image_seed
from stda.images import ImageSet

if TYPE_CHECKING:
    from stda.compute import Compute
    from stda.encoders import InDomain


def opinions(labeller: InDomain, pixels: np.ndarray, compute: Compute) -> np.ndarray:
    """Return class probabilities ``(n, K)`` of uint8 ``(n, H, W, 3)``, the same for an image in any company.

    As in rendering, batches always have one size.
    """
    parts = []
    for first in range(0, len(pixels), RENDER_BATCH):
        rows = np.arange(first, first + RENDER_BATCH).clip(max=len(pixels) - 1)
        unknown = pd.DataFrame({"image_id": "", "label": ""}, index=range(RENDER_BATCH))
        parts.append(labeller.classify(ImageSet(pixels[rows], unknown), compute)[: len(pixels) - first])
    return np.concatenate(parts).astype(float)


def until_seen(
    asked: Sequence[str],
    seeds: Sequence[int],
    *,
    draw: Callable[[list[int]], np.ndarray],  # image seeds -> uint8 (n, H, W, 3)
    judge: Callable[[np.ndarray], np.ndarray],  # those -> class probabilities (n, K)
    classes: Sequence[str],  # of the K columns; every asked label is one of them
    max_tries: int,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Return, per asked label, the first image of a sequence of its own that is seen as that class, and its columns.

    The k-th candidate of a row has the seed ``image_seed(seed of the row, k)``, so a row depends on no other.  When
    none of ``max_tries`` is seen as the asked class, the candidate most likely to be it is taken, with the label it
    really has.  Columns: ``label`` (the pseudo-label), ``asked_label``, ``pseudo_label``, ``label_confidence``,
    ``image_seed`` (of the candidate: the image is made again from it alone), ``tries`` and ``p_<class>``.
    """
    wanted = np.array([list(classes).index(label) for label in asked], dtype=int)
    pixels, taken = [None] * len(wanted), [None] * len(wanted)
    shares, tries = np.full((len(wanted), len(classes)), -1.0), np.zeros(len(wanted), int)
    rows, done = np.arange(len(wanted)), 0
    while len(rows) and done < max_tries:
        # few open rows look several candidates ahead, so that a batch is full
        ahead = min(max(1, RENDER_BATCH // len(rows)), max_tries - done)
        candidates = [image_seed(seeds[row], done + k) for row in rows for k in range(ahead)]
        drawn = draw(candidates)
        found = judge(drawn).reshape(len(rows), ahead, -1)
        seen = found.argmax(axis=2) == wanted[rows, None]
        for place, row in enumerate(rows):
            hits, likeliest = np.flatnonzero(seen[place]), found[place, :, wanted[row]].argmax()
            k = hits[0] if len(hits) else likeliest
            if len(hits) or found[place, k, wanted[row]] > shares[row, wanted[row]]:
                pixels[row], taken[row] = drawn[place * ahead + k], candidates[place * ahead + k]
                shares[row] = found[place, k]
            tries[row] = done + (k + 1 if len(hits) else ahead)
        rows, done = rows[~seen.any(axis=1)], done + ahead
    return np.stack(pixels) if pixels else draw([]), _columns(asked, classes, shares, taken, tries)


def _columns(
    asked: Sequence[str], classes: Sequence[str], shares: np.ndarray, taken: list[int], tries: np.ndarray
) -> pd.DataFrame:
    """Return what the table says about the images that were taken."""
    label = np.asarray(classes, dtype=object)[shares.argmax(axis=1)]
    columns: dict[str, Any] = {
        "label": label,
        "asked_label": list(asked),
        "pseudo_label": label,
        "label_confidence": shares.max(axis=1),
        "image_seed": np.asarray(taken, dtype=np.int64),
        "tries": tries,
    }
    return pd.DataFrame(columns | {f"p_{name}": shares[:, i].round(6) for i, name in enumerate(classes)})
