"""What leaks between folds: identical and nearly identical images, and groups that a split tears apart."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from stda import BadInput
from stda.data.decode import resize
from stda.data.splits import FOLDS
from stda.images import HELD_BACK, ImageSet

THUMB = 8  # pixels of the thumbnails that nominate pairs
CHUNK = 512  # rows compared with all others at a time: 512 x N float32 is all the memory it takes
NOMINATE = 0.95
# On HAM10000 at 32 px, 123 of the 124 pairs at or above this are of one lesion; the last one is a duplicate that the
# metadata misses (the same picture with another white balance).  At 0.95 a third of the pairs is merely alike.
SIMILAR = 0.97
PAIR_COLUMNS = [
    *("image_a", "image_b", "label_a", "label_b", "split_a", "split_b"),
    *("same_group", "across_folds", "exact", "correlation"),
]


def exact_duplicates(images: ImageSet) -> pd.DataFrame:
    """Return the pairs of images whose pixels are identical, one row per pair, as :func:`duplicates` does.

    Of more than two equal images every one is paired with the first.
    """
    first: dict[bytes, int] = {}
    pairs = []
    for k, picture in enumerate(images.images):
        twin = first.setdefault(hashlib.sha256(np.ascontiguousarray(picture)).digest(), k)
        if twin != k:
            pairs.append((twin, k))
    places = np.array(pairs, int).reshape(-1, 2)
    return _pair_table(images, places, np.ones(len(places)), exact=np.ones(len(places), bool))


def near_duplicates(images: ImageSet, *, similar: float = SIMILAR) -> pd.DataFrame:
    """Return the pairs of images that show nearly the same picture, most alike first.

    Two images are alike when the correlation of their pixels, each channel freed of its own mean, is at least
    ``similar``: light and white balance do not matter, place, zoom and angle do (a turned or flipped copy is not
    found; on HAM10000 looking for these brought false alarms only).  Thumbnails nominate the pairs, the set's own
    pixels decide.  10,015 images of 32 px take about 2 s on one core; chunked, so memory stays small.
    """
    if not 0 < similar <= 1:
        raise BadInput(f"similar is {similar}; a correlation threshold lies above 0 and at most at 1.")
    thumbs = _normalised(resize(images.images, min(THUMB, images.size)))
    floor, found = min(NOMINATE, similar), []
    for start in range(0, len(thumbs), CHUNK):
        likeness = thumbs[start : start + CHUNK] @ thumbs[start:].T
        rows, columns = np.nonzero(likeness >= floor)
        later = rows < columns
        found.append(np.stack([rows[later], columns[later]], axis=1) + start)
    places = np.concatenate(found) if found else np.empty((0, 2), int)
    likeness = _correlations(images.images, places)
    kept = np.flatnonzero(likeness >= similar)
    kept = kept[np.argsort(-likeness[kept], kind="stable")]
    places, likeness = places[kept], likeness[kept]
    exact = np.array([np.array_equal(images.images[a], images.images[b]) for a, b in places], bool)
    return _pair_table(images, places, likeness, exact=exact)


def duplicates(images: ImageSet) -> pd.DataFrame:
    """Return exact and near-duplicate pairs together, most alike first.

    Columns: image_a, image_b, label_a, label_b, split_a, split_b, same_group, across_folds, exact (identical pixels)
    and correlation.  Two images without any contrast are compared exactly only.
    """
    pairs = pd.concat([exact_duplicates(images), near_duplicates(images)], ignore_index=True)
    pairs = pairs.drop_duplicates(["image_a", "image_b"], ignore_index=True)
    return pairs.sort_values(["exact", "correlation"], ascending=False, kind="stable", ignore_index=True)


def _normalised(pictures: np.ndarray) -> np.ndarray:
    """Free each image of its channel means and scale it to unit length, float32 ``(N, pixels)``; flat ones stay 0."""
    flat = pictures.reshape(len(pictures), -1, 3).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(flat).sum(axis=(1, 2), keepdims=True))
    return (flat / np.maximum(length, 1e-3)).reshape(len(pictures), -1)


def _correlations(pictures: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the correlation of each pair at full size."""
    values = np.empty(len(places), np.float32)
    for start in range(0, len(places), CHUNK):
        part = places[start : start + CHUNK]
        left, right = _normalised(pictures[part[:, 0]]), _normalised(pictures[part[:, 1]])
        values[start : start + CHUNK] = (left * right).sum(axis=1)
    return values


def _pair_table(images: ImageSet, places: np.ndarray, likeness: np.ndarray, *, exact: np.ndarray) -> pd.DataFrame:
    first, second = (images.table.iloc[places[:, side]].reset_index(drop=True) for side in (0, 1))
    pairs = pd.DataFrame({"image_a": first["image_id"], "image_b": second["image_id"]})
    for column in ("label", "split"):
        pairs[f"{column}_a"], pairs[f"{column}_b"] = first[column], second[column]
    pairs["same_group"] = first["group"] == second["group"]
    pairs["across_folds"] = first["split"] != second["split"]
    pairs["exact"] = exact
    pairs["correlation"] = likeness.astype(float)
    return pairs[PAIR_COLUMNS]


# --------------------------------------------------------------------------------------------------------- the ledger


def ledger(images: ImageSet | pd.DataFrame, *, folds: np.ndarray | None = None,
           pairs: pd.DataFrame | None = None) -> pd.DataFrame:  # fmt: skip
    """Count per class what leaks under a split; the last row ("all") is the total.

    ``folds`` replaces the table's own split.  Columns: label, images, groups, groups_of_several (more than one
    image), test_images, test_in_train (test images whose group is also in train), test_leaked (in train or val),
    both also in percent; where the split has a held-back fold, held_back_images, held_back_groups (0: the class had too
    few groups for one) and test_held_back (test images whose group is also held back, with percent); and with
    ``pairs`` (of :func:`duplicates`) pairs_across (pairs that lie in two folds, the held-back one included; counted for
    the class of the first image).
    """
    table = images.table if isinstance(images, ImageSet) else images
    fold = table["split"].to_numpy(str) if folds is None else np.asarray(folds, str)
    if len(fold) != len(table) or not set(fold) <= {*FOLDS, HELD_BACK}:
        raise BadInput("A ledger needs the fold (train, val, test or held-back) of every row: split the set first.")
    group = table["group"]
    several = group.map(group.value_counts()) > 1
    test, held_back = fold == "test", fold == HELD_BACK
    facts = pd.DataFrame(
        {
            "label": table["label"].to_numpy(),
            "group": group.to_numpy(),
            "several": several.to_numpy(),
            "test": test,
            "in_train": test & group.isin(group[fold == "train"]).to_numpy(),
            "leaked": test & group.isin(group[~test & ~held_back]).to_numpy(),
            "held_back": held_back,
            "in_held_back": test & group.isin(group[held_back]).to_numpy(),
        }
    )
    rows = [_ledger_row(label, part) for label, part in facts.groupby("label", sort=True)]
    result = pd.DataFrame([*rows, _ledger_row("all", facts)])
    if not held_back.any():
        result = result[[column for column in result if "held_back" not in column]]
    if pairs is not None:
        fold_of = dict(zip(table["image_id"], fold, strict=True))
        across = pairs[pairs["image_a"].map(fold_of) != pairs["image_b"].map(fold_of)]
        counts = across["label_a"].value_counts()
        result["pairs_across"] = [*(int(counts.get(label, 0)) for label in result["label"][:-1]), len(across)]
    return result


def _ledger_row(label: str, part: pd.DataFrame) -> dict[str, str | int | float]:
    n_test = int(part["test"].sum())
    row = {
        "label": label,
        "images": len(part),
        "groups": part["group"].nunique(),
        "groups_of_several": part["group"][part["several"]].nunique(),
        "held_back_images": int(part["held_back"].sum()),
        "held_back_groups": part["group"][part["held_back"]].nunique(),
        "test_images": n_test,
    }
    for name, column in (("test_in_train", "in_train"), ("test_leaked", "leaked"), ("test_held_back", "in_held_back")):
        row[name] = int(part[column].sum())
        row[f"{name}_percent"] = 100 * row[name] / n_test if n_test else float("nan")
    return row


def compare(
    images: ImageSet | pd.DataFrame, honest: np.ndarray, leaky: np.ndarray, *, pairs: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Put the ledgers of an honest split and of a leaky image-level split side by side; last row "all".

    ``honest`` is ``split(table, ...)``, ``leaky`` is ``split(table, ..., by="image")``; the set's own split is not
    used.  "leaked" is the share of test images whose lesion is also in the train fold, "seen" the share whose lesion is
    in train or val: with 30 % test images the latter is the number that a random 70/30 split gives.  Where there is a
    held-back fold, its images are counted ("none": the class has too few lesions for a fourth fold), and so is the
    share of test images whose lesion is there, too, which only the oracle's arms see.  With
    ``pairs`` the duplicates across folds are counted for both splits.
    """
    own, other = ledger(images, folds=honest, pairs=pairs), ledger(images, folds=leaky, pairs=pairs)
    table = own[["label", "images", "groups", "groups_of_several"]].rename(
        columns={"label": "class", "groups_of_several": "groups of several images"}
    )
    for part, way in ((own, "lesion"), (other, "image")):
        table[f"test images if split by {way}"] = part["test_images"]
        table[f"leaked if split by {way} %"] = part["test_in_train_percent"]
        table[f"seen if split by {way} %"] = part["test_leaked_percent"]
        if "held_back_images" in part:
            table[f"held-back images if split by {way}"] = part["held_back_images"].replace(0, "none")
            table[f"shared with held back if split by {way} %"] = part["test_held_back_percent"]
        if pairs is not None:
            table[f"duplicates across folds if split by {way}"] = part["pairs_across"]
    return table
