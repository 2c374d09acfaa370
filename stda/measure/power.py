"""Power: how likely a verdict falls with so many replicates, if the truth is so large.

The rule that is planned for is that of :mod:`stda.measure.verdict`.  With a true difference d, R replicates and n arms
in the family, the mean difference is taken to be normal around d - luck, and its squared standard error to be a scaled
chi-square with the degrees of freedom of the test.  Then the chance of each verdict is an integral over that error:

- *helps*: the mean is more than t(alpha / 2 n) errors above zero, and not within the equivalence window;
- *harms*: it is more than t(alpha / 2 n ties) errors below zero, and not within the window;
- *equivalent*: it lies in the window, t(alpha / n) errors above -smallest_effect and t(alpha / n ties) below it.

**The error** of R replicates is this study's own, measured with n replicates, times sqrt(n / R).  That is a little
hopeful for many replicates, which test the same lesions again: simulated (:mod:`stda.measure.simulation`, folds of a
fifth of the lesions), the error of 20 replicates was 11 % above half that of 5.

**A rough spread** from few replicates makes plans hopeful: with normal scores, two arms and three replicates, the mean
over studies of the power from each one's own spread was .55 where the true power was .39.  A table therefore averages
over what the true spread may be, given its degrees of freedom (the posterior under the reference prior): .47 there, .56
for a true .57, .63 for .61 with five replicates, .87 for .94 with ten.  It is conservative where power is above a half,
and still hopeful by up to .12 below that with three replicates.

**Pooling** takes the larger of the arm's own spread and the pooled one, which inflates the error (normal scores: 16 %
with three replicates, 11 % with five, 8 % with ten).  With that mean error known, calculated and observed power agreed
within .04 in 17 of 18 settings (3,000 studies each; three replicates, one baseline, four arms: .21 for .16).

**Luck**: where validation could not tell k baselines apart, the luckiest was subtracted.  Its expected luck is that of
the largest of k normal values with the baseline's half of the error's variance, as if validation and test shared all
luck.  They share the training but not the images, so this is more than there is, and the calculation conservative.
"Helps" and "equivalent" are planned at the first level of Holm's procedure, alpha / n; where other arms are called too,
the level is milder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.bootstrap import Estimate
from stda.measure.scores import require_columns

POWER = 0.8  # of the planned number of replicates, as customary
MAX_REPLICATES = 1000  # beyond this the planning answer is "not in practice"
NODES = 64  # of the quadrature over the error that a study sees
SPREADS = 16  # of the quadrature over what the true error may be
PLANNED = (3, 5, 10, 20, 50)  # numbers of replicates that a power table shows


@dataclass(frozen=True)
class Rule:
    """What a verdict is measured by: the metric, the smallest effect of interest (its units) and the error rate."""

    metric: str
    smallest_effect: float
    alpha: float


@dataclass(frozen=True)
class Chances:
    """The probabilities of the verdicts, arrays of one shape; what is missing to 1 is undecided."""

    helps: np.ndarray
    harms: np.ndarray
    equivalent: np.ndarray

    @property
    def decided(self) -> np.ndarray:
        """The probability of any verdict but undecided."""
        return self.helps + self.harms + self.equivalent


def chances(
    e: Estimate,
    n: int,
    rule: Rule,
    *,
    truth: float,
    counts: Sequence[int],
    n_arms: int = 1,  # in the family of Holm's procedure
    lucky: bool = True,  # take off the luck of the baseline that was chosen
    rough: bool = False,  # average over what the true error may be, given the degrees of freedom of the measured one
) -> Chances:
    """Return the probability of each verdict with ``counts`` replicates (2 or more) if the difference is ``truth``.

    ``e`` is the difference as measured with ``n`` replicates: its error and ties count, its mean does not.
    """
    from scipy.special import gammaincinv, ndtr, stdtrit

    counts = np.asarray(counts, dtype=float)[..., None]
    error = np.sqrt(n / counts) * max(e.error, np.finfo(float).tiny)
    freedom = e.freedom / max(n - 1, 1) * (counts - 1)  # they grow with R - 1
    if rough:
        nodes = (np.arange(SPREADS) + 0.5)[:, None, None] / SPREADS
        error = error * np.sqrt(e.freedom / 2 / gammaincinv(e.freedom / 2, nodes))
    nodes = (np.arange(NODES) + 0.5) / NODES
    seen = np.sqrt(gammaincinv(freedom / 2, nodes) * 2 / freedom)  # the error that a study sees over the true one
    level = rule.alpha / n_arms
    centre = truth / error - (expected_maximum(e.tied) / np.sqrt(2) if lucky else 0.0)
    window_low = stdtrit(freedom, 1 - level) * seen - rule.smallest_effect / error
    window_high = rule.smallest_effect / error - stdtrit(freedom, 1 - level / e.tied) * seen
    # the window wins over "not zero"; where it is empty, it lies below the one bound and above the other
    upper = np.maximum(stdtrit(freedom, 1 - level / 2) * seen, window_high)
    lower = np.minimum(-stdtrit(freedom, 1 - level / 2 / e.tied) * seen, window_low)
    inside = np.maximum(0.0, ndtr(window_high - centre) - ndtr(window_low - centre))
    parts = (ndtr(centre - upper), ndtr(lower - centre), inside)
    return Chances(*(part.mean((0, 2) if rough else 1) for part in parts))


@cache
def expected_maximum(k: int) -> float:
    """Return the expected largest of ``k`` independent standard normal values."""
    from scipy.special import ndtr

    x, step = np.linspace(-10, 10, 2001, retstep=True)
    return float((x * k * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * ndtr(x) ** (k - 1)).sum() * step)


def replicates_needed(e: Estimate, n: int, rule: Rule, *, n_arms: int = 1) -> int | None:
    """Return the replicates at which a verdict falls with 80 % power, if the truth is the difference seen so far.

    At least ``n`` + 1; None beyond 1,000.  A plan, not a promise: with few replicates the seen difference and its
    spread are rough.  The seen difference holds the luck of the baseline already; none is taken off again.
    """
    return _first(partial(_planned, e, n, rule, "decided", truth=e.mean, n_arms=n_arms, lucky=False), n + 1)


def power_table(
    verdicts: pd.DataFrame,
    *,
    smallest_effect: float,
    confidence: float = 0.95,
    effects: Sequence[float] = (0, 1, 2),  # true differences, in smallest effects
    replicates: Sequence[int] = PLANNED,
) -> pd.DataFrame:
    """Show how likely the right verdict is with so many replicates, from the spread that this study measured.

    ``verdicts``: the table of :func:`stda.measure.judge`, made with the same ``smallest_effect`` and ``confidence``.
    Returns a row per arm and true difference: ``arm, true_difference, call`` ("equivalent" for none, "helps" above,
    "harms" below zero), a column ``<R> replicates`` with the probability of that call, and ``replicates_needed`` for
    80 % (None: more than 1,000).  An arm with one replicate has no spread: nan and None.

    Raises:
        BadInput: a missing column, a number of replicates below 2, a smallest effect of zero or less.
    """
    if len(verdicts):
        needed = ("arm", "error", "freedom", "tied_baselines", "metric", "replicates")
        require_columns(verdicts, needed, what="verdicts")
    if any(count < 2 for count in replicates):
        raise BadInput(f"replicates is {list(replicates)}; one replicate decides nothing, so plan with 2 or more.")
    if not smallest_effect > 0:
        raise BadInput(f"smallest_effect is {smallest_effect}; power is planned for a size above 0, such as 0.01.")
    columns = ["arm", "true_difference", "call", *(f"{count} replicates" for count in replicates), "replicates_needed"]
    rows = []
    for arm in verdicts.itertuples():
        rule = Rule(arm.metric, smallest_effect, 1 - confidence)
        e = Estimate(arm.difference, arm.error, arm.freedom, arm.tied_baselines)
        for effect in effects:
            call = "equivalent" if effect == 0 else "helps" if effect > 0 else "harms"
            power, needed = np.full(len(replicates), np.nan), None
            if arm.replicates > 1:
                knobs = {"truth": effect * smallest_effect, "n_arms": len(verdicts), "rough": True}
                planned = partial(_planned, e, arm.replicates, rule, call, **knobs)
                power, needed = [planned(count) for count in replicates], _first(planned, 2)
            rows.append([arm.arm, effect * smallest_effect, call, *power, needed])
    return pd.DataFrame(rows, columns=columns).astype({"replicates_needed": object})


def _planned(e: Estimate, n: int, rule: Rule, call: str, count: int, **knobs: float) -> float:
    """Return the probability of this call, an attribute of :class:`Chances`, with one number of replicates."""
    return float(getattr(chances(e, n, rule, counts=[count], **knobs), call)[0])


def _first(power: Callable[[int], float], start: int) -> int | None:
    """Return the first count from ``start`` with enough ``power``, which rises with the count; None: beyond 1,000."""
    low, high = start - 1, start
    while power(high) < POWER:
        if high >= MAX_REPLICATES:
            return None
        low, high = high, min(2 * high, MAX_REPLICATES)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
