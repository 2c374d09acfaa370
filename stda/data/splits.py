"""Stratified, grouped splits into train, val and test, and a held-back fold where it is asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stda import BadInput
from stda.images import HELD_BACK
from stda.study import sub_seed

FOLDS = ("train", "val", "test")
TRIES = 10  # random splits per class, of which the one with the best image counts is kept


def split(
    table: pd.DataFrame,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    by: str = "group",
    oracle_fraction: float = 0.0,  # share of the groups of each class that is held back; 0: none
) -> np.ndarray:
    """Return the fold of each row, ``(N,)`` of "train", "val" or "test", or "held-back" with ``oracle_fraction``.

    The groups of each class are dealt out by scikit-learn's ``train_test_split``, class by class, so every class keeps
    the fractions and lands in all three folds.  Of several random deals the one whose *image* counts come closest to
    the fractions is kept.  A group with images of several classes counts as one of its rarest class.
    ``by="image"`` ignores the groups: the leaky split that the ledger shows beside the honest one.

    Groups are held back from the train fold: val and test are those of the same seed without ``oracle_fraction``.  At
    least one group of a class is held back and at least one stays; a class with a single train group gives none, which
    the ledger shows.

    Raises:
        BadInput: fractions that leave nothing, an unknown ``by``, or a class that cannot reach all three folds.
    """
    _check(val_fraction, test_fraction, by, oracle_fraction)
    unit = table["group" if by == "group" else "image_id"].to_numpy(str)
    labels = table["label"].to_numpy(str)
    names, member = np.unique(unit, return_inverse=True)
    sizes = np.bincount(member)
    fold_of = np.full(len(names), "", dtype=f"<U{len(HELD_BACK)}")
    stratum = _strata(labels, member)
    for label in sorted(set(stratum)):
        groups = np.flatnonzero(stratum == label)
        what = "lesion (group)" if by == "group" else "image"
        if len(groups) < 3:
            count = f"a single {what}" if len(groups) == 1 else f"only {len(groups)} {what}s"
            raise BadInput(
                f"Class '{label}' has {count}: a class needs at least 3, one for each of train, val and test; "
                "add images of others or leave the class out."
            )
        own = _deal(sizes[groups], val_fraction, test_fraction, sub_seed(seed, "split", by, label))
        if oracle_fraction:
            own = _hold_back(sizes[groups], own, oracle_fraction, sub_seed(seed, HELD_BACK, by, label))
        fold_of[groups] = own
    folds = fold_of[member]
    for label in sorted(set(labels)):
        lacking = [fold for fold in FOLDS if not ((labels == label) & (folds == fold)).any()]
        if lacking:  # only where groups hold several classes
            raise BadInput(f"Class '{label}' has no group left for fold {lacking[0]}: it needs more groups of its own.")
    return folds


def _check(val_fraction: float, test_fraction: float, by: str, oracle_fraction: float) -> None:
    if by not in ("group", "image"):
        raise BadInput(f"A split is made by 'group' or by 'image', not by '{by}'.")
    if not (0 < val_fraction < 1 and 0 < test_fraction < 1 and val_fraction + test_fraction < 1):
        raise BadInput(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} must be above 0 and sum to less than 1."
        )
    if not 0 <= oracle_fraction < 1 - val_fraction - test_fraction:
        raise BadInput(
            f"oracle_fraction is {oracle_fraction}; it must be at least 0 and, with val_fraction {val_fraction} and "
            f"test_fraction {test_fraction}, leave something to train on."
        )


def _strata(labels: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Return the class that each group is dealt out with: the rarest one among its images."""
    classes, counts = np.unique(labels, return_counts=True)
    order = np.argsort(counts, kind="stable")
    rank = np.empty(len(classes), int)
    rank[order] = np.arange(len(classes))
    rarest = np.full(member.max() + 1, len(classes))
    np.minimum.at(rarest, member, rank[np.searchsorted(classes, labels)])
    return classes[order][rarest]


def _deal(sizes: np.ndarray, val_fraction: float, test_fraction: float, seed: int) -> np.ndarray:
    """Deal out the groups of one class, given their sizes in images."""
    from sklearn.model_selection import train_test_split

    n = len(sizes)
    n_test = min(max(round(test_fraction * n), 1), n - 2)
    n_val = min(max(round(val_fraction * n), 1), n - n_test - 1)
    wanted = np.array([val_fraction, test_fraction]) * sizes.sum()
    best, best_miss = np.array([]), np.inf
    for attempt in range(TRIES):
        state = sub_seed(seed, attempt) % 2**32
        rest, test = train_test_split(np.arange(n), test_size=n_test, random_state=state)
        _, val = train_test_split(rest, test_size=n_val, random_state=state)
        miss = np.abs(np.array([sizes[val].sum(), sizes[test].sum()]) - wanted).sum()
        if miss < best_miss:
            best, best_miss = np.full(n, "train", dtype="<U5"), miss
            best[val], best[test] = "val", "test"
    return best


def _hold_back(sizes: np.ndarray, folds: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Hold back ``fraction`` of all groups of a class, taken from its train groups; the best of several draws."""
    train = np.flatnonzero(folds == "train")
    n = min(max(round(fraction * len(sizes)), 1), len(train) - 1)
    if not n:
        return folds
    draws = [np.random.default_rng(sub_seed(seed, k)).choice(train, n, replace=False) for k in range(TRIES)]
    best = min(draws, key=lambda drawn: abs(sizes[drawn].sum() - fraction * sizes.sum()))
    folds = folds.astype(f"<U{len(HELD_BACK)}")
    folds[best] = HELD_BACK
    return folds
