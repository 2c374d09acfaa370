"""Which image shows which class, and which picture meets which: endless sequences that can be entered anywhere.

The i-th entry follows from the seed and from ``i`` alone, in constant time and memory, so that a shard of a large
image data base is planned without what comes before it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from math import floor, isfinite

import numpy as np
import pandas as pd

from stda import BadInput
from stda.study import sub_seed

MODES = ("published", "any", "within", "nearest", "farthest")
BY_DISTANCE = ("nearest", "farthest")
DISTRIBUTIONS = ("balanced", "empirical", "rare")
BLOCK = 20  # labels that are shuffled among each other
FINEST = 10**6  # shares are taken as fractions with at most this denominator


# ------------------------------------------------------------------------------------------------------ which class


def target_shares(wanted: str | Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each class among the images to be made, summing to 1.

    ``wanted`` is "balanced" (every class alike), "empirical" (as the real ``counts``), "rare" (all classes but the
    largest, as their counts), or shares of one's own, "mel=0.5,nv=0.5" or a mapping, which are scaled to sum to 1.
    """
    if isinstance(wanted, str) and wanted not in DISTRIBUTIONS:
        wanted = _read_shares(wanted)
    if isinstance(wanted, str):
        largest = min(counts, key=lambda label: (-counts[label], label))
        value = {"balanced": lambda label: 1, "empirical": counts.get, "rare": counts.get}[wanted]
        wanted = {label: value(label) for label in counts if wanted != "rare" or label != largest}
    unknown = sorted(set(wanted) - set(counts))
    if unknown:
        raise BadInput(f"The train fold has no class '{unknown[0]}'; its classes are {', '.join(sorted(counts))}.")
    if not wanted or not all(isfinite(share) and share >= 0 for share in wanted.values()) or not any(wanted.values()):
        raise BadInput(f"The shares of the classes are {dict(wanted)}; give numbers, none negative and one positive.")
    total = sum(wanted.values())
    return {label: share / total for label, share in sorted(wanted.items()) if share > 0}


def _read_shares(text: str) -> dict[str, float]:
    """Read "mel=0.5,nv=0.5"."""
    try:
        parts = [part.rsplit("=", 1) for part in text.split(",")]
        shares = {name.strip(): float(value) for name, value in parts}
    except ValueError:
        raise BadInput(
            f"The classes '{text}' are not understood; give {', '.join(DISTRIBUTIONS)} or shares, mel=0.5,nv=0.5."
        ) from None
    if len(shares) < len(parts):
        raise BadInput(f"A class is named twice in '{text}'; give each class one share.")
    return shares


def label_at(index: int, shares: Mapping[str, float], seed: int) -> tuple[str, int]:
    """Return the label of image ``index`` and its number among the images of that label (0 for the first).

    Labels are apportioned by Sainte-Laguë's rule and shuffled in blocks of :data:`BLOCK`: the counts after each whole
    block are within one image of the shares (for two or three classes; about so for more), however many images there
    are.  ``shares`` sum to 1 (:func:`target_shares`).
    """
    exact = {label: Fraction(share).limit_denominator(FINEST) for label, share in shares.items()}
    total = sum(exact.values())
    fractions = tuple(sorted((label, share / total) for label, share in exact.items() if share > 0))
    return _block(fractions, seed, index // BLOCK)[index % BLOCK]


@lru_cache(maxsize=64)
def _block(shares: tuple[tuple[str, Fraction], ...], seed: int, number: int) -> tuple[tuple[str, int], ...]:
    """Return label and number of the images of one block.

    The k-th image of a label with share s comes at time (k + 1/2) / s: up to time t a label has had its turn
    floor(s t + 1/2) times and all labels together t times, give or take half a label each.
    """
    first, slack = number * BLOCK, len(shares)
    start, stop = max(first - slack, 0), first + BLOCK + slack
    turns = sorted(
        ((k + Fraction(1, 2)) / share, label, k)
        for label, share in shares
        for k in range(_turns(share, start), _turns(share, stop))
    )
    before = sum(_turns(share, start) for _, share in shares)
    dealt = turns[first - before : first - before + BLOCK]
    order = np.random.default_rng(sub_seed(seed, "labels", number)).permutation(BLOCK)
    labels = [dealt[place][1] for place in order]
    numbers = {label: iter([k for _, name, k in dealt if name == label]) for label in set(labels)}
    return tuple((label, next(numbers[label])) for label in labels)


def _turns(share: Fraction, time: int) -> int:
    return floor(share * time + Fraction(1, 2))


def image_seed(seed: int, index: int) -> int:
    """Return the seed of image ``index``, in [0, 2^53): exact in JSON and in a table read as floating point."""
    return sub_seed(seed, "image", index) % 2**53


# ---------------------------------------------------------------------------------------------------- which pictures


class PairSampler:
    """Chooses a content picture and style pictures for every image, each picture once before any comes again.

    Modes: "published", content of ``content_class``; "any", content of any class; "within", content of the style's own
    class; "nearest" and "farthest", that content of ``content_class`` which is nearest to (farthest from) the style in
    ``features``, and when a style comes again, the next nearest.  The style is of the asked class.  No picture is its
    own style: where chance would have it, the content gives way to the next one.
    """

    def __init__(
        self,
        sources: pd.DataFrame,  # image_id and label of the pictures, the train fold
        *,
        mode: str = "published",
        content_class: str = "",  # for published, nearest and farthest
        seed: int,
        features: np.ndarray | None = None,  # (len(sources), D), one row per source; for nearest and farthest
        n_styles: int = 1,  # style pictures of one image
    ) -> None:
        if mode not in MODES:
            raise BadInput(f"pairs is '{mode}'; it must be one of {', '.join(MODES)}.")
        ids, labels = sources["image_id"].to_numpy(object), sources["label"].to_numpy(object)
        self.pools: dict[str, np.ndarray] = {str(label): np.flatnonzero(labels == label) for label in set(labels)}
        if mode not in ("any", "within") and content_class not in self.pools:
            raise BadInput(f"content_class is '{content_class}'; the classes are {', '.join(sorted(self.pools))}.")
        if mode in BY_DISTANCE and (features is None or len(features) != len(sources)):
            raise BadInput(f"pairs '{mode}' needs one row of features for each of the {len(sources)} sources.")
        self.ids, self.mode, self.seed, self.n_styles = ids, mode, seed, n_styles
        self.contents = np.arange(len(ids)) if mode == "any" else self.pools.get(content_class)
        self.features = features
        self._labels = dict(zip(ids, labels, strict=True))

    def label_at(self, index: int, shares: str | Mapping[str, float]) -> tuple[str, int]:
        """Return the label of image ``index`` and its number; ``shares`` as :func:`target_shares` takes them."""
        if isinstance(shares, str):
            shares = target_shares(shares, {label: len(pool) for label, pool in self.pools.items()})
        return label_at(index, shares, self.seed)

    def label_of(self, image_id: str) -> str:
        """Return the class of a source picture."""
        return str(self._labels[image_id])

    def image_seed(self, index: int) -> int:
        """Return the seed of image ``index``."""
        return image_seed(self.seed, index)

    def pair(self, label: str, k: int, i: int) -> tuple[str, list[str]]:
        """Return content id and style ids of the ``k``-th image of a label, which is the ``i``-th of all images."""
        if label not in self.pools:
            raise BadInput(f"No source has the label '{label}'; the classes are {', '.join(sorted(self.pools))}.")
        pool = self.pools[label]
        if len(pool) < self.n_styles:
            raise BadInput(f"Class '{label}' has {len(pool)} pictures; {self.n_styles} styles of one image need more.")
        styles: list[int] = []
        for j in range(self.n_styles):
            styles.append(self._draw(f"style/{label}", pool, k * self.n_styles + j, styles))
        at = k * self.n_styles
        if self.mode in BY_DISTANCE:
            content = self._ranked(styles, at // len(pool))
        elif self.mode == "within":
            content = self._draw(f"style/{label}", pool, self._shifted(label, at, len(pool)), styles)
        else:
            content = self._draw("content", self.contents, i, styles)
        return self.ids[content], [self.ids[style] for style in styles]

    def _draw(self, stream: str, pool: np.ndarray, at: int, taken: Collection[int]) -> int:
        """Return the first picture at or behind place ``at`` of an endless shuffled stream that is not taken."""
        if len(pool) <= len(taken) and set(pool.tolist()) <= set(taken):
            raise BadInput(f"{self.ids[pool[0]]} would be its own style: choose other pairs, or another content_class.")
        while True:
            turn, place = divmod(at, len(pool))
            picture = int(pool[_permutation(self.seed, stream, turn, len(pool))[place]])
            if picture not in taken:
                return picture
            at += 1

    def _shifted(self, label: str, at: int, n: int) -> int:
        """Return another place of the same round; all places of a round are shifted alike, so none is met twice."""
        turn, place = divmod(at, n)
        shift = 1 + sub_seed(self.seed, "shift", label, turn) % max(n - 1, 1)
        return turn * n + (place + shift) % n

    def _ranked(self, styles: Sequence[int], rank: int) -> int:
        """Return the content picture of this rank by distance to the (mean of the) styles."""
        others = self.contents[~np.isin(self.contents, styles)]
        if not len(others):
            raise BadInput(f"{self.ids[styles[0]]} would be its own style: choose another content_class.")
        away = self.features[others].astype(float) - self.features[list(styles)].astype(float).mean(axis=0)
        order = np.argsort(np.square(away).sum(axis=1), kind="stable")
        order = order if self.mode == "nearest" else order[::-1]
        return int(others[order[rank % len(order)]])


@lru_cache(maxsize=64)
def _permutation(seed: int, stream: str, turn: int, n: int) -> np.ndarray:
    return np.random.default_rng(sub_seed(seed, "pairs", stream, turn)).permutation(n)
