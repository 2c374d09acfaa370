"""Ranking two classes: AUROC with DeLong's covariance for images of lesions, and precision under resampled lesions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stda import BadInput


@dataclass(frozen=True, eq=False)
class Delong:
    """AUROCs ``(A,)`` of A classifiers on the same images, and the covariance ``(A, A)`` of their sampling errors."""

    auroc: np.ndarray
    covariance: np.ndarray

    def difference(self, i: int, j: int) -> tuple[float, float]:
        """Return AUROC i minus AUROC j, and its standard error."""
        c = self.covariance
        variance = c[i, i] + c[j, j] - 2 * c[i, j]
        return float(self.auroc[i] - self.auroc[j]), float(np.sqrt(np.maximum(variance, 0.0)))


def delong(positives: np.ndarray, scores: np.ndarray, lesions: np.ndarray | None = None) -> Delong:
    """Return the AUROCs of A classifiers on the same images, with their covariance over new lesions.

    ``positives`` bool ``(N,)``, ``scores`` ``(A, N)`` (more is more positive; ties count half), ``lesions`` int
    ``(N,)`` numbers from 0 (None: every image is a lesion of its own, which is DeLong, DeLong and Clarke-Pearson 1988).
    Images of one lesion are summed before they are squared (Obuchowski 1997, Biometrics 53:567).  Lesions of one label
    give exactly her variance; for the product of both kinds within one lesion she takes I / (I - 1), we the geometric
    mean of the two kinds' factors, which keeps the matrix a covariance *(reading)*.

    Returns nan where a kind is missing, and a nan covariance where a kind has a single lesion.
    """
    positives, scores = np.asarray(positives, dtype=bool), np.atleast_2d(np.asarray(scores, dtype=np.float64))
    lesions = np.arange(len(positives)) if lesions is None else np.asarray(lesions)
    if scores.shape[1] != len(positives) or len(lesions) != len(positives):
        raise BadInput(
            f"{len(positives)} labels came with scores {scores.shape} and {len(lesions)} lesions: align them."
        )
    fewest = min(len(set(lesions[positives])), len(set(lesions[~positives])))
    if fewest == 0:
        return Delong(np.full(len(scores), np.nan), np.full((len(scores), len(scores)), np.nan))
    auroc, influence = lesion_influence(positives, scores, lesions, n_lesions=int(lesions.max()) + 1)
    return Delong(auroc, influence.T @ influence if fewest > 1 else np.full((len(scores), len(scores)), np.nan))


def lesion_influence(
    positives: np.ndarray, scores: np.ndarray, lesions: np.ndarray, *, n_lesions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return AUROCs ``(A,)`` and what every lesion adds to their error, ``(n_lesions, A)``.

    Both kinds must be there.  The columns add up to zero, and their products to the covariance of :func:`delong`:
    a lesion's share is the sum over its images of (placement - AUROC) / images of that kind, times the root of
    I / (I - 1) for I lesions of that kind (1 for a single lesion, whose spread cannot be known).
    """
    auroc, placements = _placements(positives, scores)
    influence = np.zeros((n_lesions, len(scores)))
    for kind in (True, False):
        rows = np.flatnonzero(positives == kind)
        n = len(set(lesions[rows]))
        factor = np.sqrt(n / (n - 1)) if n > 1 else 1.0
        np.add.at(influence, lesions[rows], factor / len(rows) * (placements[:, rows] - auroc[:, None]).T)
    return auroc, influence


def _placements(positives: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return AUROCs ``(A,)`` and for each image the share of the other kind that it beats, ``(A, N)``.

    From mid-ranks among all images and among one's own kind, in O(N log N) (Sun and Xu 2014, IEEE SPL 21:1389).
    """
    from scipy.stats import rankdata

    n_positive = int(positives.sum())
    below = rankdata(scores, axis=1)
    for kind in (True, False):
        below[:, positives == kind] -= rankdata(scores[:, positives == kind], axis=1)
    placements = below / np.where(positives, len(positives) - n_positive, n_positive)
    placements[:, ~positives] = 1 - placements[:, ~positives]
    return placements[:, positives].mean(1), placements


def reweighted_precision(
    positives: np.ndarray, score: np.ndarray, lesions: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return average precision ``(B,)`` under positive lesion weights ``(n_lesions, B)``, float64 and C-ordered.

    ``positives`` bool, ``score`` and ``lesions`` are ``(N,)`` with both kinds among them.  Each kind keeps its number
    of images, as in the confusion matrices of :mod:`stda.measure.bootstrap`.  The images are sorted once: one sparse
    product gives the weight between two neighbouring scores of positive images, for all resamples together.
    """
    from scipy.sparse import csr_array

    levels = np.unique(score[positives])
    step = len(levels) - np.searchsorted(levels, score, side="right")  # 0: from the highest positive score on
    shape = (len(levels) + 1, len(weights))  # the last row: negatives below every positive image
    found, false = (
        csr_array((np.ones(rows.sum()), (step[rows], lesions[rows])), shape=shape) @ weights
        for rows in (positives, ~positives)
    )
    found *= positives.sum() / found.sum(0)
    false *= (~positives).sum() / false.sum(0)
    hits, alarms = found.cumsum(0)[:-1], false.cumsum(0)[:-1]
    return (found[:-1] * hits / (hits + alarms)).sum(0) / positives.sum()


def threshold_at(negatives: np.ndarray, specificity: float) -> float:
    """Return the lowest score above which at most 1 - ``specificity`` of the negatives' scores ``(N,)`` lie.

    An image is called positive when its score is *above* it.  No other threshold with that specificity on these images
    has a higher sensitivity.  nan without negatives.
    """
    if not 0 < specificity <= 1:
        raise BadInput(f"specificity is {specificity}; it must lie above 0 and be at most 1, such as 0.9.")
    if not len(negatives):
        return float("nan")
    needed = int(np.ceil(specificity * len(negatives) - 1e-9))  # 0.56 x 25 is 14.000000000000002
    return float(np.sort(negatives)[needed - 1])
