"""Fitting an arm: the learning rates that are tried, the updates that a generator's seconds buy, the ensemble.

Every arm of a study tries equally many learning rates, each with the whole number of updates, and keeps the one that
did best on the validation fold: the baseline is searched with the same care as any other arm.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stda import BadInput
from stda.classify.train import Diverged, predict, train_classifier

if TYPE_CHECKING:
    from stda.classify.networks import Classifier
    from stda.compute import Compute
    from stda.images import ImageSet

FACTORS = (1, 1 / 2, 2, 1 / 4, 4, 1 / 8, 8, 1 / 16, 16)  # of the learning rate, in the order in which they are tried
SPEND_ON = ("steps", "ensemble")
TIMED_STEPS, WARM_STEPS = 20, 5


def learning_rates(learning_rate: float, tries: int) -> list[float]:
    """Return the rates to try: the given one, then half and twice of it, and so on outwards."""
    if not 1 <= tries <= len(FACTORS):
        raise BadInput(f"tries is {tries}; it must be between 1 and {len(FACTORS)}.")
    return [learning_rate * factor for factor in FACTORS[:tries]]


@dataclass(frozen=True)
class Budget:
    """What an arm may train: ``steps`` of each of ``members`` networks; ``left`` are seconds that it does not spend."""

    steps: int
    members: int = 1
    left: float = 0.0

    @property
    def updates(self) -> int:
        """Updates of all networks together."""
        return self.steps * self.members


def equal_compute(
    steps: int,
    *,
    seconds: float,  # what the generator took, as it was measured
    seconds_per_step: float,
    spend_on: str,  # steps: one longer schedule; ensemble: more networks of the ordinary length
    limit: float,  # at most so many times the ordinary updates on top
    tries: int = 1,  # learning rates that are tried: a longer schedule is run as often, an ensemble's members are not
) -> Budget:
    """Return what a generator's seconds buy on top of ``steps`` updates of one network.

    The generator's cost is spent in whole updates, or in whole networks, up to ``limit`` times the ordinary training:
    a generator that takes hours would buy hundreds of classifiers, of which the tenth adds little.  Raises BadInput
    for seconds or steps that cannot be.
    """
    if spend_on not in SPEND_ON:
        raise BadInput(f"Unknown spend_on '{spend_on}'; it must be one of {', '.join(SPEND_ON)}.")
    if not (steps >= 1 and 0 <= seconds < math.inf and 0 < seconds_per_step < math.inf and limit >= 0):
        raise BadInput(
            f"{seconds} s at {seconds_per_step} s per update cannot be spent on top of {steps} updates, up to {limit} "
            "times: give seconds and a limit from 0, and a time per update above 0."
        )
    affordable = seconds / seconds_per_step / steps  # ordinary trainings
    if spend_on == "ensemble":
        members = 1 + int(min(affordable, limit))
        return Budget(steps, members, left=seconds - (members - 1) * steps * seconds_per_step)
    extra = int(min(affordable / tries, limit) * steps)
    return Budget(steps + extra, 1, left=seconds - tries * extra * seconds_per_step)


def seconds_per_step(train: ImageSet, val: ImageSet, **settings: Any) -> float:
    """Time some updates of :func:`train_classifier` with these settings and return the median seconds of one."""
    marks: list[float] = []
    few = val.select(np.arange(min(len(val), 8)))
    settings |= {"steps": WARM_STEPS + TIMED_STEPS, "evaluate_every": 10**9, "pretrain": None, "pretrain_steps": 0}
    train_classifier(train, few, **settings, seed=0, callback=lambda record: marks.append(time.perf_counter()))
    return float(np.median(np.diff(marks[:-1])[WARM_STEPS:]))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained arm: its networks (one, or an ensemble), the history of the first, and what was tried.

    ``tuning`` has a row per learning rate: ``learning_rate``, ``val_balanced_accuracy`` (of its best checkpoint),
    ``chosen``.
    """

    members: list[Classifier]
    history: pd.DataFrame
    tuning: pd.DataFrame

    @property
    def learning_rate(self) -> float:
        """The rate that was kept."""
        return float(self.tuning.loc[self.tuning["chosen"], "learning_rate"].iloc[0])


def fit(
    train: ImageSet,
    val: ImageSet,
    *,
    rates: Sequence[float],  # learning rates that are tried
    seeds: Sequence[int],  # one per network; the first is used for every rate
    callback: Callable[[dict[str, Any]], None] | None = None,
    **settings: Any,  # of train_classifier
) -> Fitted:
    """Train with every rate, keep the best on the validation fold, and train the ensemble's other members with it.

    Ties go to the rate that was tried first.  A rate at which the loss is no longer finite is out (its score is nan);
    raises Diverged when none is left.  ``callback`` hears of every update of every training.
    """
    best, rows = None, []
    for rate in rates:
        knobs = {**settings, "learning_rate": rate, "seed": seeds[0]}
        try:
            model, history = train_classifier(train, val, **knobs, callback=callback)
        except Diverged:
            if rate == rates[-1] and best is None:
                raise
            rows.append({"learning_rate": rate, "val_balanced_accuracy": float("nan")})
            continue
        score = float(history.loc[history["kept"].eq(True), "val_balanced_accuracy"].max())
        rows.append({"learning_rate": rate, "val_balanced_accuracy": score})
        if best is None or score > best[0]:
            best = (score, rate, model, history)
    _, rate, model, history = best
    members = [model]
    for seed in seeds[1:]:
        other, _ = train_classifier(train, val, **settings, learning_rate=rate, seed=seed, callback=callback)
        members.append(other)
    tuning = pd.DataFrame(rows)
    return Fitted(members, history, tuning.assign(chosen=tuning["learning_rate"] == rate))


def predict_mean(members: Sequence[Classifier], images: ImageSet, compute: Compute) -> np.ndarray:
    """Return the class probabilities ``(N, K)`` averaged over the networks of an ensemble (or those of the one)."""
    return np.mean([predict(model, images, compute) for model in members], axis=0)
