"""Nearest training images: a chunked search by matrix products, in any space, under flips and quarter turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stda import BadInput
from stda.images import ImageSet

MAX_SIDE = 64  # pixels: larger images are averaged to about this for the search in pixels


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest training row of each query.

    ``distance`` float64 ``(N,)``: root mean square difference per pixel in [0, 1] for images, Euclidean for features.
    ``index`` int ``(N,)``: row of the training set.  ``symmetry`` int ``(N,)``: which of the eight flips and quarter
    turns of the query came closest (:func:`symmetric`), 0 for the query as it is.
    """

    distance: np.ndarray
    index: np.ndarray
    symmetry: np.ndarray


class TrainingIndex:
    """Training images in the spaces of one embedding, to be searched for the nearest one of other images or of them.

    ``embed`` maps uint8 images ``(N, H, W, 3)`` to rows ``(N, D)`` per space.
    """

    def __init__(
        self, training: ImageSet, embed: Callable[[np.ndarray], Mapping[str, np.ndarray]], *, symmetries: bool = True
    ) -> None:
        self.images, self.table, self.embed, self.symmetries = training.images, training.table, embed, symmetries
        self.groups = np.unique(training.table["group"].to_numpy(dtype=str), return_inverse=True)[1]
        self.rows = {space: rows[0] for space, rows in versions(training.images, embed, symmetries=False).items()}
        self._own = {space: np.full(len(training), np.nan) for space in self.rows}

    @property
    def spaces(self) -> list[str]:
        """Names of the spaces."""
        return list(self.rows)

    def nearest(self, space: str, queries: np.ndarray) -> Neighbours:
        """Return the nearest training row of each query over its versions, rows ``(V, N, D)``."""
        return nearest_version(queries, self.rows[space])

    def own(self, space: str, index: np.ndarray) -> np.ndarray:
        """Return how far training images ``index`` (N,) lie from the nearest one of another group; inf without one.

        Images of one lesion are not copies of each other, so they are not counted *(reading)*.  What is measured in
        one space is measured in all of them, and kept.
        """
        missing = np.unique(index[np.isnan(self._own[space][index])])
        if len(missing):
            for name, rows in versions(self.images[missing], self.embed, symmetries=self.symmetries).items():
                apart = np.tile(self.groups[missing], len(rows)), self.groups
                self._own[name][missing] = nearest_version(rows, self.rows[name], apart=apart).distance
        return self._own[space][index]


def nearest_rows(
    queries: np.ndarray,
    training: np.ndarray,
    *,
    apart: tuple[np.ndarray, np.ndarray] | None = None,  # group numbers (N,) and (M,): equal ones are no neighbours
    chunk: int = 512,  # queries at a time
    block: int = 4096,  # training rows at a time; memory beside the rows is about 4 block (D + chunk) bytes
) -> Neighbours:
    """Find the nearest training row in Euclidean distance, rows ``(N, D)`` against ``(M, D)`` of any type.

    The search runs in float32 on centred rows, the distance of the pair that was found is exact (0 for a copy), inf
    where no row is allowed.  Of ties the first wins.  Rows of uint8 are pixels: their distance is divided by
    255 sqrt(D), the root mean square difference in [0, 1].
    """
    if not len(training):
        raise BadInput("There is no training image to compare with: pass the train fold.")
    centre = training[:block].astype(np.float32).mean(0)  # far from the origin differences would be lost
    best, index = np.full(len(queries), np.inf, np.float32), np.zeros(len(queries), np.int64)
    for first in range(0, len(training), block):
        rows = training[first : first + block].astype(np.float32) - centre
        squares = np.einsum("ij,ij->i", rows, rows)
        for start in range(0, len(queries), chunk):
            part = slice(start, start + chunk)
            # the query's own square is the same for all rows
            scores = squares - 2 * ((queries[part].astype(np.float32) - centre) @ rows.T)
            if apart is not None:
                scores[apart[0][part, None] == apart[1][None, first : first + block]] = np.inf
            nearest = scores.argmin(1)
            score = scores[np.arange(len(nearest)), nearest]
            closer = score < best[part]
            best[part][closer], index[part][closer] = score[closer], nearest[closer] + first
    distance = np.full(len(queries), np.inf)
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        difference = queries[part].astype(np.float64) - training[index[part]]
        distance[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    if queries.dtype == np.uint8:
        distance /= 255 * np.sqrt(queries.shape[1])
    return Neighbours(np.where(best < np.inf, distance, np.inf), index, np.zeros(len(queries), np.int64))


def nearest_version(
    queries: np.ndarray, training: np.ndarray, *, apart: tuple[np.ndarray, np.ndarray] | None = None, chunk: int = 512
) -> Neighbours:
    """Find the nearest training row over the versions of each query, rows ``(V, N, D)`` against ``(M, D)``.

    ``symmetry`` is the number of the version, the first of equal ones.
    """
    found = nearest_rows(queries.reshape(-1, queries.shape[2]), training, apart=apart, chunk=chunk)
    distance, index = (values.reshape(queries.shape[:2]) for values in (found.distance, found.index))
    symmetry, query = distance.argmin(0), np.arange(queries.shape[1])
    return Neighbours(distance[symmetry, query], index[symmetry, query], symmetry)


def nearest_images(
    queries: np.ndarray,
    training: np.ndarray,
    *,
    symmetries: bool = True,  # also compare the query flipped and turned: augmentation hides copies otherwise
    chunk: int = 512,  # queries at a time
) -> Neighbours:
    """Find the nearest training image in pixels, uint8 ``(N, H, W, 3)`` against uint8 ``(M, H, W, 3)``."""
    if queries.dtype != np.uint8 or training.dtype != np.uint8 or queries.shape[1:] != training.shape[1:]:
        got = f"{queries.dtype} {queries.shape} and {training.dtype} {training.shape}"
        raise BadInput(f"Copies are looked for among uint8 images of one size; got {got}: resize first.")
    rows = versions(queries, lambda images: {"pixels": _flat(images)}, symmetries=symmetries)["pixels"]
    return nearest_version(rows, _flat(training), chunk=chunk)


def symmetric(images: np.ndarray, number: int) -> np.ndarray:
    """Return images ``(N, H, H, C)`` under one of eight symmetries: ``number`` % 4 quarter turns, flipped from 4 on."""
    turned = np.rot90(images, number % 4, axes=(1, 2))
    return turned if number < 4 else turned[:, :, ::-1]


def versions(
    images: np.ndarray, embed: Callable[[np.ndarray], Mapping[str, np.ndarray]], *, symmetries: bool = True
) -> dict[str, np.ndarray]:
    """Return per space the rows ``(8, N, D)`` of images under the symmetries, or ``(1, N, D)`` of them as they are."""
    if symmetries and images.shape[1] != images.shape[2]:
        raise BadInput(f"Quarter turns need square images; got {images.shape[1:3]}: crop, or pass symmetries=False.")
    found = [embed(np.ascontiguousarray(symmetric(images, number))) for number in range(8 if symmetries else 1)]
    kinds = {space for space, rows in found[0].items() if rows.dtype != np.uint8}
    bad = [space for view in found for space in kinds if not np.isfinite(view[space]).all()]
    if bad:
        raise BadInput(f"The {bad[0]} hold NaN or infinity: check the images and the encoder's weights.")
    return {space: np.stack([view[space] for view in found]) for space in found[0]}


def pixel_rows(images: np.ndarray, *, max_side: int = MAX_SIDE) -> dict[str, np.ndarray]:
    """Return the pixels of images as the space ``pixels``: uint8 ``(N, D)``.

    Larger images are averaged over squares of whole pixels, the smallest that bring both sides to at most ``max_side``,
    which flips and turns do not change *(reading: a copy shows at that size, and the search costs a fraction)*.  Where
    only squares would do that leave less than half of ``max_side``, or none, the images are taken as they are.
    """
    n, height, width, channels = images.shape
    tiles = range(-(-max(height, width) // max_side), 2 * min(height, width) // max_side + 1)
    tile = next((side for side in tiles if height % side == width % side == 0), 1)
    if tile > 1:
        squares = images.reshape(n, height // tile, tile, width // tile, tile, channels)
        images = squares.mean(axis=(2, 4), dtype=np.float32).round().astype(np.uint8)
    return {"pixels": _flat(images)}


def _flat(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images).reshape(len(images), int(np.prod(images.shape[1:])))
