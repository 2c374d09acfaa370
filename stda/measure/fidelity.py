"""How close synthetic images are to real ones, measured on encoder features: KID, FID, precision to coverage."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from stda import BadInput

# below this the bias of FID is larger than most differences one would like to see (Binkowski et al. 2018, fig. 1)
FID_RELIABLE_N = 2048
REAL_ROW = "real (other half)"


def kid(
    x: np.ndarray,
    y: np.ndarray,
    *,
    subsets: int = 200,  # random subsets behind the interval
    subset_size: int | None = None,  # images of each side in a subset; half of the smaller side by default
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Return the kernel inception distance of features ``x`` (N, D) and ``y`` (M, D) with a subset interval.

    The unbiased squared maximum mean discrepancy with the kernel (a.b / D + 1)^3 (Binkowski et al. 2018); it may be
    slightly negative for equal distributions.  Keys: ``kid`` on all rows, ``kid_low``, ``kid_high`` around it, and
    ``subset_mean``, ``subset_std`` (what torchmetrics and torch-fidelity report).  The kernel matrices are computed
    once, 8 (N^2 + M^2 + N M) bytes.  The interval comes from subsets drawn without replacement: their spread times
    sqrt(b / (n - b)) is the spread of the full estimate (delete-d jackknife, Shao and Wu 1989), exact scaling where the
    distributions differ and conservative where they are equal.  No interval (nan) for fewer than 4 rows a side.
    """
    x, y = _features(x, y)
    n = min(len(x), len(y))
    if n < 2:
        raise BadInput(f"KID needs at least two images on each side; got {len(x)} and {len(y)}.")
    size = n // 2 if subset_size is None else subset_size
    if size > n:
        raise BadInput(f"subset_size is {size} but the smaller side has {n} images; choose at most {n}.")
    kernels = tuple((a @ b.T / x.shape[1] + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    everything = float(_mmd(kernels, np.ones((1, len(x))), np.ones((1, len(y))))[0])
    result = {"kid": everything, "kid_low": np.nan, "kid_high": np.nan, "subset_mean": np.nan, "subset_std": np.nan}
    if size < 2 or subsets < 2:
        return result

    rng = np.random.default_rng(seed)
    values = _mmd(kernels, _subsets(rng, subsets, size, len(x)), _subsets(rng, subsets, size, len(y)))
    result |= {"subset_mean": float(values.mean()), "subset_std": float(values.std())}
    if size < n:
        tails = np.quantile(values - values.mean(), [(1 - confidence) / 2, (1 + confidence) / 2])
        result["kid_low"], result["kid_high"] = (everything + tails * np.sqrt(size / (n - size))).tolist()
    return result


def fid(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Fréchet distance of Gaussians fitted to features ``x`` (N, D) and ``y`` (M, D), at least 0.

    |mean difference|^2 + tr(Sx) + tr(Sy) - 2 tr((Sx Sy)^(1/2)) in float64 with covariances over n - 1 (Heusel et al.
    2017).  The last trace is the sum of the singular values of A B^T for any roots Sx = A^T A, Sy = B^T B: with fewer
    images than dimensions the centred features themselves are such roots; otherwise a Cholesky root of Sx and the
    symmetric eigenvalues of L^T Sy L serve.  No square root of the non-symmetric product, no epsilon on the diagonal.
    """
    x, y = _features(x, y)
    if min(len(x), len(y)) < 2:
        raise BadInput(f"FID needs at least two images on each side; got {len(x)} and {len(y)}.")
    a = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    b = (y - y.mean(0)) / np.sqrt(len(y) - 1)
    if min(len(x), len(y)) < x.shape[1]:
        cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    else:
        root = _root(a.T @ a)
        eigenvalues = np.linalg.eigvalsh(root.T @ (b.T @ b) @ root)
        cross = np.sqrt(np.clip(eigenvalues, 0.0, None)).sum()
    distance = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross
    return max(0.0, float(distance))  # rounding only: the distance is never negative


def prdc(real: np.ndarray, fake: np.ndarray, *, k: int = 5, chunk: int = 1024) -> dict[str, float]:
    """Return precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    ``real`` (N, D), ``fake`` (M, D); balls reach to the ``k``-th neighbour of their own set, the centre not counted,
    and are open (distance < radius), as in Naeem's reference code.  ``chunk`` rows of distances are held at a time.
    Precision, recall and coverage lie in [0, 1]; density may pass 1.  A set of equal images has balls of radius
    zero, so all four are then 0.
    """
    real, fake = _features(real, fake)
    if min(len(real), len(fake)) <= k:
        raise BadInput(f"With k={k} neighbours both sets need more than {k} images; got {len(real)} and {len(fake)}.")
    real, fake = real - real[0], fake - real[0]  # far from the origin the matrix product would lose the differences
    real_radius, fake_radius = _radii(real, k, chunk), _radii(fake, k, chunk)
    inside_real = 0.0  # pairs (real ball, fake point inside it)
    fake_covered = np.zeros(len(fake), dtype=bool)
    real_recalled = np.zeros(len(real), dtype=bool)
    real_covered = np.zeros(len(real), dtype=bool)
    for start in range(0, len(real), chunk):
        rows = slice(start, start + chunk)
        distances = squared_distances(real[rows], fake)
        in_ball = distances < real_radius[rows, None]
        inside_real += in_ball.sum()
        fake_covered |= in_ball.any(0)
        real_covered[rows] = in_ball.any(1)
        real_recalled[rows] = (distances < fake_radius).any(1)
    return {
        "precision": float(fake_covered.mean()),
        "recall": float(real_recalled.mean()),
        "density": float(inside_real / (k * len(fake))),
        "coverage": float(real_covered.mean()),
    }


def fidelity_table(
    features: Mapping[str, np.ndarray],
    *,
    reference: str,
    seed: int,
    groups: np.ndarray | None = None,  # lesion of each reference row: both halves then share no lesion
    k: int = 5,  # neighbours of precision, recall, density and coverage
    subsets: int = 200,  # behind the interval of KID
    confidence: float = 0.95,
    min_samples: int = 20,  # a smaller set is listed without numbers, and does not shrink the others
    max_samples: int = 2000,  # upper bound of the images used on each side
) -> pd.DataFrame:
    """Compare sets of features with the real training images, with a real-against-real row as the scale.

    ``features`` maps a set's name to (n, D); ``reference`` names the train fold among them.  The reference is cut into
    two halves (no lesion in both, when ``groups`` is given): one is the yardstick of every row, the other is the first
    row.  Every row uses the same number of images on both sides (the smallest eligible set decides), because all these
    measures move with the sample size; the columns ``n`` and ``n_reference`` state it, ``available`` what there was.
    Other columns: ``set, kid, kid_low, kid_high, fid, precision, recall, density, coverage, note``.

    All features are divided by the root mean square of the reference's: KID and FID depend on the scale of an encoder's
    features, and without this SqueezeNet's come out in millions where others' are below one.
    """
    if reference not in features or REAL_ROW in features:
        raise BadInput(f"The sets {list(features)} must hold the reference '{reference}', and none '{REAL_ROW}'.")
    rng = np.random.default_rng(seed)
    yardstick, other_half = _halves(np.asarray(features[reference]), groups, rng)
    rows = {REAL_ROW: other_half} | {name: np.asarray(f) for name, f in features.items() if name != reference}
    scale = float(np.sqrt(np.square(yardstick, dtype=np.float64).mean())) or 1.0
    yardstick, rows = yardstick / scale, {name: values / scale for name, values in rows.items()}
    smallest = max(min_samples, k + 1)
    n = min([len(f) for f in rows.values() if len(f) >= smallest] + [len(yardstick), max_samples])
    yardstick = yardstick[rng.permutation(len(yardstick))[:n]]
    table = []
    for name, values in rows.items():
        row = {"set": name, "available": len(values), "n": 0, "n_reference": n}
        row["note"] = f"not measured: needs at least {smallest} images on both sides"
        if min(len(values), n) >= smallest:
            used = values[rng.permutation(len(values))[:n]]
            row |= {"n": n, **_compare(yardstick, used, k=k, subsets=subsets, confidence=confidence, seed=seed)}
            row["note"] = (
                "" if n >= FID_RELIABLE_N else "few images bias FID upwards: compare it within this table only"
            )
        table.append(row)
    columns = ["set", "available", "n", "n_reference", "kid", "kid_low", "kid_high", "fid"]
    return pd.DataFrame(table, columns=[*columns, "precision", "recall", "density", "coverage", "note"])


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return squared Euclidean distances ``(N, M)`` of rows by one matrix product; what is only rounding becomes 0."""
    scale = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :]
    squares = scale - 2 * (x @ y.T)
    squares[squares < 64 * np.finfo(squares.dtype).eps * scale] = 0
    return squares


def _compare(
    yardstick: np.ndarray, used: np.ndarray, *, k: int, subsets: int, confidence: float, seed: int
) -> dict[str, float]:
    distance = kid(yardstick, used, subsets=subsets, confidence=confidence, seed=seed)
    wanted = {key: distance[key] for key in ("kid", "kid_low", "kid_high")}
    return wanted | {"fid": fid(yardstick, used)} | prdc(yardstick, used, k=k)


def _features(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 ``(N, D)``, or say what is wrong with them."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not x.shape[1]:
        raise BadInput(f"Features must be (N, D) with one D; got {x.shape} and {y.shape}: use one encoder for both.")
    x, y = x.astype(np.float64), y.astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise BadInput("The features hold NaN or infinity: check the images and the encoder's weights.")
    return x, y


def _subsets(rng: np.random.Generator, n_subsets: int, size: int, n: int) -> np.ndarray:
    """Return 0/1 ``(n_subsets, n)`` with ``size`` ones a row, so that sums over subsets are matrix products."""
    member = np.zeros((n_subsets, n))
    for row in member:
        row[rng.permutation(n)[:size]] = 1.0
    return member


def _mmd(kernels: tuple[np.ndarray, ...], in_x: np.ndarray, in_y: np.ndarray) -> np.ndarray:
    """Return the unbiased squared discrepancy of each subset, given the kernel matrices of all rows."""
    k_xx, k_yy, k_xy = kernels
    n, m = in_x.sum(1), in_y.sum(1)
    within_x = ((in_x @ k_xx) * in_x).sum(1) - in_x @ np.diag(k_xx)
    within_y = ((in_y @ k_yy) * in_y).sum(1) - in_y @ np.diag(k_yy)
    between = ((in_x @ k_xy) * in_y).sum(1)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return L with L L^T = covariance, also for a singular one (features that never fire)."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(np.clip(values, 0.0, None))


def _radii(x: np.ndarray, k: int, chunk: int) -> np.ndarray:
    """Return the squared distance of each row to its ``k``-th nearest other row."""
    radii = np.empty(len(x))
    for start in range(0, len(x), chunk):
        distances = squared_distances(x[start : start + chunk], x)
        rows = np.arange(len(distances))
        distances[rows, rows + start] = 0.0  # exactly, so that the centre is the one that is not counted
        radii[start : start + chunk] = np.partition(distances, k, axis=1)[:, k]
    return radii


def _halves(
    reference: np.ndarray, groups: np.ndarray | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the rows into two halves at random; rows of one group go the same way."""
    groups = np.arange(len(reference)) if groups is None else np.asarray(groups)
    if len(groups) != len(reference):
        raise BadInput(f"{len(groups)} groups came with {len(reference)} reference rows; they must agree.")
    _, code = np.unique(groups, return_inverse=True)
    sizes = np.bincount(code)
    order = rng.permutation(len(sizes))
    first = np.zeros(len(sizes), dtype=bool)
    first[order[np.cumsum(sizes[order]) <= (len(reference) + 1) // 2]] = True
    return reference[first[code]], reference[~first[code]]
