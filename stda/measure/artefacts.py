"""Detectors of artefacts: hair, ruler, dark rim, black frame; how well they see, measured where the truth is known.

Classical and transparent: each detector is one number per picture, higher where the artefact is more likely.  They look
at the red channel, in which hair, ink and the rim are dark but vessels and most pigment pale, and at its ratio to the
brightness of the skin (the 80th percentile), so that exposure does not count.

- **hair**: dark ridges.  The larger eigenvalue of the Hessian minus the magnitude of the smaller one is high on a dark
  line and low on blobs and edges (Frangi et al. 1998; DullRazor, Lee et al. 1997, does it with closings along lines,
  which need more pixels than 32).  Only where the surroundings are skin: pigment networks are dark lines, too.
- **ruler**: along one of the four sides, a row that is a dark line over most of its length, and beside it marks at
  equal distances (a peak in the spectrum of the row).
- **vignette**: the corners are darker than the ring before them, mean over the four.
- **frame**: the outermost pixels of one side are dark along 90 per cent of it, in every channel.

A detector is calibrated on drawn pictures and judged on other drawn pictures (:func:`calibrate_detectors`), which says
what it sees in a phantom.  Against eye labels of HAM10000 (tests/measure/ham10000_artefacts.csv; 120 random pictures
that no detector was designed on) with the phantom's thresholds, at 32 / 64 / 128 px:

- hair finds 9 / 11 / 14 of 27 pictures with clear dark hair and calls 3 / 3 / 3 of 70 without any (AUC 0.81 / 0.88 /
  0.88; 23 pictures with pale or single hairs left out).  Of the 40 highest of 880 others 27 have hair at 32 px, 38 at
  128 px.  Its shares on photographs are lower bounds: two sets can be compared, but a correction by the phantom's
  sensitivity cannot be trusted there.
- vignette: 33 of the 40 highest of 1,200 have the dark rim of a lens, at 32 and at 128 px; the rest is edges of a limb.
- ruler finds none of 6 rulers in 240 pictures: scale bars and lone ticks have no line along a side.  It serves the
  phantom and says nothing of photographs.
- frame: 1 of 1,200 was called, black along one side beside a glass; no other frame was seen among the 40 highest.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import ndimage

from stda import BadInput

ARTEFACTS = ("hair", "ruler", "vignette", "frame")
SMALLEST = 16  # pixels; below, the strips that the detectors compare have no pixel
CHUNK = 256  # pictures at a time
LEAST_AUC = 0.8  # a detector below this at some size is not used there
N_DRAWN = 360  # pictures to choose the threshold on, and as many again to judge it
DARK = 0.6  # of the skin: a row that is nowhere brighter belongs to a frame


def artefact_scores(images: np.ndarray) -> pd.DataFrame:
    """Score each picture of uint8 ``(N, H, H, 3)`` for each artefact: a column per artefact, higher is likelier.

    Ratios to the brightness of the skin, without unit; 0 for a picture of one colour.  Raises BadInput unless the
    pictures are square uint8 RGB of at least 16 px.
    """
    shape = images.shape
    if images.dtype != np.uint8 or images.ndim != 4 or shape[-1] != 3 or shape[1] != shape[2] or shape[1] < SMALLEST:
        raise BadInput(
            f"Artefacts are looked for in square uint8 images (N, H, H, 3) of at least {SMALLEST} px; got "
            f"{images.dtype} {shape}."
        )
    detectors = {"hair": _hair, "ruler": _ruler, "vignette": _vignette, "frame": _frame}
    found: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in detectors}
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        red, brightest = _over_skin(part[..., 0]), _over_skin(part.max(axis=-1))
        for name, detector in detectors.items():
            found[name].append(detector(brightest if name == "frame" else red))
    return pd.DataFrame({name: np.concatenate(parts) for name, parts in found.items()})


def calibrate_detectors(
    size: int,  # pixels of a side
    *,
    n: int = N_DRAWN,  # drawn pictures to choose the thresholds on, and as many to judge them
    seed: int = 0,  # of the drawn pictures; one for all replicates, so that all are measured alike
) -> pd.DataFrame:
    """Choose the threshold of each detector on drawn pictures and say what it sees on others.

    Hair, ruler and rim are the phantom's own.  A third of the pictures judges each: there a fair coin tosses it, and
    the other two come as often as in the phantom, so that a detector meets what it may be taken in by.  Black frames
    are inserted into a third.  The threshold has the largest sensitivity + specificity (Youden 1950), the middle one of
    equals.

    Returns a row per artefact: ``artefact, size, threshold, sensitivity, specificity, auc, with_artefact,
    without_artefact`` (pictures it was judged on) and ``seen``: False where the AUC is below 0.8, and shares of it
    would mean nothing.  Raises BadInput for fewer than 64 pictures.
    """
    chosen, judged = (_drawn(size, n, seed, part) for part in ("choose", "judge"))
    rows = []
    for name in ARTEFACTS:
        threshold = youden_threshold(*chosen[name])
        rows.append({"artefact": name, "size": size, "threshold": threshold} | judge_detector(*judged[name], threshold))
    return pd.DataFrame(rows)


def judge_detector(score: np.ndarray, truth: np.ndarray, threshold: float) -> dict[str, float | int | bool]:
    """Return how well ``score > threshold`` finds bool ``truth``, both ``(N,)``: the columns of the calibration."""
    from stda.measure.scores import auroc

    hit, auc = score > threshold, auroc(truth, score)
    return {
        "sensitivity": float(hit[truth].mean()) if truth.any() else np.nan,
        "specificity": float((~hit)[~truth].mean()) if not truth.all() else np.nan,
        "auc": auc,
        "with_artefact": int(truth.sum()),
        "without_artefact": int((~truth).sum()),
        "seen": bool(auc >= LEAST_AUC),
    }


def youden_threshold(score: np.ndarray, truth: np.ndarray) -> float:
    """Return the cut of ``score`` (N,) with the largest sensitivity + specificity for bool ``truth`` (N,).

    Cuts lie midway between neighbouring scores; of several best ones the middle one is taken.  Raises BadInput when
    one of the two kinds is missing.
    """
    if truth.all() or not truth.any():
        raise BadInput("A threshold needs pictures with and without the artefact: draw more of them.")
    values, place = np.unique(score, return_inverse=True)
    with_it = np.bincount(place, truth, len(values))[::-1].cumsum()[::-1] / truth.sum()
    without = np.bincount(place, ~truth, len(values))[::-1].cumsum()[::-1] / (~truth).sum()
    gain = with_it - without  # of calling everything from this value upwards
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    at = best[len(best) // 2]
    return float(values[at] if at == 0 else (values[at - 1] + values[at]) / 2)


def _drawn(size: int, n: int, seed: int, part: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return scores and truth of freshly drawn pictures by artefact."""
    from stda.data import artefacts, phantom
    from stda.study import sub_seed

    rng = np.random.default_rng(sub_seed(seed, "detectors", part))
    table = phantom.describe(n, sub_seed(seed, "detectors", "lesions", part))
    third = np.arange(n) % len(phantom.ARTEFACTS)
    for k, name in enumerate(phantom.ARTEFACTS):
        table[name] = np.where(third == k, rng.integers(2, size=n), table[name])
    images = phantom.render(table, size=size)
    scores = artefact_scores(images)
    found = {
        name: (scores[name].to_numpy()[third == k], table[name].to_numpy(bool)[third == k])
        for k, name in enumerate(phantom.ARTEFACTS)
    }
    framed = artefact_scores(
        artefacts.insert(images[third == 0], "frame", seed=sub_seed(seed, "detectors", "frame", part))
    )
    both = np.concatenate([scores["frame"].to_numpy()[third != 0], framed["frame"]])
    return found | {"frame": (both, np.arange(n) >= (third != 0).sum())}


# ----------------------------------------------------------------------------------------------------------- detectors


def _over_skin(channel: np.ndarray) -> np.ndarray:
    """Return a channel over the brightness of the skin, float32 ``(N, H, H)``."""
    level = channel.astype(np.float32)
    return level / np.maximum(np.quantile(level, 0.8, axis=(1, 2), keepdims=True), 1)


def _hair(red: np.ndarray) -> np.ndarray:
    """Root mean square of the dark ridges on skin, without the side that has most of them: that may be a ruler."""
    size = red.shape[1]
    width = max(0.7, size / 128)
    rows, columns, mixed = (
        ndimage.gaussian_filter(red, (0, width, width), order=(0, *order)) for order in ((2, 0), (0, 2), (1, 1))
    )
    middle, half = (rows + columns) / 2, np.hypot((rows - columns) / 2, mixed)
    ridge = width**2 * np.maximum(middle + half - np.abs(middle - half), 0)
    around = ndimage.gaussian_filter(red, (0, size / 16, size / 16))
    around /= np.maximum(np.quantile(around, 0.8, axis=(1, 2), keepdims=True), 1e-6)
    skin = np.clip((around - 0.7) / 0.2, 0, 1)
    energy = np.square(ridge * skin)
    strip = size // 5  # as deep as a ruler reaches
    sides = [np.rot90(energy, turns, (1, 2))[:, :strip].sum(axis=(1, 2)) for turns in range(4)]
    rest = np.maximum(energy.sum(axis=(1, 2)) - np.max(sides, axis=0), 0)  # rounding may leave less than nothing
    return np.sqrt(rest / (size * (size - strip)))


def _ruler(red: np.ndarray) -> np.ndarray:
    """Geometric mean of a dark line and of evenly spaced marks beside it, the largest over rows near the four sides."""
    size = red.shape[1]
    width, marks = max(0.6, size / 160), max(2, round(0.04 * size))  # pixels: half a line, the length of a mark
    best = np.zeros(len(red))
    for turns in range(4):
        strip = np.rot90(red, turns, (1, 2))[:, : int(0.28 * size)]
        curvature = width**2 * ndimage.gaussian_filter(strip, (0, width, 0), order=(0, 2, 0))
        line = np.quantile(np.maximum(curvature, 0), 0.3, axis=2)
        detail = ndimage.gaussian_filter(strip, (0, 0, width)) - ndimage.gaussian_filter(strip, (0, 0, 0.06 * size))
        comb = _comb(ndimage.uniform_filter1d(detail, marks, axis=1))
        comb = ndimage.maximum_filter1d(comb, 2 * marks + 1, axis=1)
        best = np.maximum(best, (line * comb).max(axis=1))
    return np.sqrt(best)


def _comb(rows: np.ndarray) -> np.ndarray:
    """Return how evenly spaced the marks of each row are ``(N, R)``: amplitude times share of the spectrum's peak."""
    size = rows.shape[-1]
    power = np.square(np.abs(np.fft.rfft(rows * np.hanning(size), axis=-1)))
    peak = power.copy()  # the window spreads a peak over its neighbours
    peak[..., 1:] += power[..., :-1]
    peak[..., :-1] += power[..., 1:]
    marks = slice(8, 29)  # per side; the phantom has 10 to 17
    highest = peak[..., marks].max(axis=-1)
    return np.sqrt(highest) / size * highest / (power[..., 4:].sum(axis=-1) + 1e-9)


def _vignette(red: np.ndarray) -> np.ndarray:
    """Fall of the median brightness from the ring before a corner to the corner, mean over the four.

    Rows and columns that are dark from end to end are a frame: they do not count.
    """
    size = red.shape[1]
    axis = (np.arange(size) + 0.5) * (2 / size) - 1
    radius = np.hypot(axis, axis[:, None])
    along, across = (np.quantile(red, 0.9, axis=k) < DARK for k in (2, 1))
    open_pixels = np.where(along[:, :, None] | across[:, None, :], np.nan, red)
    falls = []
    for up in (axis < 0, axis > 0):
        for left in (axis < 0, axis > 0):
            quarter = up[:, None] & left
            before, corner = quarter & (radius > 0.7) & (radius < 0.95), quarter & (radius > 1.25)
            falls.append(_median(open_pixels[:, before]) - _median(open_pixels[:, corner]))
    return np.nan_to_num(falls).mean(axis=0)


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median of the known values of each row, nan where none is known."""
    ordered, known = np.sort(values, axis=1), np.isfinite(values).sum(axis=1)  # nan is sorted to the end
    rows, last = np.arange(len(values)), np.maximum(known - 1, 0)
    return (ordered[rows, last // 2] + ordered[rows, (last + 1) // 2]) / 2


def _frame(brightest: np.ndarray) -> np.ndarray:
    """Darkness of the outermost pixels of the darkest side, at the 90th percentile along it."""
    size = brightest.shape[1]
    deep = max(1, round(size / 64))
    skin = np.quantile(brightest, 0.8, axis=(1, 2))
    sides = [np.rot90(brightest, turns, (1, 2))[:, :deep].mean(axis=1) for turns in range(4)]
    return np.max([skin - np.quantile(side, 0.9, axis=1) for side in sides], axis=0)
