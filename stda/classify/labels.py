"""Labels of added images: what their table says, the style's class, a network's opinion, or its probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda import BadInput
from stda.images import ImageSet

if TYPE_CHECKING:
    from stda.compute import Compute
    from stda.encoders import InDomain

LABELS = ("given", "style", "pseudo", "soft")
TOLERANCE = 1e-3  # how far probabilities may be from summing to one, after a table was written and read


def asked(images: ImageSet) -> np.ndarray:
    """Return the class that each image was asked for: ``asked_label`` where the set has it, else its label."""
    return (images.table["asked_label"] if "asked_label" in images.table else images.table["label"]).to_numpy()


def relabel(
    pool: ImageSet,
    labels: str,
    *,
    classes: Sequence[str],
    sure: bool = False,  # a confidence is needed, because unsure labels will be left out
    labeller: InDomain | None = None,  # asked for its opinion where the table does not hold one
    compute: Compute | None = None,
) -> ImageSet:
    """Return synthetic images with ``label`` and ``label_confidence`` as an arm wants them.

    "given" is the label of the table, "style" the class that was asked for, "pseudo" the opinion of a network trained
    on the train fold.  "soft" is that opinion too, and its probabilities stand beside it, one column
    ``target_<class>`` per class.  The confidence is the network's probability of the label; where its opinion is
    neither there nor needed, it stays what it is.  Raises BadInput when an opinion is needed and neither the table nor
    a labeller has it.
    """
    if sure or labels in ("pseudo", "soft"):
        pool = with_opinion(pool, classes, labeller=labeller, compute=compute)
    chosen = {"given": pool.labels, "style": asked(pool)}
    label = chosen[labels] if labels in chosen else pool.table["pseudo_label"].to_numpy()
    table = pool.table.assign(label=label, asked_label=asked(pool))  # what was asked for outlives the new label
    known = _opinion(table, classes)
    if known is not None:
        names = np.asarray(classes, dtype=object)
        table["label_confidence"] = (known * (table["label"].to_numpy()[:, None] == names)).sum(axis=1)
    if labels == "soft":
        table[[f"target_{name}" for name in classes]] = known
    return ImageSet(pool.images, table)


def with_opinion(
    pool: ImageSet, classes: Sequence[str], *, labeller: InDomain | None, compute: Compute | None
) -> ImageSet:
    """Return the images with ``pseudo_label`` and ``p_<class>``: those of their table, else the labeller's."""
    known = _opinion(pool.table, classes)
    if known is None:
        if labeller is None or compute is None:
            raise BadInput("These images come without an opinion (columns p_<class>): pass a labeller and compute.")
        if list(labeller.classes) != list(classes):
            raise BadInput(f"The labeller knows {labeller.classes}, the train fold has {list(classes)}: train it here.")
        known = labeller.classify(pool, compute).astype(float)
    opinion = {f"p_{name}": known[:, i] for i, name in enumerate(classes)}
    names = np.asarray(classes, dtype=object)
    return ImageSet(pool.images, pool.table.assign(pseudo_label=names[known.argmax(axis=1)], **opinion))


def _opinion(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray | None:
    """Return the probabilities ``(N, K)`` that a table holds, each row summing to one, or None."""
    return _probabilities(table, [f"p_{name}" for name in classes])


def _probabilities(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray | None:
    """Return columns of probabilities, float64 ``(N, K)``, scaled to sum to one; None when any of them is missing."""
    if not set(columns) <= set(table):
        return None
    found = table[list(columns)].to_numpy(dtype=float)
    total = found.sum(axis=1)
    valid = (found >= 0).all(axis=1) & (abs(total - 1) <= TOLERANCE)  # a NaN fails both
    if not valid.all():
        row = table["image_id"].iloc[int(np.argmin(valid))]
        raise BadInput(f"Columns {columns[0]} ... of image '{row}' are no probabilities: each row must sum to one.")
    return found / total[:, None]


def one_hot(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """Return the images with columns ``target_<class>``: all of the probability on their label."""
    columns = {f"target_{name}": (images.labels == name).astype(float) for name in classes}
    return ImageSet(images.images, images.table.assign(**columns))


def codes(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the class index, int64 ``(N,)``, of each label."""
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[label] for label in labels], dtype=np.int64)


def targets(images: ImageSet, classes: Sequence[str]) -> np.ndarray:
    """Return what the loss compares with: ``target_<class>`` as float32 ``(N, K)`` where the set has it, else codes."""
    soft = _probabilities(images.table, [f"target_{name}" for name in classes])
    return codes(images.labels, classes) if soft is None else soft.astype(np.float32)
