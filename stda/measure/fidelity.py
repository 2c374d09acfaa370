"""How close synthetic images are to real ones, measured on encoder features: KID, FID, precision to coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sized

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.distances import blocks, distance_chunks

# below this the bias of FID is larger than most differences one would like to see (Binkowski et al. 2018, fig. 1)
FID_RELIABLE_N = 2048
KERNEL_BLOCK = 1024  # rows of a kernel block: small, so that the symmetry of a set saves work
REAL_ROW = "real (other half)"
COPIES_ROW = "copies of training images"


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
    ``subset_mean``, ``subset_std`` (what torchmetrics and torch-fidelity report).  Every block of the kernel matrices
    is computed once, added to all subsets it is part of, and forgotten; their rows take 8 ``subsets`` (N + M) bytes.
    The interval comes from subsets drawn without replacement: their spread times sqrt(b / (n - b)) is that of the full
    estimate (delete-d jackknife, Shao and Wu 1989), exact scaling where the distributions differ and conservative
    where they are equal.  No interval (nan) for fewer than 4 rows a side.
    Rows count as independent: several images of one lesion raise the similarity within a set, and so the KID a little.
    """
    x, y = _features(x, y)
    n = min(len(x), len(y))
    if n < 2:
        raise BadInput(f"KID needs at least two images on each side; got {len(x)} and {len(y)}.")
    size = n // 2 if subset_size is None else subset_size
    if size > n:
        raise BadInput(f"subset_size is {size} but the smaller side has {n} images; choose at most {n}.")
    drawn = subsets if size >= 2 and subsets >= 2 else 0
    rng = np.random.default_rng(seed)
    members = [np.vstack([np.ones((1, len(side))), _subsets(rng, drawn, size, len(side))]) for side in (x, y)]
    everything, *values = _discrepancies(x, y, *members).tolist()
    result = {"kid": everything, "kid_low": np.nan, "kid_high": np.nan, "subset_mean": np.nan, "subset_std": np.nan}
    if not drawn:
        return result

    result |= {"subset_mean": float(np.mean(values)), "subset_std": float(np.std(values))}
    if size < n:
        tails = np.quantile(values - np.mean(values), [(1 - confidence) / 2, (1 + confidence) / 2])
        result["kid_low"], result["kid_high"] = (everything + tails * np.sqrt(size / (n - size))).tolist()
    return result


def kid_of_subsets(
    x: np.ndarray,
    y: np.ndarray,
    rows_x: np.ndarray,
    rows_y: np.ndarray,
    *,
    dtype: type = np.float64,  # of the matrix products; float32 is twice as fast, sums are float64 either way
) -> np.ndarray:
    """Return the KID ``(S,)`` of given subsets: rows ``rows_x`` (S, a) of ``x`` against ``rows_y`` (S, b) of ``y``.

    The rows of a subset must differ.  Subsets that overlap much share the kernel of all rows that occur in any of them;
    where the subsets hold fewer pairs than that kernel, each is computed alone.  Mean and standard deviation of the
    values are what torch-fidelity and torchmetrics call KID when they draw the same rows.
    """
    x, y = _features(x, y)
    rows_x, rows_y = np.asarray(rows_x), np.asarray(rows_y)
    if rows_x.ndim != 2 or rows_y.ndim != 2 or len(rows_x) != len(rows_y) or min(rows_x.shape[1], rows_y.shape[1]) < 2:
        raise BadInput(f"Subsets are (S, a) and (S, b) rows with a, b >= 2; got {rows_x.shape} and {rows_y.shape}.")
    for rows, n in ((rows_x, len(x)), (rows_y, len(y))):
        if rows.min(initial=0) < 0 or rows.max(initial=0) >= n or (np.diff(np.sort(rows)) == 0).any():
            raise BadInput(f"The rows of a subset must differ and lie in 0 to {n - 1}.")
    used_x, used_y = np.unique(rows_x), np.unique(rows_y)
    if len(rows_x) * (rows_x.shape[1] + rows_y.shape[1]) ** 2 < (len(used_x) + len(used_y)) ** 2:
        whole = np.ones((1, rows_x.shape[1]), dtype), np.ones((1, rows_y.shape[1]), dtype)
        each = [_discrepancies(x[a], y[b], *whole, dtype) for a, b in zip(rows_x, rows_y, strict=True)]
        return np.concatenate([np.zeros(0), *each])
    members = []
    for rows, used in ((rows_x, used_x), (rows_y, used_y)):
        members.append(np.zeros((len(rows), len(used)), dtype))
        np.put_along_axis(members[-1], np.searchsorted(used, rows), 1, axis=1)
    return _discrepancies(x[used_x], y[used_y], *members, dtype)


def fid(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Fréchet distance of Gaussians fitted to features ``x`` (N, D) and ``y`` (M, D), at least 0.

    |mean difference|^2 + tr(Sx) + tr(Sy) - 2 tr((Sx Sy)^(1/2)) in float64 with covariances over n - 1 (Heusel et al.
    2017).  The last trace is the sum of the singular values of A B^T for any roots Sx = A^T A, Sy = B^T B: with fewer
    images than dimensions the centred features themselves are such roots, otherwise a Cholesky root; where both sides
    have many, the symmetric eigenvalues of A Sy A^T serve.  No square root of the non-symmetric product, no epsilon on
    the diagonal.  With many images features are converted block by block, and D x D matrices are what is held.
    """
    x, y = _features(x, y)
    if min(len(x), len(y)) < 2:
        raise BadInput(f"FID needs at least two images on each side; got {len(x)} and {len(y)}.")
    mean_x, mean_y = x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)
    few_x, few_y = len(x) < x.shape[1], len(y) < x.shape[1]
    a = (x - mean_x) / np.sqrt(len(x) - 1) if few_x else _covariance(x, mean_x)
    b = (y - mean_y) / np.sqrt(len(y) - 1) if few_y else _covariance(y, mean_y)
    traces = sum((m**2).sum() if few else np.trace(m) for m, few in ((a, few_x), (b, few_y)))
    if few_x or few_y:
        a, b = a if few_x else _root(a).T, b if few_y else _root(b).T
        cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    else:
        root = _root(a)
        cross = np.sqrt(np.clip(np.linalg.eigvalsh(root.T @ b @ root), 0.0, None)).sum()
    distance = ((mean_x - mean_y) ** 2).sum() + traces - 2 * cross
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
    real_radius, fake_radius = _radii(real, k, chunk), _radii(fake, k, chunk)
    inside_real = 0.0  # pairs (real ball, fake point inside it)
    fake_covered = np.zeros(len(fake), dtype=bool)
    real_recalled = np.zeros(len(real), dtype=bool)
    real_covered = np.zeros(len(real), dtype=bool)
    for rows, distances in distance_chunks(real, fake, chunk=chunk):
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
    row.  The second row, "copies of training images", is the yardstick drawn again with replacement: what a generator
    scores that has stored its training images.  None of these measures sees copying.  Every row uses the same number of
    images on both sides (the smallest eligible set decides), because all these measures move with the sample size; the
    columns ``n`` and ``n_reference`` state it, ``available`` what there was.
    Other columns: ``set, kid, kid_low, kid_high, fid, precision, recall, density, coverage, note``.

    All features are divided by the root mean square of the reference's: KID and FID depend on the scale of an encoder's
    features, and without this SqueezeNet's come out in millions where others' are below one.
    """
    require_sets(features, reference)
    sets = {name: np.asarray(x) for name, x in features.items()}
    limits = {"smallest": max(min_samples, k + 1), "largest": max_samples, "scale": feature_scale(sets[reference])}
    table = _rows(sets, reference, groups, **limits, k=k, subsets=subsets, confidence=confidence, seed=seed)
    biased = table["n"].between(1, FID_RELIABLE_N - 1)
    table.loc[biased, "note"] = "few images bias FID upwards: compare it within this table only"
    return table


def class_fidelity(
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    *,
    reference: str,
    seed: int,
    groups: np.ndarray | None = None,  # lesion of each reference row: both halves then share no lesion
    k: int = 5,  # neighbours of precision, recall, density and coverage
    subsets: int = 200,  # behind the interval of KID
    confidence: float = 0.95,
    min_samples: int = 20,  # fewer on a side: the row says so and holds no number
    max_samples: int = 2000,  # upper bound of the images used on each side
) -> pd.DataFrame:
    """Return :func:`fidelity_table` for every class of the reference, with ``label`` as the first column.

    ``labels`` maps a set's name to its (n,) classes.  The number of images is equal within a class, not between them,
    so only what has the same value for equal distributions at any number is filled in *(reading)*.  KID is unbiased;
    density has expectation 1, and coverage one that depends on ``k`` and hardly on n (1 - 2^-k for many).  All three
    are given from ``min_samples`` on.  Where the distributions differ, only KID is comparable between classes: the
    balls of density and coverage shrink as n grows, and see the same difference better.
    Precision and recall need balls that are small beside the class: from 20 ``k`` images.  FID is given from
    2,048 images.  The notes say what was left out, how many images there are, and how many it takes; the reference is
    cut in halves first, so a class needs twice as many real images.  Features are divided by one scale for all classes.
    """
    require_sets(features, reference)
    for name, values in features.items():
        if name not in labels or len(values) != len(labels[name]):
            raise BadInput(f"Set '{name}' has {len(values)} rows and needs as many labels, one for each row.")
    groups = np.arange(len(features[reference])) if groups is None else np.asarray(groups)
    require_groups(groups, len(features[reference]))
    sets, labels = ({name: np.asarray(part[name]) for name in features} for part in (features, labels))
    limits, parts = (
        {"smallest": max(min_samples, k + 1), "largest": max_samples, "scale": feature_scale(sets[reference])},
        [],
    )
    for label in sorted(set(labels[reference])):
        own = {name: x[labels[name] == label] for name, x in sets.items()}
        lesions = groups[labels[reference] == label]
        table = _rows(own, reference, lesions, **limits, k=k, subsets=subsets, confidence=confidence, seed=seed)
        few_neighbours, few_for_fid = table["n"].between(1, 20 * k - 1), table["n"].between(1, FID_RELIABLE_N - 1)
        table.loc[few_neighbours, ["precision", "recall"]] = np.nan
        table.loc[few_for_fid, "fid"] = np.nan
        table.loc[few_neighbours, "note"] += f"; no precision and recall: need {20 * k} images on both sides"
        table.loc[few_for_fid, "note"] += f"; no FID: needs {FID_RELIABLE_N}"
        table["note"] = table["note"].str.removeprefix("; ")
        table.insert(0, "label", label)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def halves(x: np.ndarray, groups: np.ndarray | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut the rows into two halves at random; rows of one group go the same way."""
    groups = np.arange(len(x)) if groups is None else np.asarray(groups)
    require_groups(groups, len(x))
    _, code = np.unique(groups, return_inverse=True)
    sizes = np.bincount(code)
    order = rng.permutation(len(sizes))
    first = np.zeros(len(sizes), dtype=bool)
    first[order[np.cumsum(sizes[order]) <= (len(x) + 1) // 2]] = True
    return x[first[code]], x[~first[code]]


def require_sets(sets: Mapping, reference: str) -> None:
    """Raise unless the reference is one of the sets and no name is one that a table gives to its own rows."""
    if reference not in sets or REAL_ROW in sets or COPIES_ROW in sets:
        raise BadInput(
            f"The sets {list(sets)} must hold the reference '{reference}', and none '{REAL_ROW}' or '{COPIES_ROW}'."
        )


def require_groups(groups: np.ndarray, n: int) -> None:
    """Raise unless every reference row has its group."""
    if len(groups) != n:
        raise BadInput(f"{len(groups)} groups came with {n} reference rows; they must agree.")


def equal_number(yardstick: Sized, sets: Mapping[str, Sized], *, smallest: int, largest: int) -> int:
    """Return how many images every row uses on each side: what the smallest set has that has enough, at most."""
    return min([len(x) for x in sets.values() if len(x) >= smallest] + [len(yardstick), largest])


def _rows(
    features: Mapping[str, np.ndarray],
    reference: str,
    groups: np.ndarray | None,
    *,
    smallest: int,
    largest: int,
    scale: float,
    seed: int,
    **settings: float,  # of kid and prdc
) -> pd.DataFrame:
    """Return the rows of a table: the reference is cut in halves, the sets are set against one at equal n."""
    rng = np.random.default_rng(seed)
    yardstick, other_half = halves(features[reference] / scale, groups, rng)
    sets = {REAL_ROW: other_half} | {name: x / scale for name, x in features.items() if name != reference}
    n = equal_number(yardstick, sets, smallest=smallest, largest=largest)
    available = len(yardstick)
    yardstick = yardstick[rng.permutation(available)[:n]]
    used = {name: values[rng.permutation(len(values))[:n]] for name, values in sets.items()}
    counts = {name: len(values) for name, values in sets.items()} | {COPIES_ROW: available}
    used[COPIES_ROW] = yardstick[rng.integers(0, max(n, 1), n)]
    table = []
    for name in [REAL_ROW, COPIES_ROW, *(name for name in sets if name != REAL_ROW)]:
        row = {"set": name, "available": counts[name], "n": 0, "n_reference": n, "note": ""}
        if min(counts[name], n) >= smallest:
            row |= {"n": n, **_compare(yardstick, used[name], seed=seed, **settings)}
        else:
            there = f"there are {counts[name]} and {available}"
            row["note"] = f"not measured: needs at least {smallest} images on both sides, {there}"
        table.append(row)
    columns = ["set", "available", "n", "n_reference", "kid", "kid_low", "kid_high", "fid"]
    return pd.DataFrame(table, columns=[*columns, "precision", "recall", "density", "coverage", "note"])


def _compare(
    yardstick: np.ndarray, used: np.ndarray, *, k: int, subsets: int, confidence: float, seed: int
) -> dict[str, float]:
    distance = kid(yardstick, used, subsets=subsets, confidence=confidence, seed=seed)
    wanted = {key: distance[key] for key in ("kid", "kid_low", "kid_high")}
    return wanted | {"fid": fid(yardstick, used)} | prdc(yardstick, used, k=k)


def feature_scale(features: np.ndarray) -> float:
    """Return the root mean square of the features, 1 where there is none."""
    return float(np.sqrt(np.square(features, dtype=np.float64).mean())) or 1.0 if features.size else 1.0


def _features(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as floating-point ``(N, D)`` without a copy where they are that, or say what is wrong with them."""
    x, y = (a if a.dtype.kind == "f" else a.astype(np.float64) for a in map(np.asarray, (x, y)))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not x.shape[1]:
        raise BadInput(f"Features must be (N, D) with one D; got {x.shape} and {y.shape}: use one encoder for both.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise BadInput("The features hold NaN or infinity: check the images and the encoder's weights.")
    return x, y


def _subsets(rng: np.random.Generator, n_subsets: int, size: int, n: int) -> np.ndarray:
    """Return 0/1 ``(n_subsets, n)`` with ``size`` ones a row, so that sums over subsets are matrix products."""
    member = np.zeros((n_subsets, n))
    for row in member:
        row[rng.permutation(n)[:size]] = 1.0
    return member


def _discrepancies(
    x: np.ndarray, y: np.ndarray, in_x: np.ndarray, in_y: np.ndarray, dtype: type = np.float64
) -> np.ndarray:
    """Return the unbiased squared discrepancy of each subset, given which rows it has: 0/1 (S, N) and (S, M)."""
    n, m = in_x.sum(1, dtype=np.float64), in_y.sum(1, dtype=np.float64)
    within_x, within_y = _kernel_sums(x, in_x, dtype=dtype), _kernel_sums(y, in_y, dtype=dtype)
    between = _kernel_sums(x, in_x, y, in_y, dtype=dtype)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)


def _kernel_sums(
    x: np.ndarray, in_x: np.ndarray, y: np.ndarray | None = None, in_y: np.ndarray | None = None, *, dtype: type
) -> np.ndarray:
    """Return the sum of the kernel over the pairs of each subset ``(S,)``, without ``y`` over pairs of different rows.

    The kernel is symmetric: within one set the blocks above the diagonal count twice.
    """
    sums = np.zeros(len(in_x))
    other, in_other = (x, in_x) if y is None else (y, in_y)
    for rows in blocks(len(x), KERNEL_BLOCK):
        a = x[rows].astype(dtype)
        for columns in blocks(len(other), KERNEL_BLOCK):
            if y is None and columns.start < rows.start:
                continue
            diagonal = y is None and columns == rows
            kernel = a @ (a if diagonal else other[columns].astype(dtype)).T
            kernel /= x.shape[1]
            kernel += 1.0
            kernel *= kernel * kernel
            if diagonal:
                np.fill_diagonal(kernel, 0.0)
            part = np.einsum("sj,sj->s", in_x[:, rows] @ kernel, in_other[:, columns], dtype=np.float64)
            sums += part if y is not None or diagonal else 2 * part
    return sums


def _covariance(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the float64 covariance over n - 1 of the rows, converting a block of them at a time."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for rows in blocks(len(x)):
        centred = x[rows] - mean
        total += centred.T @ centred
    return total / (len(x) - 1)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return L with L L^T = covariance, also for a singular one (features that never fire)."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(np.clip(values, 0.0, None))


def _radii(x: np.ndarray, k: int, chunk: int) -> np.ndarray:
    """Return the squared distance of each row to its ``k``-th nearest other row, less what may be rounding.

    Points on the very edge of a ball, such as copies of the neighbour that made it, are outside of an open ball.
    """
    radii = np.empty(len(x))
    for rows, distances in distance_chunks(x, x, chunk=chunk):
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = 0.0  # exactly: the centre, not counted
        distances.partition(k, axis=1)
        radii[rows] = distances[:, k]
    return radii * (1 - 1e-9)
