"""The exchange rate: n synthetic images are worth m real ones, read off a learning curve over real lesions.

The curve: arms of one recipe that train on nested parts of the train fold's lesions, on all of them, and on held-back
ones besides (oracles).  An arm with synthetic images has a score, the curve says how many real lesions reach it, and
what these are beyond the arm's own is what its synthetic images are worth (:mod:`stda.measure.curves` says how, and
how sure that is).

What to keep in mind.  More lesions come with more images of *every* class on the curve, while a generator mostly adds
rare ones: for the recall of a class the size is that class's own, but the others grow along.  An oracle adds classes
where it has them held back, so beyond the train fold the mixture differs.  All arms have the same updates: a worth is
one at equal compute.  Under the balanced sampler added images change no class's share of the updates, as more real
lesions do not either; under the shuffling one they do, and the worth holds that rebalancing too: duplicates tell how
much it is.  Arms of another recipe than the curve's do not belong here (:func:`stda.measure.sweep.same_recipe`).
Intervals hold one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure import bootstrap
from stda.measure.curves import Contest, Curve, fit_curve, place
from stda.measure.scores import check_metric, require_columns
from stda.measure.verdict import arm_table

ALL = "all"  # the row of the metric itself, beside those of the classes
WORDS = {
    "flat": "the curve does not rise",
    "single": "one replicate decides nothing",
    "beyond": "worth more than the curve reaches",
    "worth": "worth real images",
    "none": "not told from none",
    "costs": "costs real images",
}
SIZES = ("replicate", "arm", "class", "real", "lesions", "labelled")
CURVE_COLUMNS = ("class", "metric", "arm", "real", "lesions", "mean", "low", "high", "fitted", "replicates")
COLUMNS = (
    *("arm", "class", "metric", "score", "real", "lesions", "added"),
    *("worth", "low", "high", "worth_each", "beyond", "worth_lesions", "low_lesions", "high_lesions"),
    *("words", "replicates", "evidence"),
)


def learning_curve(
    predictions: pd.DataFrame,
    composition: pd.DataFrame,
    arms: Sequence[str],  # of the curve
    *,
    metric: str = "balanced_accuracy",
    others: Sequence[str] = (),  # arms off the curve whose spread over replicates helps to know that of these
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    positive: str | None = None,  # the class that sensitivity speaks of
) -> pd.DataFrame:
    """Return the points of the learning curves: of the metric, and of the recall of every class but the largest.

    ``predictions`` has rows per replicate, arm, split and image (see :func:`stda.measure.judge`), ``composition`` rows
    per replicate, arm and class with ``real, lesions, labelled``.  Returns :data:`CURVE_COLUMNS`, smallest size first:
    images and lesions are means over replicates (of the class itself in the curves of recalls), ``low, high`` the
    interval of the mean, ``fitted`` the monotone fit.  Points without a lesion of a class are left out, and so are
    classes without test images or with fewer than two sizes.  An empty table when no arm is given.

    Raises:
        BadInput: a missing column, an arm without predictions or composition, a metric that cannot be resampled.
    """
    rows = []
    positive = _positive(composition, positive)
    for name, asked in _questions(predictions, composition, arms, metric, positive):
        part = _answers(predictions, [*arms, *others], asked)
        if part is None:
            continue
        sizes = _sizes(composition, part, name)
        table = arm_table(
            part, (), metrics=(asked,), confidence=confidence, resamples=resamples, seed=seed,
            classes=_classes(predictions), positive=positive,
        ).set_index("arm")  # fmt: skip
        curve = fit_curve(list(table.index), table[asked].to_numpy(), sizes, arms)
        for arm in sorted(arms, key=lambda a: (sizes.loc[a, "lesions"], a)) if curve is not None else []:
            point = np.flatnonzero(curve.weights[:, table.index.get_loc(arm)])
            if len(point):
                row = {"class": name, "metric": asked, "arm": arm, **sizes.loc[arm, ["real", "lesions"]]}
                row |= {"mean": table.loc[arm, asked], "low": table.loc[arm, f"{asked}_low"]}
                row |= {"high": table.loc[arm, f"{asked}_high"], "fitted": curve.fitted[point[0]]}
                rows.append(row | {"replicates": int(table.loc[arm, "replicates"])})
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def exchange_table(
    predictions: pd.DataFrame,
    composition: pd.DataFrame,
    *,
    curve_arms: Sequence[str],  # subsets of the real lesions, all of them, oracles: of one recipe
    synthetic: Sequence[str],  # the arms whose images are valued
    metric: str = "balanced_accuracy",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    positive: str | None = None,
) -> pd.DataFrame:
    """Say what the synthetic images of each arm are worth in real ones, by the method of this module.

    Tables as for :func:`learning_curve`.  Returns a row per arm for the metric (class "all") and for the recall of each
    class but the largest, which counts that class alone, with :data:`COLUMNS`:

    - ``score`` of the arm, its own ``real`` images and ``lesions``, and ``added``, the synthetic images that carry the
      label (means over replicates);
    - ``worth, low, high``: real images worth as much, and their interval.  ``beyond`` is "more than" or "less than"
      when the score lies beyond the curve, and ``worth`` then the bound: nothing is extrapolated.  An interval that
      leaves the curve is open, with an end at plus or minus infinity;
    - ``worth_each``: worth over added (nan where nothing was added); ``*_lesions``: the same in lesions;
    - ``words`` (:data:`WORDS`); with one replicate ``evidence`` is "lesions only", the luck of the test lesions.

    A curve whose largest point is not shown to lie above its smallest one has no rate: worth and interval are nan.  A
    class without two sizes or without test images has no row.  No arm of either kind: an empty table.

    Raises:
        BadInput: as :func:`learning_curve`, or no replicate in which all of these arms were run.
    """
    synthetic = [arm for arm in dict.fromkeys(synthetic) if arm not in set(curve_arms)]
    positive = _positive(composition, positive)
    rows = []
    for name, asked in _questions(predictions, composition, curve_arms, metric, positive) if synthetic else []:
        part = _answers(predictions, [*curve_arms, *synthetic], asked)
        if part is None:
            continue
        contest = _contest(part, asked, resamples=resamples, seed=seed, positive=positive)
        sizes = _sizes(composition, part, name)
        curve = fit_curve(contest.arms, contest.values.mean(0), sizes, curve_arms)
        if curve is not None:
            rows += [
                {"class": name, "metric": asked} | _row(contest, curve, arm, sizes, confidence) for arm in synthetic
            ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    order = table["arm"].map({arm: i for i, arm in enumerate(synthetic)})
    return table.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def exchange_texts(table: pd.DataFrame) -> pd.DataFrame:
    """Put worth and interval of :func:`exchange_table` into one column of words for images and one for lesions."""
    shown = table[["arm", "class"]].copy()
    shown["added"] = table["added"].round().astype(int)
    for column, name in (("worth", "worth in real images"), ("worth_lesions", "in lesions")):
        ends = column.replace("worth", "")
        cells = zip(table["beyond"], table[column], table[f"low{ends}"], table[f"high{ends}"], strict=True)
        shown[name] = [
            "\N{EN DASH}" if np.isnan(v) else f"{f'{word} ' if word else ''}{_whole(v)} [{_range(low, high)}]"
            for word, v, low, high in cells
        ]
    shown["worth each"] = table["worth_each"]
    return shown.assign(reading=table["words"])


def exchange_sentence(table: pd.DataFrame, *, curve_arms: Sequence[str], confidence: float = 0.95) -> str:
    """Say what each arm's synthetic images are worth for the metric, or how to find out."""
    if not len(curve_arms):
        return (
            "No learning curve was run, so synthetic images have no price in real ones. Add arms that train on a part "
            "of the lesions, such as real_share 0.125, 0.25 and 0.5, otherwise set like an arm that uses them all."
        )
    rows = table[table["class"] == ALL]
    if not len(rows):
        return "No arm with synthetic images was compared with the learning curve, so there is nothing to price."
    return " ".join(_said(row, confidence) for row in rows.itertuples())


def _said(row: object, confidence: float) -> str:
    images = f"{_whole(row.added)} synthetic images of arm {row.arm}"
    if row.words == WORDS["flat"]:
        metric = row.metric.replace("_", " ")
        return f"What {images} are worth cannot be said: {metric} is not shown to rise with the real lesions."
    about = row.beyond or "about"
    tail = " (one replicate: the luck of the test lesions only)" if row.replicates < 2 else ""
    end = f", {row.words}" if row.replicates > 1 else ""
    return (
        f"{images} are worth {about} {_whole(row.worth)} real ones ({confidence:.0%} interval: "
        f"{_range(row.low, row.high)}){tail}{end}."
    )


def _whole(value: float) -> str:
    return str(round(value)).replace("-", "\N{MINUS SIGN}")


def _range(low: float, high: float) -> str:
    if np.isinf(low) and np.isinf(high):
        return "anything on the curve and beyond"
    if np.isinf(high):
        return f"{_whole(low)} or more"
    return f"{_whole(high)} or fewer" if np.isinf(low) else f"{_whole(low)} to {_whole(high)}"


def _row(contest: Contest, curve: Curve, arm: str, sizes: pd.DataFrame, confidence: float) -> dict:
    """Return one row of the exchange table, without its class and metric."""
    own = sizes.loc[arm, ["lesions", "real"]].to_numpy(dtype=float)
    found = place(contest, curve, arm, near=own[0], confidence=confidence)
    open_ends = {"low": -np.inf, "high": np.inf}
    worth = {}
    for key, name in (("point", "worth"), ("low", "low"), ("high", "high")):
        if not found["rises"]:
            size = np.full(2, np.nan)
        else:
            size = (
                np.full(2, open_ends[key]) if found[key] is None else np.round(curve.size_at(found[key]) - own, 6) + 0.0
            )
        worth[f"{name}_lesions"], worth[name] = (float(value) for value in size)
    replicates, added = len(contest.values), float(sizes.loc[arm, "labelled"])
    return {
        "arm": arm,
        "score": float(contest.values[:, contest.arms.index(arm)].mean()),
        "real": own[1],
        "lesions": own[0],
        "added": added,
        **worth,
        "worth_each": worth["worth"] / added if added else np.nan,
        "beyond": found["beyond"] if found["rises"] else "",
        "words": WORDS[_word(worth, found, replicates)],
        "replicates": replicates,
        "evidence": "lesions only" if replicates < 2 else "replicates and lesions",
    }


def _word(worth: dict, found: dict, replicates: int) -> str:
    if not found["rises"]:
        return "flat"
    if replicates < 2:
        return "single"
    if worth["high"] < 0:
        return "costs"
    if found["above"]:
        return "beyond"
    return "worth" if worth["low"] > 0 else "none"


def _questions(
    predictions: pd.DataFrame, composition: pd.DataFrame, arms: Sequence[str], metric: str, positive: str | None
) -> list[tuple[str, str]]:
    """Return (class or "all", metric) of every curve; none without arms."""
    require_columns(predictions, ("replicate", "arm", "split", "label", "predicted"))
    if not len(arms):
        return []
    require_columns(composition, SIZES, what="composition")
    check_metric(metric, _classes(predictions), positive)
    real = composition.groupby("class")["real"].max().sort_index()
    return [(ALL, metric), *((name, f"recall_{name}") for name in real.index if name != real.idxmax())]


def _positive(composition: pd.DataFrame, positive: str | None) -> str | None:
    """Return the class that sensitivity speaks of: of two classes the rarer one, unless one is named."""
    if positive is None and "class" in composition and composition["class"].nunique() == 2:
        return str(composition.groupby("class")["real"].max().sort_index().idxmin())
    return positive


def _answers(predictions: pd.DataFrame, arms: Sequence[str], metric: str) -> pd.DataFrame | None:
    """Return the test answers that the metric depends on (a recall on one class only), None without any."""
    found = set(predictions["arm"].unique())
    missing = [arm for arm in arms if arm not in found]
    if missing:
        raise BadInput(f"Arm '{missing[0]}' of the exchange rate has no predictions: run notebook 06 for it.")
    rows = predictions[(predictions["split"] == "test") & predictions["arm"].isin(arms)]
    if metric.startswith("recall_"):
        rows = rows[rows["label"] == metric[7:]]
        return rows if len(rows) else None
    return rows


def _classes(predictions: pd.DataFrame) -> list[str]:
    return sorted({*predictions["label"].unique(), *predictions["predicted"].unique()})


def _contest(part: pd.DataFrame, metric: str, *, resamples: int, seed: int, positive: str | None) -> Contest:
    """Score the arms on the replicates that all of them ran in."""
    fold = bootstrap.count_fold(part, "test")
    values = fold.values(metric, positive)
    complete = np.isfinite(values).all(1)
    if not complete.any():
        raise BadInput(f"No replicate has all of the arms {', '.join(fold.arms)}: run notebook 06 for those missing.")
    draws = bootstrap.resample_lesions(fold, metric, resamples=resamples, seed=seed, positive=positive)
    return Contest(fold.arms, values[complete], draws[:, complete], bootstrap.lesion_step(fold, metric, positive))


def _sizes(composition: pd.DataFrame, part: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return real images, lesions and added images by arm (index), of one class or of all: means over replicates."""
    rows = composition[composition["replicate"].isin(part["replicate"].unique())]
    rows = rows if name == ALL else rows[rows["class"] == name]
    columns = ["real", "lesions", "labelled"]
    sizes = rows.groupby(["replicate", "arm"])[columns].sum().groupby("arm").mean().astype(float)
    missing = sorted(set(part["arm"]) - set(sizes.index))
    if missing:
        raise BadInput(f"Arm '{missing[0]}' has no composition, so its number of lesions is unknown: run it again.")
    return sizes
