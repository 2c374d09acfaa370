"""Copying: is a synthetic image closer to a training image than unseen real images ever are?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from stda import BadInput
from stda.images import ImageSet
from stda.measure.neighbours import Neighbours, TrainingIndex, nearest_images, pixel_rows, symmetric, versions
from stda.measure.scores import wilson

LOOK_SIDE = 32  # pixels: copies are looked for at about this size during training

Embed = Callable[[np.ndarray], Mapping[str, np.ndarray]]  # images -> rows per space, as encoders.embedding gives


def near_copies(
    distances: np.ndarray,
    held_out_distances: np.ndarray,
    *,
    quantile: float = 0.01,  # the share of unseen real images that may count as near-copies
    confidence: float = 0.95,
) -> dict[str, float | int | bool]:
    """Count the synthetic images that are nearer to a training image than all but a few unseen real ones.

    ``distances`` (N,) and ``held_out_distances`` (M,) are nearest-training distances of the synthetic and of the
    validation images, in the same space.  A near-copy lies strictly below ``threshold``, the ``quantile`` of the
    held-out distances, or at distance 0.  Returns ``n, n_held_out, threshold, near_copies, rate, rate_low, rate_high``
    (Wilson), ``expected_high`` (upper Wilson bound of the held-out share), ``median_ratio`` (median distance over
    that of the held-out images; nan if that is 0) and ``copying``: True when even the lower bound of the rate lies
    above ``expected_high``.  The threshold of few held-out images is rough, which ``expected_high`` takes into account.
    """
    distances, held_out = np.asarray(distances, dtype=float), np.asarray(held_out_distances, dtype=float)
    if not len(distances) or not len(held_out):
        raise BadInput(f"Copying needs synthetic and held-out images; got {len(distances)} and {len(held_out)}.")
    if not 0 < quantile < 1:
        raise BadInput(f"quantile is {quantile}; it must lie between 0 and 1, such as 0.01.")
    threshold = float(np.quantile(held_out, quantile))
    found, expected = (int(((d < threshold) | (d == 0)).sum()) for d in (distances, held_out))
    low, high = wilson(found, len(distances), confidence=confidence)
    # the true share below an estimated quantile is uncertain even when few images were counted below it
    expected_high = wilson(max(expected, round(quantile * len(held_out))), len(held_out), confidence=confidence)[1]
    typical = float(np.median(held_out))
    return {
        "n": len(distances),
        "n_held_out": len(held_out),
        "threshold": threshold,
        "near_copies": found,
        "rate": found / len(distances),
        "rate_low": low,
        "rate_high": high,
        "expected_high": expected_high,
        "median_ratio": float(np.median(distances)) / typical if typical > 0 else float("nan"),
        "copying": low > expected_high,
    }


def authenticity(
    distances: np.ndarray,
    own: np.ndarray,
    *,
    clusters: Sequence[str] | None = None,  # lesion of each image; None: every image is one of its own
    confidence: float = 0.95,
) -> dict[str, float]:
    """Return the share of images that lie farther from their nearest training image than that one from its neighbour.

    ``distances`` (N,) lead from each image to its nearest training image, ``own`` (N,) from that training image to the
    nearest other one (Alaa et al. 2022, "How Faithful is your Synthetic Data?", definition of A).  A generator that
    copies has 0.  There is no value that good images must have: what new real images have depends on the data, so they
    are the scale.  Returns ``authenticity, authenticity_low, authenticity_high``; the interval is Wilson's, with as
    many independent images as ``clusters`` differ *(reading: images of one lesion count as one)*.  All nan where a
    training image has no other to compare with.
    """
    distances, own = np.asarray(distances, dtype=float), np.asarray(own, dtype=float)
    if not len(distances) or len(distances) != len(own):
        raise BadInput(f"Authenticity needs one neighbour's distance per image; got {len(distances)} and {len(own)}.")
    if not np.isfinite(own).all():
        return dict.fromkeys(("authenticity", "authenticity_low", "authenticity_high"), float("nan"))
    share, n = float((distances > own).mean()), len(set(clusters)) if clusters is not None else len(own)
    low, high = wilson(share * n, n, confidence=confidence)
    return {"authenticity": share, "authenticity_low": low, "authenticity_high": high}


class CopySearch:
    """Training images, held-out images and sets of synthetic ones, in several spaces and under the eight symmetries.

    ``sets`` maps names to image sets of one size; ``reference`` names the train fold, ``held_out`` the real images that
    nobody trained on.  The spaces are ``pixels`` (root mean square difference per pixel in [0, 1]) and those of
    ``embed``, such as ``encoders.embedding``: features and perceptual space.  A network is not indifferent to flips
    and turns, so every queried image is embedded eight times; to bound the time, at most ``max_embedded`` images of a
    set are, chosen at random.  All training images are embedded once, those that are found eight times more.
    """

    def __init__(
        self,
        sets: Mapping[str, ImageSet],
        embed: Embed | None = None,  # None: pixels only
        *,
        reference: str,
        held_out: str,
        symmetries: bool = True,  # also compare the queries flipped and turned: augmentation hides copies otherwise
        max_embedded: int = 250,  # images of a set that are embedded; in pixels all of them are searched
        seed: int = 0,  # of that choice
    ) -> None:
        for name, given in (("reference", reference), ("held_out", held_out)):
            if given not in sets:
                raise BadInput(f"{name} is '{given}', which is not among the sets {sorted(sets)}.")
        empty = [name for name, part in sets.items() if not len(part)]
        if empty:
            raise BadInput(f"There is no image in {empty}: leave such a set out.")
        if len(shapes := {part.images.shape[1:] for part in sets.values()}) > 1:
            raise BadInput(f"Copies are looked for among images of one size; got {sorted(shapes)}: resize first.")
        self.reference, self.held_out = reference, held_out
        self.names = [held_out, *(name for name in sets if name not in (reference, held_out))]
        self.indices: dict[str, TrainingIndex] = {}  # by space; those of one embedding share an index
        self.asked: dict[str, dict[str, ImageSet]] = {}
        self.rows: dict[str, dict[str, np.ndarray]] = {}  # space, set -> rows (versions, n, D)
        for function in (pixel_rows, *([embed] if embed else [])):
            index = TrainingIndex(sets[reference], function, symmetries=symmetries)
            most = max(map(len, sets.values())) if function is pixel_rows else max_embedded
            asked = {name: _some(sets[name], most, seed) for name in self.names}
            found = {name: versions(part.images, function, symmetries=symmetries) for name, part in asked.items()}
            for space in index.spaces:
                self.indices[space], self.asked[space] = index, asked
                self.rows[space] = {name: rows[space] for name, rows in found.items()}

    @property
    def spaces(self) -> list[str]:
        """Names of the spaces, pixels first."""
        return list(self.indices)

    def nearest(self, space: str, name: str) -> Neighbours:
        """Return the nearest training image of every image of a set that is asked about in a space."""
        return self.indices[space].nearest(space, self.rows[space][name])


def copying_table(search: CopySearch, *, quantile: float = 0.01, confidence: float = 0.95) -> pd.DataFrame:
    """Look for near-copies of training images in several sets and spaces, and say how authentic the images are.

    Columns: ``set, space`` and the keys of :func:`near_copies` and of :func:`authenticity`; the held-out row, which is
    the scale, comes first in each space.  ``n`` is what was asked about: fewer than the set has, where
    ``search.max_embedded`` says so.  The nearest other training image is one of another group (lesion).
    """
    rows = []
    for space in search.spaces:
        found = {name: search.nearest(space, name) for name in search.names}
        for name, neighbours in found.items():
            scale = found[search.held_out].distance
            counted = near_copies(neighbours.distance, scale, quantile=quantile, confidence=confidence)
            own = search.indices[space].own(space, neighbours.index)
            groups = search.asked[space][name].table["group"]
            shares = authenticity(neighbours.distance, own, clusters=groups, confidence=confidence)
            rows.append({"set": name, "space": space, **counted, **shares})
    return pd.DataFrame(rows)


class CopyWatch:
    """Copying at each look of a training: the train fold is prepared once, and held-out images are searched once."""

    def __init__(self, train: ImageSet) -> None:
        self.index = TrainingIndex(train, self._rows)
        self.scales: dict[tuple[str, ...], np.ndarray] = {}  # ids of held-out images -> their distances

    @staticmethod
    def _rows(images: np.ndarray) -> dict[str, np.ndarray]:
        return pixel_rows(images, max_side=LOOK_SIDE)

    def look(self, real: ImageSet, synthetic: ImageSet) -> dict[str, float]:
        """Return the share of near copies and the authenticity of synthetic images."""
        ids = tuple(real.table["image_id"])
        if ids not in self.scales:
            self.scales[ids] = self._nearest(real).distance
        found = self._nearest(synthetic)
        own = self.index.own("pixels", found.index)
        near = near_copies(found.distance, self.scales[ids])["rate"]
        return {"near_copies": near, "authenticity": authenticity(found.distance, own)["authenticity"]}

    def _nearest(self, images: ImageSet) -> Neighbours:
        return self.index.nearest("pixels", versions(images.images, self._rows)["pixels"])


def nearest_pairs(queries: ImageSet, training: ImageSet, *, n: int = 12) -> np.ndarray:
    """Return the ``n`` images nearest to a training image and then their neighbours: uint8 ``(2n, H, W, 3)``.

    The closest come first.  The neighbours are flipped and turned as they were found, so that each lies below its
    query the same way up.  With fewer than ``n`` queries there are as many pairs as queries.
    """
    found = nearest_images(queries.images, training.images)
    closest = np.argsort(found.distance, kind="stable")[:n]
    neighbours = [
        # a flipped turn is its own inverse; a plain turn is undone by the opposite one
        symmetric(training.images[i : i + 1], s if s >= 4 else (4 - s) % 4)
        for i, s in zip(found.index[closest], found.symmetry[closest], strict=True)
    ]
    return np.concatenate([queries.images[closest], *neighbours])


def _some(images: ImageSet, most: int, seed: int) -> ImageSet:
    """Return at most so many of the images, in their order."""
    if len(images) <= most:
        return images
    return images.select(np.sort(np.random.default_rng(seed).permutation(len(images))[:most]))
