"""ImageSet: the one type that flows through the study, pixels and the table that describes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput

if TYPE_CHECKING:
    import torch

# every set has these columns, in this order; a source may add more behind them
COLUMNS = ("image_id", "label", "group", "split", "generator", "source_ids", "label_confidence")
TEXT_COLUMNS = COLUMNS[:6]
# "" is a set that has not been split yet; held-back images are seen by the oracle's arms and by nothing else
HELD_BACK = "held-back"  # split of real images that only the oracle's arms see
SPLITS = ("", "train", "val", "test", HELD_BACK, "synthetic")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their table, row by row.

    ``images`` is uint8 ``(N, H, W, 3)``, RGB, an array or a read-only memory map; ``table`` has N rows and at least
    the columns of :data:`COLUMNS`.  Real and synthetic sets have the same columns, so mixing is concatenation.
    """

    images: np.ndarray
    table: pd.DataFrame

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            raise BadInput(f"An image set holds uint8 (N, H, W, 3); got {self.images.dtype} {self.images.shape}.")
        if len(self.images) != len(self.table):
            raise BadInput(f"{len(self.images)} images came with a table of {len(self.table)} rows; they must agree.")
        object.__setattr__(self, "table", complete_table(self.table))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def size(self) -> int:
        """Height (= width) of the images in pixels."""
        return self.images.shape[1]

    @property
    def labels(self) -> np.ndarray:
        """Label of each image, ``(N,)`` of str."""
        return self.table["label"].to_numpy()

    @property
    def classes(self) -> list[str]:
        """The labels that occur, sorted."""
        return sorted(self.table["label"].unique())

    def counts(self) -> pd.Series:
        """Images per class, largest first, ties by name."""
        counts = self.table["label"].value_counts()
        return counts.sort_index().sort_values(ascending=False, kind="stable")

    def select(self, rows: np.ndarray | list | slice | None = None, **where: str | list[str]) -> ImageSet:
        """Return the rows given by a mask, indices or a slice, and by column values: ``select(split="train")``."""
        index = np.arange(len(self))
        if rows is not None:
            index = index[np.asarray(rows, dtype=int) if isinstance(rows, list) and not rows else rows]
        for column, wanted in where.items():
            wanted = [wanted] if isinstance(wanted, str) else list(wanted)
            index = index[self.table[column].iloc[index].isin(wanted).to_numpy()]
        return ImageSet(self.images[index], self.table.iloc[index].reset_index(drop=True))

    @staticmethod
    def concat(*sets: ImageSet) -> ImageSet:
        """Put sets of equal image size below each other."""
        sizes = sorted({s.images.shape[1:3] for s in sets})
        if len(sizes) != 1:
            raise BadInput(f"Only sets of one image size can be joined; got sizes {sizes}: resize them first.")
        images = np.concatenate([s.images for s in sets])
        return ImageSet(images, pd.concat([s.table for s in sets], ignore_index=True))

    def as_tensor(self, rows: np.ndarray | slice | None = None) -> torch.Tensor:
        """Return float32 ``(n, 3, H, W)`` in [-1, 1], the only place where pixels become tensors."""
        return to_tensor(self.images if rows is None else self.images[rows])

    def save(self, folder: Path) -> None:
        """Write ``images.npy`` and ``table.csv`` into an existing folder."""
        np.save(Path(folder) / "images.npy", np.ascontiguousarray(self.images))
        self.table.to_csv(Path(folder) / "table.csv", index=False)

    @staticmethod
    def load(folder: Path) -> ImageSet:
        """Open what :meth:`save` wrote; the pixels stay on disk (memory map) until they are used."""
        images = np.load(Path(folder) / "images.npy", mmap_mode="r", allow_pickle=False)
        return ImageSet(images, read_table(Path(folder) / "table.csv"))


def read_table(path: Path) -> pd.DataFrame:
    """Read a ``table.csv``; names stay text ("001" is not 1, and a class may be called "NA")."""
    text = dict.fromkeys(TEXT_COLUMNS, str)
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"label_confidence": [""]})


def complete_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with all of :data:`COLUMNS` first, missing ones filled with the value of a real image."""
    for column in ("image_id", "label"):
        if column not in table:
            raise BadInput(f"The table of an image set has no column '{column}'; it has {list(table.columns)}.")
    table = table.reset_index(drop=True).copy()
    filled = {"group": table["image_id"], "split": "", "generator": "", "source_ids": "", "label_confidence": 1.0}
    for column, value in filled.items():
        if column not in table:
            table[column] = value
    for column in TEXT_COLUMNS:
        table[column] = table[column].astype(str)
    unknown = sorted(set(table["split"]) - set(SPLITS))
    if unknown:
        raise BadInput(f"Unknown split {unknown}; a split is one of {list(SPLITS)}.")
    table["label_confidence"] = table["label_confidence"].astype(float)
    return table[[*COLUMNS, *(c for c in table.columns if c not in COLUMNS)]]


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Turn uint8 ``(N, H, W, 3)`` into float32 ``(N, 3, H, W)`` in [-1, 1]."""
    import torch

    pixels = torch.from_numpy(np.array(images, copy=True))  # a copy: memory maps are read-only
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(tensor: torch.Tensor) -> np.ndarray:
    """Turn ``(N, 3, H, W)`` in [-1, 1] into uint8 ``(N, H, W, 3)``: clipped, rounded to the nearest level."""
    import torch

    levels = tensor.detach().to(device="cpu", dtype=torch.float32).clamp(-1, 1).add(1.0).mul(127.5).round()
    return np.ascontiguousarray(levels.to(torch.uint8).permute(0, 2, 3, 1).numpy())


def require_train(images: ImageSet, who: str) -> None:
    """Raise unless every row is of the train fold; what is fitted sees nothing else, and no switch turns this off."""
    others = sorted(set(images.table["split"]) - {"train"})
    if others or not len(images):
        found = f"rows of split {others}" if others else "no rows"
        raise BadInput(f"{who} is fitted on the train fold only, but was given {found}: pass select(split='train').")


def added_counts(
    counts: pd.Series,
    *,
    ratio: float = 0.5,  # added images per one of the class; not used with count or balance
    count: int = 0,  # added images of each class; 0: go by ratio
    balance: bool = False,  # add what a class lacks to the largest one, instead of ratio
    classes: Sequence[str] = (),  # classes that get images; empty: all but the largest
    largest: bool = False,  # with classes empty: the largest class, too
) -> dict[str, int]:
    """Return how many images each class gets, sorted by name; a chosen class that gets none is listed with 0.

    ``counts`` are the images per class as :meth:`ImageSet.counts` orders them: its first class is the largest.
    ``round(ratio * n)`` rounds a half to the even number, as Python does.

    Raises:
        BadInput: a class that is not there, ``ratio`` not above 0, ``count`` below 0, or ``count`` with ``balance``.
    """
    if not ratio > 0:
        raise BadInput(f"ratio is {ratio}; it must be positive: added images per image of a class.")
    if count < 0:
        raise BadInput(f"count is {count}; give the number of images that each class gets, or 0 to go by ratio.")
    if count and balance:
        raise BadInput("count and balance both say how many images a class gets: choose one of them.")
    unknown = sorted(set(classes) - set(counts.index))
    if unknown:
        raise BadInput(f"No class {unknown} here; the classes are {sorted(counts.index)}.")
    chosen = sorted(classes or (counts.index if largest else counts.index[1:]))
    if count:
        return dict.fromkeys(chosen, count)
    if balance:
        return {label: int(counts.iloc[0] - counts[label]) for label in chosen}
    return {label: round(ratio * int(counts[label])) for label in chosen}
