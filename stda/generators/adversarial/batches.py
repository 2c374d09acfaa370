"""Real images for training: drawn at random from uint8 pixels in memory; labels for fake ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stda.images import ImageSet


class Batches:
    """Random batches of real images, flipped at random, from uint8 pixels in memory.

    ``sampling="balanced"`` draws every class equally often; "empirical" draws every image equally often, as the
    papers do.  Balanced is the default of this study because a class of 1 % would be in every second batch of 64 only,
    and because a critic that sees rare classes more often among fakes than among real images scores them as fake.
    """

    def __init__(self, images: ImageSet, classes: Sequence[str], *, sampling: str, noise: torch.Generator) -> None:
        labels = np.searchsorted(list(classes), images.labels.astype(str))
        self.labels = torch.from_numpy(labels)
        self.pixels = torch.from_numpy(np.array(images.images))  # (N, H, W, 3): channels-last is how batches are used
        self.noise = noise
        self.counts = torch.bincount(self.labels, minlength=len(classes))
        self.weights = (1.0 / self.counts[self.labels]).double() if sampling == "balanced" else None

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Return n images, float32 ``(n, 3, H, W)`` in [-1, 1], drawn with replacement, and their class indices.

        The mirrored images come last; which they are is random, so nothing else about the order is.
        """
        if self.weights is None:
            rows = torch.randint(len(self.labels), (n,), generator=self.noise)
        else:
            rows = torch.multinomial(self.weights, n, replacement=True, generator=self.noise)
        # a lesion has no up and no left: each image is flipped on its own, on either axis
        upside_down, mirrored = (torch.rand(n, generator=self.noise) < 0.5 for _ in range(2))
        order = mirrored.int().argsort(stable=True)  # mirrored ones last, so that they are mirrored in one go
        rows, first = rows[order], n - int(mirrored.sum())
        pixels = self.gather(rows, upside_down[order])
        pixels[first:] = pixels[first:].flip(2)
        return torch.div(pixels.permute(0, 3, 1, 2), 127.5).sub_(1.0), self.labels[rows]

    def gather(self, rows: Tensor, upside_down: Tensor) -> Tensor:
        """Return a copy of images, uint8 ``(n, H, W, 3)``, some of them upside down.

        Line by line, so that a flip costs nothing; ``index_select`` is some 20 times faster here than indexing.
        """
        n_images, height, width, _ = self.pixels.shape
        lines = torch.arange(height)
        lines = torch.where(upside_down[:, None], height - 1 - lines, lines) + rows[:, None] * height
        found = self.pixels.view(n_images * height, width * 3).index_select(0, lines.flatten())
        return found.view(len(rows), height, width, 3)

    def shares(self, distribution: str) -> Tensor:
        """Return the share of each class, float64 ``(K,)``: "uniform", or "empirical" as in the data."""
        counts = torch.ones(len(self.counts)) if distribution == "uniform" else self.counts
        return counts.double() / counts.sum()

    def fake_labels(self, n: int, distribution: str) -> Tensor:
        """Return n class indices for fake images, drawn with the :meth:`shares` of a distribution."""
        return torch.multinomial(self.shares(distribution), n, replacement=True, generator=self.noise)
