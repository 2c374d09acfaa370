"""Scores of a classifier from its table of predictions, all of them defined for missing classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stda import BadInput

PREDICTION_COLUMNS = ("image_id", "group", "split", "label", "predicted")
# these follow from the confusion matrix alone, which is what makes resampling fast; recall_<class> does too
CONFUSION_METRICS = ("balanced_accuracy", "macro_f1", "accuracy", "sensitivity", "specificity")
N_BINS = 15  # of the calibration error; the customary number since Guo et al. 2017


def scores(
    predictions: pd.DataFrame,
    classes: Sequence[str] | None = None,
    *,
    positive: str | None = None,  # the class that sensitivity speaks of; by default the rarer of two
) -> dict[str, float]:
    """Score one model on one split.

    ``predictions`` has a row per image with columns ``label``, ``predicted`` and one probability ``p_<class>`` per
    class in [0, 1]; ``classes`` defaults to the ``p_`` columns in their order.  Returns, all in [0, 1]:

    - ``balanced_accuracy``: mean recall over the classes that occur among the labels;
    - ``macro_f1``: mean F1 over the classes that occur among the labels or the answers;
    - ``accuracy`` and ``majority_accuracy`` (what always answering the commonest class here would reach);
    - ``auroc``, ``auprc``: one-vs-rest, mean over classes with positives and negatives (ties share their rank;
      auprc is average precision);
    - ``ece``: gap between confidence and accuracy of the top answer, 15 equal-width bins (Guo et al. 2017);
    - ``brier``: mean over images of the summed squared error of the probabilities, in [0, 2];
    - ``recall_<class>``, ``precision_<class>``; and for two classes ``sensitivity``, ``specificity``.

    What the rows cannot answer (recall of a class without images, precision of one never answered) is ``nan``.

    Raises:
        BadInput: no rows, a missing column, a label outside ``classes``, probabilities that are not finite in [0, 1].
    """
    classes = _classes(predictions, classes)
    labels = _codes(predictions, "label", classes)
    probabilities = class_probabilities(predictions, classes)
    matrix = confusion(labels, _codes(predictions, "predicted", classes), len(classes))
    positive = positive_class(classes, matrix.sum(1), positive) if len(classes) == 2 or positive else None

    names = ["balanced_accuracy", "macro_f1", "accuracy"]
    names += ["sensitivity", "specificity"] if positive else []
    result = {name: float(confusion_metric(matrix, name, classes, positive)) for name in names}
    result["majority_accuracy"] = float(matrix.sum(1).max() / matrix.sum())
    result["auroc"] = _mean([auroc(labels == c, probabilities[:, c]) for c in range(len(classes))])
    result["auprc"] = _mean([average_precision(labels == c, probabilities[:, c]) for c in range(len(classes))])
    result["ece"] = calibration_error(labels, probabilities)
    result["brier"] = float(((probabilities - np.eye(len(classes))[labels]) ** 2).sum(1).mean())
    hits = np.diag(matrix)
    for name, recall, precision in zip(classes, _ratio(hits, matrix.sum(1)), _ratio(hits, matrix.sum(0)), strict=True):
        result[f"recall_{name}"] = float(recall)
        result[f"precision_{name}"] = float(precision)
    return result


def metrics_table(
    predictions: pd.DataFrame, classes: Sequence[str] | None = None, *, positive: str | None = None
) -> pd.DataFrame:
    """Score every replicate, arm and split of a long table of predictions.

    ``predictions`` has the columns of :func:`scores` and ``replicate``, ``arm``, ``split``.  Returns a row per
    replicate, arm, split and metric with columns ``replicate, arm, split, metric, value``.
    """
    require_columns(predictions, ("replicate", "arm", "split"))
    classes = _classes(predictions, classes)
    if len(classes) == 2 and positive is None:  # one choice for the whole table, or the columns would not compare
        positive = positive_class(classes, [int((predictions["label"] == name).sum()) for name in classes], None)
    rows = [
        {"replicate": replicate, "arm": arm, "split": split, "metric": metric, "value": value}
        for (replicate, arm, split), part in predictions.groupby(["replicate", "arm", "split"], sort=True)
        for metric, value in scores(part, classes, positive=positive).items()
    ]
    return pd.DataFrame(rows, columns=["replicate", "arm", "split", "metric", "value"])


def confusion(labels: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Count (label, answer) pairs: int ``(K, K)``, rows are true classes, from class numbers ``(N,)``."""
    cells = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes)


def confusion_metric(
    matrix: np.ndarray, metric: str, classes: Sequence[str], positive: str | None = None
) -> np.ndarray:
    """Compute a metric from confusion matrices ``(..., K, K)`` of counts or weights: ``(...)``, nan where undefined.

    Raises:
        BadInput: ``metric`` is neither in :data:`CONFUSION_METRICS` nor ``recall_<class>``.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    hits, true = np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1)
    if metric == "accuracy":
        return _ratio(hits.sum(-1), true.sum(-1))
    if metric == "balanced_accuracy":
        return _nanmean(_ratio(hits, true))
    if metric == "macro_f1":
        return _nanmean(_ratio(2 * hits, true + matrix.sum(-2)))
    wanted = _recalled_class(metric, classes, positive)
    if metric == "specificity":
        others = [i for i in range(len(classes)) if i != wanted]
        negatives = matrix[..., others, :]
        return _ratio(negatives[..., others].sum((-2, -1)), negatives.sum((-2, -1)))
    return _ratio(hits[..., wanted], true[..., wanted])


def from_confusion(metric: str) -> bool:
    """Say whether a metric follows from the confusion matrix, so that :func:`confusion_metric` computes it."""
    return metric in CONFUSION_METRICS or metric.startswith("recall_")


def check_metric(metric: str, classes: Sequence[str], positive: str | None = None) -> None:
    """Raise BadInput unless :func:`confusion_metric` can compute ``metric`` for these classes."""
    if metric not in ("accuracy", "balanced_accuracy", "macro_f1"):
        _recalled_class(metric, classes, positive)


def positive_class(classes: Sequence[str], counts: Sequence[int], positive: str | None = None) -> str:
    """Return the class that sensitivity speaks of: ``positive`` if given, else the rarest (the first of equals)."""
    if positive is not None and positive not in classes:
        raise BadInput(f"The positive class '{positive}' is not among the classes {list(classes)}.")
    return positive if positive is not None else classes[int(np.argmin(counts))]


def auroc(positives: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the ROC curve of bool ``(N,)`` by ``score`` ``(N,)``; nan without both kinds.

    The Mann-Whitney form with mid-ranks, which is the trapezoid rule on the curve.
    """
    from scipy.stats import rankdata

    n_positive = int(positives.sum())
    n_negative = len(positives) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = rankdata(score)[positives].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def average_precision(positives: np.ndarray, score: np.ndarray) -> float:
    """Return average precision (no interpolation, ties taken together) of bool ``(N,)``; nan without both kinds."""
    if not positives.any() or positives.all():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    found = np.cumsum(positives[order])[last_of_tie]
    gained = np.diff(found, prepend=0) / found[-1]
    return float((gained * found / (last_of_tie + 1)).sum())


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, *, n_bins: int = N_BINS) -> float:
    """Return the expected calibration error of the top answer: labels ``(N,)`` int, probabilities ``(N, K)``."""
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    bins = confidence_bins(confidence, n_bins)
    gap = np.bincount(bins, weights=correct - confidence, minlength=n_bins)
    return float(np.abs(gap).sum() / len(labels))


def confidence_bins(confidence: np.ndarray, n_bins: int = N_BINS) -> np.ndarray:
    """Return the number ``(N,)`` int of the equal-width bin (low, high] of each confidence, as Guo et al. 2017."""
    return np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, in [0, 1]; nan, nan when ``n`` is 0."""
    from scipy.stats import norm

    if n == 0:
        return float("nan"), float("nan")
    share, z = successes / n, norm.ppf(0.5 + confidence / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return float(0.0 if successes == 0 else low), float(1.0 if successes == n else high)


def require_columns(table: pd.DataFrame, columns: Sequence[str], *, what: str = "predictions") -> None:
    """Raise BadInput naming the first column that a table of ``what`` lacks, or when it has no rows."""
    for column in columns:
        if column not in table:
            raise BadInput(f"The table of {what} has no column '{column}'; it has {list(table.columns)}.")
    if not len(table):
        raise BadInput(f"The table of {what} has no rows: there is nothing to measure.")


def class_codes(values: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """Return the class number ``(N,)`` int of each label or answer; BadInput names the first that is no class."""
    codes = pd.Index(list(classes)).get_indexer(values)
    if (codes < 0).any():
        stranger = values.iloc[int(np.argmax(codes < 0))]
        raise BadInput(f"The {values.name} '{stranger}' is not among the classes {list(classes)}.")
    return codes


def _classes(predictions: pd.DataFrame, classes: Sequence[str] | None) -> list[str]:
    found = [column[2:] for column in predictions.columns if str(column).startswith("p_")]
    classes = list(found if classes is None else classes)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise BadInput(f"Scores need at least two different classes; got {classes} (columns p_<class> name them).")
    return classes


def _codes(predictions: pd.DataFrame, column: str, classes: Sequence[str]) -> np.ndarray:
    require_columns(predictions, [column])
    return class_codes(predictions[column], classes)


def class_probabilities(predictions: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """Return the columns ``p_<class>``, float64 ``(N, K)``; BadInput unless all are finite numbers in [0, 1]."""
    columns = [f"p_{name}" for name in classes]
    require_columns(predictions, columns)
    values = predictions[columns].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1 + 1e-6:
        raise BadInput("The probabilities p_<class> must be finite numbers in [0, 1]; the model may have diverged.")
    return values


def _recalled_class(metric: str, classes: Sequence[str], positive: str | None) -> int:
    """Return the number of the class whose recall ``metric`` is (for specificity: the class it excludes)."""
    if metric.startswith("recall_") and metric[7:] in classes:
        return list(classes).index(metric[7:])
    if metric in ("sensitivity", "specificity"):
        if positive is None or positive not in classes:
            raise BadInput(f"{metric} needs a positive class among {list(classes)}; got {positive}: name one.")
        return list(classes).index(positive)
    known = ", ".join(CONFUSION_METRICS)
    raise BadInput(f"The metric '{metric}' cannot be resampled here; choose one of {known} or recall_<class>.")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide, nan where the whole is zero, without a warning."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Average over the last axis, leaving nan out; nan when nothing is left (numpy would warn)."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(-1), known.sum(-1))


def _mean(values: Sequence[float]) -> float:
    return float(_nanmean(np.asarray(values, dtype=np.float64)))
