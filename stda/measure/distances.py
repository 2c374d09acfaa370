"""Distances between many rows at once, by matrix products, and a bounded number of them at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# rows of one block of a matrix product: large enough for full speed, 32 MiB in float64
BLOCK = 2048


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return squared Euclidean distances ``(N, M)`` of rows by one matrix product; what is only rounding becomes 0."""
    scale = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :]
    squares = scale - 2 * (x @ y.T)
    squares[squares < 64 * np.finfo(squares.dtype).eps * scale] = 0
    return squares


def distance_chunks(
    x: np.ndarray,
    y: np.ndarray,
    *,
    chunk: int = 1024,  # rows of x whose distances to all of y are held at a time
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of the rows of ``x`` (N, D) with their squared distances ``(chunk, M)`` to all rows of ``y`` (M, D).

    The result is float64 whatever the features are: blocks of rows are converted one by one and never all together, and
    both sides are first moved by ``-y[0]``, because far from the origin the matrix product would lose the differences.
    Besides the input this takes 8 ``chunk`` M bytes and a few blocks.
    """
    origin = np.asarray(y[0], dtype=np.float64) if len(y) else 0.0
    for rows in blocks(len(x), chunk):
        near = x[rows].astype(np.float64) - origin
        distances = np.empty((len(near), len(y)))
        for columns in blocks(len(y)):
            distances[:, columns] = squared_distances(near, y[columns].astype(np.float64) - origin)
        yield rows, distances


def blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Yield slices of at most ``size`` that together are ``range(n)``."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
