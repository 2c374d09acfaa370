"""What leakage is worth: recall under a split by image minus recall under a split by lesion, class by class.

Two studies with the same images, arms and seeds differ in nothing but their split.  Their test folds differ, so no
difference is paired: replicates of the two are compared as in Welch's test (1947, Biometrika 34), each side with the
standard error of :func:`stda.measure.bootstrap.estimate` (replicates and lesions).  A lesion that both sides test has
one weight in both, so that hard lesions do not count twice.  Degrees of freedom are Welch and Satterthwaite's.

The score over all classes is one question, tested by itself; the recalls of an arm are one family (Holm 1979).
Simulated without a leak (460 studies each of two, three and five replicates, three and seven classes, rare ones with a
dozen lesions of one to three images): the overall score is called in 0.2 to 4.6 % of studies, some recall of an arm
in 0.0 to 2.6 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stda import BadInput
from stda.data.audit import ledger
from stda.measure import bootstrap
from stda.measure.scores import PREDICTION_COLUMNS, require_columns
from stda.measure.verdict import holm, holm_levels

OVERALL = ("balanced_accuracy", "macro_f1", "accuracy")
ALL_CLASSES = "all classes"
INFLATION_COLUMNS = (
    *("arm", "class", "honest", "leaky", "inflation", "low", "high", "level", "p_value", "p_holm", "verdict"),
    *("leaked_share", "replicates_honest", "replicates_leaky", "evidence"),
)


def inflation_table(
    honest: pd.DataFrame,  # predictions of the study that is split by lesion
    leaky: pd.DataFrame,  # predictions of the same study split by image
    arms: Sequence[str],
    *,
    leaked: pd.DataFrame | None = None,  # of leaked_share(); None: not known
    metric: str = "balanced_accuracy",  # the score over all classes: this, macro_f1 or accuracy
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the test scores of each arm under an honest and a leaky split.

    ``honest`` and ``leaky`` have a row per replicate, arm and image with ``replicate, arm, image_id, group, split,
    label, predicted``.  Returns for each arm a row of ``metric`` (class "all classes") and one of the recall of each
    class: ``arm, class, honest, leaky`` (means over replicates), ``inflation`` (leaky minus honest), ``low, high``
    (drawn at ``level``, at which Holm's procedure tested the row: they leave out zero exactly when it is called),
    ``p_value, p_holm, verdict`` ("inflated", "deflated" or "undecided"), ``leaked_share``, the numbers of replicates
    and ``evidence``.  One replicate on either side decides nothing: the evidence is "lesions only", p-values are nan.
    A class that one of the studies never tests has nan and is no part of the family.  ``leaked_share`` of balanced
    accuracy and macro F1 is the mean over classes, as they weigh these alike.

    Raises:
        BadInput: an arm that one of the studies lacks, studies of different images, impossible numbers.
    """
    _check(honest, leaky, arms, metric, confidence, resamples)
    fold, is_leaky = _both(honest, leaky)
    metrics = {ALL_CLASSES: metric, **{name: f"recall_{name}" for name in fold.classes}}
    found = {name: _inflations(fold, is_leaky, m, resamples, seed) for name, m in metrics.items()}
    shares = {} if leaked is None else leaked.set_index("class")["leaked_share"].to_dict()
    if metric != "accuracy":
        shares[ALL_CLASSES] = pd.Series(shares, dtype=float).reindex(fold.classes).mean()
    rows = []
    for arm in dict.fromkeys(arms):
        own = [_row(arm, name, by_arm[arm]) for name, by_arm in found.items()]
        rows += _decide(own[:1], 1 - confidence) + _decide(own[1:], 1 - confidence)
    table = pd.DataFrame(rows)
    return table.assign(leaked_share=table["class"].map(shares).astype(float))[list(INFLATION_COLUMNS)]


def leaked_share(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the share of test images whose lesion is also in train, by class: ``class, test_images, leaked_share``.

    ``tables`` are the tables of the replicates (``table.csv`` of notebook 01, with ``label, group, split``); numbers
    are means over them, nan for a class that none of them tests.  The last row, "all classes", is of all images.
    """
    if not len(tables):
        raise BadInput("There is no table of a leaky study: give table.csv of each of its replicates.")
    ledgers = pd.concat([ledger(table) for table in tables], ignore_index=True)
    mean = ledgers.groupby("label", sort=False)[["test_images", "test_in_train_percent"]].mean()
    names = [*(name for name in mean.index if name != "all"), "all"]
    mean = mean.loc[names].reset_index()
    mean["class"] = [*names[:-1], ALL_CLASSES]
    return mean.assign(leaked_share=mean["test_in_train_percent"] / 100)[["class", "test_images", "leaked_share"]]


def inflation_sentence(table: pd.DataFrame, *, arm: str) -> str:
    """Say in a few sentences what :func:`inflation_table` found for one arm, every number computed."""
    rows = table[table["arm"] == arm]
    if not len(rows):
        raise BadInput(f"There is no arm '{arm}' in this table; it has {sorted(set(table['arm']))}.")
    overall, classes = rows.iloc[0], rows.iloc[1:].dropna(subset=["inflation"])
    words = [
        f"Over all classes arm {arm} scores {overall['honest']:.3f} on new lesions and {overall['leaky']:.3f} when the "
        f"images are split without regard to lesions: {overall['inflation']:+.3f} ({overall['level']:.1%} interval "
        f"{overall['low']:+.3f} to {overall['high']:+.3f}), {overall['verdict']}."
    ]
    for verdict in ("inflated", "deflated"):
        called = classes[classes["verdict"] == verdict]
        said = ", ".join(f"{row['class']} ({row['inflation']:+.2f})" for _, row in called.iterrows())
        if verdict == "inflated" or said:
            words.append(f"Classes whose recall is {verdict}: {said or 'none that is shown'}.")
    known = classes.dropna(subset=["leaked_share"])
    if len(known) > 2 and known["leaked_share"].nunique() > 1 and known["inflation"].nunique() > 1:
        rank = known["leaked_share"].rank().corr(known["inflation"].rank())
        words.append(
            f"The lesion of {known['leaked_share'].min():.0%} to {known['leaked_share'].max():.0%} of a class's test "
            f"images is in training; over the {len(known)} classes inflation and that share have a rank correlation "
            f"of {rank:+.2f}."
        )
    if overall["evidence"] == "lesions only":
        words.append("One of the studies has a single replicate, and one decides nothing.")
    return " ".join(words)


# --------------------------------------------------------------------------------------------------------------- parts


def _both(honest: pd.DataFrame, leaky: pd.DataFrame) -> tuple[bootstrap.FoldCounts, np.ndarray]:
    """Count the test answers of both studies in one fold, so that they share their lesions; and which are leaky."""
    parts, start = [], 0
    classes = sorted(set(honest["label"]) | set(leaky["label"]) | set(honest["predicted"]) | set(leaky["predicted"]))
    for study in (honest, leaky):
        test = study[study["split"] == "test"]
        codes, names = pd.factorize(test["replicate"], sort=True)
        parts.append(test.assign(replicate=codes + start))
        start += len(names)
    fold = bootstrap.count_fold(pd.concat(parts, ignore_index=True), "test", classes=classes)
    return fold, np.arange(start) >= parts[0]["replicate"].nunique()


def _inflations(
    fold: bootstrap.FoldCounts, is_leaky: np.ndarray, metric: str, resamples: int, seed: int
) -> dict[str, tuple[bootstrap.Estimate | None, list[float], list[int]]]:
    """Estimate leaky minus honest by arm; with the means and the numbers of replicates of both sides."""
    values = fold.values(metric)
    draws = bootstrap.resample_lesions(fold, metric, resamples=resamples, seed=seed)
    step = bootstrap.lesion_step(fold, metric)
    pooled = [bootstrap.pooled_spreads(values[side]) for side in (~is_leaky, is_leaky)]
    found = {}
    for a, arm in enumerate(fold.arms):
        sides = [np.flatnonzero(side & np.isfinite(values[:, a])) for side in (~is_leaky, is_leaky)]
        counts = [len(rows) for rows in sides]
        means = [float(values[rows, a].mean()) if len(rows) else np.nan for rows in sides]
        estimate = None
        if all(counts):
            halves = [
                bootstrap.estimate(values[rows, a], draws[:, rows, a], pooled=spread and spread[0], step=step)
                for rows, spread in zip(sides, pooled, strict=True)
            ]
            shared = np.cov(*(draws[:, rows, a].mean(1) for rows in sides))[0, 1]
            floor = sum(_least(values[rows, a], step) for rows in sides)
            estimate = _welch(halves, shared=float(shared), floor=floor)
        found[arm] = (estimate, means, counts)
    return found


def _least(values: np.ndarray, step: float) -> float:
    """Return the least variance of a mean: of its replicates as they are, and of half a lesion."""
    spread = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
    return max(spread, (step / 2) ** 2) / len(values)


def _welch(halves: Sequence[bootstrap.Estimate], *, shared: float, floor: float) -> bootstrap.Estimate:
    """Return second minus first half: ``shared`` is the covariance by common lesions, ``floor`` the least variance."""
    honest, leaky = halves
    variances = np.array([honest.error**2, leaky.error**2])
    error = np.sqrt(max(variances.sum() - 2 * shared, floor))
    inverse = float(((variances / variances.sum()) ** 2 / [honest.freedom, leaky.freedom]).sum())
    return bootstrap.Estimate(leaky.mean - honest.mean, float(error), 1 / inverse if inverse else np.inf)


def _row(arm: str, name: str, found: tuple[bootstrap.Estimate | None, list[float], list[int]]) -> dict:
    estimate, means, counts = found
    row = {"arm": arm, "class": name, "honest": means[0], "leaky": means[1], "estimate": estimate}
    row |= {"replicates_honest": counts[0], "replicates_leaky": counts[1]}
    row["evidence"] = "none" if estimate is None else "lesions only" if min(counts) < 2 else "replicates and lesions"
    return row


def _decide(rows: list[dict], alpha: float) -> list[dict]:
    """Test one family of rows by Holm's procedure; rows without an estimate are no part of it."""
    asked = [row for row in rows if row["estimate"] is not None]
    single = np.array([row["evidence"] == "lesions only" for row in asked], dtype=bool)
    p_value = np.where(single, 1.0, [row["estimate"].p_two_sided() for row in asked])
    adjusted, levels = holm(p_value), holm_levels(p_value, alpha)
    for i, row in enumerate(asked):
        low, high = bootstrap.within(row["estimate"].interval(levels[i]))
        mean = row["estimate"].mean
        called = "inflated" if mean > 0 else "deflated"
        row |= {"inflation": mean, "low": low, "high": high, "level": levels[i]}
        row |= {"p_value": np.nan, "p_holm": np.nan} if single[i] else {"p_value": p_value[i], "p_holm": adjusted[i]}
        row["verdict"] = called if adjusted[i] <= alpha else "undecided"
    numbers = ("inflation", "low", "high", "level", "p_value", "p_holm")
    return [dict.fromkeys(numbers, np.nan) | {"verdict": "undecided"} | row for row in rows]


def _check(
    honest: pd.DataFrame, leaky: pd.DataFrame, arms: Sequence[str], metric: str, confidence: float, resamples: int
) -> None:
    for study, name in ((honest, "honest"), (leaky, "leaky")):
        require_columns(study, ("replicate", "arm", *PREDICTION_COLUMNS))
        test = study[study["split"] == "test"]
        lacking = [arm for arm in arms if arm not in set(test["arm"])]
        if lacking or not len(arms):
            raise BadInput(
                f"The {name} study has the arms {sorted(set(test['arm']))} on test but not {lacking or 'none at all'}: "
                "compare arms that both studies have run."
            )
    columns = ["image_id", "group", "label"]
    images = pd.concat([honest[columns], leaky[columns]]).drop_duplicates()
    torn = images[images["image_id"].duplicated()]["image_id"]
    if len(torn):
        raise BadInput(
            f"Image '{torn.iloc[0]}' has another lesion or class in the leaky study: make it from the same images, and "
            "change nothing but data.split_by."
        )
    if metric not in OVERALL:
        raise BadInput(f"The score over all classes is one of {list(OVERALL)}, not '{metric}': recalls come with it.")
    if not 0.5 <= confidence < 1:
        raise BadInput(f"confidence is {confidence:g}; it must lie between 0.5 and 1, such as 0.95.")
    if resamples < 100:
        raise BadInput(f"resamples is {resamples}; a standard error needs at least 100, such as 2000.")
