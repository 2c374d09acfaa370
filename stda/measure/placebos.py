"""Placebos: does an arm with synthetic images beat the same effort without their information, and what is the ceiling?

A generator's images bring more than what they show: more rows of the rare classes, other noise, another class balance.
A **placebo** brings all that without the information (duplicates, noised or blurred real images, the generator's own
images under shuffled or wrong labels); the **oracle** adds as many held-back real images, the best that any generator
could make.  A claim must beat each of its placebos and stay below the oracle.

Every comparison is a paired difference over replicates and lesions, as in :mod:`stda.measure.verdict`.  The
comparisons with placebos are one family for Holm's correction, those with oracles another.  "Beats all of its
placebos" needs every one of these to succeed, which makes it a strict rule (Berger 1982, intersection-union test).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure import bootstrap
from stda.measure.scores import check_metric, positive_class
from stda.measure.verdict import holm, holm_levels

COLUMNS = (
    "arm",
    "against",
    "kind",
    "metric",
    "difference",
    "low",
    "high",
    "level",
    "p_value",
    "p_holm",
    "shown",
    "replicates",
)
BAND_COLUMNS = ("arm", "against", "kind", "metric", "difference", "low", "high", "level", "replicates")


def placebo_table(
    predictions: pd.DataFrame,
    placebos: Mapping[str, Sequence[str]],  # synthetic arm -> the placebos that it must beat
    oracles: Sequence[str],  # arms with held-back real images; every synthetic arm is compared with each
    *,
    metric: str = "balanced_accuracy",
    confidence: float = 0.95,
    **knobs: Any,  # resamples, seed, pool (arms whose spread is pooled; None: all), classes, positive
) -> pd.DataFrame:
    """Compare every synthetic arm with its placebos and with the oracles, on the test fold.

    ``predictions`` as for :func:`stda.measure.judge`.  Returns a row per synthetic arm and placebo, then oracle, with
    :data:`COLUMNS`: ``difference`` is the arm minus what it is held against, in units of ``metric``; ``low, high`` its
    interval at ``level``, that of Holm's procedure, never narrower than ``confidence``; ``shown`` is "above",
    "below" or "not told apart".  With one replicate the p-values are nan and nothing is told apart.  No placebo and
    no oracle: an empty table.

    Raises:
        BadInput: an arm that was not run, arms without a common replicate, a metric that cannot be resampled.
    """
    wanted = _comparisons(placebos, oracles)
    found = _differences(predictions, [(arm, against) for arm, against, _ in wanted], metric, **knobs)
    rows = []
    for kind in ("placebo", "oracle"):
        family = [(arm, against) for arm, against, k in wanted if k == kind]
        rows += _family([found[pair] for pair in family], family, kind, metric, 1 - confidence)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    order = {arm: i for i, arm in enumerate(placebos)}
    return table.sort_values("arm", key=lambda arms: arms.map(order), kind="stable", ignore_index=True)


def placebo_bands(
    predictions: pd.DataFrame,
    baseline: str,  # what the effects of the figure are measured from
    placebos: Mapping[str, Sequence[str]],
    oracles: Sequence[str],
    *,
    metric: str = "balanced_accuracy",
    confidence: float = 0.95,
    **knobs: Any,  # as in :func:`placebo_table`
) -> pd.DataFrame:
    """Return what placebos and oracles alone change against the baseline, for the bands of the effect figure.

    A row per synthetic arm and placebo or oracle with :data:`BAND_COLUMNS`: ``difference`` is ``against`` minus the
    baseline, the same numbers for every arm that shares it; ``low, high`` its plain interval at ``confidence`` (a
    band is a scale to look at, the tests are in :func:`placebo_table`).  What is itself the baseline has no row.
    """
    wanted = [row for row in _comparisons(placebos, oracles) if row[1] != baseline]
    against = list(dict.fromkeys(name for _, name, _ in wanted))
    found = differences(predictions, against, baseline, metric=metric, confidence=confidence, **knobs)
    by_name = found.set_index("arm").to_dict("index")
    rows = [{"arm": arm, "against": name, "kind": kind} | by_name[name] for arm, name, kind in wanted]
    return pd.DataFrame(rows, columns=list(BAND_COLUMNS))


def differences(
    predictions: pd.DataFrame,
    arms: Sequence[str],
    baseline: str,
    *,
    metric: str = "balanced_accuracy",
    confidence: float = 0.95,
    **knobs: Any,  # as in :func:`placebo_table`
) -> pd.DataFrame:
    """Return the paired difference of each arm to the baseline on test, without judging it.

    A row per arm: ``arm, baseline, metric, difference, low, high, level, replicates``; ``level`` is ``confidence``, not
    corrected for the number of arms.  No arm: an empty table.
    """
    found = _differences(predictions, [(arm, baseline) for arm in arms], metric, **knobs)
    rows = []
    for (arm, _), (e, n) in found.items():
        low, high = bootstrap.within(e.interval(confidence))
        row = {"arm": arm, "baseline": baseline, "metric": metric, "difference": e.mean, "low": low, "high": high}
        rows.append(row | {"level": confidence, "replicates": n})
    columns = ["arm", "baseline", "metric", "difference", "low", "high", "level", "replicates"]
    return pd.DataFrame(rows, columns=columns)


def placebo_sentence(table: pd.DataFrame, synthetic: Sequence[str]) -> str:
    """Say for every synthetic arm whether it beats all of its placebos and stays below the oracle."""
    if not len(synthetic):
        return "No arm with synthetic images was run, so there is no claim to hold against a placebo."
    words = ["A claim must beat the placebos and stay below the oracle."]
    if not table["kind"].eq("placebo").any():
        words.append("No placebo was run: what was seen of any arm may be the work of mere repetition or balance.")
    for arm in synthetic:
        own = table[table["arm"] == arm]
        said = [_against_placebos(own[own["kind"] == "placebo"]), _against_oracles(own[own["kind"] == "oracle"])]
        said = [text for text in said if text]
        if said:
            words.append(f"Arm {arm} {' and '.join(said)}.")
        elif len(table):
            words.append(f"Arm {arm} was not tested against placebos.")
    single = table["replicates"] < 2
    if single.any():
        words.append("One replicate tells nothing apart: run at least three.")
    return " ".join(words)


def _against_placebos(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    missed, below = (rows.loc[rows["shown"] == word, "against"].tolist() for word in ("not told apart", "below"))
    if not missed and not below:
        return f"beats all of its placebos ({', '.join(rows['against'])})"
    parts = [f"is not told apart from {', '.join(missed)}"] * bool(missed)
    parts += [f"is worse than {', '.join(below)}"] * bool(below)
    return f"does not beat all of its placebos: it {' and '.join(parts)},"


def _against_oracles(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    above, equal = (rows.loc[rows["shown"] == word, "against"].tolist() for word in ("above", "not told apart"))
    if above:
        return (
            f"beats {', '.join(above)}, which adds real images: if as many as the arm adds synthetic ones, that is "
            "suspicious, look for test images that reached the generator"
        )
    if equal:
        return f"is not told apart from the oracle ({', '.join(equal)})"
    return f"stays below the oracle ({', '.join(rows['against'])})"


def _comparisons(placebos: Mapping[str, Sequence[str]], oracles: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (arm, against, kind) for every comparison that was asked for, each once."""
    rows = [(arm, name, "placebo") for arm, names in placebos.items() for name in names]
    rows += [(arm, name, "oracle") for arm in placebos for name in oracles]
    same = next((arm for arm, name, _ in rows if arm == name), None)
    if same is not None:
        raise BadInput(f"Arm '{same}' cannot be its own placebo or oracle: name another arm.")
    return list(dict.fromkeys(rows))


def _differences(
    predictions: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    metric: str,
    *,
    resamples: int = 2000,
    seed: int = 0,
    pool: Sequence[str] | None = None,  # the arms whose spread over replicates is pooled; None: all
    classes: Sequence[str] | None = None,
    positive: str | None = None,
) -> dict[tuple[str, str], tuple[bootstrap.Estimate, int]]:
    """Estimate first minus second arm of every pair on test, and in how many replicates both ran.

    As :func:`stda.measure.verdict.paired_differences`, but the lesions are resampled once for all second arms.
    """
    test = bootstrap.count_fold(predictions, "test", classes=classes)
    if positive is not None or len(test.classes) == 2:
        positive = positive_class(test.classes, test.lesions_per_class().sum(0), positive)
    check_metric(metric, test.classes, positive)
    if not pairs:
        return {}
    values = test.values(metric, positive)
    draws = bootstrap.resample_lesions(test, metric, resamples=resamples, seed=seed, positive=positive)
    step = bootstrap.lesion_step(test, metric, positive)
    spreads = bootstrap.pooled_spreads(values[:, [pool is None or arm in set(pool) for arm in test.arms]])
    column, found = {arm: i for i, arm in enumerate(test.arms)}, {}
    for pair in pairs:
        first, second = (column.get(arm) for arm in pair)
        both = [] if None in (first, second) else np.isfinite(values[:, [first, second]]).all(1).nonzero()[0]
        if not len(both):
            raise BadInput(f"'{pair[0]}' and '{pair[1]}' share no replicate where {metric} is defined: run both.")
        resampled = draws[:, both, first] - draws[:, both, second]
        difference = values[both, first] - values[both, second]
        pooled = spreads and spreads[1]
        found[pair] = (bootstrap.estimate(difference, resampled, pooled=pooled, step=step), len(both))
    return found


def _family(
    estimates: Sequence[tuple[bootstrap.Estimate, int]],
    pairs: Sequence[tuple[str, str]],
    kind: str,
    metric: str,
    alpha: float,
) -> list[dict]:
    """Test one family of comparisons by Holm's procedure; a row for each."""
    # what ran in one replicate only cannot be decided, but stays in the family: it is one of the questions asked
    p_value = np.array([1.0 if n < 2 else e.p_two_sided() for e, n in estimates])
    p_holm, levels = holm(p_value), holm_levels(p_value, alpha)
    rows = []
    for i, ((arm, against), (e, n)) in enumerate(zip(pairs, estimates, strict=True)):
        low, high = bootstrap.within(e.interval(levels[i]))
        shown = "not told apart" if n < 2 or p_holm[i] > alpha else ("above" if e.mean > 0 else "below")
        row = {"arm": arm, "against": against, "kind": kind, "metric": metric}
        row |= {"difference": e.mean, "low": low, "high": high, "level": levels[i]}
        row |= {"p_value": p_value[i] if n > 1 else np.nan, "p_holm": p_holm[i] if n > 1 else np.nan}
        rows.append(row | {"shown": shown, "replicates": n})
    return rows
