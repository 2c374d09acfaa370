"""Copying: is a synthetic image closer to a training image than unseen real images ever are?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stda import BadInput
from stda.images import ImageSet
from stda.measure.scores import wilson


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest training row of each query.

    ``distance`` float64 ``(N,)``: root mean square difference per pixel in [0, 1] for images, Euclidean for features.
    ``index`` int ``(N,)``: row of the training set.  ``symmetry`` int ``(N,)``: which of the eight flips and quarter
    turns of the query came closest (:func:`symmetric`), 0 for the query as it is.
    """

    distance: np.ndarray
    index: np.ndarray
    symmetry: np.ndarray


def nearest_images(
    queries: np.ndarray,
    training: np.ndarray,
    *,
    symmetries: bool = True,  # also compare the query flipped and turned: augmentation hides copies otherwise
    chunk: int = 512,  # queries at a time; memory is about 4 chunk M bytes for M training images
) -> Neighbours:
    """Find the nearest training image in pixels, uint8 ``(N, H, W, 3)`` against uint8 ``(M, H, W, 3)``.

    The search runs in float32 on centred pixels, the distance of the pair that was found is exact (0 for a copy).
    """
    if queries.dtype != np.uint8 or training.dtype != np.uint8 or queries.shape[1:] != training.shape[1:]:
        got = f"{queries.dtype} {queries.shape} and {training.dtype} {training.shape}"
        raise BadInput(f"Copies are looked for among uint8 images of one size; got {got}: resize first.")
    if symmetries and queries.shape[1] != queries.shape[2]:
        raise BadInput(f"Quarter turns need square images; got {queries.shape[1:3]}: crop, or pass symmetries=False.")
    best = np.full(len(queries), np.inf)
    index, symmetry = np.zeros(len(queries), dtype=np.int64), np.zeros(len(queries), dtype=np.int64)
    for number in range(8 if symmetries else 1):
        found = _nearest(_pixels(symmetric(queries, number)), _pixels(training), chunk)
        closer = found.distance < best
        best[closer], index[closer], symmetry[closer] = found.distance[closer], found.index[closer], number
    return Neighbours(best / np.sqrt(np.prod(queries.shape[1:])), index, symmetry)


def nearest_features(queries: np.ndarray, training: np.ndarray, *, chunk: int = 512) -> Neighbours:
    """Find the nearest training row in Euclidean distance, features ``(N, D)`` against ``(M, D)``."""
    queries, training = np.asarray(queries, dtype=np.float32), np.asarray(training, dtype=np.float32)
    if queries.ndim != 2 or training.ndim != 2 or queries.shape[1] != training.shape[1]:
        raise BadInput(f"Features must be (N, D) with one D; got {queries.shape} and {training.shape}.")
    if not (np.isfinite(queries).all() and np.isfinite(training).all()):
        raise BadInput("The features hold NaN or infinity: check the images and the encoder's weights.")
    return _nearest(queries, training, chunk)


def symmetric(images: np.ndarray, number: int) -> np.ndarray:
    """Return images ``(N, H, H, C)`` under one of eight symmetries: ``number`` % 4 quarter turns, flipped from 4 on."""
    turned = np.rot90(images, number % 4, axes=(1, 2))
    return turned if number < 4 else turned[:, :, ::-1]


def near_copies(
    distances: np.ndarray,
    held_out_distances: np.ndarray,
    *,
    quantile: float = 0.01,  # the share of unseen real images that may count as near-copies
    confidence: float = 0.95,
) -> dict[str, float | int | bool]:
    """Count the synthetic images that are nearer to a training image than all but a few unseen real ones.

    ``distances`` (N,) and ``held_out_distances`` (M,) are nearest-training distances of the synthetic and of the
    validation images, in the same space.  A near-copy lies strictly below ``threshold``, the ``quantile`` of the
    held-out distances, or at distance 0.  Returns ``n, n_held_out, threshold, near_copies, rate, rate_low, rate_high``
    (Wilson), ``expected_high`` (upper Wilson bound of the held-out share), ``median_ratio`` (median distance over
    that of the held-out images; nan if that is 0) and ``copying``: True when even the lower bound of the rate lies
    above ``expected_high``.  The threshold of few held-out images is rough, which ``expected_high`` takes into account.
    """
    distances, held_out = np.asarray(distances, dtype=float), np.asarray(held_out_distances, dtype=float)
    if not len(distances) or not len(held_out):
        raise BadInput(f"Copying needs synthetic and held-out images; got {len(distances)} and {len(held_out)}.")
    if not 0 < quantile < 1:
        raise BadInput(f"quantile is {quantile}; it must lie between 0 and 1, such as 0.01.")
    threshold = float(np.quantile(held_out, quantile))
    found, expected = (int(((d < threshold) | (d == 0)).sum()) for d in (distances, held_out))
    low, high = wilson(found, len(distances), confidence=confidence)
    # the true share below an estimated quantile is uncertain even when few images were counted below it
    expected_high = wilson(max(expected, round(quantile * len(held_out))), len(held_out), confidence=confidence)[1]
    typical = float(np.median(held_out))
    return {
        "n": len(distances),
        "n_held_out": len(held_out),
        "threshold": threshold,
        "near_copies": found,
        "rate": found / len(distances),
        "rate_low": low,
        "rate_high": high,
        "expected_high": expected_high,
        "median_ratio": float(np.median(distances)) / typical if typical > 0 else float("nan"),
        "copying": low > expected_high,
    }


def copying_table(
    sets: Mapping[str, ImageSet],
    features: Mapping[str, np.ndarray],
    *,
    reference: str,
    held_out: str,
    quantile: float = 0.01,
    confidence: float = 0.95,
    symmetries: bool = True,
) -> pd.DataFrame:
    """Look for near-copies of training images in several sets, in pixels and in features.

    ``sets`` and ``features`` map the same names to image sets and to their features (n, D); ``reference`` names the
    train fold, ``held_out`` the real images that calibrate the threshold.  Columns: ``set, space ("pixels" or
    "features")`` and the keys of :func:`near_copies`; the held-out row comes first in each space.
    """
    for name, given in (("reference", reference), ("held_out", held_out)):
        if given not in sets or given not in features:
            raise BadInput(f"{name} is '{given}', which is not among the sets {sorted(set(sets) & set(features))}.")
    names = [held_out, *(name for name in sets if name not in (reference, held_out))]
    rows = []
    for space in ("pixels", "features"):
        if space == "pixels":
            train = sets[reference].images
            distances = {
                name: nearest_images(sets[name].images, train, symmetries=symmetries).distance for name in names
            }
        else:
            distances = {name: nearest_features(features[name], features[reference]).distance for name in names}
        for name in names:
            counted = near_copies(distances[name], distances[held_out], quantile=quantile, confidence=confidence)
            rows.append({"set": name, "space": space, **counted})
    return pd.DataFrame(rows)


def nearest_pairs(queries: ImageSet, training: ImageSet, *, n: int = 12) -> np.ndarray:
    """Return the ``n`` images nearest to a training image and then their neighbours: uint8 ``(2n, H, W, 3)``.

    The closest come first.  The neighbours are flipped and turned as they were found, so that each lies below its
    query the same way up.  With fewer than ``n`` queries there are as many pairs as queries.
    """
    found = nearest_images(queries.images, training.images)
    closest = np.argsort(found.distance, kind="stable")[:n]
    neighbours = [
        # a flipped turn is its own inverse; a plain turn is undone by the opposite one
        symmetric(training.images[i : i + 1], s if s >= 4 else (4 - s) % 4)
        for i, s in zip(found.index[closest], found.symmetry[closest], strict=True)
    ]
    return np.concatenate([queries.images[closest], *neighbours])


def _pixels(images: np.ndarray) -> np.ndarray:
    """Return float32 ``(N, H W 3)``: levels over 255 around mid-grey, where the matrix product loses least."""
    return images.reshape(len(images), int(np.prod(images.shape[1:]))).astype(np.float32) / np.float32(
        255
    ) - np.float32(0.5)


def _nearest(queries: np.ndarray, training: np.ndarray, chunk: int) -> Neighbours:
    """Search by matrix products in float32; measure the winning pairs again in float64."""
    if not len(training):
        raise BadInput("There is no training image to compare with: pass the train fold.")
    centre = training.mean(0)  # far from the origin the matrix product would lose the differences
    training = training - centre
    squares = (training**2).sum(1)
    index, distance = np.empty(len(queries), dtype=np.int64), np.empty(len(queries))
    for start in range(0, len(queries), chunk):
        rows = slice(start, start + chunk)
        block = queries[rows] - centre
        index[rows] = (squares - 2 * (block @ training.T)).argmin(1)  # the query's own square is the same for all
        difference = block.astype(np.float64) - training[index[rows]]
        distance[rows] = np.sqrt((difference**2).sum(1))
    return Neighbours(distance, index, np.zeros(len(queries), dtype=np.int64))
