"""The verdict: does an arm with synthetic images beat the best arm without, on paired replicates and lesions?

With alpha = 1 - confidence, the rules are:

- The **baseline** is the arm with the best mean over replicates on **validation**, of those that may be one (among
  these, of the ones that ran in most replicates; the first by name of equals).  Placebos with generated images, oracles
  with held-back real images and arms on a subset of the lesions may not: they are in neither list, so they are no
  baseline, no member of Holm's family and lend the pooled spread nothing (a quarter of the lesions varies otherwise).
  Arms that validation cannot tell from the baseline are its ties: the luckiest of them was taken, so "harms" and the
  upper bound of "equivalent" are held to alpha / ties (simulated: without this, four equal baselines can bring false
  calls to 8 % of studies; with it they stay at 5 %).
- The **difference** is the mean over replicates of arm minus baseline on test, with a Student interval over replicates
  and lesions (:func:`stda.measure.bootstrap.estimate`).  The spread over replicates is pooled over these arms (analysis
  of variance, replicates as blocks) but never below the arm's own: two or three replicates say next to nothing about
  one arm's spread.  Half of the pooled degrees of freedom are granted, at most five for every replicate but one, and
  fewer to an arm whose own spread is far above that of the calm ones, as arms need not vary alike.  Simulated with
  normal scores (two, three and five replicates, no effect, 20,000 studies each), these shares of studies hold a false
  call: with equal spreads at most 2.5 %; with four generators, one of them three times as variable as the other arms,
  2.5 to 4 % beside four baselines and 4.5 to 5.5 % beside twelve, five times 3 to 5.5 % and 3.5 to 8.5 %; with a lone
  generator beside four baselines 4 to 6.3 % and 5.8 to 7.1 % (more beside more).  A lone generator known to be that
  unsteady needs a p-value well below alpha.  At equal spreads the last two precautions cost power: at most 4 points
  with three replicates and up to eleven arms, 6 with sixteen; 2 to 13 with two replicates.
- ``p_value`` is two-sided for "no difference", ``p_holm`` adjusted over the synthetic arms (Holm 1979).  ``low, high``
  is drawn at ``level``, the level at which Holm's procedure tested this arm: it leaves out zero exactly when
  ``p_holm`` <= alpha, and is never narrower than ``confidence``.
- ``p_equivalence``: two one-sided tests against +-smallest_effect (Schuirmann 1987), Holm-adjusted as well, so that a
  study with many arms does not find an "equivalent" one by chance.  For one arm and no ties this is the usual rule
  that the 1 - 2 alpha interval lies within the bounds.
- **equivalent** if p_equivalence <= alpha, even when the difference is significant (real but smaller than what matters,
  which ``reason`` says); else **helps** or **harms** if p_holm <= alpha; else **undecided**.
- One replicate decides nothing: its interval is labelled "lesions only" (test-sampling noise of a single training),
  the p-values are nan and the verdict is undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure import bootstrap
from stda.measure.power import MAX_REPLICATES, Rule, replicates_needed
from stda.measure.scores import check_metric, from_confusion, metrics_table, positive_class, require_columns

VERDICTS = ("helps", "harms", "equivalent", "undecided")
TIE_P = 0.01  # a baseline is out of the race only when validation says so clearly
COLUMNS = (
    "arm",
    "baseline",
    "tied_baselines",
    "metric",
    "difference",
    "low",
    "high",
    "level",
    "error",
    "freedom",
    "p_value",
    "p_holm",
    "p_equivalence",
    "verdict",
    "replicates",
    "replicates_needed",
    "evidence",
    "reason",
)


def judge(
    predictions: pd.DataFrame,
    synthetic: Sequence[str],  # the arms that use generated images
    *,
    baselines: Sequence[str] | None = None,  # the arms that may be the baseline; None: all that are not synthetic
    metric: str = "balanced_accuracy",
    smallest_effect: float = 0.01,  # fixed before the run: differences below it do not matter in practice
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    positive: str | None = None,
) -> pd.DataFrame:
    """Judge every synthetic arm against the best arm that uses no synthetic image, by the rules of this module.

    ``predictions``: a row per replicate, arm, split ("val" and "test") and image, with ``replicate, arm, split,
    image_id, group, label, predicted``.  ``metric`` is one of scores.CONFUSION_METRICS or ``recall_<class>``;
    ``smallest_effect`` has its units.  Returns a row per synthetic arm in the given order (none: an
    empty table), see :data:`COLUMNS`; ``error`` and ``freedom`` (nan for one replicate) are those of ``difference``.

    Raises:
        BadInput: no such arm, no arm without synthetic images, a metric that cannot be resampled or is undefined on a
            fold, arms scored on different images, impossible numbers.
    """
    require_columns(predictions, ("replicate", "arm", "split", "label", "predicted"))
    rule = Rule(metric, smallest_effect, 1 - confidence)
    synthetic = list(dict.fromkeys(synthetic))
    if baselines is None:
        baselines = [arm for arm in sorted(set(predictions["arm"])) if arm not in synthetic]
    _check(predictions, synthetic, baselines, rule, resamples)
    if not synthetic:
        return decide({}, "", rule)
    names = sorted(set(predictions["label"]) | set(predictions["predicted"])) if classes is None else list(classes)
    folds = [bootstrap.count_fold(predictions, split, classes=names) for split in ("val", "test")]
    return judge_folds(*folds, synthetic, baselines, rule, resamples=resamples, seed=seed, positive=positive)


def judge_folds(
    validation: bootstrap.FoldCounts,
    test: bootstrap.FoldCounts,
    synthetic: Sequence[str],
    baselines: Sequence[str],
    rule: Rule,
    *,
    resamples: int = 2000,
    seed: int = 0,
    positive: str | None = None,
    plan: bool = True,  # also plan the replicates that would decide undecided arms
) -> pd.DataFrame:
    """Judge as :func:`judge` does, from the counted answers on both folds."""
    positive = _positive(test, positive)
    check_metric(rule.metric, test.classes, positive)
    baseline, tied = choose_baseline(validation, baselines, rule.metric, positive=positive)
    knobs = {"pool": [*synthetic, *baselines], "resamples": resamples, "seed": seed, "positive": positive}
    found = paired_differences(test, synthetic, baseline, rule.metric, **knobs)
    found = {arm: (replace(e, tied=len(tied)), n) for arm, (e, n) in found.items()}
    return decide(found, baseline, rule, plan=plan)


def paired_differences(
    test: bootstrap.FoldCounts,
    arms: Sequence[str],
    baseline: str,
    metric: str,
    *,
    resamples: int,
    seed: int,
    pool: Sequence[str] | None = None,  # the arms whose spread over replicates is pooled; None: all
    positive: str | None = None,
) -> dict[str, tuple[bootstrap.Estimate, int]]:
    """Estimate arm minus baseline over the replicates that both ran in; returns (estimate, replicates) by arm."""
    values = test.values(metric, positive)
    draws = bootstrap.resample_lesions(test, metric, resamples=resamples, seed=seed, positive=positive)
    step = bootstrap.lesion_step(test, metric, positive)
    pooled = [i for i, arm in enumerate(test.arms) if pool is None or arm in set(pool)]
    spreads = bootstrap.pooled_spreads(values[:, pooled])
    column = {arm: i for i, arm in enumerate(test.arms)}
    found = {}
    for arm in arms:
        pair = [column[name] for name in (arm, baseline) if name in column]
        both = np.isfinite(values[:, pair]).all(1).nonzero()[0] if len(pair) == 2 else []
        if not len(both):
            raise BadInput(f"'{arm}' and '{baseline}' share no replicate where {metric} is defined on test: run both.")
        difference = values[both, pair[0]] - values[both, pair[1]]
        resampled = draws[:, both, pair[0]] - draws[:, both, pair[1]]
        found[arm] = (bootstrap.estimate(difference, resampled, pooled=spreads and spreads[1], step=step), len(both))
    return found


def decide(
    estimates: dict[str, tuple[bootstrap.Estimate, int]],
    baseline: str,
    rule: Rule,
    *,
    plan: bool = True,  # also plan the replicates that would decide undecided arms
) -> pd.DataFrame:
    """Turn paired differences (and numbers of replicates) by arm into verdicts, by the rules of this module."""
    found = [e for e, _ in estimates.values()]
    single = np.array([n < 2 for _, n in estimates.values()])
    # an arm with one replicate cannot be decided, but stays in the family: it is one of the questions asked
    p_value = np.where(single, 1.0, [e.p_two_sided() for e in found])
    bound = rule.smallest_effect
    p_tost = np.where(single, 1.0, [max(e.p_above(-bound), e.p_below(bound)) for e in found])
    p_holm, levels = holm(p_value), holm_levels(p_value, rule.alpha)
    p_equivalence = holm(p_tost) if bound > 0 else np.ones(len(found))
    rows = []
    for i, (arm, (e, n)) in enumerate(estimates.items()):
        low, high = bootstrap.within(e.interval(levels[i]))
        verdict = decision(e.mean, p_holm[i], p_equivalence[i], rule.alpha)
        row = {"arm": arm, "baseline": baseline, "tied_baselines": e.tied, "metric": rule.metric}
        row |= {"difference": e.mean, "low": low, "high": high, "level": levels[i]}
        row |= {"error": e.error, "freedom": e.freedom}
        row |= {"p_value": p_value[i], "p_holm": p_holm[i], "p_equivalence": p_equivalence[i]}
        row |= {"verdict": verdict, "replicates": n, "replicates_needed": None}
        row["evidence"] = "lesions only" if n < 2 else "replicates and lesions"
        if n < 2:
            row |= dict.fromkeys(("freedom", "p_value", "p_holm", "p_equivalence"), np.nan)
        elif verdict == "undecided" and plan:
            row["replicates_needed"] = replicates_needed(e, n, rule, n_arms=len(found))
        row["reason"] = _reason(row, rule)
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    # whole numbers or None, which JSON can hold; pandas would make them 12.0 and nan
    return table.assign(replicates_needed=pd.Series([row["replicates_needed"] for row in rows], dtype=object))


def choose_baseline(
    validation: bootstrap.FoldCounts, baselines: Sequence[str], metric: str, *, positive: str | None = None
) -> tuple[str, list[str]]:
    """Return the baseline with the best mean ``metric`` on validation, and the baselines tied with it.

    The tied arms (the chosen one among them) are those whose paired difference to it over replicates is not clearly
    below zero (one-sided t test at :data:`TIE_P`); with one replicate all are tied.
    """
    from scipy.stats import t

    values = validation.values(metric, positive)
    candidates = [i for i, arm in enumerate(validation.arms) if arm in set(baselines)]
    runs = np.isfinite(values).sum(0)
    if not candidates or not runs[candidates].max():
        raise BadInput(
            f"No baseline has a {metric} on validation (baselines: {list(baselines)}, arms: {validation.arms}): "
            "add one such as 'classic', a verdict needs an honest baseline."
        )
    # an arm that failed in some replicates is no baseline: its mean would be over an easier or harder selection
    complete = [i for i in candidates if runs[i] == runs[candidates].max()]
    best = complete[int(np.argmax([np.nanmean(values[:, i]) for i in complete]))]
    tied = []
    for i in complete:
        behind = values[:, best] - values[:, i]
        behind = behind[np.isfinite(behind)]
        error = behind.std(ddof=1) / np.sqrt(len(behind)) if len(behind) > 1 else 0.0
        clearly = (
            t.sf(behind.mean() / error, len(behind) - 1) < TIE_P if error > 0 else len(behind) > 1 and behind[0] > 0
        )
        if not clearly:
            tied.append(validation.arms[i])
    return validation.arms[best], tied


def best_baseline(
    predictions: pd.DataFrame,
    baselines: Sequence[str],
    *,
    metric: str = "balanced_accuracy",
    positive: str | None = None,
) -> str:
    """Return the baseline that :func:`judge` would choose, on validation, also for a study with nothing to judge."""
    fold = bootstrap.count_fold(predictions, "val")
    return choose_baseline(fold, baselines, metric, positive=_positive(fold, positive))[0]


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return Holm's step-down adjusted p-values: rejecting those at most alpha keeps the familywise rate at alpha."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def holm_levels(p_values: np.ndarray, alpha: float) -> np.ndarray:
    """Return for each hypothesis the confidence level at which Holm's procedure tests it.

    1 - alpha / (hypotheses still standing); everything after the first failure shares that failure's level.  An
    interval at this level therefore leaves out zero exactly when the adjusted p-value is at most alpha.
    """
    order = np.argsort(p_values, kind="stable")
    rejected = int((holm(p_values) <= alpha).sum())
    standing = len(order) - np.minimum(np.arange(len(order)), rejected)
    levels = np.empty(len(order))
    levels[order] = 1 - alpha / standing
    return levels


def arm_table(
    predictions: pd.DataFrame,
    synthetic: Sequence[str],
    *,
    metrics: Sequence[str] = ("balanced_accuracy", "macro_f1", "accuracy"),
    split: str = "test",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    positive: str | None = None,
) -> pd.DataFrame:
    """Show every arm's mean metrics with intervals, for display; differences belong to :func:`judge`.

    Returns a row per arm, best first metric first: ``arm, kind ("synthetic" or "real"), replicates`` and for each
    metric ``<metric>, <metric>_low, <metric>_high`` (``confidence`` per interval, not simultaneous, clipped to [0, 1]).
    Metrics that need the probabilities (auroc, auprc, ece, ...) have intervals from the replicates alone, nan for one.
    """
    fold = bootstrap.count_fold(predictions, split, classes=classes)
    positive = _positive(fold, positive)
    rest = [metric for metric in metrics if not from_confusion(metric)]
    scored = metrics_table(predictions[predictions["split"] == split], positive=positive) if rest else None
    table = pd.DataFrame({"arm": fold.arms})
    table["kind"] = ["synthetic" if arm in set(synthetic) else "real" for arm in fold.arms]
    table["replicates"] = np.isfinite(fold.values("accuracy")).sum(0)
    for metric in metrics:
        if from_confusion(metric):
            values = fold.values(metric, positive)
            draws = bootstrap.resample_lesions(fold, metric, resamples=resamples, seed=seed, positive=positive)
        else:
            values, draws = _scored_values(scored, metric, fold), None
        rows = [_mean_interval(values, draws, arm, confidence) for arm in range(len(fold.arms))]
        table[[metric, f"{metric}_low", f"{metric}_high"]] = np.array(rows)
    return table.sort_values([*metrics[:1], "arm"], ascending=[False] * len(metrics[:1]) + [True], ignore_index=True)


def _mean_interval(
    values: np.ndarray, draws: np.ndarray | None, arm: int, confidence: float
) -> tuple[float, float, float]:
    """Return mean, low and high over the replicates where the arm has a value; nan where there is none."""
    rows = np.isfinite(values[:, arm]).nonzero()[0]
    if not len(rows):
        return np.nan, np.nan, np.nan
    if draws is None and len(rows) < 2:
        return float(values[rows, arm].mean()), np.nan, np.nan
    resampled = np.zeros((2, len(rows))) if draws is None else draws[:, rows, arm]
    spreads = bootstrap.pooled_spreads(values)
    e = bootstrap.estimate(values[rows, arm], resampled, pooled=spreads and spreads[0])
    low, high = np.clip(e.interval(confidence), 0.0, 1.0)
    return e.mean, float(low), float(high)


def _scored_values(scored: pd.DataFrame, metric: str, fold: bootstrap.FoldCounts) -> np.ndarray:
    """Return a metric of :func:`stda.measure.scores.metrics_table` as ``(R, A)``, nan where the arm did not run."""
    if metric not in set(scored["metric"]):
        raise BadInput(f"There is no metric '{metric}'; choose among {sorted(set(scored['metric']))}.")
    wide = scored[scored["metric"] == metric].pivot(index="replicate", columns="arm", values="value")
    return wide.reindex(index=fold.replicates, columns=fold.arms).to_numpy(dtype=float)


def decision(difference: float, p_holm: float, p_equivalence: float, alpha: float) -> str:
    """Return "equivalent", "helps", "harms" or "undecided" for one difference; equivalence goes first."""
    if p_equivalence <= alpha:
        return "equivalent"
    if p_holm <= alpha:
        return "helps" if difference > 0 else "harms"
    return "undecided"


def _reason(row: dict, rule: Rule) -> str:
    """Say in one sentence why the verdict is what it is."""
    interval = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    limit = f"the smallest effect of interest ({rule.smallest_effect:g})"
    if row["replicates"] < 2:
        return f"One replicate decides nothing: {interval} shows the luck of the test lesions only; run at least 3."
    if row["verdict"] == "equivalent":
        real = ", though not zero" if row["p_holm"] <= rule.alpha else ""
        return f"The difference {interval} is shown to be smaller than {limit}{real}."
    if row["verdict"] != "undecided":
        small = "" if abs(row["difference"]) >= rule.smallest_effect else f", but it may be smaller than {limit}"
        return f"The difference {interval} is not chance (Holm-adjusted p = {row['p_holm']:.2g}){small}."
    needed = row["replicates_needed"]
    plan = f"more than {MAX_REPLICATES}" if needed is None else f"about {needed}"
    return (
        f"The difference {interval} over {row['replicates']} replicates excludes neither zero nor {limit}; "
        f"{plan} replicates would decide if it is what it seems."
    )


def _positive(fold: bootstrap.FoldCounts, positive: str | None) -> str | None:
    if positive is None and len(fold.classes) != 2:
        return None
    return positive_class(fold.classes, fold.lesions_per_class().sum(0), positive)


def _check(
    predictions: pd.DataFrame, synthetic: Sequence[str], baselines: Sequence[str], rule: Rule, resamples: int
) -> None:
    arms = sorted(set(predictions["arm"]))
    for kind, wanted in (("synthetic arms", synthetic), ("baselines", baselines)):
        if not set(wanted) <= set(arms):
            raise BadInput(f"The {kind} {list(wanted)} must be among the arms {arms}.")
    both = sorted(set(synthetic) & set(baselines))
    if both:
        raise BadInput(f"The arms {both} are synthetic, so they cannot be baselines too: take them off one list.")
    if not rule.smallest_effect >= 0:
        raise BadInput(f"smallest_effect is {rule.smallest_effect}; it must be 0 or more, such as 0.01.")
    if not 0.5 <= 1 - rule.alpha < 1:
        raise BadInput(f"confidence is {1 - rule.alpha:g}; it must lie between 0.5 and 1, such as 0.95.")
    if resamples < 100:
        raise BadInput(f"resamples is {resamples}; a standard error needs at least 100, such as 2000.")
