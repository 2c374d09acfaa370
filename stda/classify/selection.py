"""Which images of a generator's pool an arm takes, and the placebo labels that say nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stda import BadInput
from stda.images import ImageSet

SELECTS = ("all", "confident", "diverse")


def choose_rows(
    candidates: Mapping[str, np.ndarray],  # row numbers of the pool by asked class
    wanted: Mapping[str, int],
    *,
    select: str,
    confidence: np.ndarray,  # (N,) how sure the label of each row of the pool is
    features: np.ndarray | None = None,  # (N, D) of each row of the pool; needed for "diverse"
) -> np.ndarray:
    """Return the rows that are taken, sorted: up to ``wanted`` of each class among its candidates.

    - ``all``: the first in the pool's order.
    - ``confident``: those whose label is surest, the earlier of equals.
    - ``diverse``: each next one is the candidate farthest from all that were taken so far, beginning with the one
      nearest to the centre (the greedy k-centre of Gonzalez 1985, used for core sets by Sener and Savarese 2018).
    """
    rows = [np.zeros(0, int)]
    for label, n in wanted.items():
        own = candidates[label]
        if select == "confident":
            own = own[np.argsort(-confidence[own], kind="stable")]
        elif select == "diverse":
            own = own[farthest_first(features[own], n)]
        rows.append(own[:n])
    return np.sort(np.concatenate(rows))


def farthest_first(features: np.ndarray, n: int) -> np.ndarray:
    """Return up to n row numbers of ``(N, D)``, each the farthest from those before it (ties: the first)."""
    if not len(features):
        return np.zeros(0, int)
    features = features.astype(np.float64)
    taken = [int(((features - features.mean(0)) ** 2).sum(1).argmin())]
    gap = ((features - features[taken[0]]) ** 2).sum(1)
    gap[taken[0]] = -1.0  # never again, even among copies
    while len(taken) < min(n, len(features)):
        taken.append(int(gap.argmax()))
        gap = np.minimum(gap, ((features - features[taken[-1]]) ** 2).sum(1))
        gap[taken] = -1.0
    return np.array(taken[:n], int)


def placebo_labels(images: ImageSet, how: str, *, classes: Sequence[str], seed: int) -> ImageSet:
    """Return the images with labels that say nothing of them; as many of each label as before, where that can be.

    - ``shuffled``: the labels are dealt out again at random; some images get their own by luck.
    - ``wrong``: every image gets the label of another class.  Where one class has more than half of the images, no
      deal does that with the same numbers, and what is left over of it gets the other labels in turn; so do all images
      where there is one label only, with the other ``classes`` of the train fold.

    The column ``asked_label`` keeps the class that was asked for.  Raises BadInput when labels are to be shuffled and
    all images have the same.
    """
    labels = images.labels.astype(str)
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2 and how == "shuffled":
        raise BadInput(
            f"Labels '{how}' need added images of two classes or more, but all are {', '.join(names) or 'missing'}: "
            "name more of them in classes, of the arm and of its generator."
        )
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    dealt = labels.astype(object)
    if how == "shuffled":
        dealt[order] = labels
    elif len(names):
        order = order[np.argsort(labels[order], kind="stable")]
        dealt[order] = np.roll(labels[order], counts.max())
        same = np.flatnonzero(dealt == labels)
        given = names if len(names) > 1 else np.array(sorted(classes))
        others = {name: given[given != name] for name in names}
        dealt[same] = [others[labels[i]][turn % (len(given) - 1)] for turn, i in enumerate(same)]
    table = images.table.assign(label=dealt)
    if "asked_label" not in table:
        table["asked_label"] = images.labels
    return ImageSet(images.images, table)
