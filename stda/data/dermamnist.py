"""DermaMNIST: the ``.npz`` of MedMNIST (Yang et al., Sci. Data 10:41, 2023), the centre squares of HAM10000.

The file says nothing of lesions: 641 of them lie in both train and test of the official split, so that split is kept
only as a column.  With ``dermamnist_split_to_ham.csv`` (split, index, lesion_id) beside the file the group is the
lesion; without it every picture is its own group and **a split by group leaks lesions**: ``describe`` then sets
``table.attrs["warning"]``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stda import BadInput
from stda.data.listing import existing_root, picked_classes, read_csv

MAPPING = "dermamnist_split_to_ham.csv"
NAMES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")  # the labels 0 to 6
FOLDS = ("train", "val", "test")
MALIGNANT = ("mel", "bcc", "akiec")
WARNING = (
    f"DermaMNIST without {MAPPING} beside it: lesions are unknown, every image is its own group, "
    "and images of one lesion may lie on both sides of the split."
)


def find(root: str | Path) -> Path:
    """Return the path of the ``.npz``: ``root`` itself, or the one ``dermamnist*.npz`` in it."""
    path = existing_root("dermamnist", root, holds="the dermamnist .npz file of MedMNIST or its folder")
    if path.is_file():
        return path
    files = sorted(path.glob("dermamnist*.npz"))
    if len(files) != 1:
        found = [file.name for file in files] or "none"
        raise BadInput(f"data.root '{root}' must hold one dermamnist*.npz, found {found}: give the path of the file.")
    return files[0]


def describe(root: str | Path, classes: str = "") -> pd.DataFrame:
    """List the images as ``train_00012``, in file order, with the official fold in column ``medmnist_split``.

    ``classes``: "" or "seven"; "two" (malignant = mel, bcc, akiec against benign); or some names, "mel,nv".
    """
    path = find(root)
    arrays = _open(path, [f"{fold}_labels" for fold in FOLDS])
    rows = []
    for fold in FOLDS:
        numbers = np.asarray(arrays[f"{fold}_labels"]).reshape(-1)
        if numbers.size and not set(numbers.tolist()) <= set(range(len(NAMES))):
            raise BadInput(f"{path} has labels outside 0..{len(NAMES) - 1}: it is not DermaMNIST.")
        rows += [(f"{fold}_{k:05d}", NAMES[int(number)], fold) for k, number in enumerate(numbers)]
    table = pd.DataFrame(rows, columns=["image_id", "label", "medmnist_split"])
    mapping = path.parent / MAPPING
    table["group"] = _lesions(mapping, table["image_id"]) if mapping.is_file() else table["image_id"]
    if classes == "two":
        table["label"] = table["label"].isin(MALIGNANT).map({True: "malignant", False: "benign"})
    elif classes not in ("", "seven"):
        kept = picked_classes(classes, table["label"], tasks=("seven", "two"))
        table = table[table["label"].isin(kept)].reset_index(drop=True)
    if not mapping.is_file():
        table.attrs["warning"] = WARNING
    return table


def images(root: str | Path, image_ids: Sequence[str]) -> np.ndarray:
    """Return the stored images of these ids, uint8 ``(n, H, W, 3)``."""
    arrays = _open(find(root), [f"{fold}_images" for fold in FOLDS])
    folds, places = zip(*(name.rsplit("_", 1) for name in image_ids), strict=True)
    stored = {fold: arrays[f"{fold}_images"] for fold in set(folds)}
    return np.stack([stored[fold][int(place)] for fold, place in zip(folds, places, strict=True)])


def _open(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the named arrays and nothing else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file]
            if missing:
                raise BadInput(f"{path} has no array {missing}; it has {sorted(file)}: use dermamnist.npz of MedMNIST.")
            return {name: file[name] for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, BadInput):
            raise
        reason = " ".join(str(error).split())
        raise BadInput(f"{path} cannot be read as .npz ({reason}): download dermamnist.npz again.") from error


def _lesions(mapping: Path, image_ids: pd.Series) -> pd.Series:
    """Look up the lesion of each image in the mapping to HAM10000."""
    table = read_csv(mapping, ("split", "index", "lesion_id"))
    ids = [f"{fold}_{int(k):05d}" for fold, k in zip(table["split"], table["index"], strict=True)]
    lesions = image_ids.map(dict(zip(ids, table["lesion_id"], strict=True)))
    if lesions.isna().any():
        raise BadInput(f"{mapping} gives no lesion for '{image_ids[lesions.isna()].iloc[0]}': use the whole table.")
    return lesions
