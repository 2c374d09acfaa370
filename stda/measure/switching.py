"""Switch rate: how often does an answer change when an artefact is drawn over the picture, and toward which class?

Counterfactual bias insertion (Mikolajczyk, Grochowski and Kwasigroch 2021, IEEE Access 9; for generated skin lesions
Mikolajczyk, Majchrowska and Carrasco Limeros 2022).  Some answers change under any change of the pixels, so a rate says
nothing without a scale.  Ours is an uneven light whose pixels change as much as those of the artefact, picture by
picture (:func:`stda.data.uneven_light`) *(reading)*: what the artefact does beyond it, it does by its form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stda import BadInput
from stda.data.artefacts import LIGHT
from stda.measure import bootstrap
from stda.measure.scores import PREDICTION_COLUMNS, class_codes, require_columns, wilson

SWITCH_COLUMNS = ("altered", "image_id", "group", "label", "before", "after")


def switches(before: pd.DataFrame, after: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put the answers to plain and altered pictures side by side: a row per alteration and picture.

    ``before`` and each of ``after`` (by name of the alteration; the scale of artefact "x" is "light like x") are tables
    of predictions of the same pictures in one order.  Returns ``altered, image_id, group, label, before, after``.
    Raises BadInput when the pictures differ.
    """
    require_columns(before, PREDICTION_COLUMNS)
    parts = []
    for name, answers in after.items():
        if answers["image_id"].tolist() != before["image_id"].tolist():
            raise BadInput(f"'{name}' was answered on other pictures than the plain ones: predict the same test fold.")
        part = before[["image_id", "group", "label"]].assign(before=before["predicted"], altered=name)
        parts.append(part.assign(after=answers["predicted"].to_numpy()))
    if not parts:
        raise BadInput("No alteration was given: insert an artefact into the test images first.")
    return pd.concat(parts, ignore_index=True)[list(SWITCH_COLUMNS)]


def switch_table(
    table: pd.DataFrame,  # of switches(), one arm
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Say per alteration how many answers switch, how the score changes, and toward which class answers move.

    Columns ``altered, images, switched, low, high`` (share of images; Wilson for as many trials as there are lesions),
    ``light`` (share that switch under the equally strong light), ``beyond, beyond_low, beyond_high`` (the difference),
    ``change, change_low, change_high`` (of balanced accuracy), ``toward`` and ``gain`` (the class that wins most
    answers net, and how many images).  Differences have percentile intervals of the Bayesian bootstrap over lesions,
    paired, each at ``confidence`` by itself; for ``beyond`` every draw knows one lesion more that switched under the
    artefact alone and one under its light alone (:func:`_beyond`).  Alterations that have no scale (and the scales)
    have nan for ``light`` and ``beyond``.
    """
    require_columns(table, SWITCH_COLUMNS, what="switches")
    classes = sorted(set(table["label"]) | set(table["before"]) | set(table["after"]))
    lesions = {name: code for code, name in enumerate(sorted(set(table["group"])))}
    rng = np.random.default_rng(seed)
    weights = rng.standard_exponential((resamples, len(lesions)))
    weights = np.vstack([np.ones(len(lesions)), weights])  # the first row is the estimate itself
    added = np.vstack([np.zeros(2), rng.standard_exponential((resamples, 2))])
    parts = {name: part.sort_values("image_id") for name, part in table.groupby("altered", sort=False)}
    rates = {name: _rates(part, lesions, weights) for name, part in parts.items()}
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    rows = []
    for name, part in parts.items():
        share, n_lesions = float(rates[name][0]), part["group"].nunique()
        low, high = wilson(share * n_lesions, n_lesions, confidence=confidence)
        row = {"altered": name, "images": len(part), "switched": share, "low": low, "high": high}
        if LIGHT + name in parts:
            beyond = _beyond(rates[name] - rates[LIGHT + name], part, lesions, weights, added)
            row |= {"light": float(rates[LIGHT + name][0])} | _interval("beyond", beyond, tails)
        change = _balanced(part, "after", lesions, weights, classes) - _balanced(
            part, "before", lesions, weights, classes
        )
        rows.append(row | _interval("change", change, tails) | _mover(part))
    columns = "altered images switched low high light beyond beyond_low beyond_high change change_low change_high"
    return pd.DataFrame(rows).reindex(columns=[*columns.split(), "toward", "gain"])


def switch_rates(
    table: pd.DataFrame,  # switches of all arms and replicates, with columns replicate and arm
    *,
    baseline: str,  # the arm that the others are compared with
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the arms: does one switch more often than the baseline when an artefact is inserted?

    Columns ``altered, arm, replicates, switched`` (mean over replicates), ``low, high, light`` (the mean under the
    equally strong light, nan without), ``difference, difference_low, difference_high`` to the baseline (paired by
    replicate and image) and ``than_baseline``: more, fewer or undecided.  The scales themselves are left out.

    Intervals join replicates and lesions as those of the verdict do (:func:`stda.measure.bootstrap.estimate`); those
    of differences are drawn at the Bonferroni level of all comparisons of the table.  One replicate decides nothing:
    its intervals are of lesions only, and it stays undecided.

    Raises BadInput when the baseline is missing, or when arms of a replicate were not asked about the same pictures.
    """
    require_columns(table, ("replicate", "arm", *SWITCH_COLUMNS), what="switches")
    arms = [baseline, *(arm for arm in dict.fromkeys(table["arm"]) if arm != baseline)]
    if baseline not in set(table["arm"]):
        raise BadInput(f"The baseline '{baseline}' has no switches: run notebook 06 for it, or name one of {arms[1:]}.")
    names = [name for name in dict.fromkeys(table["altered"]) if not name.startswith(LIGHT)]
    level = 1 - (1 - confidence) / max(1, len(names) * (len(arms) - 1))
    lesions = {name: code for code, name in enumerate(sorted(set(table["group"])))}
    weights = np.random.default_rng(seed).standard_exponential((resamples, len(lesions)))
    weights = np.vstack([np.ones(len(lesions)), weights])
    drawn = _drawn_rates(table, arms, lesions, weights)
    step = 1 / float(table.groupby("replicate")["group"].nunique().min())  # what one lesion can change
    rows = []
    for name in names:
        spread = bootstrap.pooled_spreads(np.stack([drawn[name][arm][0] for arm in arms], axis=1))
        alone, paired = spread if spread else (None, None)
        for arm in arms:
            rates, light = drawn[name][arm], drawn.get(LIGHT + name, {}).get(arm)
            own = bootstrap.estimate(rates[0], rates[1:], pooled=alone, step=step)
            low, high = np.clip(own.interval(confidence), 0, 1)
            row = {"altered": name, "arm": arm, "replicates": rates.shape[1], "switched": own.mean}
            row |= {
                "low": float(low),
                "high": float(high),
                "light": np.nan if light is None else float(light[0].mean()),
            }
            rows.append(
                row | _to_baseline(rates - drawn[name][baseline], level, paired, step=step, same=arm == baseline)
            )
    columns = "altered arm replicates switched low high light difference difference_low difference_high than_baseline"
    return pd.DataFrame(rows, columns=columns.split())


def disturbed_sentence(rates: pd.DataFrame) -> str:
    """Say which artefacts of :func:`switch_table` switch more answers than an equally strong light, or fewer."""
    scaled = rates.dropna(subset=["beyond"])
    if scaled.empty:
        return "No artefact was inserted together with its scale, so nothing can be said of its form."
    more, fewer = scaled[scaled["beyond_low"] > 0], scaled[scaled["beyond_high"] < 0]
    words = [f"{r.altered} ({r.switched:.1%} against {r.light:.1%}, most toward {r.toward})" for r in more.itertuples()]
    less = [f"{r.altered} ({r.switched:.1%} against {r.light:.1%})" for r in fewer.itertuples()]
    return (
        f"More answers switch than under as strong a light with: {', '.join(words) or 'no artefact'}. "
        f"Fewer with: {', '.join(less) or 'none'}. Of the {len(scaled)} artefacts, "
        f"{len(scaled) - len(more) - len(fewer)} cannot be told from their light (each with an interval of its own)."
    )


def switch_sentence(rates: pd.DataFrame) -> str:
    """Say in a few sentences what :func:`switch_rates` found, every number computed."""
    baseline = rates.loc[rates["than_baseline"] == "is the baseline"]
    worst = baseline.loc[baseline["switched"].idxmax()]
    words = [
        f"Of the baseline's answers {worst['switched']:.1%} switch under its most disturbing alteration, "
        f"{worst['altered']} ({worst['low']:.1%} to {worst['high']:.1%})."
    ]
    for which, word in (("more", "more"), ("fewer", "less")):
        found = rates[rates["than_baseline"] == which]
        said = [f"{r.arm} under {r.altered} ({100 * r.difference:+.1f} points)" for r in found.itertuples()]
        words.append(f"Arms that switch {word} often than it: {', '.join(said) if said else 'none that is shown'}.")
    words.append(f"{int((rates['than_baseline'] == 'undecided').sum())} comparisons are undecided.")
    if rates["replicates"].max() == 1:
        words.append("There is one replicate, and one decides nothing.")
    return " ".join(words)


# --------------------------------------------------------------------------------------------------------------- parts


def _rates(part: pd.DataFrame, lesions: Mapping[str, int], weights: np.ndarray) -> np.ndarray:
    """Return the share of switched images ``(B,)`` under lesion weights ``(B, L)``."""
    code = part["group"].map(lesions).to_numpy()
    images = np.bincount(code, minlength=len(lesions))
    switched = np.bincount(code, part["before"].to_numpy() != part["after"].to_numpy(), minlength=len(lesions))
    return weights @ switched / (weights @ images)


def _beyond(
    difference: np.ndarray, part: pd.DataFrame, lesions: Mapping[str, int], weights: np.ndarray, added: np.ndarray
) -> np.ndarray:
    """Return the difference of two shares ``(B,)`` with two lesions of mean size added, one for each side.

    ``added`` are their weights ``(B, 2)``.  Reweighting alone cannot cross zero when all answers that differ are on one
    side: one switched image against none would be shown to differ.  Adding a pair to each side is the remedy that
    Agresti and Min (2005, Statistics in Medicine 24) give for paired shares *(reading: a lesion to each side)*.
    """
    images = np.bincount(part["group"].map(lesions).to_numpy(), minlength=len(lesions))
    total, size = weights @ images, images[images > 0].mean()
    return (difference * total + size * (added[:, 0] - added[:, 1])) / (total + size * added.sum(axis=1))


def _balanced(
    part: pd.DataFrame, column: str, lesions: Mapping[str, int], weights: np.ndarray, classes: Sequence[str]
) -> np.ndarray:
    """Return the balanced accuracy of the answers in ``column``, ``(B,)`` under lesion weights ``(B, L)``."""
    lesion, truth = part["group"].map(lesions).to_numpy(), class_codes(part["label"], classes)
    cell = lesion * len(classes) + truth
    shape = (len(lesions), len(classes))
    images = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    right = (part[column] == part["label"]).to_numpy(float)
    hits = np.bincount(cell, right, minlength=shape[0] * shape[1]).reshape(shape)
    present = images.sum(axis=0) > 0
    return ((weights @ hits)[:, present] / (weights @ images)[:, present]).mean(axis=1)


def _interval(name: str, draws: np.ndarray, tails: Sequence[float]) -> dict[str, float]:
    low, high = np.quantile(draws[1:], tails)
    return {name: float(draws[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def _mover(part: pd.DataFrame) -> dict[str, str | int]:
    """Return the class that wins most answers net of those it loses, the first by name of equals."""
    net = part["after"].value_counts().sub(part["before"].value_counts(), fill_value=0).sort_index()
    if not (part["before"] != part["after"]).any() or net.max() <= 0:
        return {"toward": "none", "gain": 0}
    return {"toward": str(net.idxmax()), "gain": int(net.max())}


def _drawn_rates(
    table: pd.DataFrame, arms: Sequence[str], lesions: Mapping[str, int], weights: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Return the rates ``(B, R)`` by alteration and arm, replicates in order."""
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for name, part in table.groupby("altered", sort=False):
        pictures = part.groupby(["replicate", "arm"], sort=True)["image_id"].agg(lambda ids: tuple(sorted(ids)))
        if (pictures.groupby(level="replicate").nunique() > 1).any() or len(pictures) != len(arms) * part[
            "replicate"
        ].nunique():
            raise BadInput(f"Arms were not asked about the same pictures under '{name}': run notebook 06 for all arms.")
        drawn[str(name)] = {
            arm: np.stack([_rates(rows, lesions, weights) for _, rows in own.groupby("replicate", sort=True)], axis=1)
            for arm, own in part.groupby("arm", sort=False)
        }
    return drawn


def _to_baseline(
    differences: np.ndarray, level: float, pooled: bootstrap.Spread | None, *, step: float, same: bool
) -> dict[str, float | str]:
    """Return the mean of paired differences ``(B, R)`` with its interval, and its sign in words."""
    names = ("difference", "difference_low", "difference_high")
    if same:
        return dict.fromkeys(names, np.nan) | {"than_baseline": "is the baseline"}
    found = bootstrap.estimate(differences[0], differences[1:], pooled=pooled, step=step)
    low, high = bootstrap.within(found.interval(level))
    decided = differences.shape[1] > 1
    words = "more" if decided and low > 0 else "fewer" if decided and high < 0 else "undecided"
    return dict(zip(names, (found.mean, low, high), strict=True)) | {"than_baseline": words}
