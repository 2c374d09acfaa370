"""Images from a trained generator: one latent vector per seed, truncation, ways between latents and between classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stda.compute import rng
from stda.images import to_uint8

# images are always made in batches of this size (the last one padded): the arithmetic of an image is then the same
# whether it is made with others or alone
RENDER_BATCH = 64


def latents(seeds: Sequence[int], length: int, *, truncation: float = 0.0) -> Tensor:
    """Return one latent vector per seed, float32 N(0, 1) ``(n, length)``, truncated where asked."""
    z = torch.stack([torch.randn(length, generator=rng(seed)) for seed in seeds]) if seeds else torch.empty(0, length)
    return truncate(z, truncation) if truncation else z


def truncate(z: Tensor, limit: float) -> Tensor:
    """Turn normal numbers into numbers of the normal distribution cut off at ``+-limit`` (Brock et al. 2019, sec. 3.1).

    Each number keeps its quantile, so an image changes smoothly with the limit, and none is drawn again.
    """
    cdf, quantile = torch.special.ndtr, torch.special.ndtri
    low = cdf(torch.tensor(-limit, dtype=torch.float64))
    return quantile(low + (1 - 2 * low) * cdf(z.double())).float().clamp(-limit, limit)


def great_circle(start: Tensor, end: Tensor, n: int) -> Tensor:
    """Return ``(n, length)`` latents from ``start`` to ``end`` along the great circle, lengths interpolated alike.

    A straight line between two long normal vectors leads through lengths that the generator never saw.
    """
    a, b = start / start.norm(), end / end.norm()
    angle = torch.arccos((a * b).sum().clamp(-1, 1))
    t = torch.linspace(0, 1, n)[:, None]
    if angle < 1e-4:
        return torch.lerp(start, end, t)
    direction = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return direction * torch.lerp(start.norm(), end.norm(), t)


@torch.no_grad()
def render(
    network: nn.Module, z: Tensor, labels: Tensor, *, device: torch.device, finish: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """Return uint8 ``(n, H, W, 3)`` for latents and class indices ``(n,)`` or shares ``(n, K)``, in float32.

    ``finish`` brings the network's output to images of the full size.
    """
    network.eval()
    pixels = []
    for first in range(0, len(z), RENDER_BATCH):
        rows = torch.arange(first, first + RENDER_BATCH).clamp(max=len(z) - 1)
        images = network(z[rows].to(device), labels[rows].to(device))
        pixels.append(to_uint8(finish(images))[: len(z) - first])
    return np.concatenate(pixels)
