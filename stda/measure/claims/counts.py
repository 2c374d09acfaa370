"""Which whole numbers of images a row of rates allows: right answers, predictions, wrong ones of both kinds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from stda.measure.claims.model import Row
from stda.measure.claims.numbers import Printed, whole_numbers

MOST_PAIRS = 20_000  # beyond so many (support, right answers), rounding is far coarser than one image


@dataclass(frozen=True)
class Bounds:
    """Least and most of a class over every confusion matrix that fits its row; ``inf`` where nothing bounds.

    ``right`` are answers that are right, ``predicted`` all answers of this class, ``missed`` its images that got
    another answer, ``wrong`` images of other classes that got this one.
    """

    right: tuple[int, int]
    predicted: tuple[int, float]
    missed: tuple[int, int]
    wrong: tuple[int, float]


def bounds(
    row: Row,
    support: tuple[int, int],
    *,
    use: tuple[str, ...] = ("precision", "recall", "f1"),  # rates of the row to heed; specificity needs n
    n: tuple[int, int] | None = None,  # test images; without, nothing bounds wrong answers from above
) -> Bounds | None:
    """Return what a row allows, None if no whole numbers fit it.

    Exact enumeration over support and right answers; with more than :data:`MOST_PAIRS` pairs the four bounds are those
    of the ends, which are never too narrow.  What is undefined (0/0) may be printed as 0 or as 1.
    """
    rates = {name: row.rates[name] for name in use if name in row.rates}
    spans = [
        (s, *right_range(rates.get("recall"), s)) for s in range(support[0], min(support[1], support[0] + 999) + 1)
    ]
    if support[1] - support[0] > 999 or sum(high - low + 1 for _, low, high in spans if low <= high) > MOST_PAIRS:
        return _loose(rates, support, n)
    options = [(s, k, *predicted_range(s, k, rates, n)) for s, low, high in spans for k in range(low, high + 1)]
    options = [option for option in options if option[2] <= option[3]]
    if not options:
        return None
    return Bounds(
        right=(min(k for _, k, _, _ in options), max(k for _, k, _, _ in options)),
        predicted=(min(low for _, _, low, _ in options), max(high for _, _, _, high in options)),
        missed=(min(s - k for s, k, _, _ in options), max(s - k for s, k, _, _ in options)),
        wrong=(min(low - k for _, k, low, _ in options), max(high - k for _, k, _, high in options)),
    )


def right_range(recall: Printed | None, support: int) -> tuple[int, int]:
    """Return the least and the most right answers of ``support`` images; least above most if none fits."""
    if recall is None:
        return 0, support
    if support == 0:  # 0/0 is printed as 0 or as 1
        return (0, 0) if recall.low <= 0 or recall.high >= 1 else (1, 0)
    return whole_numbers(recall, support)


def predicted_range(
    support: int, right: int, rates: dict[str, Printed], n: tuple[int, int] | None
) -> tuple[int, float]:
    """Return the least and the most answers of a class with so many right; least above most if none fits."""
    least, most = right, math.inf if n is None else right + n[1] - support
    if "precision" in rates:
        least, most = _within(least, most, _by_precision(rates["precision"], right))
    if "f1" in rates:
        least, most = _within(least, most, _by_f1(rates["f1"], support, right))
    if "specificity" in rates and n is not None:
        low, high = rates["specificity"].low, rates["specificity"].high
        others = [max(total - support, 0) for total in n]
        if others[0] or not (low <= 0 or high >= 1):
            fits = right + math.ceil((1 - high) * others[0]), right + math.floor((1 - low) * others[1])
            least, most = _within(least, most, fits)
    return least, most


def _by_precision(precision: Printed, right: int) -> tuple[int, float]:
    if right == 0:  # precision is 0, or 0/0 where nothing was answered so
        return (0, math.inf) if precision.low <= 0 else (0, 0) if precision.high >= 1 else (1, 0)
    if precision.high <= 0:
        return 1, 0
    return math.ceil(right / precision.high), math.floor(right / precision.low) if precision.low else math.inf


def _by_f1(f1: Printed, support: int, right: int) -> tuple[int, float]:
    """F1 is 2 right / (support + predicted)."""
    if right == 0:
        return (0, math.inf) if f1.low <= 0 else (0, 0) if f1.high >= 1 and support == 0 else (1, 0)
    if f1.high <= 0:
        return 1, 0
    return (
        math.ceil(2 * right / f1.high) - support,
        math.floor(2 * right / f1.low) - support if f1.low else math.inf,
    )


def _within(least: int, most: float, other: tuple[int, float]) -> tuple[int, float]:
    return max(least, other[0]), min(most, other[1])


def _loose(rates: dict[str, Printed], support: tuple[int, int], n: tuple[int, int] | None) -> Bounds | None:
    """Bound each count by the ends of recall and precision alone."""
    zero, one = Fraction(0), Fraction(1)
    recall, precision = rates.get("recall"), rates.get("precision")
    low, high = (recall.low, recall.high) if recall else (zero, one)
    right = math.ceil(low * support[0]), math.floor(high * support[1])
    missed = math.ceil((1 - high) * support[0]), math.floor((1 - low) * support[1])
    most_wrong = math.inf if n is None else n[1] - support[0]
    wrong, predicted = (0, most_wrong), (right[0], right[1] + most_wrong)
    if precision and right[0] > 0:
        least, most = _by_precision(precision, right[0])[0], _by_precision(precision, right[1])[1]
        predicted = _within(*predicted, (least, most))
        most_odds = right[1] * (1 / precision.low - 1) if precision.low else math.inf
        least_odds = math.ceil(right[0] * (1 / precision.high - 1)) if precision.high else 0
        wrong = _within(*wrong, (least_odds, most_odds))
    if right[0] > right[1] or predicted[0] > predicted[1] or wrong[0] > wrong[1]:
        return None
    return Bounds(right, predicted, missed, wrong)
