"""Membership: can someone who holds the synthetic images tell which real images the generator was trained on?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.copying import CopySearch
from stda.measure.neighbours import nearest_rows
from stda.measure.realism import weighted_auroc

FEWEST_LESIONS = 20  # of members and of others: with fewer, intervals are too short (of 10: 6 % above chance, not 2.5)
FALSE_ALARMS = {"found_at_1": 0.01, "found_at_10": 0.10}  # shares of the non-members that are accused


def membership_table(
    search: CopySearch,
    *,
    max_members: int = 2000,  # training images of the generated classes that are tried, at most
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Attack each synthetic set: a real image close to a synthetic one is taken for a training image.

    The simplest black-box attack (Hayes et al. 2019, "LOGAN"; Chen et al. 2020, "GAN-Leaks", full black-box).
    Candidates are training images (members) and held-out ones (not members) of the classes that the set has; the score
    is minus the distance to the nearest synthetic image under the eight symmetries.  Both sides are weighted to one
    mixture of classes, or the mixture alone would tell them apart.

    Returns per set and space ``set, space, auc, low, high, found_at_1, found_at_10, n_members, n_others, n_synthetic``.
    AUC 0.5: no better than chance.  ``found_at_10`` is the share of members above the score that a tenth of the others
    reach, nan where fewer than ten others stand for it (100 for ``found_at_1``).  The interval is a Bayesian bootstrap
    over lesions of the candidates, nan where one side has fewer than :data:`FEWEST_LESIONS`; it does not hold the luck
    of drawing the synthetic images.  All nan where no class has candidates of both kinds.  Two limits: validation
    images that chose the weights (keep="best") are not quite unseen, which hides a little of the leak; and an AUC near
    0.5 clears this attack only, not stronger ones that know the generator.
    """
    if not 0 < confidence < 1:
        raise BadInput(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95.")
    rows = []
    for space in search.spaces:
        index, asked = search.indices[space], search.asked[space]
        members, others = index.table, asked[search.held_out].table
        made = sorted(set().union(*(asked[name].classes for name in search.names[1:])))
        kept = np.flatnonzero(members["label"].isin(made))
        kept = np.sort(np.random.default_rng(seed).permutation(kept)[:max_members])
        rows_of = np.concatenate([index.rows[space][kept], search.rows[space][search.held_out][0]])
        people = pd.concat([members.iloc[kept], others], ignore_index=True)
        is_member = np.arange(len(people)) < len(kept)
        for name in search.names[1:]:
            synthetic = asked[name]
            known = people["label"].isin(synthetic.classes).to_numpy()
            score = -nearest_rows(rows_of[known], search.rows[space][name].reshape(-1, rows_of.shape[1])).distance
            attack = membership_attack(
                score, is_member[known], people["label"].to_numpy(str)[known], people["group"].to_numpy(str)[known],
                confidence=confidence, resamples=resamples, seed=seed,
            )  # fmt: skip
            rows.append({"set": name, "space": space, **attack, "n_synthetic": len(synthetic)})
    return pd.DataFrame(rows)


def membership_attack(
    score: np.ndarray,
    is_member: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float | int]:
    """Return how well ``score`` (N,) tells members (bool ``(N,)``) from others, both at one mixture of ``labels`` (N,).

    A class of m members and n others has weight m n / (m + n), spread evenly over each side; a class without one of
    them is left out.  ``groups`` (N,) are lesions, which are resampled as wholes.  Keys as in :func:`membership_table`.
    """
    weights = _matched(is_member, labels)
    used = weights > 0
    score, is_member, weights, groups = score[used], is_member[used], weights[used], groups[used]
    counts = {"n_members": int(is_member.sum()), "n_others": int((~is_member).sum())}
    if not used.any():
        return dict.fromkeys(("auc", "low", "high", *FALSE_ALARMS), float("nan")) | counts
    lesion = np.unique(groups, return_inverse=True)[1]
    drawn = np.random.default_rng(seed).standard_exponential((resamples, lesion.max() + 1))
    auc, *draws = weighted_auroc(is_member, score, weights * np.vstack([np.ones(len(score)), drawn[:, lesion]]))
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    if min(len(np.unique(groups[side])) for side in (is_member, ~is_member)) < FEWEST_LESIONS:
        low = high = np.nan
    found = {key: _found(score, is_member, weights, share) for key, share in FALSE_ALARMS.items()}
    return {"auc": float(auc), "low": float(low), "high": float(high)} | found | counts


def _matched(is_member: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return weights (N,) that give members and others the same mixture of classes."""
    weights = np.zeros(len(labels))
    for label in np.unique(labels):
        member, other = is_member & (labels == label), ~is_member & (labels == label)
        m, n = member.sum(), other.sum()
        if m and n:
            weights[member], weights[other] = n / (m + n), m / (m + n)
    return weights


def _found(score: np.ndarray, is_member: np.ndarray, weights: np.ndarray, alarms: float) -> float:
    """Return the weighted share of members above the score that the share ``alarms`` of the others lies above."""
    if (~is_member).sum() < 1 / alarms:
        return float("nan")
    order = np.argsort(-score[~is_member], kind="stable")
    above = weights[~is_member][order].cumsum() / weights[~is_member].sum()
    threshold = score[~is_member][order][min(np.searchsorted(above, alarms, side="right"), len(order) - 1)]
    return float(weights[is_member & (score > threshold)].sum() / weights[is_member].sum())
