import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import binomtest

from stda.measure.claims import counts
from stda.measure.claims.compare import mcnemar
from stda.measure.claims.counts import Bounds, bounds
from stda.measure.claims.model import Row
from stda.measure.claims.numbers import parse_rate
from stda.measure.claims.sums import mean_range


def row(**rates):
    return Row("a", {name: parse_rate(text, what=name) for name, text in rates.items()})


def brute(rates, supports, n):
    """Try every right and every predicted, by the definitions of the rates."""
    found = []
    for s, k in itertools.product(supports, range(max(supports) + 1)):
        for m in range(k, k + n - s + 1) if k <= s <= n else ():
            values = {
                "recall": (k, s),
                "precision": (k, m),
                "f1": (2 * k, s + m),
                "specificity": (n - s - m + k, n - s),
            }
            if all(
                rates[name].low * whole <= part <= rates[name].high * whole
                if whole
                else rates[name].low <= 0 or rates[name].high >= 1
                for name, (part, whole) in values.items()
                if name in rates
            ):
                found.append((s, k, m))
    return found


@pytest.mark.parametrize("seed", range(60))
def test_bounds_are_those_of_every_confusion_matrix_that_fits(seed):
    rng = random.Random(seed)
    s, n = rng.randint(0, 9), rng.randint(9, 20)
    supports = range(s, s + rng.choice([1, 2]))
    names = rng.sample(["recall", "precision", "f1", "specificity"], rng.randint(1, 4))
    # mostly rates of a real matrix, some drawn at random, which may fit none
    k = rng.randint(0, s)
    m = rng.randint(k, k + n - s)
    real = {"recall": (k, s), "precision": (k, m), "f1": (2 * k, s + m), "specificity": (n - s - m + k, n - s)}
    digits = rng.choice([1, 2])
    numbers = {name: rng.random() if rng.random() < 0.2 else real[name][0] / max(real[name][1], 1) for name in names}
    rates = row(**{name: f"{value:.{digits}f}" for name, value in numbers.items()})
    found = brute(rates.rates, supports, n)
    given = bounds(rates, (supports[0], supports[-1]), use=tuple(names), n=(n, n))
    if not found:
        assert given is None
        return
    spans = [
        [k for _, k, _ in found],
        [m for *_, m in found],
        [s - k for s, k, _ in found],
        [m - k for _, k, m in found],
    ]
    assert given == Bounds(*((min(values), max(values)) for values in spans))


def test_bounds_of_many_images_are_never_narrower_than_those_of_enumeration(monkeypatch):
    rates = row(recall=".31", precision=".47", f1=".37")
    exact = bounds(rates, (900, 950), n=(4000, 4000))
    monkeypatch.setattr(counts, "MOST_PAIRS", 10)
    loose = bounds(rates, (900, 950), n=(4000, 4000))
    for name in ("right", "predicted", "missed", "wrong"):
        narrow, wide = getattr(exact, name), getattr(loose, name)
        assert wide[0] <= narrow[0]
        assert narrow[1] <= wide[1]
    assert loose.right[1] < 310
    assert loose.predicted[0] > 570


def test_what_is_undefined_may_be_printed_as_zero_or_one_and_nothing_else():
    assert bounds(row(recall="0.00", precision="1.00"), (5, 5)).predicted == (0, 0)
    assert bounds(row(recall="0.00", precision="0.00"), (5, 5)).predicted == (0, math.inf)
    assert bounds(row(recall="0.00", precision="0.50"), (5, 5)) is None
    assert bounds(row(recall="1.00"), (0, 0)).right == (0, 0)
    assert bounds(row(recall="0.50"), (0, 0)) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_range_of_a_mean_is_that_of_a_linear_programme(seed):
    rng = np.random.default_rng(seed)
    centre = rng.dirichlet(np.ones(5))
    weights = [(Fraction(max(0, w - 0.05)), Fraction(w + 0.08)) for w in centre]
    values = [tuple(sorted(map(Fraction, rng.uniform(-1, 1, 2)))) for _ in range(5)]
    low, high = mean_range(weights, values)
    box = [tuple(map(float, w)) for w in weights]
    least = linprog([float(v[0]) for v in values], A_eq=[[1] * 5], b_eq=[1], bounds=box).fun
    most = -linprog([-float(v[1]) for v in values], A_eq=[[1] * 5], b_eq=[1], bounds=box).fun
    assert float(low) == pytest.approx(least, abs=1e-9)
    assert float(high) == pytest.approx(most, abs=1e-9)


def test_weights_that_cannot_add_up_to_one_have_no_mean():
    half, tenth = Fraction(1, 2), Fraction(1, 10)
    assert mean_range([(tenth, half), (Fraction(0), tenth)], [(tenth, half)] * 2) is None


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs():
    for difference, worse in itertools.product((0, 1, 5, 13), (0, 1, 7, 20)):
        pairs = difference + 2 * worse
        expected = binomtest(worse, pairs, 0.5).pvalue if pairs else 1.0
        assert mcnemar(difference, np.array([worse]))[0] == pytest.approx(expected, rel=1e-12)
    by_hand = 2 * sum(math.comb(39, i) for i in range(14)) / 2**39
    assert mcnemar(13, np.array(13)) == pytest.approx(by_hand, rel=1e-12)
