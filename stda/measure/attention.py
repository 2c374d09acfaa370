"""Attention: do classifiers that were trained with synthetic images look at the lesion more, or at artefacts?

What is compared is the share of positive relevance inside the lesion beyond its share of the pixels (``gain`` of
:func:`stda.explain.focus_table`), or the share that a drawn artefact drew to itself (``drawn_in`` of
:func:`stda.explain.artefact_table`).  The rules are those of the verdict (:mod:`stda.measure.verdict`):

- The **difference** is the mean over replicates of arm minus baseline, paired by image, with a Student interval over
  replicates and lesions (:func:`stda.measure.bootstrap.estimate`).  Lesions are reweighted (Bayesian bootstrap), the
  same for all arms and replicates, and every class keeps its share of a replicate's images.  The spread over replicates
  is pooled over the arms, but never below the arm's own.
- All comparisons of one table (arms, methods, artefacts) are **one family** for Holm's correction.  ``low, high`` is
  drawn at ``level``, the level at which Holm's procedure tested the row: it leaves out zero exactly when ``p_holm`` is
  at most alpha.  It ends where shares end (1 for the lesion, 2 for what an artefact drew).
- **equivalent** if two one-sided tests against +-smallest_difference (Holm-adjusted as well) show the difference to be
  smaller than that; else **more** or **less** if ``p_holm`` <= alpha; else **no difference seen**, which is no proof
  that there is none.  With one replicate the interval is of lesions only, and the answer is **undecided**.  An arm that
  was never explained in one replicate with the baseline is **not compared**.

The baseline was chosen by its score on validation, not by where it looks, so there is no luck of a choice to correct.

Simulated (two judged arms beside three others, 60 images, trainings that differ by 2 points and images by 12, normal;
300 or 400 studies each): without any difference, 0.3 % of studies with three replicates and 1.5 % with five hold a
false answer, 2.0 and 1.3 % when one judged arm varies three times as much.  A true difference of 5 points is found in
18 % of studies with three replicates and 59 % with five: few replicates see large differences only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure import bootstrap
from stda.measure.scores import require_columns
from stda.measure.verdict import decision, holm, holm_levels

LESION = "lesion"
ROW = ("replicate", "arm", "method", "image_id", "group", "label")
COLUMNS = {
    "arm": object,
    "against": object,
    "what": object,
    "method": object,
    "difference": float,
    "low": float,
    "high": float,
    "replicates": int,
    "images": int,
    "answer": object,
    "level": float,
    "p_value": float,
    "p_holm": float,
    "p_equivalence": float,
    "smallest_difference": float,
    "left_out": int,
    "evidence": object,
}
NONE_RAN = "not compared"
ANSWERS = {"equivalent": "equivalent", "helps": "more", "harms": "less", "undecided": "no difference seen"}


def attention_table(
    focus: pd.DataFrame,  # of all replicates: focus_table() or artefact_table() with columns replicate and arm
    *,
    baseline: str,  # the arm that the others are compared with
    synthetic: Sequence[str],  # the arms that are judged
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    smallest_difference: float = 0.02,  # share of relevance; fixed before the run, smaller ones do not matter; 0: none
    pool: Sequence[str] | None = None,  # the arms whose spread over replicates is pooled; None: all
) -> pd.DataFrame:
    """Compare where the judged arms and the baseline look, by the rules of this module.

    A table with a column ``artefact`` is asked for ``drawn_in``, by artefact; any other for ``gain``, in the lesion.
    Returns a row per thing that is looked at, method and judged arm with :data:`COLUMNS`: ``what`` is "lesion" or the
    artefact; ``difference, low, high`` are shares of relevance (0.01 is one point), ``images`` how many pairs of maps
    were compared over all replicates, ``left_out`` how many were not as one of the two has no positive relevance.
    p-values are nan for one replicate, everything is nan for an arm that was not compared.  An empty ``focus`` (no
    masks, or nothing was explained) or no judged arm gives an empty table.

    Raises:
        BadInput: missing columns, a judged arm that is the baseline, an image explained twice by one arm and method,
            arms of one replicate that were not explained on the same images, impossible numbers.
    """
    synthetic = list(dict.fromkeys(synthetic))
    _check_knobs(baseline, synthetic, confidence, resamples, smallest_difference)
    if not len(focus) or not synthetic:
        return pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
    what, quantity = ("artefact", "drawn_in") if "artefact" in focus else (LESION, "gain")
    require_columns(focus, (*ROW, quantity), what="relevance shares")
    focus = focus if what in focus else focus.assign(lesion=LESION)
    groups = sorted(set(focus["group"]))
    weights = np.random.default_rng(seed).standard_exponential((resamples, len(groups)))
    weights = np.vstack([np.ones(len(groups)), weights])  # the first row is the estimate itself
    rows, found = [], []
    for (thing, method), part in focus.groupby([what, "method"], sort=False):
        _check_pairing(part)
        shares = part.pivot(index=["replicate", "image_id", "group", "label"], columns="arm", values=quantity)
        spreads = bootstrap.pooled_spreads(_means(shares, pool))
        for arm in synthetic:
            drawn, pairs, left_out = _differences(shares, arm, baseline, weights, groups)
            row = {"arm": arm, "against": baseline, "what": thing, "method": method, "left_out": left_out}
            rows.append(row | {"images": pairs, "replicates": drawn.shape[1]})
            pooled = spreads and spreads[1]
            found.append(bootstrap.estimate(drawn[0], drawn[1:], pooled=pooled) if drawn.shape[1] else None)
    return _answered(rows, found, 1 - confidence, smallest_difference)


def attention_sentence(table: pd.DataFrame) -> str:
    """Say in a few sentences what :func:`attention_table` found (several of them may be joined), numbers computed."""
    if table.empty:
        return (
            "There is nothing to compare: no arm with synthetic images was run, or there are no maps of it and the "
            "baseline (notebook 07 was not run, or the source has no lesion masks)."
        )
    words = []
    for thing, rows in table.groupby("what", sort=False):
        where = "inside the lesion" if thing == LESION else f"drawn to {thing}"
        answers = [answer for answer in ("more", "less", "equivalent") if _any(rows, answer)]
        said = [f"{answer} for {_named(rows, answer)}" for answer in answers]
        for answer in ("no difference seen", "undecided"):
            n = int((rows["answer"] == answer).sum())
            said += [f"{answer} in {n} of {len(rows)} comparisons"] * bool(n)
        missing = dict.fromkeys(rows.loc[rows["answer"] == NONE_RAN, "arm"])
        said += [f"{NONE_RAN}: {', '.join(missing)}"] * bool(missing)
        words.append(f"Relevance {where}, against arm {rows['against'].iloc[0]}: {'; '.join(said)}.")
        both = set(rows.loc[rows["answer"] == "more", "arm"]) & set(rows.loc[rows["answer"] == "less", "arm"])
        if both:
            words.append(f"The methods contradict each other on {', '.join(sorted(both))}, so nothing follows there.")
    if _any(table, NONE_RAN):
        words.append("Not compared is an arm that was never explained in one replicate with the baseline.")
    if _any(table, "no difference seen"):
        words.append("Not seen is not shown to be absent.")
    if _any(table, "undecided"):
        words.append("An interval from one replicate is of lesions only, and one replicate decides nothing.")
    return " ".join(words)


# --------------------------------------------------------------------------------------------------------------- parts


def _differences(
    shares: pd.DataFrame, arm: str, baseline: str, weights: np.ndarray, groups: list[str]
) -> tuple[np.ndarray, int, int]:
    """Return the mean difference ``(B, R)`` under each reweighting of the lesions, in the replicates that have one.

    Also how many pairs of maps entered, and how many did not as a share is undefined.
    """
    columns, pairs, left_out = [], 0, 0
    if arm in shares and baseline in shares:
        for _, rows in (shares[arm] - shares[baseline]).groupby(level="replicate", sort=True):
            known = rows.dropna()
            left_out += len(rows) - len(known)
            if len(known):
                pairs += len(known)
                columns.append(_reweighted(known, weights, groups))
    drawn = np.stack(columns, axis=1) if columns else np.empty((len(weights), 0))
    return drawn, pairs, left_out


def _reweighted(values: pd.Series, weights: np.ndarray, groups: list[str]) -> np.ndarray:
    """Return the mean ``(B,)`` of values of images under weights ``(B, G)`` of their lesions, class by class."""
    lesion = pd.Index(groups).get_indexer(values.index.get_level_values("group"))
    labels, mean = values.index.get_level_values("label").to_numpy(), np.zeros(len(weights))
    for label in np.unique(labels):
        own = labels == label
        of_images = weights[:, lesion[own]]
        mean += own.mean() * (of_images @ values.to_numpy()[own]) / of_images.sum(axis=1)
    return mean


def _means(shares: pd.DataFrame, pool: Sequence[str] | None) -> np.ndarray:
    """Return the mean share ``(R, A)`` of every replicate and pooled arm, nan where it was not explained."""
    arms = [arm for arm in shares if pool is None or arm in set(pool)]
    return shares[arms].groupby(level="replicate").mean().to_numpy()


def _answered(
    rows: list[dict], found: list[bootstrap.Estimate | None], alpha: float, smallest_difference: float
) -> pd.DataFrame:
    """Test all comparisons as one family; those that did not run are no part of it."""
    asked = [i for i, e in enumerate(found) if e is not None]
    single = np.array([rows[i]["replicates"] < 2 for i in asked], dtype=bool)
    # what has one replicate cannot be decided, but stays in the family: it is one of the questions asked
    p_value = np.where(single, 1.0, [found[i].p_two_sided() for i in asked])
    bound = smallest_difference
    p_tost = np.where(single, 1.0, [max(found[i].p_above(-bound), found[i].p_below(bound)) for i in asked])
    p_holm, levels = holm(p_value), holm_levels(p_value, alpha)
    p_equivalence = holm(p_tost) if bound > 0 else np.ones(len(asked))
    for row in rows:
        row |= {"answer": NONE_RAN, "evidence": "none", "smallest_difference": bound}
    for k, i in enumerate(asked):
        # no two shares differ by more than one, no two differences of shares by more than two
        widest = 1.0 if rows[i]["what"] == LESION else 2.0
        low, high = np.clip(found[i].interval(levels[k]), -widest, widest)
        rows[i] |= {"difference": found[i].mean, "low": low, "high": high, "level": levels[k]}
        if single[k]:
            rows[i] |= {"answer": "undecided", "evidence": "lesions only"}
            continue
        rows[i] |= {"p_value": p_value[k], "p_holm": p_holm[k], "p_equivalence": p_equivalence[k]}
        rows[i] |= {"evidence": "replicates and lesions"}
        rows[i]["answer"] = ANSWERS[decision(found[i].mean, p_holm[k], p_equivalence[k], alpha)]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype(COLUMNS)


def _named(rows: pd.DataFrame, answer: str) -> str:
    found = rows[rows["answer"] == answer]
    return ", ".join(f"{r.arm} by {r.method} ({100 * r.difference:+.1f} points)" for r in found.itertuples())


def _any(rows: pd.DataFrame, answer: str) -> bool:
    return bool((rows["answer"] == answer).any())


def _check_pairing(part: pd.DataFrame) -> None:
    for replicate, rows in part.groupby("replicate"):
        pictures = dict(_pictures(rows))
        first, expected = next(iter(pictures.items()))
        other = next((arm for arm, index in pictures.items() if not index.equals(expected)), None)
        if other is not None:
            raise BadInput(
                f"Arms '{first}' and '{other}' of replicate {replicate} were not explained on the same images: "
                "differences are paired, so run notebook 07 again."
            )


def _pictures(rows: pd.DataFrame) -> Iterator[tuple[str, pd.MultiIndex]]:
    """Yield each arm and the images that it was explained on, in one order."""
    for arm, own in rows.groupby("arm", sort=False):
        if own["image_id"].duplicated().any():
            raise BadInput(f"Arm '{arm}' has two maps of one image by one method: join every notebook 07 only once.")
        yield arm, pd.MultiIndex.from_frame(own[["image_id", "group", "label"]].sort_values("image_id"))


def _check_knobs(
    baseline: str, synthetic: Sequence[str], confidence: float, resamples: int, smallest_difference: float
) -> None:
    if baseline in synthetic:
        raise BadInput(f"Arm '{baseline}' cannot be judged against itself: take it off the judged arms.")
    if not 0.5 <= confidence < 1:
        raise BadInput(f"confidence is {confidence:g}; it must lie between 0.5 and 1, such as 0.95.")
    if resamples < 100:
        raise BadInput(f"resamples is {resamples}; a standard error needs at least 100, such as 2000.")
    if not smallest_difference >= 0:
        raise BadInput(f"smallest_difference is {smallest_difference}; it must be 0 or more, such as 0.02.")
