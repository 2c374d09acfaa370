"""Arms: which images a classifier is trained with, and in what order they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stda import BadInput
from stda.images import ImageSet, require_train

OVERSAMPLE = "oversample"
SAMPLERS = ("shuffle", "balanced")


@dataclass(frozen=True)
class Arm:
    """One way to train the classifier, as plain values.

    ``synthetic`` is "none", "oversample" (duplicates of real images with the counts of a generator's arm: the placebo)
    or the name of a generator; ``ratio`` is added images per real one of every class but the largest; ``augment`` and
    ``sampler`` are names of :data:`stda.classify.augment.AUGMENTS` and :data:`SAMPLERS`.
    """

    name: str
    synthetic: str = "none"
    ratio: float = 1.0
    augment: str = "classic"
    sampler: str = "balanced"

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise BadInput(f"Unknown sampler '{self.sampler}' of arm '{self.name}'; use {' or '.join(SAMPLERS)}.")
        if not self.ratio > 0:
            raise BadInput(f"ratio of arm '{self.name}' is {self.ratio}; it must be positive.")


def added_counts(train: ImageSet, ratio: float) -> dict[str, int]:
    """Return how many images are added per class: ``round(ratio * n)`` for every class but the largest."""
    return {label: round(ratio * n) for label, n in train.counts().iloc[1:].sort_index().items()}


def assemble(arm: Arm, train: ImageSet, synthetic: ImageSet | None = None, *, seed: int = 0) -> ImageSet:
    """Return the training images of an arm: all of the train fold, then what the arm adds.

    A generator's images are taken from ``synthetic`` in its order, as many per *asked* class as
    :func:`added_counts` says (column ``asked_label`` where the set has it, else ``label``), and keep their own
    ``label``: style transfer asks for one class and may be given another by its pseudo-labeller.  "oversample" draws
    duplicates of real images instead, every image equally often (``seed`` decides who is drawn once more); a duplicate
    stays in its group and is named by its original and a running number.

    Raises BadInput for rows outside the train fold, a set that is not of this arm's generator or of another size,
    labels that the train fold lacks, and a set with too few images of a class.
    """
    require_train(train, f"Arm '{arm.name}'")
    if arm.synthetic == "none":
        return train
    if arm.synthetic == OVERSAMPLE:
        return ImageSet.concat(train, _duplicates(train, arm.ratio, seed))
    if synthetic is None:
        raise BadInput(f"Arm '{arm.name}' needs images of '{arm.synthetic}', got none: run that stage first.")
    _check_pool(arm, train, synthetic)
    return ImageSet.concat(train, synthetic.select(_chosen_rows(arm, train, synthetic)))


def _check_pool(arm: Arm, train: ImageSet, pool: ImageSet) -> None:
    """Raise unless the pool holds synthetic images of the arm's generator with labels of the train fold."""
    splits = sorted(set(pool.table["split"]) - {"synthetic"})
    if splits:
        raise BadInput(f"Arm '{arm.name}' adds synthetic images only, but was given rows of split {splits}.")
    makers = sorted(set(pool.table["generator"]) - {arm.synthetic})
    if makers:
        raise BadInput(f"Arm '{arm.name}' uses '{arm.synthetic}', but was given images of {makers}.")
    unknown = sorted(set(pool.labels) - set(train.labels))
    if unknown:
        raise BadInput(f"Synthetic images have labels {unknown} that the train fold lacks: make them from this fold.")


def _chosen_rows(arm: Arm, train: ImageSet, pool: ImageSet) -> np.ndarray:
    """Return the rows of the pool that fulfil the counts, in the pool's order."""
    asked = pool.table["asked_label"] if "asked_label" in pool.table else pool.table["label"]
    asked, rows = asked.to_numpy(), []
    for label, n in added_counts(train, arm.ratio).items():
        found = np.flatnonzero(asked == label)
        if len(found) < n:
            raise BadInput(
                f"Arm '{arm.name}' needs {n} images of class {label} (ratio {arm.ratio:g}), but '{arm.synthetic}' made "
                f"{len(found)}: lower the arm's ratio or raise that of {arm.synthetic}."
            )
        rows.append(found[:n])
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, int)


def _duplicates(train: ImageSet, ratio: float, seed: int) -> ImageSet:
    """Return duplicates of real rows in the counts of a generator's arm: whole rounds first, the rest drawn."""
    random, chosen, rounds = np.random.default_rng(seed), [], []
    for label, n in added_counts(train, ratio).items():
        rows = np.flatnonzero(train.labels == label)
        drawn = np.concatenate([random.permutation(rows) for _ in range(-(-n // len(rows)))] or [rows[:0]])[:n]
        chosen.append(drawn)
        rounds.append(np.arange(n) // len(rows) + 1)
    rows = np.concatenate(chosen) if chosen else np.zeros(0, int)
    copies = train.select(rows)
    ids = copies.table["image_id"]
    numbers = pd.Series(np.concatenate(rounds) if rounds else rows).astype(str)
    table = copies.table.assign(image_id=ids + "+" + numbers, generator=OVERSAMPLE, source_ids=ids)
    return ImageSet(copies.images, table)


def batches(labels: np.ndarray, *, sampler: str, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield row numbers ``(batch_size,)`` without end; ``labels`` are class indices ``(N,)``.

    "shuffle" goes through all rows in a new random order each time round.  "balanced" goes through the classes that
    way, and through the rows of each class: every class is drawn equally often, and within a class every row, real or
    synthetic.  Dealing from shuffled decks instead of tossing dice keeps rare classes from being missed by chance.
    """
    if sampler not in SAMPLERS:
        raise BadInput(f"Unknown sampler '{sampler}'; it must be one of {', '.join(SAMPLERS)}.")
    random = np.random.default_rng(seed)
    if sampler == "shuffle":
        rows = _deck(np.arange(len(labels)), random)
        while True:
            yield np.fromiter((next(rows) for _ in range(batch_size)), int, batch_size)
    present = np.unique(labels)
    classes, members = _deck(present, random), {c: _deck(np.flatnonzero(labels == c), random) for c in present}
    while True:
        yield np.fromiter((next(members[next(classes)]) for _ in range(batch_size)), int, batch_size)


def _deck(items: np.ndarray, random: np.random.Generator) -> Iterator[int]:
    """Deal the items without end, all of them in random order before any comes again."""
    while True:
        yield from random.permutation(items)
