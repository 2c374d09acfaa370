"""Sliced Wasserstein distance of image patches on the levels of Laplacian pyramids: which scale of detail is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from scipy.ndimage import correlate1d

from stda import BadInput
from stda.images import ImageSet
from stda.measure.distances import blocks
from stda.measure.fidelity import COPIES_ROW, REAL_ROW, equal_number, halves, require_sets

PATCH = 7  # pixels of a side of a patch
COARSEST = 16  # pixels of a side below which no level is made
BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def laplacian_pyramid(images: np.ndarray, *, coarsest: int = COARSEST) -> list[np.ndarray]:
    """Return the Laplacian pyramid of images ``(N, H, W, C)``: float32 levels from full size down to ``coarsest``.

    A level is the image minus what the next coarser one predicts of it; the last level is the small image itself (Burt
    and Adelson 1983; binomial kernel of five taps, edges mirrored).  Every side is halved, rounded up, while it stays
    at least ``coarsest`` pixels; smaller images are their own only level.
    """
    image, levels = np.asarray(images, dtype=np.float32), []
    while (min(image.shape[1:3]) + 1) // 2 >= coarsest:
        small = _blurred(image)[:, ::2, ::2]
        levels.append(image - _expanded(small, image.shape))
        image = small
    return [*levels, image]


def from_pyramid(levels: list[np.ndarray]) -> np.ndarray:
    """Return the images ``(N, H, W, C)`` float32 whose :func:`laplacian_pyramid` these levels are."""
    image = levels[-1]
    for level in reversed(levels[:-1]):
        image = level + _expanded(image, level.shape)
    return image


def sliced_wasserstein(
    x: np.ndarray,
    y: np.ndarray,
    *,
    seed: int,
    directions: int = 128,  # random directions of one repeat
    repeats: int = 4,  # with fresh directions each
) -> float:
    """Return the sliced Wasserstein-1 distance of points ``x`` and ``y``, both (N, D) with the same N.

    The mean over random unit directions of the mean distance between the sorted projections (Rabin et al. 2011), by
    default 4 x 128 = 512 directions.  Eight directions are sorted at a time.
    """
    if x.shape != y.shape or x.ndim != 2 or not len(x):
        raise BadInput(f"Sorted projections are compared one to one; got {x.shape} and {y.shape}, use equal numbers.")
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(repeats):
        ways = rng.normal(size=(directions, x.shape[1]))
        ways = (ways / np.linalg.norm(ways, axis=1, keepdims=True)).astype(x.dtype)
        for some in blocks(directions, 8):
            gaps = np.sort(ways[some] @ x.T, axis=1) - np.sort(ways[some] @ y.T, axis=1)
            total += np.abs(gaps).mean(axis=1, dtype=np.float64).sum()
    return total / (directions * repeats)


def pyramid_distance(
    x: np.ndarray,
    y: np.ndarray,
    *,
    seed: int,
    patches: int = 128,  # per image and level
    directions: int = 128,  # random directions of one repeat
    repeats: int = 4,  # with fresh directions each
) -> dict[int, float]:
    """Return the sliced Wasserstein distance x 1000 per pyramid level, by its side in pixels, finest first.

    ``x`` and ``y`` are uint8 or float ``(N, H, W, 3)`` with the same N and size.  From every level ``patches`` squares
    of 7 x 7 pixels of each image are taken at random places; those of a set have their mean subtracted and are divided
    by their standard deviation, per colour channel, and are compared (Karras et al. 2018, section 5).  The finest
    levels see sharpness and noise, the coarsest layout.  Because each set has its own mean and deviation, a colour cast
    or a loss of contrast of the whole set is not seen.  Equal sets give exactly 0: the places depend on ``seed`` and
    row only.
    """
    if x.shape != y.shape or x.ndim != 4 or not len(x) or min(x.shape[1:3]) < PATCH:
        raise BadInput(f"Sets of equal number and size, at least {PATCH} pixels a side, are compared; "
                       f"got {x.shape} and {y.shape}.")  # fmt: skip
    settings = {"seed": seed, "directions": directions, "repeats": repeats}
    pairs = zip(_descriptors(x, patches, seed), _descriptors(y, patches, seed), strict=True)
    return {side: 1000 * sliced_wasserstein(a, b, **settings) for (side, a), (_, b) in pairs}


def structure_table(
    sets: Mapping[str, ImageSet],
    *,
    reference: str,
    seed: int,
    patches: int = 128,  # per image and level
    directions: int = 128,  # random directions of one repeat
    repeats: int = 4,  # with fresh directions each
    min_samples: int = 20,  # a smaller set is listed without numbers, and does not shrink the others
    max_samples: int = 500,  # upper bound of the images used on each side
) -> pd.DataFrame:
    """Compare the patches of sets of images with those of the real training images, per pyramid level.

    The rows are those of :func:`stda.measure.fidelity_table`: the reference, cut by group into two halves, gives the
    yardstick and the first row, "copies of training images" the second, and every row uses the same number of images.
    Columns ``set, available, n, n_reference``, one ``swd_<pixels>`` per level (finest first), their mean ``swd_mean``
    (all x 1000, lower is closer), ``note``.
    """
    require_sets(sets, reference)
    if len(sizes := sorted({s.images.shape[1:] for s in sets.values()})) != 1:
        raise BadInput(f"Only sets of one image size can be compared; got {sizes}: resize them first.")
    rng, real = np.random.default_rng(seed), sets[reference]
    first, second = halves(np.arange(len(real)), real.table["group"].to_numpy(), rng)
    others = {name: s.images for name, s in sets.items() if name != reference}
    rows, available = {name: np.arange(len(x)) for name, x in others.items()}, len(first)
    n = equal_number(first, {REAL_ROW: second} | rows, smallest=min_samples, largest=max_samples)
    first = first[rng.permutation(available)[:n]]
    yardstick, table = real.images[first], []
    # name: (where its images are, which of them, how many there are)
    sources = {REAL_ROW: (real.images, second, len(second))}
    sources[COPIES_ROW] = (real.images, first[rng.integers(0, max(n, 1), n)], available)
    sources |= {name: (images, rows[name], len(images)) for name, images in others.items()}
    for name, (images, which, there) in sources.items():
        row = {"set": name, "available": there, "n": 0, "n_reference": n, "note": ""}
        if min(there, n) >= min_samples:
            used = images[np.sort(rng.permutation(which)[:n])]
            settings = {"patches": patches, "directions": directions, "repeats": repeats}
            levels = pyramid_distance(yardstick, used, seed=seed, **settings)
            row |= {"n": n, **{f"swd_{side}": value for side, value in levels.items()}}
            row["swd_mean"] = float(np.mean(list(levels.values())))
        else:
            row["note"] = (
                f"not measured: needs at least {min_samples} images on both sides, there are {there} and {available}"
            )
        table.append(row)
    sides = [f"swd_{side}" for side in _sides(real.images.shape[1:3])]
    return pd.DataFrame(table, columns=["set", "available", "n", "n_reference", *sides, "swd_mean", "note"])


def _sides(shape: tuple[int, int]) -> list[int]:
    return [min(level.shape[1:3]) for level in laplacian_pyramid(np.zeros((1, *shape, 1)))]


def _descriptors(images: np.ndarray, patches: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield for every level its side and the normalised patches ``(N patches, 3 x 7 x 7)`` float32 of all images."""
    rng = np.random.default_rng(seed)
    n_levels = len(_sides(images.shape[1:3]))
    found: list[list[np.ndarray]] = [[] for _ in range(n_levels)]
    for rows in blocks(len(images), 256):
        for kept, level in zip(found, laplacian_pyramid(images[rows]), strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(level, (PATCH, PATCH), axis=(1, 2))
            n, height, width = windows.shape[:3]
            y, x = rng.integers(0, height, (n, patches)), rng.integers(0, width, (n, patches))
            kept.append(windows[np.arange(n)[:, None], y, x].reshape(-1, *windows.shape[3:]))
    for side, parts in zip(_sides(images.shape[1:3]), found, strict=True):
        points = np.concatenate(parts)
        parts.clear()
        colours = np.ascontiguousarray(points.swapaxes(0, 1)).reshape(points.shape[1], -1)  # colour first: long rows
        mean = colours.mean(axis=1, dtype=np.float64)
        colours -= mean[:, None].astype(np.float32)
        deviation = np.sqrt(np.square(colours).mean(axis=1, dtype=np.float64))
        colours /= np.where(deviation > 1e-6, deviation, 1)[:, None].astype(np.float32)  # no detail at all stays 0
        yield side, colours.reshape(points.shape[1], len(points), -1).swapaxes(0, 1).reshape(len(points), -1)


def _blurred(images: np.ndarray) -> np.ndarray:
    return correlate1d(correlate1d(images, BINOMIAL, axis=1, mode="mirror"), BINOMIAL, axis=2, mode="mirror")


def _expanded(small: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return ``small`` at the size of ``shape``: zeros between the pixels, then the blur, with the mean kept."""
    large = np.zeros(shape, np.float32)
    large[:, ::2, ::2] = small
    return 4 * _blurred(large)
