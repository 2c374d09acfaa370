"""Are the probabilities honest?  Calibration of a classifier before and after temperature scaling (Guo et al. 2017).

One number per model, the temperature, divides its logits.  It is fitted to the validation fold by maximum likelihood
and applied to the test fold, so that no answer changes, only how sure the model is.

- Logits are the logarithms of the probabilities, which differ from them by a constant per image.  Probabilities below
  :data:`SMALLEST` count as that: a model that gave a true class zero would else be infinitely wrong.
- The temperature lies within :data:`COLDEST` and :data:`HOTTEST`.  Where every validation answer is right no finite
  optimum exists and it is the coldest; where a model's preferences are worse than none, the hottest.
- A temperature moves all classes alike.  It cannot mend the *prior* of a model trained under a balanced sampler, whose
  probabilities are those of a world where all classes are equally frequent; its errors are reported as they are.
- Intervals of a change are those of test lesions and replicates (:func:`stda.measure.bootstrap.estimate`).  They hold
  the temperature fixed within a replicate; the luck of the validation fold is in the spread over replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure import bootstrap
from stda.measure.scores import N_BINS, class_codes, class_probabilities, confidence_bins, require_columns

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SMALLEST = 1e-12  # probabilities below it count as it
COLDEST, HOTTEST = 0.05, 100.0  # bounds of the temperature; a model that knows only 0 and 1 may need about 40
MEASURES = ("ece", "brier", "nll")
COLUMNS = ("arm", "replicates", "temperature", "measure", "before", "after", "change", "low", "high")


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature that minimises the negative log likelihood of ``labels`` int ``(N,)``.

    ``probabilities`` is ``(N, K)`` in [0, 1].  The loss is convex in the inverse temperature (it is a linear model
    with one coefficient), so the root of its slope is found by bisection.  1 when no image has a preference at all.
    """
    from scipy.optimize import brentq

    labels, logits = np.asarray(labels), _logits(np.asarray(probabilities, dtype=np.float64))
    if not len(labels):
        raise BadInput("There is no validation image to fit a temperature to: enlarge the validation fold.")
    true = logits[np.arange(len(labels)), labels].mean()
    if np.ptp(logits, axis=1).max() == 0:
        return 1.0

    def slope(inverse: float) -> float:
        return float((_softmax(inverse * logits) * logits).sum(1).mean() - true)

    if slope(1 / HOTTEST) >= 0:
        return HOTTEST
    if slope(1 / COLDEST) <= 0:
        return COLDEST
    return float(1 / brentq(slope, 1 / HOTTEST, 1 / COLDEST, xtol=1e-10))


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities ``(N, K)`` after their logits were divided by ``temperature`` (above 1: less sure)."""
    return _softmax(_logits(np.asarray(probabilities, dtype=np.float64)) / temperature)


def calibrate(validation: pd.DataFrame, test: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    """Fit a temperature to a model's validation predictions; return it and the test predictions after scaling.

    Both tables have ``label`` and ``p_<class>`` columns.  Answers (``predicted``) stay as they are.
    """
    classes = _classes(validation)
    temperature = fit_temperature(class_codes(validation["label"], classes), class_probabilities(validation, classes))
    columns = [f"p_{name}" for name in classes]
    scaled = pd.DataFrame(temper(class_probabilities(test, classes), temperature), columns=columns, index=test.index)
    return temperature, test.assign(**scaled)


def top_answers(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence ``(N,)`` of the likeliest class in [0, 1] and whether it is right, bool ``(N,)``."""
    classes = _classes(predictions)
    probabilities = class_probabilities(predictions, classes)
    return probabilities.max(1), probabilities.argmax(1) == class_codes(predictions["label"], classes)


def calibration_table(
    predictions: pd.DataFrame, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Show calibration error, Brier score and negative log likelihood of every arm before and after scaling.

    ``predictions``: a row per replicate, arm, split ("val" and "test") and image, with ``replicate, arm, split,
    image_id, group, label, predicted`` and ``p_<class>`` columns.  Returns a row per arm and measure with
    :data:`COLUMNS`: ``temperature, before, after, change`` are means over replicates, ``low, high`` the interval of
    the change (below zero: better calibrated); ``ece`` and ``brier`` are those of :func:`stda.measure.scores.scores`,
    ``nll`` is in nats per image.  The calibration error of few images is above zero even for honest probabilities.

    Raises:
        BadInput: a missing column or fold, arms scored on different images, probabilities that are not in [0, 1].
    """
    require_columns(predictions, ("replicate", "arm", "split", "image_id", "group", "label", "predicted"))
    if not 0.5 <= confidence < 1 or resamples < 100:
        raise BadInput(f"confidence is {confidence:g}, resamples {resamples}; take 0.5 to below 1 and 100 or more.")
    classes = _classes(predictions)
    fold = bootstrap.count_fold(predictions, "test", classes=classes)  # checks that all arms met the same images
    temperatures, sums = _scaled(predictions, fold)
    values = np.concatenate([part.measures(np.ones((fold.n_lesions, 1))) for part in sums])
    draws = _resampled(sums, fold.n_lesions, resamples=resamples, seed=seed)
    rows = []
    for a, arm in enumerate(fold.arms):
        ran = np.isfinite(temperatures[:, a])
        for m, measure in enumerate(MEASURES):
            change, moved = (v[..., 1, m] - v[..., 0, m] for v in (values, draws))
            spreads = bootstrap.pooled_spreads(change)
            e = bootstrap.estimate(change[ran, a], moved[:, ran, a], pooled=spreads and spreads[0])
            means = (temperatures[ran, a].mean(), measure, *values[ran, a, :, m].mean(0))
            rows.append((arm, int(ran.sum()), *means, e.mean, *e.interval(confidence)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def calibration_sentence(table: pd.DataFrame, *, confidence: float = 0.95) -> str:
    """Say in a few sentences what :func:`calibration_table` found."""
    ece = table[table["measure"] == "ece"]
    sure, modest = (ece["temperature"] > 1).sum(), (ece["temperature"] < 1).sum()
    words = [
        f"Temperatures lie between {ece['temperature'].min():.2f} and {ece['temperature'].max():.2f}: {sure} of "
        f"{len(ece)} arms were too sure of themselves on the validation fold, {modest} not sure enough."
    ]
    for measure, name in (("ece", "calibration error"), ("nll", "negative log likelihood")):
        rows = table[table["measure"] == measure]
        words.append(
            f"On test the scaling takes the mean {name} from {rows['before'].mean():.3f} to "
            f"{rows['after'].mean():.3f}; the {confidence:.0%} interval of an arm's change lies below zero for "
            f"{(rows['high'] < 0).sum()} and above zero for {(rows['low'] > 0).sum()} of them."
        )
    return " ".join(words)


@dataclass(frozen=True, eq=False)
class _Sums:
    """What the measures of one replicate are sums of, so that a resample is one sparse product.

    ``matrix`` has a row per arm, state (before, after) and term (Brier score, negative log likelihood, the gap of each
    confidence bin), and a column per pair of lesion and class; ``lesions, classes, images`` describe the columns.
    """

    matrix: csr_array
    lesions: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    missing: np.ndarray  # bool (A,), the arms that did not run

    def measures(self, weights: np.ndarray) -> np.ndarray:
        """Return the measures ``(b, A, 2, 3)`` under lesion weights ``(n_lesions, b)``; classes keep their images."""
        each = weights[self.lesions]
        for c in np.unique(self.classes):
            rows = self.classes == c
            each[rows] *= self.images[rows].sum() / (self.images[rows] @ each[rows])
        terms = (self.matrix @ each).reshape(len(self.missing), 2, 2 + N_BINS, -1) / self.images.sum()
        found = np.stack([np.abs(terms[:, :, 2:]).sum(2), terms[:, :, 0], terms[:, :, 1]], -1)
        found[self.missing] = np.nan
        return found.transpose(2, 0, 1, 3)


def _scaled(predictions: pd.DataFrame, fold: bootstrap.FoldCounts) -> tuple[np.ndarray, list[_Sums]]:
    """Return the temperatures ``(R, A)``, nan where an arm did not run, and the sums of every replicate."""
    temperatures = np.full((len(fold.replicates), len(fold.arms)), np.nan)
    found = {(r, arm): [] for r in range(len(fold.replicates)) for arm in fold.arms}
    for (replicate, arm), own in predictions.groupby(["replicate", "arm"], sort=True):
        validation, test = (own[own["split"] == split] for split in ("val", "test"))
        if len(test) and not len(validation):
            raise BadInput(
                f"Arm '{arm}' of replicate {replicate} has no validation predictions: run notebook 06 again."
            )
        if len(test):
            r = fold.replicates.index(replicate)
            temperatures[r, fold.arms.index(arm)], scaled = calibrate(validation, test)
            found[r, arm] = [test, scaled]
    names = sorted(set(predictions.loc[predictions["split"] == "test", "group"]))
    replicates = range(len(fold.replicates))
    return temperatures, [_sums([found[r, arm] for arm in fold.arms], names, fold.classes) for r in replicates]


def _sums(arms: list[list[pd.DataFrame]], lesions: list[str], classes: list[str]) -> _Sums:
    """Collect the terms of one replicate from the test tables (before, after) of every arm; empty: it did not run."""
    from scipy.sparse import csr_array

    rows, columns, values = [], [], []
    units = np.empty(0, dtype=int)
    for a, states in enumerate(arms):
        for state, table in enumerate(states):
            labels = class_codes(table["label"], classes)
            probabilities = class_probabilities(table, classes)
            unit = pd.Index(lesions).get_indexer(table["group"]) * len(classes) + labels
            units, images = np.unique(unit, return_counts=True)
            confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
            bins = confidence_bins(confidence)
            true = probabilities[np.arange(len(labels)), labels]
            terms = [((probabilities - np.eye(len(classes))[labels]) ** 2).sum(1), -np.log(np.maximum(true, SMALLEST))]
            for place, term in [(0, terms[0]), (1, terms[1]), (2 + bins, right - confidence)]:
                rows.append(np.broadcast_to((2 * a + state) * (2 + N_BINS) + place, len(labels)))
                columns.append(np.searchsorted(units, unit))
                values.append(term)
    shape = (len(arms) * 2 * (2 + N_BINS), len(units))
    matrix = csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape)
    return _Sums(
        matrix, units // len(classes), units % len(classes), images.astype(float), np.array([not s for s in arms])
    )


def _resampled(sums: list[_Sums], n_lesions: int, *, resamples: int, seed: int) -> np.ndarray:
    """Return the measures ``(B, R, A, 2, 3)`` under the lesion weights of the other bootstraps."""
    rng = np.random.default_rng(seed)
    blocks = []
    for start in range(0, resamples, bootstrap.CHUNK):
        weights = rng.standard_exponential((min(bootstrap.CHUNK, resamples - start), n_lesions)).T
        blocks.append(np.stack([part.measures(weights) for part in sums], 1))
    return np.concatenate(blocks)


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Return logits with a largest value of zero in every row."""
    logits = np.log(np.maximum(probabilities, SMALLEST))
    return logits - logits.max(1, keepdims=True)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _classes(predictions: pd.DataFrame) -> list[str]:
    classes = [str(column)[2:] for column in predictions.columns if str(column).startswith("p_")]
    if len(classes) < 2:
        raise BadInput(f"Calibration needs at least two columns p_<class>; the table has {list(predictions.columns)}.")
    return classes
