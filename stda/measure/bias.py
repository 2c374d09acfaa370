"""Bias transfer: does a generator draw more or fewer artefacts than its training images have, and for which class?

A generator that draws a ruler beside every melanoma teaches a classifier the ruler.  Artefacts in generated skin
lesions: Mikolajczyk, Majchrowska and Carrasco Limeros 2022 (MICCAI ISIC workshop).  What a detector calls an artefact
is not the truth, so shares come twice: as detected, and corrected for what the detector misses and invents on pictures
whose truth is known (:func:`stda.measure.artefacts.calibrate_detectors`).

Views of one lesion share their hair, and pictures of one content share all: every interval counts an effective number
of images, N over the design effect of these clusters, at least 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stda import BadInput
from stda.images import ImageSet
from stda.measure.artefacts import artefact_scores
from stda.measure.scores import require_columns, wilson

LEAST_IMAGES = 20  # of a class, on both sides: fewer carry no share


def detect_artefacts(images: ImageSet, detectors: pd.DataFrame) -> pd.DataFrame:
    """Return which pictures the detectors call positive: ``label, cluster`` and a bool column per artefact.

    ``detectors`` is a calibration for pictures of this size.  The cluster is the lesion of a real picture, the content
    of a style transfer, else the picture itself.  Raises BadInput for a calibration of another size.
    """
    require_columns(detectors, ("artefact", "size", "threshold"), what="detectors")
    size = images.images.shape[1]
    if set(detectors["size"]) != {size}:
        made = sorted(set(detectors["size"]))
        raise BadInput(f"The detectors were calibrated at {made} px, the images have {size}: calibrate them at {size}.")
    scores = artefact_scores(images.images)
    content, bar, _ = zip(*(str(ids).partition("|") for ids in images.table["source_ids"]), strict=True)
    cluster = np.where(np.array(bar) == "|", content, images.table["group"])
    found = {row.artefact: scores[row.artefact].to_numpy() > row.threshold for row in detectors.itertuples()}
    return pd.DataFrame({"label": images.labels, "cluster": cluster} | found)


def prevalence_table(
    detected: Mapping[str, pd.DataFrame],  # name of a set -> what detect_artefacts found
    detectors: pd.DataFrame,  # the calibration
    *,
    reference: str,  # the real images that the others are compared with
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the share of pictures with each artefact in each set, and the difference to the reference.

    A row per artefact and set: ``artefact, set, n, detected, low, high`` (Wilson), ``corrected, corrected_low,
    corrected_high`` (:func:`corrected_share`), ``difference, difference_low, difference_high`` (corrected, to the
    reference) and ``than_reference``: more, fewer or undecided.  The difference is that of the detected shares over
    (sensitivity + specificity - 1) with Newcombe's interval (1998), so its sign supposes that the detector errs alike
    in both sets and not that it errs as in the calibration.  An artefact that cannot be seen at this size has shares
    nan and says so.  Raises BadInput when the reference is not among the sets or a set is empty.
    """
    _check(detected, reference)
    rows = []
    for detector in detectors.itertuples():
        name = detector.artefact
        known = {s: _share(d[name].to_numpy(), d["cluster"], confidence) for s, d in detected.items()}
        for which, share in known.items():
            row = {"artefact": name, "set": which, "n": len(detected[which])}
            if not detector.seen:
                rows.append(row | {"than_reference": f"cannot be seen at {detector.size} px"})
                continue
            corrected = corrected_share(
                share.share, share.effective, detector.sensitivity, detector.specificity,
                n_with=detector.with_artefact, n_without=detector.without_artefact, confidence=confidence,
            )  # fmt: skip
            names = ("corrected", "corrected_low", "corrected_high")
            row |= {"detected": share.share, "low": share.low, "high": share.high} | dict(
                zip(names, corrected, strict=True)
            )
            gain = detector.sensitivity + detector.specificity - 1
            rows.append(row | _difference(share, known[reference], gain, same=which == reference))
    columns = "artefact set n detected low high corrected corrected_low corrected_high difference difference_low"
    return pd.DataFrame(rows).reindex(columns=[*columns.split(), "difference_high", "than_reference"])


def class_prevalence(
    detected: Mapping[str, pd.DataFrame],
    detectors: pd.DataFrame,
    *,
    reference: str,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return per class and artefact how much more often it is detected in each set than in the reference.

    Columns ``artefact, class, set, n, n_reference, detected, detected_reference, difference, low, high`` (shares as
    detected, Newcombe) and ``than_reference``.  A class with fewer than 20 images on either side has no number and says
    "too few images".  Artefacts that cannot be seen are left out.
    """
    _check(detected, reference)
    rows = []
    for name in detectors.loc[detectors["seen"], "artefact"]:
        for which in (s for s in detected if s != reference):
            for label in sorted(set(detected[reference]["label"]) | set(detected[which]["label"])):
                real, other = (d[d["label"] == label] for d in (detected[reference], detected[which]))
                row = {"artefact": name, "class": label, "set": which, "n": len(other), "n_reference": len(real)}
                if min(len(real), len(other)) < LEAST_IMAGES:
                    rows.append(row | {"than_reference": "too few images"})
                    continue
                shares = [_share(d[name].to_numpy(), d["cluster"], confidence) for d in (other, real)]
                change = _difference(*shares, 1.0).values()
                row |= {"detected": shares[0].share, "detected_reference": shares[1].share}
                rows.append(row | dict(zip(("difference", "low", "high", "than_reference"), change, strict=True)))
    columns = "artefact class set n n_reference detected detected_reference difference low high than_reference"
    return pd.DataFrame(rows, columns=columns.split())


def association_table(
    detected: Mapping[str, pd.DataFrame],
    detectors: pd.DataFrame,
    *,
    shuffles: int = 999,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how strongly each artefact goes with the class in each set: a shortcut, if a classifier finds it.

    Columns ``artefact, set, n, v, p_value``.  ``v`` is Cramer's V of detected artefact and label with Bergsma's
    correction (2013), 0 to 1: without it a small set looks more biased than a large one.  ``p_value`` is that of a
    permutation test of "no association", so rare classes do no harm; the labels of whole clusters are shuffled where a
    cluster has one label, else those of the pictures.  Artefacts that cannot be seen are left out.  Raises BadInput
    when a set is empty.
    """
    _check(detected)
    rows = []
    for name in detectors.loc[detectors["seen"], "artefact"]:
        for which, table in detected.items():
            hits, labels = table[name].to_numpy(), pd.factorize(table["label"])[0]
            cluster, first = pd.factorize(table["cluster"])[0], ~table["cluster"].duplicated().to_numpy()
            if (labels[first][cluster] != labels).any():  # styles of several classes on one content
                cluster, first = np.arange(len(labels)), np.ones(len(labels), bool)
            rng, observed, each = np.random.default_rng(seed), chi_square(hits, labels), labels[first]
            beaten = sum(chi_square(hits, rng.permutation(each)[cluster]) >= observed - 1e-9 for _ in range(shuffles))
            v = cramers_v(observed, len(hits), int(labels.max()) + 1)
            rows.append(
                {"artefact": name, "set": which, "n": len(hits), "v": v, "p_value": (1 + beaten) / (1 + shuffles)}
            )
    return pd.DataFrame(rows, columns=["artefact", "set", "n", "v", "p_value"])


def corrected_share(
    share: float,
    n: float,
    sensitivity: float,
    specificity: float,
    *,
    n_with: int,  # pictures that the sensitivity was measured on
    n_without: int,  # and the specificity
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Return the true share behind a detected one, with an interval, clipped to [0, 1].

    ``(share + specificity - 1) / (sensitivity + specificity - 1)`` (Rogan and Gladen 1978).  The interval is that of
    Lang and Reiczigel (2014), which adds pseudo-counts to all three shares and so holds for rates at 0 and 1, too.
    nan when the detector is no better than a coin (sensitivity + specificity <= 1) or n is 0.
    """
    from scipy.stats import norm

    gain = sensitivity + specificity - 1
    if not gain > 0 or not n > 0:
        return np.nan, np.nan, np.nan
    z = norm.ppf(0.5 + confidence / 2)
    p, se, sp = (
        (share * n + z**2 / 2) / (n + z**2),
        (sensitivity * n_with + 1) / (n_with + 2),
        (specificity * n_without + 1) / (n_without + 2),
    )
    spread = [p * (1 - p) / (n + z**2), se * (1 - se) / (n_with + 2), sp * (1 - sp) / (n_without + 2)]
    if se + sp <= 1:
        return float(np.clip((share + specificity - 1) / gain, 0, 1)), 0.0, 1.0
    middle = (p + sp - 1) / (se + sp - 1)
    shift = 2 * z**2 * (middle * spread[1] - (1 - middle) * spread[2])
    half = z * np.sqrt(spread[0] + middle**2 * spread[1] + (1 - middle) ** 2 * spread[2]) / (se + sp - 1)
    values = ((share + specificity - 1) / gain, middle + shift - half, middle + shift + half)
    return tuple(float(v) for v in np.clip(values, 0, 1))


def chi_square(hits: np.ndarray, labels: np.ndarray) -> float:
    """Return Pearson's chi-square of bool ``hits`` against integer ``labels``, both (N,); 0 where one is constant."""
    share = float(np.mean(hits)) if len(hits) else 0.0
    if share in (0.0, 1.0):
        return 0.0
    counts = np.bincount(labels)
    counts, found = counts[counts > 0], np.bincount(labels, hits)[counts > 0]
    return float((np.square(found - counts * share) / (counts * share * (1 - share))).sum())


def cramers_v(chi2: float, n: int, n_classes: int) -> float:
    """Return Cramer's V of a two by K table with Bergsma's correction for small n (2013); nan for one class."""
    if n_classes < 2 or n < 2:
        return float("nan")
    phi = max(0.0, chi2 / n - (n_classes - 1) / (n - 1))
    rows = 2 - 1 / (n - 1)
    columns = n_classes - (n_classes - 1) ** 2 / (n - 1)
    least = min(rows - 1, columns - 1)
    return float(min(1.0, np.sqrt(phi / least))) if least > 0 else float("nan")


# --------------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class Share:
    """A share of pictures, Wilson's interval, and the effective number of pictures behind it."""

    share: float
    low: float
    high: float
    effective: float


def _share(hits: np.ndarray, clusters: pd.Series, confidence: float) -> Share:
    """Return the share of bool ``hits`` (N,) whose rows of one cluster may go together in any way."""
    share, n = float(np.mean(hits)), len(hits)
    codes = pd.factorize(clusters)[0]
    alone = share * (1 - share) / n
    sums = np.bincount(codes, hits - share)
    # where all rows agree no variance can be seen, and each cluster counts as one
    design = float((sums**2).sum()) / n**2 / alone if alone > 0 else n / (int(codes.max()) + 1)
    effective = n / max(1.0, design)
    return Share(share, *wilson(share * effective, effective, confidence=confidence), effective)


def _difference(one: Share, other: Share, gain: float, *, same: bool = False) -> dict[str, float | str]:
    """Return the difference of two shares over ``gain`` with Newcombe's hybrid score interval, and its sign."""
    names = ("difference", "difference_low", "difference_high")
    if same or not gain > 0:
        return dict.fromkeys(names, np.nan) | {"than_reference": "is the reference" if same else "undecided"}
    difference = one.share - other.share
    low = difference - np.hypot(one.share - one.low, other.high - other.share)
    high = difference + np.hypot(one.high - one.share, other.share - other.low)
    words = "more" if low > 0 else "fewer" if high < 0 else "undecided"
    values = np.clip(np.array([difference, low, high]) / gain, -1, 1).tolist()
    return dict(zip(names, values, strict=True)) | {"than_reference": words}


def _check(detected: Mapping[str, pd.DataFrame], reference: str | None = None) -> None:
    if reference is not None and reference not in detected:
        raise BadInput(f"The reference '{reference}' is not among the sets {list(detected)}.")
    empty = [name for name, table in detected.items() if not len(table)]
    if empty:
        raise BadInput(f"The set '{empty[0]}' holds no images: nothing can be counted in it.")
