"""Studies with two classes: sensitivity, specificity, one at a fixed value of the other, AUROC and AUPRC, by arm.

- ``sensitivity, specificity`` are those of the answers as given (the likelier class).
- ``sensitivity_fixed`` and ``specificity_reached``: the threshold is the one that has the wanted specificity on the
  **validation** fold of the same replicate and arm; then it is applied to test.  What it reaches there is reported
  beside it, because two arms compare only where that is alike.  Intervals hold the threshold fixed within a replicate
  (it is part of the finished model); the luck of the validation fold is in the spread over replicates.
- ``auroc`` has clustered DeLong intervals (:func:`stda.measure.roc.delong`), ``auprc`` (average precision) those of
  reweighted lesions.
- Replicates are combined by :func:`stda.measure.bootstrap.estimate`, as everywhere; one replicate shows the luck of
  its test lesions alone.  Intervals of values are clipped to [0, 1].
- The **difference** is AUROC minus that of the baseline, with the covariance of both on the same lesions.  Its
  p-value is adjusted over the arms with synthetic images (Holm 1979) and its interval drawn at the level at which the
  arm was tested, as in the verdict; a single replicate has no p-value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure import bootstrap, roc
from stda.measure.scores import average_precision, positive_class, require_columns
from stda.measure.verdict import holm, holm_levels

VALUES = ("sensitivity", "specificity", "sensitivity_fixed", "specificity_reached", "auroc", "auprc")
DIFFERENCE = ("auroc_difference", "auroc_difference_low", "auroc_difference_high", "p_value", "p_holm")
COLUMNS = (
    "arm",
    "kind",
    "positive",
    "replicates",
    *(f"{metric}{end}" for metric in VALUES for end in ("", "_low", "_high")),
    *DIFFERENCE,
)


@dataclass(frozen=True, eq=False)
class FoldScores:
    """The scores of the positive class on one fold, aligned by image.

    By replicate r: ``positives[r]`` bool ``(N_r,)``, ``lesions[r]`` int ``(N_r,)`` numbered as in ``answers``, and
    ``scores[r]`` ``(A, N_r)``, nan for an arm that did not run there.
    """

    answers: bootstrap.FoldCounts
    positive: str
    positives: list[np.ndarray]
    lesions: list[np.ndarray]
    scores: list[np.ndarray]

    def runs(self, replicate: int) -> np.ndarray:
        """Return the numbers of the arms with scores in a replicate; none where a class is missing."""
        both = 0 < self.positives[replicate].sum() < len(self.positives[replicate])
        return np.flatnonzero(np.isfinite(self.scores[replicate]).all(1) & both)

    def step(self) -> float:
        """Return how far one lesion of the rarer class can move the AUROC, one over their number; AUPRC's is alike."""
        fewest = self.answers.lesions_per_class().min(1)
        return 1.0 / int(min(fewest[fewest > 0], default=1))


def score_fold(predictions: pd.DataFrame, split: str, *, classes: Sequence[str], positive: str) -> FoldScores:
    """Align the probabilities of class ``positive`` of all replicates and arms on one split.

    Raises:
        BadInput: as :func:`stda.measure.bootstrap.count_fold`, or probabilities that are no finite numbers.
    """
    answers = bootstrap.count_fold(predictions, split, classes=classes)
    fold = predictions[predictions["split"] == split]
    require_columns(fold, [f"p_{positive}"])
    if not np.isfinite(fold[f"p_{positive}"]).all():
        raise BadInput(f"Some probabilities of class '{positive}' are no finite numbers; the model may have diverged.")
    names = sorted(set(fold["group"]))
    parts: tuple[list, list, list] = ([], [], [])
    for _, rows in fold.groupby("replicate", sort=True):
        images = rows.drop_duplicates("image_id").set_index("image_id").sort_index()
        wide = rows.pivot(index="arm", columns="image_id", values=f"p_{positive}")
        parts[0].append((images["label"] == positive).to_numpy())
        parts[1].append(pd.Index(names).get_indexer(images["group"]))
        parts[2].append(wide.reindex(index=answers.arms, columns=images.index).to_numpy(dtype=np.float64))
    return FoldScores(answers, positive, *parts)


def auroc_errors(fold: FoldScores) -> tuple[np.ndarray, np.ndarray]:
    """Return AUROCs ``(R, A)`` and their sampling errors ``(n_lesions, R, A)`` for :func:`bootstrap.estimate`.

    The second are no random draws but one row per lesion, scaled so that the variance over rows is clustered DeLong's,
    and the covariance of two replicates is that of the lesions that both test.  nan where an arm has no AUROC.
    """
    n_lesions, shape = fold.answers.n_lesions, (len(fold.scores), len(fold.answers.arms))
    values, errors = np.full(shape, np.nan), np.full((n_lesions, *shape), np.nan)
    for r, scores in enumerate(fold.scores):
        arms = fold.runs(r)
        if len(arms):
            found = roc.lesion_influence(fold.positives[r], scores[arms], fold.lesions[r], n_lesions=n_lesions)
            values[r, arms] = found[0]
            errors[:, r, arms] = found[0] + np.sqrt(n_lesions) * found[1]
    return values, errors


def resample_precision(fold: FoldScores, *, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return average precisions ``(R, A)`` and ``(B, R, A)`` under the lesion weights of the other bootstraps.

    The weights are those that :func:`bootstrap.resample_lesions` draws from the same seed.
    """
    shape = (len(fold.scores), len(fold.answers.arms))
    values, draws = np.full(shape, np.nan), np.full((resamples, *shape), np.nan)
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, bootstrap.CHUNK):
        stop = min(start + bootstrap.CHUNK, resamples)
        weights = np.ascontiguousarray(rng.standard_exponential((stop - start, fold.answers.n_lesions)).T)
        for r, scores in enumerate(fold.scores):
            for arm in fold.runs(r):
                given = (fold.positives[r], scores[arm])
                values[r, arm] = average_precision(*given)
                draws[start:stop, r, arm] = roc.reweighted_precision(*given, fold.lesions[r], weights)
    return values, draws


def answers_at(predictions: pd.DataFrame, specificity: float, *, classes: Sequence[str], positive: str) -> pd.DataFrame:
    """Answer the test fold anew, at each model's threshold with this specificity on its validation fold.

    Returns the test rows with a new ``predicted``; a replicate and arm without negative validation images is left out.
    """
    (other,) = (name for name in classes if name != positive)
    validation, test = (predictions[predictions["split"] == split] for split in ("val", "test"))
    negatives = validation[validation["label"] != positive].groupby(["replicate", "arm"])[f"p_{positive}"]
    thresholds = negatives.agg(lambda scores: roc.threshold_at(scores.to_numpy(), specificity)).rename("threshold")
    if thresholds.empty:
        raise BadInput(
            f"No validation fold holds an image of class '{other}', so no threshold has a specificity: enlarge it."
        )
    test = test.merge(thresholds.reset_index(), on=["replicate", "arm"], how="inner")
    predicted = np.where(test[f"p_{positive}"] > test["threshold"], positive, other)
    return test.drop(columns="threshold").assign(predicted=predicted)


def auroc_differences(
    fold: FoldScores,
    arms: Sequence[str],
    baseline: str,
    *,
    pool: Sequence[str] | None = None,  # the arms whose spread over replicates is pooled; None: all
    tied: int = 1,
) -> dict[str, tuple[bootstrap.Estimate, int]]:
    """Estimate AUROC of an arm minus the baseline's, over the replicates that both have.

    Returns (estimate, replicates) by arm, as :func:`stda.measure.verdict.paired_differences` does for other metrics;
    an arm that shares no replicate is left out.  ``tied`` is the number of baselines that validation could not tell
    apart.
    """
    values, errors = auroc_errors(fold)
    spreads = bootstrap.pooled_spreads(values[:, [pool is None or arm in set(pool) for arm in fold.answers.arms]])
    column = {arm: i for i, arm in enumerate(fold.answers.arms)}
    found = {}
    for arm in arms:
        pair = [column[arm], column[baseline]]
        both = np.isfinite(values[:, pair]).all(1)
        if both.any():
            difference, error = (v[..., both, pair[0]] - v[..., both, pair[1]] for v in (values, errors))
            e = bootstrap.estimate(difference, error, pooled=spreads and spreads[1], step=fold.step())
            found[arm] = (replace(e, tied=tied), int(both.sum()))
    return found


def two_class_table(
    predictions: pd.DataFrame,
    *,
    baseline: str,  # the arm that AUROCs are compared with
    synthetic: Sequence[str],  # the arms with synthetic images: the ones that are compared
    positive: str | None = None,  # the class that sensitivity speaks of; by default the rarer one
    specificity: float = 0.9,  # at which the fixed sensitivity is read
    pool: Sequence[str] | None = None,  # the arms whose differences share a pooled spread, as in the verdict; None: all
    tied_baselines: int = 1,  # as in the verdict: how many baselines validation could not tell apart
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Show every arm of a two-class study by the rules of this module, best AUROC first.

    ``predictions``: a row per replicate, arm, split ("val" and "test") and image, with ``replicate, arm, split,
    image_id, group, label, predicted`` and two columns ``p_<class>``.  Returns :data:`COLUMNS`; what a fold cannot
    answer is nan, and the differences are there for the arms in ``synthetic`` alone.  A study with more classes gives
    an empty table, which :func:`two_class_sentence` explains.

    Raises:
        BadInput: an unknown arm or class, arms scored on different images, impossible numbers.
    """
    require_columns(predictions, ("replicate", "arm", "split", "image_id", "group", "label", "predicted"))
    classes = [str(column)[2:] for column in predictions.columns if str(column).startswith("p_")]
    if len(classes) != 2:
        return pd.DataFrame(columns=list(COLUMNS))
    _check(predictions, [baseline, *synthetic], confidence, resamples)
    test = predictions[predictions["split"] == "test"]
    positive = positive_class(classes, [(test["label"] == name).sum() for name in classes], positive)
    fold = score_fold(predictions, "test", classes=classes, positive=positive)
    fixed = answers_at(predictions, specificity, classes=classes, positive=positive)
    table = pd.DataFrame({"arm": fold.answers.arms, "positive": positive})
    table["kind"] = ["synthetic" if arm in set(synthetic) else "real" for arm in table["arm"]]
    table["replicates"] = test.groupby("arm")["replicate"].nunique().reindex(table["arm"]).to_numpy()
    for metric, (values, draws, step) in _measured(fold, fixed, {"resamples": resamples, "seed": seed}).items():
        table[[metric, f"{metric}_low", f"{metric}_high"]] = _intervals(values, draws, step, confidence)
    judged = [arm for arm in synthetic if arm != baseline]
    found = auroc_differences(fold, judged, baseline, pool=pool, tied=tied_baselines)
    table = table.merge(_decided(found, 1 - confidence), on="arm", how="left")
    return table[list(COLUMNS)].sort_values(["auroc", "arm"], ascending=[False, True], ignore_index=True)


def two_class_texts(table: pd.DataFrame, *, digits: int = 3) -> pd.DataFrame:
    """Put value and interval of :func:`two_class_table` into one column each, for readers; None where unknown."""
    shown = table[["arm", "replicates"]].copy()
    for metric in (*VALUES, "auroc_difference"):
        form = f"{'+' if metric == 'auroc_difference' else ''}.{digits}f"
        cells = zip(table[metric], table[f"{metric}_low"], table[f"{metric}_high"], strict=True)
        words = [None if np.isnan(v) else f"{v:{form}} [{low:{form}}, {high:{form}}]" for v, low, high in cells]
        shown[metric.replace("_", " ")] = [word and word.replace("-", "\N{MINUS SIGN}") for word in words]
    return shown.assign(p_holm=table["p_holm"])


def two_class_sentence(table: pd.DataFrame, *, confidence: float = 0.95) -> str:
    """Say in a few sentences what :func:`two_class_table` found, or why it is empty."""
    if table.empty:
        return (
            "Sensitivity, specificity and their curves speak of one class against one other; this study has more "
            "than two classes, so their place is taken by the recall of each class."
        )
    best = table.iloc[0]
    words = [
        f"Sensitivity is the recall of {best['positive']}. The highest AUROC has arm {best['arm']}: "
        f"{best['auroc']:.3f} ({confidence:.0%} interval {best['auroc_low']:.3f} to {best['auroc_high']:.3f})."
    ]
    compared = table[table["auroc_difference"].notna()]
    if compared.empty:
        return " ".join([*words, "No arm with synthetic images was compared with the baseline."])
    if compared["p_holm"].isna().all():
        return " ".join([*words, "With one replicate no difference to the baseline can be told from luck."])
    clear = compared[compared["p_holm"] <= 1 - confidence]
    words += [
        f"Arm {row.arm} changes it by {row.auroc_difference:+.3f} ({row.auroc_difference_low:+.3f} to "
        f"{row.auroc_difference_high:+.3f}, adjusted p = {row.p_holm:.2g})."
        for row in clear.itertuples()
    ]
    rest = (
        f"{len(compared) - len(clear)} of {len(compared)} arms with synthetic images cannot be told from the baseline."
    )
    return " ".join([*words, rest])


def _decided(found: dict[str, tuple[bootstrap.Estimate, int]], alpha: float) -> pd.DataFrame:
    """Return ``arm`` and :data:`DIFFERENCE`, each interval at the level at which Holm's procedure tested its arm."""
    single = np.array([n < 2 for _, n in found.values()], dtype=bool)
    # an arm with one replicate cannot be decided, but stays in the family, as in the verdict
    p_values = np.where(single, 1.0, [e.p_two_sided() for e, _ in found.values()])
    levels, adjusted = holm_levels(p_values, alpha), holm(p_values)
    rows = [
        (arm, e.mean, *bootstrap.within(e.interval(level)), *((np.nan, np.nan) if n < 2 else (p, p_holm)))
        for (arm, (e, n)), level, p, p_holm in zip(found.items(), levels, p_values, adjusted, strict=True)
    ]
    return pd.DataFrame(rows, columns=["arm", *DIFFERENCE])


def _measured(
    fold: FoldScores, fixed: pd.DataFrame, again: dict[str, int]
) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Return values ``(R, A)``, draws ``(B, R, A)`` and the step of one lesion by metric."""
    classes, positive = fold.answers.classes, fold.positive
    reached = bootstrap.count_fold(fixed, "test", classes=classes)
    places = {name: (fold.answers, name) for name in ("sensitivity", "specificity")}
    places |= {"sensitivity_fixed": (reached, "sensitivity"), "specificity_reached": (reached, "specificity")}
    found = {}
    for name, (answers, metric) in places.items():
        values = answers.values(metric, positive)
        draws = bootstrap.resample_lesions(answers, metric, positive=positive, **again)
        step = bootstrap.lesion_step(answers, metric, positive)
        found[name] = (*(_aligned(part, answers, fold.answers) for part in (values, draws)), step)
    found["auroc"] = (*auroc_errors(fold), fold.step())
    found["auprc"] = (*resample_precision(fold, **again), fold.step())
    return found


def _aligned(values: np.ndarray, own: bootstrap.FoldCounts, wanted: bootstrap.FoldCounts) -> np.ndarray:
    """Return ``(..., R, A)`` in the wanted replicates and arms, nan where a model had no threshold."""
    full = np.full((*values.shape[:-2], len(wanted.replicates), len(wanted.arms)), np.nan)
    rows, columns = np.ix_(
        [wanted.replicates.index(name) for name in own.replicates], [wanted.arms.index(name) for name in own.arms]
    )
    full[..., rows, columns] = values
    return full


def _intervals(values: np.ndarray, draws: np.ndarray, step: float, confidence: float) -> np.ndarray:
    """Return mean, low and high ``(A, 3)`` over the replicates where an arm has a value; nan where there is none."""
    found, spreads = np.full((values.shape[1], 3), np.nan), bootstrap.pooled_spreads(values)
    for arm, own in enumerate(values.T):
        rows = np.isfinite(own)
        if rows.any():
            e = bootstrap.estimate(own[rows], draws[:, rows, arm], pooled=spreads and spreads[0], step=step)
            found[arm] = e.mean, *np.clip(e.interval(confidence), 0.0, 1.0)
    return found


def _check(predictions: pd.DataFrame, arms: Sequence[str], confidence: float, resamples: int) -> None:
    known = sorted(set(predictions["arm"]))
    unknown = [arm for arm in arms if arm not in known]
    if unknown:
        raise BadInput(f"There is no arm {unknown[0]!r} among {known}: name arms that were run.")
    if not 0.5 <= confidence < 1:
        raise BadInput(f"confidence is {confidence:g}; it must lie between 0.5 and 1, such as 0.95.")
    if resamples < 100:
        raise BadInput(f"resamples is {resamples}; a standard error needs at least 100, such as 2000.")
