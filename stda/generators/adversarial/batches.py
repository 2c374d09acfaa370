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
        self.pixels = torch.from_numpy(np.ascontiguousarray(images.images.transpose(0, 3, 1, 2)))
        self.noise = noise
        self.counts = torch.bincount(self.labels, minlength=len(classes))
        self.weights = (1.0 / self.counts[self.labels]).double() if sampling == "balanced" else None

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Return n images, float32 ``(n, 3, H, W)`` in [-1, 1], drawn with replacement, and their class indices."""
        if self.weights is None:
            rows = torch.randint(len(self.labels), (n,), generator=self.noise)
        else:
            rows = torch.multinomial(self.weights, n, replacement=True, generator=self.noise)
        pixels = self.pixels[rows]
        for axis in (2, 3):  # a lesion has no up and no left: each image is flipped on its own, on either axis
            flipped = torch.rand(n, generator=self.noise) < 0.5
            pixels = torch.where(flipped.view(n, 1, 1, 1), pixels.flip(axis), pixels)
        images = pixels.to(torch.float32).div_(127.5).sub_(1.0)
        return images.contiguous(memory_format=torch.channels_last), self.labels[rows]

    def fake_labels(self, n: int, distribution: str) -> Tensor:
        """Return n class indices for fake images, "uniform" over classes or "empirical" as in the data."""
        if distribution == "uniform":
            return torch.randint(len(self.counts), (n,), generator=self.noise)
        return torch.multinomial(self.counts.double(), n, replacement=True, generator=self.noise)
