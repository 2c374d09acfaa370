"""Stratified, grouped splits into train, val and test."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stda import BadInput
from stda.study import sub_seed

FOLDS = ("train", "val", "test")
TRIES = 10  # random splits per class, of which the one with the best image counts is kept


def split(
    table: pd.DataFrame, *, val_fraction: float, test_fraction: float, seed: int, by: str = "group"
) -> np.ndarray:
    """Return the fold of each row, ``(N,)`` of "train", "val" or "test".

    The groups of each class are dealt out by scikit-learn's ``train_test_split``, class by class, so every class keeps
    the fractions and lands in all three folds.  Of several random deals the one whose *image* counts come closest to
    the fractions is kept.  A group with images of several classes counts as one of its rarest class.
    ``by="image"`` ignores the groups: the leaky split that the ledger shows beside the honest one.

    Raises:
        BadInput: fractions that leave nothing, an unknown ``by``, or a class that cannot reach all three folds.
    """
    _check(val_fraction, test_fraction, by)
    unit = table["group" if by == "group" else "image_id"].to_numpy(str)
    labels = table["label"].to_numpy(str)
    names, member = np.unique(unit, return_inverse=True)
    sizes = np.bincount(member)
    fold_of = np.full(len(names), "", dtype="<U5")
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
        fold_of[groups] = _deal(sizes[groups], val_fraction, test_fraction, sub_seed(seed, "split", by, label))
    folds = fold_of[member]
    for label in sorted(set(labels)):
        lacking = [fold for fold in FOLDS if not ((labels == label) & (folds == fold)).any()]
        if lacking:  # only where groups hold several classes
            raise BadInput(f"Class '{label}' has no group left for fold {lacking[0]}: it needs more groups of its own.")
    return folds


def _check(val_fraction: float, test_fraction: float, by: str) -> None:
    if by not in ("group", "image"):
        raise BadInput(f"A split is made by 'group' or by 'image', not by '{by}'.")
    if not (0 < val_fraction < 1 and 0 < test_fraction < 1 and val_fraction + test_fraction < 1):
        raise BadInput(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} must be above 0 and sum to less than 1."
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
