"""The one protocol every generator obeys, and what all of them share: image seeds, tables, settings on disk."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from stda import BadInput
from stda.generators.pairs import image_seed, label_at
from stda.images import ImageSet, added_counts

# called once per step with a small record: step (1..steps), steps, losses; now and then "grid", uint8 (h, w, 3)
Callback = Callable[[dict[str, Any]], None]

SETTINGS_FILE = "generator.json"


class Unfinished(BadInput):
    """A row of a table could not be made; ``finished`` is the ImageSet of the rows before it."""

    def __init__(self, sentence: str, finished: ImageSet) -> None:
        super().__init__(sentence)
        self.finished = finished


class Generator(ABC):
    """A source of synthetic images of asked classes, fitted on the train fold.

    A subclass sets ``name`` and takes its knobs as keyword arguments of the constructor.  Code that compares
    generators uses only the methods below and never asks which generator it has.
    """

    name: ClassVar[str]
    rows_at_once: int = 64  # planned rows that are best made in one go: :meth:`make` is handed as many, aligned

    @abstractmethod
    def fit(self, train: ImageSet, *, steps: int, seed: int, callback: Callback | None = None) -> pd.DataFrame:
        """Fit on the train fold and return the history, one row per recorded step.

        Raises BadInput when ``train`` holds a row of another fold (:func:`stda.images.require_train`).
        """

    @abstractmethod
    def generate(self, labels: Sequence[str], *, seed: int) -> ImageSet:
        """Return one synthetic image per asked label, with a table as :func:`synthetic_table` makes it.

        Image i depends on its label and on its own ``image_seed``, never on how many images were asked for.
        """

    @abstractmethod
    def regenerate(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the pixels, uint8 ``(n, H, W, 3)``, of rows of a table that this generator wrote."""

    def plan(self, start: int, stop: int, *, shares: Mapping[str, float], seed: int) -> pd.DataFrame:
        """Return the rows ``start`` to ``stop`` of an endless table of images to be made, without making them.

        A row follows from its place and the seed alone; the classes have the ``shares`` of
        :func:`stda.generators.pairs.target_shares`.  A row holds all that its image depends on.
        """
        places = range(start, stop)
        ids = [f"{self.name}-{place:09d}" for place in places]
        labels = [label_at(place, shares, seed)[0] for place in places]
        seeds = [image_seed(seed, place) for place in places]
        return synthetic_table(self.name, labels, seeds, image_id=ids, group=ids)

    def make(self, rows: pd.DataFrame) -> ImageSet:
        """Return the images of planned rows, in their order; labels and columns may be added to the rows.

        Raises Unfinished when a row cannot be made.
        """
        return ImageSet(self.regenerate(rows), rows)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the fitted generator into an existing folder: ``generator.json`` and safetensors, never pickle."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, **parts: Any) -> Generator:
        """Open what :meth:`save` wrote; ``parts`` are what a file cannot hold (``compute``, an encoder, ...)."""


def image_seeds(seed: int, n: int) -> list[int]:
    """Return one seed in [0, 2^53) per image; the first k are the same for every n >= k.

    53 bits survive JSON and a CSV that some other program read as floating point.
    """
    return [int(word >> np.uint64(11)) for word in np.random.SeedSequence(seed).generate_state(n, np.uint64)]


def synthetic_table(name: str, labels: Sequence[str], seeds: Sequence[int], **more: Sequence) -> pd.DataFrame:
    """Return the table of synthetic images, each a group of its own: the usual columns, ``image_seed`` and ``more``.

    ``more`` adds columns or replaces one (``label_confidence``, ``source_ids``, ...).
    """
    ids = [f"{name}-{i:06d}" for i in range(len(labels))]
    columns = {
        "image_id": ids,
        "label": list(labels),
        "group": ids,
        "split": "synthetic",
        "generator": name,
        "source_ids": "",
        "label_confidence": 1.0,
        "image_seed": np.asarray(seeds, dtype=np.int64),
    }
    return pd.DataFrame({**columns, **{column: list(values) for column, values in more.items()}}, index=range(len(ids)))


def synthetic_labels(
    train: ImageSet,
    ratio: float,
    *,
    count: int = 0,
    balance: bool = False,
    classes: Sequence[str] = (),
    all_classes: bool = False,
) -> list[str]:
    """Return the labels to generate, sorted: as many of each class as :func:`stda.images.added_counts` says.

    The largest class (ties: the first by name) needs no help, unless nothing else is trained on: ``all_classes``.
    """
    counts = train.counts()
    wanted = added_counts(counts, ratio=ratio, count=count, balance=balance, classes=classes, largest=all_classes)
    if not wanted:
        raise BadInput("There is one class only and no rarer one to help: set all_classes to make its images.")
    labels = [label for label, n in wanted.items() for _ in range(n)]
    if not labels:
        raise BadInput(f"ratio {ratio} makes no image of {', '.join(wanted)}: raise it, or set count.")
    return labels


def write_settings(folder: Path, name: str, **settings: Any) -> None:
    """Write ``generator.json``: the generator's name and the plain values it needs to be opened again."""
    text = json.dumps({"generator": name, **settings}, indent=1, sort_keys=True)
    (Path(folder) / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read ``generator.json``; raise BadInput when the folder holds no generator."""
    path = Path(folder) / SETTINGS_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{folder} holds no generator ({SETTINGS_FILE} is missing): run its notebook first.") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is damaged ({error}): delete the folder and run its notebook again.") from None
