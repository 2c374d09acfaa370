"""SSIM and MS-SSIM of image pairs, and how alike the images of one class are: collapse shows as more than real."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import pandas as pd

from stda import BadInput
from stda.images import ImageSet
from stda.measure.distances import blocks

WINDOW = 11  # pixels of a side of the Gaussian window
SIGMA = 1.5
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ssim(
    x: np.ndarray,
    y: np.ndarray,
    *,
    dtype: str = "float64",  # float32 is twice as fast and agrees to 1e-4
) -> np.ndarray:
    """Return the structural similarity ``(N,)`` float64 of image pairs, uint8 ``(N, H, W, C)``; 1 for equal images.

    Wang et al. 2004: Gaussian window of 11 x 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03.  The paper has grey images
    and does not treat edges; here colour channels are averaged and edges mirrored *(reading)*, both as in torchmetrics.
    """
    return _similarities(x, y, 1, dtype)[0]


def ms_ssim(
    x: np.ndarray,
    y: np.ndarray,
    *,
    dtype: str = "float64",  # float32 is twice as fast and agrees to 1e-4
) -> np.ndarray:
    """Return the multi-scale structural similarity ``(N,)`` float64 of image pairs, uint8 ``(N, H, W, C)``.

    Wang, Simoncelli and Bovik 2003: contrast and structure at every scale, luminance at the coarsest, a product with
    the paper's five weights; between scales 2 x 2 pixels are averaged.  Contrast and structure are averaged where the
    window fits, negative means count as 0 (both as in torchmetrics).  The five scales need 176 pixels.  Smaller images
    have the scales into which the window fits, with the first weights divided by their sum *(reading)*: values are
    comparable at one image size only.  :func:`scales_that_fit` says how many there are.
    """
    return _similarities(x, y, scales_that_fit(min(x.shape[1:3])), dtype)[1]


def scales_that_fit(size: int) -> int:
    """Return how many of the five scales of MS-SSIM images of ``size`` pixels have; BadInput below 11 pixels."""
    if size < WINDOW:
        raise BadInput(f"SSIM needs images of at least {WINDOW} pixels a side; got {size}.")
    return sum(size // 2**scale >= WINDOW for scale in range(len(SCALE_WEIGHTS)))


def class_similarity(
    sets: Mapping[str, ImageSet],
    *,
    reference: str,
    seed: int,
    pairs: int = 200,  # random pairs per class and set, at most
    max_samples: int = 500,  # images of a class among which pairs are drawn, at most
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the mean SSIM and MS-SSIM of random pairs of different images of a class, in each set.

    More than the real images have means less diverse (Odena et al. 2017).  Real images are paired across groups
    (lesions), generated ones (a generator is named in the table) with any other.  The intervals are normal ones whose
    standard error counts all pairs that share an image, or a real lesion, as dependent (Aronow et al. 2015, eq. 2).
    Columns ``set, label, n`` (images), ``pairs, ssim, ssim_low, ssim_high, ms_ssim, ms_ssim_low, ms_ssim_high, scales,
    note``; the reference's rows come first, and a class without a pair has no numbers but a note.
    """
    if reference not in sets:
        raise BadInput(f"The sets {list(sets)} must hold the reference '{reference}'.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rows = []
    for name in [reference, *(name for name in sets if name != reference)]:
        for label in sets[reference].classes:
            own = np.flatnonzero(sets[name].labels == label)
            row = {"set": name, "label": label, "n": len(own), "pairs": 0, "note": ""}
            rng = np.random.default_rng([seed, len(rows)])
            own = np.sort(rng.permutation(own)[:max_samples])
            units = _units(sets[name].table.iloc[own])
            a, b = _pairs(units, pairs, rng)
            if len(a):
                scales = scales_that_fit(sets[name].size)
                values = _similarities(sets[name].images[own[a]], sets[name].images[own[b]], scales, "float64")
                row |= {"pairs": len(a), "scales": scales}
                for key, value in zip(("ssim", "ms_ssim"), values, strict=True):
                    middle, error = value.mean(), pair_error(value, units[a], units[b])
                    row |= {key: middle, f"{key}_low": middle - z * error, f"{key}_high": middle + z * error}
            else:
                row["note"] = f"not measured: {len(own)} images hold no pair that may be compared"
            rows.append(row)
    intervals = [f"{key}{end}" for key in ("ssim", "ms_ssim") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["set", "label", "n", "pairs", *intervals, "scales", "note"])


def pair_error(values: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Return the standard error of the mean of ``values`` (P,) of pairs of units ``a``, ``b`` (P,) of whole numbers.

    Pairs that share a unit are dependent: the sum over such pairs of pairs of the products of their residuals (Aronow,
    Samii and Assenova 2015, eq. 2), with P - 1 for P; nan where all pairs are of the same two units.  Where that sum is
    smaller than if only pairs of the same two units were dependent, it is the latter.
    """
    n = len(values)
    residuals = values - values.mean()
    size = int(max(a.max(), b.max())) + 1
    by_unit = np.bincount(a, residuals, size) + np.bincount(b, residuals, size)
    # a pair meets itself in both of its units, and pairs of the same two units meet twice: each counts once
    _, same = np.unique(np.minimum(a, b) * size + np.maximum(a, b), return_inverse=True)
    if same.max(initial=0) == 0:
        return float("nan")
    alone = (np.bincount(same, residuals) ** 2).sum()
    return float(np.sqrt(max((by_unit**2).sum() - alone, alone) / (n * (n - 1))))


def _units(table: pd.DataFrame) -> np.ndarray:
    """Return a whole number per row: its group for real images, its own for generated ones."""
    own = [
        f"group {group}" if not generator else f"row {row}"
        for row, (group, generator) in enumerate(zip(table["group"], table["generator"], strict=True))
    ]
    return np.unique(own, return_inverse=True)[1] if own else np.zeros(0, dtype=int)


def _pairs(units: np.ndarray, wanted: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two index arrays of at most ``wanted`` different random pairs of rows of different units."""
    a, b = np.triu_indices(len(units), 1)
    allowed = np.flatnonzero(units[a] != units[b])
    chosen = np.sort(rng.permutation(allowed)[:wanted])
    return a[chosen], b[chosen]


def _similarities(x: np.ndarray, y: np.ndarray, scales: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return SSIM and MS-SSIM on ``scales`` scales, 64 pairs at a time."""
    if x.shape != y.shape or x.ndim != 4:
        raise BadInput(f"Pairs are images (N, H, W, C) of one shape on both sides; got {x.shape} and {y.shape}.")
    scales_that_fit(min(x.shape[1:3]))
    weights = np.array(SCALE_WEIGHTS[:scales]) / np.sum(SCALE_WEIGHTS[:scales])
    plain, multi = np.empty(len(x)), np.empty(len(x))
    for rows in blocks(len(x), 64):
        a, b = (np.moveaxis(s[rows], 3, 1).astype(dtype) / 255 for s in (x, y))
        product = np.ones(len(a))
        for scale in range(scales):
            if scale:
                a, b = _halved(a), _halved(b)
            full, structure = _means(a, b)
            if not scale:
                plain[rows] = full
            product *= (full if scale == scales - 1 else structure).clip(min=0) ** weights[scale]
        multi[rows] = product
    return plain, multi


def _means(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return per image the means of SSIM and of its contrast-structure part, for pixels (n, C, H, W) in [0, 1]."""
    mean_a, mean_b, aa, bb, ab = (_windowed(m) for m in (a, b, a * a, b * b, a * b))
    constants = (0.01**2, 0.03**2)
    luminance = (2 * mean_a * mean_b + constants[0]) / (mean_a**2 + mean_b**2 + constants[0])
    spread = (aa - mean_a**2).clip(min=0) + (bb - mean_b**2).clip(min=0)
    structure = (2 * (ab - mean_a * mean_b) + constants[1]) / (spread + constants[1])
    fits = structure[..., WINDOW // 2 : -(WINDOW // 2), WINDOW // 2 : -(WINDOW // 2)]
    axes, sums = (1, 2, 3), np.float64
    return (luminance * structure).mean(axes, dtype=sums), fits.mean(axes, dtype=sums)


def _windowed(x: np.ndarray) -> np.ndarray:
    """Return the Gaussian means around every pixel of (n, C, H, W), by two matrix products."""
    for _ in range(2):
        size = x.shape[3]
        x = (x.reshape(-1, size) @ _window_matrix(size).astype(x.dtype).T).reshape(x.shape).swapaxes(2, 3)
    return x


def _window_matrix(size: int) -> np.ndarray:
    """Return (size, size): row i holds the Gaussian window around pixel i, mirrored at the edges."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(offsets**2) / (2 * SIGMA**2))
    places = np.abs(np.arange(size)[:, None] + offsets)
    places = np.minimum(places, 2 * (size - 1) - places)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], places), kernel / kernel.sum())
    return matrix


def _halved(x: np.ndarray) -> np.ndarray:
    """Return the means of 2 x 2 pixels; an odd last row or column is left out."""
    height, width = (side // 2 * 2 for side in x.shape[2:])
    x = x[:, :, :height, :width]
    return x.reshape(*x.shape[:2], height // 2, 2, width // 2, 2).mean((3, 5))
