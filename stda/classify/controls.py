"""Controls: real images that an arm adds in the place of a generator's.

Oversampled duplicates show what the counts do, noised and blurred copies what any new pixels do, self-training what a
second opinion on real pictures does, and real images that were held back what a perfect generator would do.  What a
generator's arm gains beyond the first ones is the synthesis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from stda import BadInput
from stda.classify.augment import Augment, classic
from stda.classify.labels import with_opinion
from stda.compute import rng
from stda.images import HELD_BACK, ImageSet, to_uint8
from stda.study import sub_seed

if TYPE_CHECKING:
    from stda.compute import Compute
    from stda.encoders import InDomain

OVERSAMPLE, SELF_TRAINING = "oversample", "self-training"
CHUNK = 256  # images transformed together
NOISE = 0.2  # standard deviation of the noise, where black is -1 and white 1: 25 grey levels
BLUR = 1 / 24  # standard deviation of the blur, as a share of the image's side: 1.3 pixels of 32


def noised(images: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Add Gaussian noise to each pixel and colour of float32 ``(N, 3, H, W)`` in [-1, 1]; clipped."""
    return (images + NOISE * torch.randn(images.shape, generator=noise)).clamp_(-1, 1)


def blurred(images: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Blur float32 ``(N, 3, H, W)`` in [-1, 1] with a Gaussian; edges reflected; nothing is random."""
    sigma = BLUR * images.shape[-1]
    reach = min(int(np.ceil(3 * sigma)), images.shape[-1] - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
    rows = functional.conv2d(padded, weights, groups=3)
    return functional.conv2d(rows, weights.transpose(2, 3), groups=3).clamp_(-1, 1)


TRANSFORMS: dict[str, Augment] = {"augmented": classic, "noised": noised, "blurred": blurred}


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


def transformed(train: ImageSet, counts: Mapping[str, int], how: str, *, seed: int) -> ImageSet:
    """Return real pictures with their own labels, each changed once as ``how`` of :data:`TRANSFORMS` says.

    Rows are drawn as for :func:`duplicates`; they are of split synthetic, named by their original and their round.
    """
    rows, rounds = _draw(train, counts, seed)
    originals = train.select(rows)
    noise, images = rng(sub_seed(seed, how)), np.empty_like(originals.images)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        images[part] = to_uint8(TRANSFORMS[how](originals.as_tensor(part), noise))
    ids = originals.table["image_id"]
    table = originals.table.assign(image_id=ids + "~" + rounds, split="synthetic", generator=how, source_ids=ids)
    return ImageSet(images, table)


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
    pool = transformed(train, counts, "augmented", seed=seed)
    pool = ImageSet(pool.images, pool.table.assign(asked_label=pool.labels, generator=SELF_TRAINING))
    pool = with_opinion(pool, train.classes, labeller=labeller, compute=compute)
    opinion = pool.table[[f"p_{name}" for name in train.classes]].max(axis=1)
    return ImageSet(pool.images, pool.table.assign(label=pool.table["pseudo_label"], label_confidence=opinion))


def held_back(reserve: ImageSet, counts: Mapping[str, int], *, seed: int) -> ImageSet:
    """Return real images that nothing else ever sees, up to ``counts`` of each class: what the oracle adds.

    Lesions come in a random order that ``seed`` decides, all images of one before the next, so that a smaller number
    is part of a larger.  Where a class has fewer images than asked for, all of them come, and the arm's composition
    says so.  Raises BadInput for rows of another fold.
    """
    splits = sorted(set(reserve.table["split"]) - {HELD_BACK})
    if splits or not len(reserve):
        found = f"rows of split {splits}" if splits else "no images"
        raise BadInput(f"The oracle adds held-back real images, but was given {found}: set data.oracle_fraction.")
    chosen = [np.zeros(0, int)]
    order = _by_lesion(reserve, seed)
    for label, n in counts.items():
        chosen.append(order[reserve.labels[order] == label][:n])
    return reserve.select(np.concatenate(chosen))


def subset(train: ImageSet, share: float, *, seed: int) -> ImageSet:
    """Return the images of a share of the lesions of each class, at least one, in the fold's own order.

    Smaller shares are parts of larger ones (same ``seed``): the nested sets of a learning curve.  A lesion counts as
    one of the class of its first image.
    """
    first = train.table.groupby("group", sort=False)["label"].first()
    names = first.index.to_numpy()[np.random.default_rng(seed).permutation(len(first))]
    place = first[names].groupby(first[names]).cumcount()
    kept = place < np.maximum(1, np.round(share * first.value_counts()))[first[names]].to_numpy()
    return train.select(train.table["group"].isin(set(names[kept])).to_numpy())


def _by_lesion(images: ImageSet, seed: int) -> np.ndarray:
    """Return the rows with the lesions in random order and the images of each side by side."""
    codes, names = pd.factorize(images.table["group"])
    rank = np.random.default_rng(seed).permutation(len(names))
    return np.argsort(rank[codes], kind="stable")


def _draw(train: ImageSet, counts: Mapping[str, int], seed: int) -> tuple[np.ndarray, pd.Series]:
    """Return rows of the train fold, class by class, and as text in which round of its class each was drawn."""
    random, chosen, rounds = np.random.default_rng(seed), [np.zeros(0, int)], [np.zeros(0, int)]
    for label, n in counts.items():
        rows = np.flatnonzero(train.labels == label)
        drawn = [random.permutation(rows) for _ in range(-(-n // len(rows)))]
        chosen.append(np.concatenate([*drawn, rows[:0]])[:n])
        rounds.append(np.arange(n) // len(rows) + 1)
    return np.concatenate(chosen), pd.Series(np.concatenate(rounds)).astype(str)
