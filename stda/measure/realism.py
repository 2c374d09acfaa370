"""Realism: can a classifier tell synthetic from real, and does the picture's border or a ghost give it away?

Style transfer is known for two artefacts, both seen in the published ST-DA examples: a frame, because the network sees
zeros beyond the border, and ghosts, faint shifted copies of structure.  Both are shortcuts for a classifier.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.fidelity import REAL_ROW, halves

PENALTY = 0.01  # inverse strength of the ridge: features outnumber images, and an unpenalised fit would only memorise
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
MIN_LEVEL = 1.0  # one grey level: below it a colour difference is rounding


def real_or_synthetic(
    features: Mapping[str, np.ndarray],
    *,
    reference: str,
    groups: Mapping[str, np.ndarray] | None = None,  # lesion of each row of each set, the content's for synthetic rows
    folds: int = 5,
    halvings: int = 3,  # random halvings of the real rows that are averaged over
    min_samples: int = 20,  # a set with fewer is listed without numbers, and does not shrink the others
    max_samples: int = 1000,  # upper bound of the images on each side
    confidence: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Train a classifier to tell each set from real images and say how well it does on images it has not seen.

    ``features`` maps a set's name to (n, D); ``reference`` names the real images.  The real images are cut into two
    halves without a common group; every row sets the first half against as many images of a set, the first row against
    the other half of the real ones, which is what "cannot be told apart" looks like.  The classifier is a logistic
    regression with a ridge on standardised features, cross-validated; rows of one group, real or synthetic, are in one
    fold.

    Returns ``set, auc, low, high, n`` (images on each side) and ``note``, which says why a row has no numbers: a set or
    a half with fewer images than ``min_samples``, or with fewer groups than folds.  AUC 0.5: not to be told apart, 1:
    always.  Where the encoder was itself trained on the reference, even new real images may be told apart a little:
    their row, and not 0.5, is then the scale.
    The interval is a Bayesian bootstrap over groups with the trained classifiers kept, widened by
    sqrt(1 + folds / (folds - 1)) for the luck of training them (Nadeau and Bengio 2003).  Simulated with equal
    distributions (120 studies, 300 real images, 60 features) it held 0.5 in 94 % of studies, unwidened in 82 %.

    Raises:
        BadInput: no such reference, features of different width or NaN, groups of another length.
    """
    rows, codes = _checked(features, reference, groups)
    n_groups = 1 + max(int(code.max()) for code in codes.values())
    rng = np.random.default_rng(seed)
    weights = np.vstack([np.ones(n_groups), rng.standard_exponential((resamples, n_groups))])
    others = [name for name in rows if name != reference]
    half = len(rows[reference]) // 2
    measured = [name for name in others if min(len(rows[name]), half) >= min_samples]
    n = min([max_samples, half, *(len(rows[name]) for name in measured)])
    found: dict[str, list[np.ndarray | None]] = {name: [] for name in (REAL_ROW, *measured) if half >= min_samples}
    for _ in range(halvings if found else 0):
        cut = halves(np.arange(len(rows[reference])), codes[reference], rng)
        first, second = (rng.permutation(part)[:n] for part in cut)
        for name in found:
            chosen = second if name == REAL_ROW else rng.permutation(len(rows[name]))[:n]
            source = reference if name == REAL_ROW else name
            x = np.concatenate([rows[reference][first], rows[source][chosen]])
            group = np.concatenate([codes[reference][first], codes[source][chosen]])
            synthetic = np.arange(len(x)) >= len(first)
            found[name].append(_cross_validated(x, synthetic, group, weights, folds=folds, rng=rng))
    table = []
    tails, wider = [(1 - confidence) / 2, (1 + confidence) / 2], np.sqrt(1 + folds / (folds - 1))
    for name in (REAL_ROW, *others):
        row = {"set": name, "auc": np.nan, "low": np.nan, "high": np.nan, "n": 0, "note": ""}
        if name not in found:
            there = len(rows[reference]) - half if name == REAL_ROW else len(rows[name])
            row["note"] = (
                f"not measured: needs at least {min_samples} images on both sides, there are {there} and {half}"
            )
        elif any(part is None for part in found[name]):
            row["note"] = f"not measured: needs {folds} lesions on both sides"
        else:
            auc, *drawn = np.mean(found[name], axis=0)
            low, high = np.clip(auc + wider * (np.quantile(drawn, tails) - auc), 0, 1)
            row |= {"auc": float(auc), "low": float(low), "high": float(high), "n": n}
        table.append(row)
    return pd.DataFrame(table)


def weighted_auroc(positives: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve ``(B,)`` of bool ``(N,)`` by ``score`` (N,) under ``weights`` (B, N)."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(score[order]) != 0))
    above = np.add.reduceat(weights[:, order] * positives[order], starts, axis=1)
    below = np.add.reduceat(weights[:, order] * ~positives[order], starts, axis=1)
    before = below.cumsum(1) - below / 2  # of a tie half
    return (above * before).sum(1) / (above.sum(1) * below.sum(1))


def border_artefacts(images: np.ndarray, real: np.ndarray, *, width: int = 0, confidence: float = 0.95) -> pd.DataFrame:
    """Measure what the border of pictures shows and their inside does not, relative to real pictures of the same size.

    ``images`` and ``real`` are uint8 ``(N, H, W, 3)``; the frame is ``width`` pixels wide (0: a 28th of the shorter
    side, at least 2), compared with the ring of the same width just inside it.  Returns a row per measure with
    ``images``, ``real`` (geometric means), ``ratio`` and its interval ``low, high`` (Welch, on logarithms; images count
    as independent); real pictures have 1, a frame lies above:

    - ``edges``: energy of the brightness gradient, frame over ring (a seam, a line, noise at the border);
    - ``colour``: distance of the mean colours of frame and ring, at least one level (a bright or tinted frame);
    - ``tiling``: highest autocorrelation of the sharpened brightness along a side at lags of ``width`` to half of the
      side, frame over ring (the same tile again and again).
    """
    width = width or max(2, min(images.shape[1:3]) // 28)
    _check_pictures(images, real)
    if 4 * width >= min(images.shape[1:3]):
        raise BadInput(f"A frame of {width} pixels leaves no inside at {images.shape[1:3]}: choose a smaller width.")
    ours, theirs = (np.log(_border_measures(part, width)) for part in (images, real))
    rows = []
    for i, name in enumerate(("edges", "colour", "tiling")):
        row = {"measure": name, "images": np.exp(ours[:, i].mean()), "real": np.exp(theirs[:, i].mean())}
        rows.append(row | _ratio_of_means(ours[:, i], theirs[:, i], confidence))
    return pd.DataFrame(rows).assign(width=width, n=len(images), n_real=len(real))


def ghosting(images: np.ndarray, *sources: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """Return how much each picture resembles a shifted copy of itself, beyond what its sources do: ``(N,)``.

    ``images`` and every one of ``sources`` (the contents, and the styles if wanted) are uint8 ``(N, H, W, 3)``, row by
    row.  An echo x(t) + a x(t - d) of a picture without regular structure has the autocorrelation a / (1 + a^2) at d.
    So: the autocorrelation of the brightness under a Laplacian of Gaussian of ``sigma`` pixels, at shifts of 6 sigma to
    a quarter of the shorter side, minus the highest of the sources at the same shift; the largest excess over all
    shifts.  Without a ghost it is the noise of a maximum (a few hundredths), so compare it with that of pairs without.
    """
    if not sources:
        raise BadInput("Ghosts are what the sources lack: pass the content pictures, and the styles if you like.")
    for source in sources:
        _check_pictures(images, source)
        if len(source) != len(images):
            raise BadInput(
                f"{len(images)} pictures came with {len(source)} sources; give one of each kind per picture."
            )
    excess = np.empty(len(images))
    for i, image in enumerate(images):
        known = np.max([_autocorrelation(source[i], sigma) for source in sources], axis=0)
        excess[i] = (_autocorrelation(image, sigma) - known).max()
    return excess


def _checked(
    features: Mapping[str, np.ndarray], reference: str, groups: Mapping[str, np.ndarray] | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the features as float64 and the group number of every row, one numbering for all sets."""
    rows = {name: np.asarray(values, dtype=np.float64) for name, values in features.items()}
    if reference not in rows or len(rows) < 2 or REAL_ROW in rows:
        raise BadInput(f"The sets {list(rows)} must hold the real images '{reference}' and at least one other.")
    widths = {values.shape[1:] for values in rows.values()}
    if len(widths) > 1 or len(next(iter(widths))) != 1:
        raise BadInput(f"Features must be (N, D) with one D for all sets; got {[v.shape for v in rows.values()]}.")
    if not all(np.isfinite(values).all() for values in rows.values()):
        raise BadInput("The features hold NaN or infinity: check the images and the encoder's weights.")
    names = {}
    for name, values in rows.items():
        given = None if groups is None else groups.get(name)
        names[name] = [f"{name} {i}" for i in range(len(values))] if given is None else [str(g) for g in given]
        if len(names[name]) != len(values):
            raise BadInput(f"Set '{name}' has {len(values)} rows but {len(names[name])} groups; they must agree.")
    code = pd.factorize(np.concatenate([np.array(part, dtype=object) for part in names.values()]))[0]
    ends = np.cumsum([len(values) for values in rows.values()])[:-1]
    return rows, dict(zip(rows, np.split(code, ends), strict=True))


def _cross_validated(
    x: np.ndarray,
    synthetic: np.ndarray,
    group: np.ndarray,
    weights: np.ndarray,
    *,
    folds: int,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Return the mean over folds of the AUC ``(B,)`` on unseen rows, under group ``weights`` (B, G).

    None where a side has fewer groups than there are folds, or no fold holds rows of both sides.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_groups = min(len(np.unique(group[synthetic == side])) for side in (False, True))
    if n_groups < folds:
        return None
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=int(rng.integers(2**31)))
    found = []
    for fit, unseen in parts.split(x, synthetic, group):
        if len(set(synthetic[unseen])) < 2 or len(set(synthetic[fit])) < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=500))
        score = model.fit(x[fit], synthetic[fit]).decision_function(x[unseen])
        found.append(weighted_auroc(synthetic[unseen], score, weights[:, group[unseen]]))
    return np.mean(found, axis=0) if found else None


def _check_pictures(images: np.ndarray, real: np.ndarray) -> None:
    for part in (images, real):
        if part.dtype != np.uint8 or part.ndim != 4 or part.shape[-1] != 3 or not len(part):
            raise BadInput(f"Pictures are uint8 (N, H, W, 3) with N > 0; got {part.dtype} {part.shape}.")
    if images.shape[1:] != real.shape[1:]:
        raise BadInput(f"The pictures are {images.shape[1:3]}, the others {real.shape[1:3]}: resize them first.")


def _border_measures(images: np.ndarray, width: int) -> np.ndarray:
    """Return edges, colour and tiling of every picture: ``(N, 3)``, all positive."""
    height, across = images.shape[1:3]
    depth = np.minimum.outer(*(np.minimum(np.arange(n), np.arange(n)[::-1]) for n in (height, across)))
    frame, ring = depth < width, (depth >= width) & (depth < 2 * width)
    found = np.empty((len(images), 3))
    for i, image in enumerate(images):
        grey = image @ LUMA
        energy = np.square(np.diff(grey, axis=0, append=grey[-1:])) + np.square(np.diff(grey, append=grey[:, -1:]))
        outside, inside = (max(float(energy[where].mean()), 1 / 12) for where in (frame, ring))  # of rounding alone
        colours = image[frame].mean(0) - image[ring].mean(0)
        tiles = [max(_tiling(side, width) for side in _sides(grey, start, width)) for start in (0, width)]
        found[i] = outside / inside, max(MIN_LEVEL, float(np.linalg.norm(colours))), tiles[0] / tiles[1]
    return found


def _sides(grey: np.ndarray, start: int, width: int) -> list[np.ndarray]:
    """Return the four strips ``(width, length)`` that begin ``start`` pixels inside the border."""
    return [np.rot90(grey, turns)[start : start + width] for turns in range(4)]


def _tiling(strip: np.ndarray, width: int) -> float:
    """Return the highest autocorrelation along a strip ``(width, length)`` at lags of its width to half its length."""
    sharp = np.diff(strip, 2, axis=1)
    length = sharp.shape[1]
    spectrum = np.square(np.abs(np.fft.rfft(sharp - sharp.mean(1, keepdims=True), 2 * length, axis=1)))
    lags = np.fft.irfft(spectrum.sum(0))[: length // 2 + 1]
    if lags[0] <= 0:
        return 1.0  # a flat strip repeats itself at every lag
    overlap = 1 - np.arange(len(lags)) / length
    return max(0.01, float((lags / lags[0] / overlap)[width:].max()))


def _autocorrelation(image: np.ndarray, sigma: float) -> np.ndarray:
    """Return the autocorrelation of the sharpened brightness at all shifts that count, one number each."""
    from scipy.fft import next_fast_len
    from scipy.ndimage import gaussian_laplace

    sharp = gaussian_laplace(image @ LUMA, sigma)
    nearest, furthest = round(6 * sigma), min(sharp.shape) // 4
    if nearest >= furthest:
        raise BadInput(f"Pictures of {sharp.shape} are too small for ghosts at sigma {sigma:g}: use larger ones.")
    window = np.outer(*(np.hanning(n + 2)[1:-1] for n in sharp.shape))
    padded = [next_fast_len(n + furthest, real=True) for n in sharp.shape]
    both = []
    for part in ((sharp - sharp.mean()) * window, window):
        power = np.square(np.abs(np.fft.rfft2(part, padded)))
        shifted = np.fft.irfft2(power, padded)
        both.append(shifted / max(shifted[0, 0], np.finfo(float).tiny))
    down, right = (np.minimum(np.arange(n), n - np.arange(n)) for n in padded)
    distance = np.hypot(down[:, None], right[None, :])
    count = (distance >= nearest) & (distance <= furthest)
    return both[0][count] / both[1][count]  # over that of the window: far shifts overlap less


def _ratio_of_means(ours: np.ndarray, theirs: np.ndarray, confidence: float) -> dict[str, float]:
    """Return the ratio of geometric means with Welch's interval, from logarithms."""
    from scipy.stats import ttest_ind

    difference = ours.mean() - theirs.mean()
    result = {"ratio": float(np.exp(difference)), "low": np.nan, "high": np.nan}
    if min(len(ours), len(theirs)) > 1 and max(np.ptp(ours), np.ptp(theirs)) > 0:
        interval = ttest_ind(ours, theirs, equal_var=False).confidence_interval(confidence)
        result |= {"low": float(np.exp(interval.low)), "high": float(np.exp(interval.high))}
    return result
