"""Resampling lesions and replicates: from counts of answers per lesion to a difference with its standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.scores import PREDICTION_COLUMNS, class_codes, confusion_metric, require_columns

CHUNK = 250  # resamples at a time: 250 x 10,000 lesions are 20 MB
LUCK = 3  # so many times the variance of the calm arms is taken for the luck of few replicates
STEEPNESS = 4  # beyond it, pooled degrees of freedom fade with this power of the ratio (both settled by simulation)
FREEDOM = 5.0  # pooled degrees of freedom granted at most, for every replicate but one: many calm arms vouch for none


@dataclass(frozen=True, eq=False)
class FoldCounts:
    """Answers on one fold, per lesion, so that a resample is a weighted sum.

    ``counts[r]`` is float64 ``(A, G_r, K, K)``: images of replicate r by arm, lesion, true class and answer (nan for
    an arm that did not run there); ``lesions[r]`` int ``(G_r,)`` numbers the lesions across all replicates, of which
    there are ``n_lesions``.
    """

    classes: list[str]
    arms: list[str]
    replicates: list
    counts: list[np.ndarray]
    lesions: list[np.ndarray]
    n_lesions: int

    def values(self, metric: str, positive: str | None = None) -> np.ndarray:
        """Return the metric ``(R, A)`` of every replicate and arm, nan where the arm did not run."""
        matrices = np.stack([c.sum(1) for c in self.counts])
        return confusion_metric(matrices, metric, self.classes, positive)

    def lesions_per_class(self) -> np.ndarray:
        """Return how many lesions of each class the fold holds, ``(R, K)``."""
        images = [np.nan_to_num(c).max(0).sum(-1) for c in self.counts]
        return np.stack([(per_lesion > 0).sum(0) for per_lesion in images])


@dataclass(frozen=True)
class Estimate:
    """A mean over replicates, its standard error and the degrees of freedom behind it (``inf``: lesions only).

    ``tied`` is the number of baselines that validation could not tell apart when one was chosen.  The luckiest of them
    was subtracted, which pushes the difference down; claims that the truth lies *below* something are therefore held
    to the Bonferroni level of that many looks, and the interval reaches accordingly higher.  Claims upwards need none.
    """

    mean: float
    error: float
    freedom: float
    tied: int = 1

    def interval(self, level: float) -> tuple[float, float]:
        """Return the two-sided interval at this confidence level."""
        from scipy.special import stdtrit

        tail = (1 - level) / 2
        low = self.mean + stdtrit(self.freedom, tail) * self.error
        return float(low), float(self.mean - stdtrit(self.freedom, tail / self.tied) * self.error)

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of "the truth is at most ``bound``" against "above it"."""
        return self._tail(self.mean - bound)

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value of "the truth is at least ``bound``" against "below it"."""
        return min(1.0, self.tied * self._tail(bound - self.mean))

    def p_two_sided(self) -> float:
        """Return the two-sided p-value of "the truth is zero"."""
        return min(1.0, 2 * min(self.p_above(0.0), self.p_below(0.0)))

    def _tail(self, excess: float) -> float:
        from scipy.special import stdtr

        if self.error == 0:
            return 0.0 if excess > 0 else 1.0
        return float(stdtr(self.freedom, -excess / self.error))


def count_fold(predictions: pd.DataFrame, split: str, *, classes: Sequence[str] | None = None) -> FoldCounts:
    """Count the answers of every replicate and arm on one split.

    ``predictions``: a row per replicate, arm and image with ``replicate, arm, image_id, group, split, label,
    predicted``.

    Raises:
        BadInput: a missing column or split, an image answered twice by one arm, or arms of one replicate that were
            not scored on the same images (differences are paired, so they must be).
    """
    require_columns(predictions, ("replicate", "arm", *PREDICTION_COLUMNS))
    fold = predictions[predictions["split"] == split]
    if not len(fold):
        known = sorted(set(predictions["split"]))
        raise BadInput(f"The predictions have no rows of split '{split}', only of {known}: run notebook 06 again.")
    classes = sorted(set(predictions["label"]) | set(predictions["predicted"])) if classes is None else list(classes)
    arms, (lesion_code, lesion_names) = sorted(set(fold["arm"])), pd.factorize(fold["group"], sort=True)
    coded = pd.DataFrame(
        {
            "replicate": fold["replicate"].to_numpy(),
            "arm": pd.Index(arms).get_indexer(fold["arm"]),
            "image": fold["image_id"].to_numpy(),
            "lesion": lesion_code,
            "true": class_codes(fold["label"], classes),
            "answer": class_codes(fold["predicted"], classes),
        }
    )
    replicates, counts, lesions = [], [], []
    for replicate, part in coded.groupby("replicate", sort=True):
        _check_pairing(part, arms, replicate, split)
        present, row = np.unique(part["lesion"], return_inverse=True)
        replicates.append(replicate)
        lesions.append(present)
        counts.append(_count(part, row, (len(arms), len(present), len(classes), len(classes))))
    return FoldCounts(classes, arms, replicates, counts, lesions, len(lesion_names))


def resample_lesions(
    fold: FoldCounts, metric: str, *, resamples: int, seed: int, positive: str | None = None
) -> np.ndarray:
    """Return the metric ``(B, R, A)`` of every replicate and arm under ``resamples`` reweightings of the lesions.

    The Bayesian bootstrap (Rubin 1981): each lesion gets an exponential weight, the same for every arm (paired) and
    for every replicate that tests it (two replicates that test one lesion are not two pieces of evidence about it).
    Within a replicate the weights are scaled so that every true class keeps its number of images, because the split
    is stratified.  Drawing with replacement would now and then leave a rare class without any lesion; weights do not.
    """
    rng = np.random.default_rng(seed)
    blocks = []
    for start in range(0, resamples, CHUNK):
        weights = rng.standard_exponential((min(CHUNK, resamples - start), fold.n_lesions))
        blocks.append(np.stack([_reweighted(fold, r, weights, metric, positive) for r in range(len(fold.counts))], 1))
    return np.concatenate(blocks)


@dataclass(frozen=True)
class Spread:
    """A variance between replicates pooled over all arms, its degrees of freedom, and how far these may be trusted.

    ``calm`` is the variance without the arm that varies most: an arm far above it is not one of the many.
    """

    variance: float
    freedom: float
    calm: float


def pooled_spreads(values: np.ndarray) -> tuple[Spread, Spread] | None:
    """Return the pooled spread of one arm's value and of the difference of two arms, from ``(R, A)`` values.

    The analysis of variance of a randomised block design: replicates are the blocks, arms the treatments.  A difference
    has twice the residual mean square, which has (R - 1)(A - 1) degrees of freedom; **half** of them are granted, and
    at most :data:`FREEDOM` (R - 1), because arms need not vary alike (see :mod:`stda.measure.verdict` for what
    simulations say).  One arm's value adds the blocks' mean square, with Satterthwaite's degrees of freedom.  None with
    fewer than two complete replicates or three arms, where pooling gains nothing.
    """
    complete = values[np.isfinite(values).all(1)]
    n, n_arms = complete.shape
    if n < 2 or n_arms < 3:
        return None
    blocks = complete.mean(1) - complete.mean()
    residuals = complete - complete.mean(0) - blocks[:, None]
    between = n_arms * float((blocks**2).sum()) / (n - 1)
    squares = (residuals**2).sum(0)
    within = float(squares.sum()) / (n - 1) / (n_arms - 1)
    # the residual squares that are left when an arm is taken out of the table
    left = max(0.0, float(squares.sum() - squares.max() * n_arms / (n_arms - 1)))
    parts = np.array([between, (n_arms - 1) * within]) / n_arms
    rough = float((parts**2 / [n - 1, (n - 1) * (n_arms - 1)]).sum())
    freedom = float(parts.sum() ** 2 / rough) if rough > 0 else float(n - 1)
    single = np.sort(complete.var(0, ddof=1))[:-1].mean()
    granted = (n - 1) * min((n_arms - 1) / 2, FREEDOM)
    return (
        Spread(float(parts.sum()), freedom, float(single)),
        Spread(2 * within, granted, 2 * left / (n - 1) / (n_arms - 2)),
    )


def estimate(
    values: np.ndarray,  # (R,) one value (a score or a paired difference) per replicate
    draws: np.ndarray,  # (B, R) the same under resampled lesions
    *,
    pooled: Spread | None = None,  # spread over replicates as all arms show it; None: this arm's own alone
    step: float = 0.0,  # what one lesion can change; the spread of a replicate is not known better than half of it
) -> Estimate:
    """Combine replicates and lesions into a mean with a standard error.

    The spread over replicates already holds the luck of each test fold, so resampling both levels naively counts that
    luck twice, and resampling two or three replicates with replacement finds far too little spread.  Therefore:

    1. The lesion part of the mean is its variance under reweighted lesions, all replicates kept.
    2. The spread over replicates is the larger of this arm's own and the pooled one.  What it has beyond the lesions
       adds its R-th part: what resampling replicates gives whose residuals were reflated to the unbiased variance
       (Carpenter, Goldstein and Rasbash 2003), in closed form.
    3. The standard error is that of both parts together, but never below the plain s / sqrt(R) of the replicates.
    4. Quantiles are Student's, with the degrees of freedom of the pooled spread, or R - 1 without one.  An arm whose
       own spread exceeds :data:`LUCK` times that of the calm arms is not one of them: its degrees of freedom fall from
       the pooled ones towards R - 1.

    With one replicate only part 1 is left (normal quantiles): test-sampling noise of one training, not evidence on
    the arm.  The replicates are splits of one data set: the inference is to new splits, seeds and lesions like these.
    """
    n, mean = len(values), float(np.mean(values))
    deviations = draws - draws.mean(0)
    floor = step / 2 / np.sqrt(n)
    lesion_part = float(deviations.mean(1).var())
    if n == 1:
        return Estimate(mean, max(np.sqrt(lesion_part), floor), np.inf)
    spread, freedom = float(np.var(values, ddof=1)), n - 1.0
    if pooled is not None:
        trust = min(1.0, LUCK * pooled.calm / spread) ** STEEPNESS if spread > 0 else 1.0
        spread, freedom = max(spread, pooled.variance), freedom + trust * max(0.0, pooled.freedom - freedom)
    beyond_lesions = max(0.0, spread - float(deviations.var(axis=1, ddof=1).mean()))
    both = lesion_part + beyond_lesions / n
    return Estimate(mean, max(np.sqrt(max(both, spread / n)), floor), freedom)


def within(interval: tuple[float, float]) -> tuple[float, float]:
    """Return the interval of a difference of two scores cut to [-1, 1], which it cannot leave."""
    return max(-1.0, interval[0]), min(1.0, interval[1])


def lesion_step(fold: FoldCounts, metric: str, positive: str | None = None) -> float:
    """Return how much one lesion of the rarest class that ``metric`` looks at can move it."""
    per_class = fold.lesions_per_class().min(0).astype(float)
    known = per_class[per_class > 0]
    if metric == "accuracy":
        return 1.0 / float(per_class.sum())
    if metric in ("balanced_accuracy", "macro_f1"):
        return 1.0 / float(known.min() * len(known))
    chosen = metric[7:] if metric.startswith("recall_") else positive
    wanted = per_class[fold.classes.index(chosen)]
    return 1.0 / max(1.0, float(per_class.sum() - wanted if metric == "specificity" else wanted))


def _check_pairing(part: pd.DataFrame, arms: list[str], replicate: object, split: str) -> None:
    images: dict[str, pd.Index] = {}
    for code, rows in part.groupby("arm", sort=True):
        images[arms[code]] = rows.sort_values("image").set_index(["image", "lesion", "true"]).index
    first_arm, first = next(iter(images.items()))
    if not first.get_level_values(0).is_unique:
        raise BadInput(f"Arm '{first_arm}' of replicate {replicate} answers an image of split '{split}' twice.")
    for arm, index in images.items():
        if not index.equals(first):
            raise BadInput(
                f"Arms '{first_arm}' and '{arm}' of replicate {replicate} were not scored on the same images of split "
                f"'{split}': differences are paired, so run both on one split."
            )


def _count(part: pd.DataFrame, row: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    cell = np.ravel_multi_index((part["arm"], row, part["true"], part["answer"]), shape)
    counts = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape).astype(np.float64)
    counts[counts.sum((1, 2, 3)) == 0] = np.nan
    return counts


def _reweighted(fold: FoldCounts, replicate: int, weights: np.ndarray, metric: str, positive: str | None) -> np.ndarray:
    """Return the metric ``(b, A)`` of one replicate under lesion weights ``(b, n_lesions)``."""
    counts = fold.counts[replicate]
    n_arms, n_lesions, k, _ = counts.shape
    flat = counts.transpose(1, 0, 2, 3).reshape(n_lesions, -1)
    matrices = (weights[:, fold.lesions[replicate]] @ flat).reshape(-1, n_arms, k, k)
    before, after = counts.sum((1, 3)), matrices.sum(-1)
    scale = np.divide(before, after, out=np.ones_like(after), where=after > 0)
    return confusion_metric(matrices * scale[..., None], metric, fold.classes, positive)
