"""Extremes of weighted means when weights and values are known as intervals only."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

Interval = tuple[Fraction, Fraction]


def mean_range(weights: Sequence[Interval], values: Sequence[Interval]) -> Interval | None:
    """Return the least and the most of the mean of ``values`` over all weights in the box that sum to one.

    ``weights`` and ``values`` are (low, high) per class.  None if no weights in the box sum to one.  The extreme of a
    linear function over a box cut by one plane: start at the low weights and give the rest to the best values first.
    """
    if not sum(low for low, _ in weights) <= 1 <= sum(high for _, high in weights):
        return None
    least = _extreme(weights, [low for low, _ in values])
    most = -_extreme(weights, [-high for _, high in values])
    return least, most


def _extreme(weights: Sequence[Interval], values: Sequence[Fraction]) -> Fraction:
    total = sum((low * value for (low, _), value in zip(weights, values, strict=True)), Fraction(0))
    rest = 1 - sum(low for low, _ in weights)
    for (low, high), value in sorted(zip(weights, values, strict=True), key=lambda pair: pair[1]):
        given = min(rest, high - low)
        total, rest = total + given * value, rest - given
    return total
