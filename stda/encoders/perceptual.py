"""Perceptual space: what several layers of a network see at each place, as vectors whose distance is Euclidean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from stda import BadInput
from stda.encoders.base import Encoder
from stda.images import to_tensor

if TYPE_CHECKING:
    from stda.compute import Compute

EPSILON = 1e-10  # as in the paper's code: keeps positions without any activation at zero


def embedding(
    encoder: Encoder,
    *,
    compute: Compute,
    layers: Sequence[str] = (),  # compared at their positions; empty: the style layers, or all where there are none
    grid: int = 3,  # positions a side that activations are averaged to
    batch_size: int = 64,
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a function from images, uint8 ``(N, H, W, 3)``, to their vectors in two spaces, from one forward pass.

    ``features`` float32 ``(N, D)`` are those of :func:`stda.encoders.encode`.  ``perceptual`` float16 ``(N, P)`` are
    those of :func:`perceptual_vectors`: the squared Euclidean distance of two rows is LPIPS without learned weights
    (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", equation 1 with w = 1)
    on activations averaged to ``grid`` x ``grid`` positions.

    Raises:
        BadInput: a layer that the encoder has not; from the function, no image at all.
    """
    names = tuple(layers) or encoder.style_layers or encoder.layer_names
    if unknown := sorted(set(names) - set(encoder.layer_names)):
        raise BadInput(f"{encoder.name} has no layer {unknown}; it has {', '.join(encoder.layer_names)}.")

    def embed(images: np.ndarray) -> dict[str, np.ndarray]:
        if not len(images):
            raise BadInput("There is no image to embed: pass at least one.")
        encoder.to(compute.device)
        starts = range(0, len(images), batch_size)
        parts = [_pass(encoder, to_tensor(images[i : i + batch_size]).to(compute.device), names, grid) for i in starts]
        return {space: np.concatenate([part[space] for part in parts]) for space in ("features", "perceptual")}

    return embed


def perceptual_vectors(activations: Sequence[torch.Tensor], *, grid: int) -> torch.Tensor:
    """Return rows ``(N, P)`` whose squared distance sums, over layers, the mean squared difference over positions.

    ``activations`` are ``(N, C, h, w)`` per layer.  Each position is brought to length one over its channels, then
    positions are averaged to at most ``grid`` x ``grid`` *(reading: the paper compares every position, which takes
    too much memory for a search; layers no larger than the grid are compared exactly)*.
    """
    rows = []
    for x in activations:
        unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + EPSILON)
        side = min(grid, *x.shape[2:])
        rows.append(functional.adaptive_avg_pool2d(unit, side).flatten(1) / side)
    return torch.cat(rows, dim=1)


@torch.no_grad()
def _pass(encoder: Encoder, x: torch.Tensor, names: Sequence[str], grid: int) -> dict[str, np.ndarray]:
    """Run the encoder once and read its layers on the way."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        encoder.trunk[encoder.layer_ends[name]].register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, output)
        )
        for name in names
    ]
    try:
        features = encoder.features(x)
    finally:
        for hook in hooks:
            hook.remove()
    vectors = perceptual_vectors([seen[name].float() for name in names], grid=grid)
    return {"features": features.cpu().numpy(), "perceptual": vectors.half().cpu().numpy()}
