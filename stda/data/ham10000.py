"""HAM10000 as it is downloaded: a folder with the pictures and ``HAM10000_metadata.csv`` (or ``labels.csv``).

Tschandl, Rosendahl, Kittler, Sci. Data 5:180161 (2018), CC BY-NC 4.0.  Pictures may lie in the root, in ``images`` or
in the two ``HAM10000_images_part_*`` folders of the original archive.  The group is the lesion (``lesion_id``).
Lesion masks (Tschandl et al., Nat. Med. 26:1229, 2020) may lie beside them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from stda import BadInput
from stda.data.listing import Listing, existing_root, picked_classes, read_csv

TABLES = ("HAM10000_metadata.csv", "labels.csv")  # the original table, or that of a selection of the pictures
TRUTH = "ISIC_2019_Training_GroundTruth.csv"
FOLDERS = (".", "images", "HAM10000_images_part_1", "HAM10000_images_part_2")
MASK_FOLDERS = ("masks", "expert_masks", "HAM10000_segmentations_lesion_tschandl")
WHOLE = "ham10000"  # beside a selection of the pictures: the whole data set, whose masks serve the selection too
TASKS = ("seven", "eight", "two")
SEVEN = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
EIGHT = ("AK", "BCC", "BKL", "DF", "MEL", "NV", "SCC", "VASC")
MALIGNANT = ("mel", "bcc", "akiec")


def listing(root: str | Path, classes: str = "") -> Listing:
    """List the pictures of the metadata table, sorted by image id.

    ``classes``: "seven" (also ""), the diagnoses of HAM10000; "eight", those of ISIC 2019 by its ground-truth table,
    which splits akiec into AK and SCC (in ``root`` or in ``root/../isic_tables``); "two", malignant (mel, bcc, akiec)
    against benign; or some of the seven or of the eight, "mel,nv" or "AK,SCC".  Extra columns: dx, dx_type, age, sex,
    localization where given.  A picture that the table names and the folder lacks keeps the path where it should be.
    """
    folder = existing_root("ham10000", root, holds=f"a folder with {TABLES[0]} and the pictures")
    name = next((name for name in TABLES if (folder / name).is_file()), None)
    if name is None:
        wanted = " and no ".join(TABLES)
        raise BadInput(f"data.root '{root}' holds no {wanted}: point it to the folder of the HAM10000 download.")
    table = read_csv(folder / name, ("image_id", "lesion_id", "dx"))
    repeated = table["image_id"][table["image_id"].duplicated()]
    if len(repeated):
        raise BadInput(f"{name} lists image '{repeated.iloc[0]}' twice: use the original table.")
    table = table.rename(columns={"lesion_id": "group"}).sort_values("image_id", ignore_index=True)
    labels = _labels(table, classes, folder, name)
    table.insert(1, "label", labels)
    if classes not in ("", *TASKS):
        table = table[labels.isin(picked_classes(classes, labels, tasks=TASKS))].reset_index(drop=True)
    if table["label"].nunique() < 2:
        raise BadInput(f"{name} gives only class {sorted(set(table['label']))}; a classifier needs at least two.")
    return Listing(table, _paths(folder, table["image_id"], name))


def _labels(table: pd.DataFrame, classes: str, folder: Path, name: str) -> pd.Series:
    """Return the label of each row under the task."""
    unknown = sorted(set(table["dx"]) - set(SEVEN))
    if unknown:
        raise BadInput(f"{name} has the unknown diagnosis '{unknown[0]}' in column dx; it must be one of {SEVEN}.")
    if classes == "two":
        return table["dx"].isin(MALIGNANT).map({True: "malignant", False: "benign"})
    if classes == "eight" or set(re.split(r"[,\s]+", classes.strip())) <= set(EIGHT):
        return _isic_labels(table["image_id"], folder)
    return table["dx"]


def _isic_labels(image_ids: pd.Series, folder: Path) -> pd.Series:
    places = (folder / TRUTH, folder.resolve().parent / "isic_tables" / TRUTH)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise BadInput(f"data.classes 'eight' needs {TRUTH} of ISIC 2019: put it into '{folder}'.")
    truth = read_csv(path, ("image", *EIGHT)).set_index("image")
    missing = image_ids[~image_ids.isin(truth.index)]
    if len(missing):
        raise BadInput(f"{path} has no row for image '{missing.iloc[0]}' ({len(missing)} such): use the whole table.")
    one_hot = truth.loc[image_ids, list(EIGHT)].astype(float)
    if not (one_hot.sum(axis=1) == 1).all():
        raise BadInput(f"{path} does not give exactly one class to every image of HAM10000: use the original table.")
    return pd.Series(one_hot.idxmax(axis=1).to_numpy(), index=image_ids.index)


def _paths(folder: Path, image_ids: pd.Series, name: str) -> list[Path]:
    """Find each picture's file."""
    found: dict[str, Path] = {}
    for place in reversed(FOLDERS):
        for suffix in (".jpeg", ".png", ".jpg"):
            found |= {path.stem: path for path in (folder / place).glob(f"*{suffix}")}
    home = folder / "images" if (folder / "images").is_dir() else folder
    if not any(name in found for name in image_ids):
        raise BadInput(f"None of the {len(image_ids)} images of {name} lies in '{folder}' or its folder images.")
    return [found.get(name, home / f"{name}.jpg") for name in image_ids]


def mask_paths(root: str | Path) -> dict[str, Path]:
    """Return the file of the lesion mask by image id, wherever masks lie beside the pictures or in the whole set."""
    folder = existing_root("ham10000", root, holds=f"a folder with {TABLES[0]} and the pictures")
    for home in (folder, folder.resolve().parent / WHOLE):
        for place in MASK_FOLDERS:
            found = {path.stem.removesuffix("_segmentation"): path for path in (home / place).glob("*.png")}
            if found:
                return found
    raise BadInput(
        f"data.root '{root}' has no lesion masks: put them into its folder {MASK_FOLDERS[0]} as <image>.png."
    )
