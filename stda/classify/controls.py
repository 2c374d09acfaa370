"""Controls: real images that an arm adds in the place of a generator's.

Oversampled duplicates show what the counts do, self-training what a second opinion on real pictures does.  What a
generator's arm gains beyond them is the synthesis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stda.classify.augment import classic
from stda.classify.labels import with_opinion
from stda.compute import rng
from stda.images import ImageSet, to_uint8
from stda.study import sub_seed

if TYPE_CHECKING:
    from stda.compute import Compute
    from stda.encoders import InDomain

OVERSAMPLE, SELF_TRAINING = "oversample", "self-training"
CHUNK = 256  # images transformed together


def duplicates(train: ImageSet, counts: Mapping[str, int], *, seed: int) -> ImageSet:
    """Return duplicates of real rows, as many per class as ``counts`` says, every image equally often.

    Whole rounds come first, and ``seed`` decides who is drawn once more.  A duplicate keeps its split and its group
    and is named by its original and a running number.
    """
    rows, rounds = _draw(train, counts, seed)
    copies = train.select(rows)
    ids = copies.table["image_id"]
    table = copies.table.assign(image_id=ids + "+" + rounds, generator=OVERSAMPLE, source_ids=ids)
    return ImageSet(copies.images, table)


def self_training(
    train: ImageSet, counts: Mapping[str, int], *, seed: int, labeller: InDomain | None, compute: Compute | None
) -> ImageSet:
    """Return real pictures, each transformed once by the classic augmentation and labelled by the labeller.

    The control for circularity: an arm with pseudo-labels sees what a network trained on the same fold thinks, and
    might gain by that alone (self-training, Scudder 1965; Lee 2013), whatever the pictures are.  The table is that of
    a generator: ``asked_label`` is the true class, ``label`` and ``pseudo_label`` the labeller's opinion of the
    transformed picture, ``label_confidence`` and ``p_<class>`` its probabilities.  The opinion is of what training
    would see, so it is not always that of the original.
    """
    rows, rounds = _draw(train, counts, seed)
    originals = train.select(rows)
    noise, images = rng(sub_seed(seed, SELF_TRAINING)), np.empty_like(originals.images)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        images[part] = to_uint8(classic(originals.as_tensor(part), noise))

    ids, true = originals.table["image_id"], originals.labels
    table = originals.table.assign(image_id=ids + "~" + rounds, split="synthetic", asked_label=true)
    table = table.assign(generator=SELF_TRAINING, source_ids=ids)
    pool = with_opinion(ImageSet(images, table), train.classes, labeller=labeller, compute=compute)
    opinion = pool.table[[f"p_{name}" for name in train.classes]].max(axis=1)
    return ImageSet(images, pool.table.assign(label=pool.table["pseudo_label"], label_confidence=opinion))


def _draw(train: ImageSet, counts: Mapping[str, int], seed: int) -> tuple[np.ndarray, pd.Series]:
    """Return rows of the train fold, class by class, and as text in which round of its class each was drawn."""
    random, chosen, rounds = np.random.default_rng(seed), [np.zeros(0, int)], [np.zeros(0, int)]
    for label, n in counts.items():
        rows = np.flatnonzero(train.labels == label)
        drawn = [random.permutation(rows) for _ in range(-(-n // len(rows)))]
        chosen.append(np.concatenate([*drawn, rows[:0]])[:n])
        rounds.append(np.arange(n) // len(rows) + 1)
    return np.concatenate(chosen), pd.Series(np.concatenate(rounds)).astype(str)
