"""How much augmentation is enough, and what comes on top: the liver-lesion protocol.

Frid-Adar et al. (2018, Neurocomputing 321, section 4.3) first add ever more classically augmented images until the
score no longer rises, and only then add generated ones; the progressive-GAN study follows them.  Here a *family* is a
way to add images (classic augmentation made beforehand, a generator), its *amount* the images added in total, and the
arm with nothing added of the same recipe its beginning.  Augmentation on the fly makes a new picture every time, which
is the limit of the first family *(reading)*; generators are added to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure import bootstrap
from stda.measure.scores import positive_class, require_columns
from stda.measure.verdict import arm_table, paired_differences

CLASSIC, AUGMENTED, NONE = "classic augmentation", "augmented", "none"
LEAST = 3  # amounts that make a sweep
NOT_RECIPE = {"arm", "synthetic", "amount", "ratio", "count", "balance", "classes"}
OF_THE_ADDED = {
    "labels",
    "min_confidence",
    "select",
    "protocol",
    "pretrain_share",
}  # nothing to an arm that adds nothing
SHARED = {"study", "replicate", "seed", "precision", "options"}  # what does not tell arms of one study apart
SWEEP_COLUMNS = ("family", "amount", "arm", "metric", "mean", "low", "high", "replicates")
SATURATION_COLUMNS = ("family", "amount", "arm", "best_amount", "best_arm", "largest", "replicates", "words")
WORDS = {
    "few": "too few amounts",
    "single": "one replicate decides nothing",
    "rising": "still rising",
    "flat": "saturated",
}


def arm_settings(manifests: Sequence[Mapping[str, Any]], composition: pd.DataFrame) -> pd.DataFrame:
    """Return how each arm was set: ``arm, synthetic, amount`` and its recipe, the knobs in which the arms differ.

    ``manifests`` are those of a study (others than arms are passed over), ``composition`` has rows per replicate, arm
    and class with ``added``; ``amount`` is the images added in total, mean over replicates.  A knob that a manifest
    leaves out is at its default, written as an empty text; all recipe columns are texts.
    """
    rows = {}
    for m in manifests:
        if m.get("arm"):
            knobs = {**m["parameters"], **m["parameters"].get("options", {})}
            rows[m["arm"]] = {name: str(value) for name, value in knobs.items() if name not in SHARED}
    require_columns(composition, ("replicate", "arm", "added"), what="composition")
    added = composition.groupby(["arm", "replicate"])["added"].sum().groupby("arm").mean()
    table = pd.DataFrame(list(rows.values())).fillna("")
    if not len(table):
        raise BadInput("No manifest is of a trained arm: run notebook 06 first.")
    table["amount"] = table["arm"].map(added).fillna(0).astype(float)
    told_apart = [name for name in table if name not in NOT_RECIPE and table[name].nunique() > 1]
    return table[["arm", "synthetic", "amount", *told_apart]]


def curve_arms(settings: pd.DataFrame, kinds: Mapping[str, str]) -> list[str]:
    """Return the arms of the learning curve: subset arms, the arm of their recipe with all lesions, and oracles.

    ``settings`` is the table of :func:`arm_settings`, ``kinds`` says what an arm is ("subset", "real", "oracle", ...).
    The recipe is that of the first subset arm: what is trained otherwise is left out.  Empty when no subset arm was
    run, or none with all lesions and the same recipe.
    """
    recipe = [name for name in _recipe(settings) if name != "real_share"]
    kind = settings["arm"].map(kinds)
    if not (kind == "subset").any():
        return []
    same = (settings[recipe] == settings.loc[kind == "subset", recipe].iloc[0]).all(axis=1)
    full = same & (kind == "real") & (settings["synthetic"] == NONE)
    if not full.any():
        return []
    chosen = same & kind.isin(["subset", "oracle"]) | (settings.index == full.idxmax())
    return settings.loc[chosen, "arm"].tolist()


def same_recipe(settings: pd.DataFrame, curve: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Return which of ``arms`` differ from those of the learning ``curve`` in nothing but the images they train on.

    An arm with another sampler, augmentation or loss would be credited with, or charged for, more than its images.
    """
    recipe = [name for name in _recipe(settings) if name not in {*OF_THE_ADDED, "real_share"}]
    known = settings.set_index("arm")[recipe]
    return [arm for arm in arms if len(curve) and (known.loc[arm] == known.loc[curve[0]]).all()]


def sweep_table(
    predictions: pd.DataFrame,
    settings: pd.DataFrame,  # arm, synthetic, amount (added images in total), and the recipe (augment, ...)
    *,
    metrics: Sequence[str] = ("balanced_accuracy",),
    split: str = "test",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    positive: str | None = None,  # the class that sensitivity speaks of
) -> pd.DataFrame:
    """Return the score of every family at every amount, with its interval.

    A row per family, amount and metric (:data:`SWEEP_COLUMNS`).  Every family begins at amount 0 with the arm that adds
    nothing and has the same recipe, where one was run.  The limit of classic augmentation, the arm that adds nothing
    and augments on the fly but is else the same, has amount infinity.  Arms of one generator and different recipes are
    different families, named by what tells them apart.  A metric that cannot be resampled has its interval from the
    replicates alone, nan for one of them.
    """
    families = _families(settings)
    used = [arm for members in families.values() for arm in members["arm"]]
    if not used:
        return pd.DataFrame(columns=list(SWEEP_COLUMNS))
    rows = predictions[predictions["arm"].isin(used)]
    missing = sorted(set(used) - set(rows["arm"].unique()))
    if missing:
        raise BadInput(f"Arm '{missing[0]}' of the sweep has no predictions: run notebook 06 for it.")
    knobs = {"confidence": confidence, "resamples": resamples, "seed": seed, "positive": positive}
    table = arm_table(rows, (), metrics=metrics, split=split, **knobs).set_index("arm")
    found = [
        (family, amount, arm, metric, *table.loc[arm, [metric, f"{metric}_low", f"{metric}_high", "replicates"]])
        for family, members in families.items()
        for arm, amount in zip(members["arm"], members["amount"], strict=True)
        for metric in metrics
    ]
    return pd.DataFrame(found, columns=list(SWEEP_COLUMNS)).astype({"replicates": int})


def saturation(
    predictions: pd.DataFrame,
    settings: pd.DataFrame,
    *,
    metric: str = "balanced_accuracy",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    positive: str | None = None,
) -> pd.DataFrame:
    """Find on *validation* where each family stops to gain: its smallest amount that is not told from its best.

    An amount is told from the best when the paired difference over replicates and lesions lies below zero in a
    one-sided test at 1 - ``confidence`` (:func:`stda.measure.verdict.paired_differences`).  Where little can be told
    apart, as with few replicates, a small amount is the answer: it says where the evidence of a gain ends, not the
    gain.  Amount 0 takes part, the limit on the fly does not.

    Returns a row per family (:data:`SATURATION_COLUMNS`); ``words`` are "saturated", "still rising" (only the largest
    amount is left), "one replicate decides nothing" or "too few amounts" (fewer than three above 0: ``amount`` nan).
    """
    rows = []
    for family, members in _families(settings).items():
        swept = members[np.isfinite(members["amount"])]
        row = {"family": family, "largest": swept["amount"].max()}
        if _amounts(swept) < LEAST:
            rows.append(row | {"words": WORDS["few"]})
            continue
        part = predictions[predictions["arm"].isin(swept["arm"])]
        fold = bootstrap.count_fold(part, "val")
        if positive is None and len(fold.classes) == 2:
            positive = positive_class(fold.classes, fold.lesions_per_class().sum(0))
        means = dict(zip(fold.arms, fold.values(metric, positive).mean(0), strict=True))
        best = max(swept["arm"], key=means.get)  # of equals the first, which is the smallest amount
        knobs = {"resamples": resamples, "seed": seed, "positive": positive}
        behind = paired_differences(fold, list(swept["arm"]), best, metric, **knobs)
        near = swept[[arm == best or behind[arm][0].p_below(0.0) > 1 - confidence for arm in swept["arm"]]]
        row |= near.iloc[0][["amount", "arm"]].to_dict()
        row |= {"best_arm": best, "best_amount": swept.set_index("arm").loc[best, "amount"]}
        rows.append(row | {"replicates": len(fold.replicates), "words": _word(row, len(fold.replicates))})
    return pd.DataFrame(rows, columns=list(SATURATION_COLUMNS))


def saturation_sentence(table: pd.DataFrame, *, metric: str = "balanced_accuracy") -> str:
    """Say in words where the families of :func:`saturation` stop to gain, or how to run a sweep."""
    swept = table[table["words"] != WORDS["few"]]
    if not len(swept):
        return (
            f"No sweep was run: it takes one way of adding images in at least {LEAST} amounts, such as arms with "
            "synthetic: augmented and ratio 1, 4 and 16, and then a generator's with ratio 0.5, 1 and 2."
        )
    name, said = metric.replace("_", " "), []
    for row in swept.itertuples():
        where = f"{row.amount:.0f} added images" if row.amount else "no added image"
        if row.words == WORDS["rising"]:
            said.append(f"With {row.family}, {name} on validation still rises at the largest amount, {where}.")
        elif row.words == WORDS["single"]:
            said.append(f"With {row.family}, one replicate does not decide where {name} stops to rise.")
        else:
            best = f"{row.best_amount:.0f}"
            rest = "which is the best" if row.arm == row.best_arm else f"which is not told from the best, {best}"
            said.append(f"With {row.family}, {name} on validation is saturated at {where}, {rest}.")
    return " ".join(said)


def _word(row: Mapping[str, Any], replicates: int) -> str:
    if replicates < 2:
        return WORDS["single"]
    return WORDS["rising"] if row["amount"] == row["largest"] else WORDS["flat"]


def _recipe(settings: pd.DataFrame) -> list[str]:
    return [name for name in settings if name not in NOT_RECIPE]


def _amounts(members: pd.DataFrame) -> int:
    """Return how many amounts above none there are."""
    amounts = members["amount"]
    return int(amounts[(amounts > 0) & np.isfinite(amounts)].nunique())


def _families(settings: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the members (``arm, amount``, smallest first) of every family by name."""
    require_columns(settings, ("arm", "synthetic", "amount"), what="settings")
    recipe = _recipe(settings)
    plain = settings[settings["synthetic"] == NONE]
    families = {}
    for synthetic, added in settings[settings["synthetic"] != NONE].groupby("synthetic", sort=False):
        kinds = added[recipe].drop_duplicates()
        differing = [name for name in recipe if kinds[name].nunique() > 1]
        for _, kind in kinds.iterrows():
            own = added[(added[recipe] == kind).all(axis=1)]
            parts = [_like(plain, kind).assign(amount=0.0), own]
            if synthetic == AUGMENTED and "augment" in recipe:
                limit = kind.where(kind.index != "augment", "classic")
                parts.append(_like(plain, limit).assign(amount=np.inf))
            told = ", ".join(f"{knob} {kind[knob] or 'default'}" for knob in differing)
            name = (CLASSIC if synthetic == AUGMENTED else str(synthetic)) + (f" ({told})" if told else "")
            members = pd.concat(parts)[["arm", "amount"]].drop_duplicates("arm")
            families[name] = members.sort_values("amount", kind="stable", ignore_index=True)
    return families


def _like(plain: pd.DataFrame, kind: pd.Series) -> pd.DataFrame:
    """Return the first of the arms that add nothing and have this recipe, no row without one."""
    shared = kind.drop(OF_THE_ADDED & set(kind.index))
    return plain[(plain[list(shared.index)] == shared).all(axis=1)].iloc[:1]
