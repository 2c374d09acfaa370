"""What an encoder is: a frozen chain of layers, its layers by name, its pooled features."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stda import BadInput
from stda.images import to_tensor

if TYPE_CHECKING:
    from stda.compute import Compute

IN_DOMAIN = "in-domain"
# layers that carry style, and the layer that carries content, with the names of the network's field:
# VGG as in Gatys et al. 2015 and the Keras tool (conv5_2), torchvision's position in `features` for the others
LAYERS = {
    "vgg16": (("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"), "conv5_2"),
    "vgg19": (("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"), "conv5_2"),
    "squeezenet1_0": (("1", "4", "7", "10"), "10"),
    "mobilenet_v2": (("1", "3", "6", "13"), "6"),
    IN_DOMAIN: (("conv1_1", "conv2_1", "conv3_1", "conv4_1"), "conv4_1"),
}
NORMALISATIONS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ((0.5,) * 3, (0.5,) * 3)}
# ImageNet networks answer to 224 px: smaller images are enlarged to this before their features are pooled
MIN_FEATURE_SIZE = 128


class Encoder(nn.Module):
    """A frozen chain of layers that turns images into features.

    Takes float32 NCHW in [-1, 1] and normalises it itself.  ``layer_names`` are the layers that can be asked for, in
    order; ``style_layers`` and ``content_layer`` are the ones style transfer uses unless told otherwise;
    ``provenance`` has ``name``, ``source``, ``sha256`` and ``normalisation``.
    """

    def __init__(
        self, name: str, trunk: nn.Sequential, layer_ends: dict[str, int], provenance: dict[str, Any], min_size: int
    ) -> None:
        super().__init__()
        self.name, self.trunk, self.layer_ends, self.provenance = name, trunk, layer_ends, provenance
        self.min_size = min_size
        self.style_layers, self.content_layer = LAYERS[name]
        mean, std = NORMALISATIONS[provenance["normalisation"]]
        mean, std = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
        # (x + 1) / 2 is in [0, 1]; both steps in one: ((x + 1) / 2 - mean) / std = x * gain + bias
        self.register_buffer("gain", 0.5 / std, persistent=False)
        self.register_buffer("bias", (0.5 - mean) / std, persistent=False)
        self.requires_grad_(False)
        super().train(False)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers that can be asked for, shallow to deep."""
        return tuple(self.layer_ends)

    def train(self, mode: bool = True) -> Encoder:
        """Stay in evaluation mode: an encoder is frozen."""
        return super().train(False)

    def layers(self, x: torch.Tensor, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the activations ``(N, C, h, w)`` of the named layers; layers above the deepest one are not run."""
        names = tuple(names)
        unknown = [name for name in names if name not in self.layer_ends]
        if unknown or not names:
            raise BadInput(f"{self.name} has no layer {unknown}; it has {', '.join(self.layer_names)}.")
        wanted = {self.layer_ends[name]: name for name in names}
        found = {}
        x = x * self.gain + self.bias
        for position, layer in enumerate(self.trunk):
            x = layer(x)
            if position in wanted:
                found[wanted[position]] = x
            if len(found) == len(wanted):
                break
        return found

    @torch.no_grad()
    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """Return the deepest activations ``(N, D, h, w)``.

        Images smaller than ``min_size`` are enlarged to it first (bilinear): ImageNet networks see nothing at 32 px.
        """
        if x.shape[-1] < self.min_size:
            x = functional.interpolate(x, size=(self.min_size, self.min_size), mode="bilinear", align_corners=False)
        return self.trunk(x * self.gain + self.bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the :meth:`activations` averaged over positions, float32 ``(N, D)``."""
        return self.activations(x).mean(dim=(2, 3)).to(torch.float32)


def encode(encoder: Encoder, images: np.ndarray, *, compute: Compute, batch_size: int = 128) -> np.ndarray:
    """Return pooled features of uint8 ``(N, H, W, 3)`` images, float32 ``(N, D)``, batch by batch, without autocast."""
    encoder.to(compute.device)
    parts = [
        encoder.features(to_tensor(images[start : start + batch_size]).to(compute.device)).cpu().numpy()
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def activations(encoder: Encoder, images: np.ndarray, *, compute: Compute, batch_size: int = 128) -> np.ndarray:
    """Return the deepest activations of uint8 ``(N, H, W, 3)`` images, N > 0, float32 ``(N, D, h, w)``.

    Their averages over positions are what :func:`encode` returns.  Many numbers: meant for some hundred images.
    """
    encoder.to(compute.device)
    parts = [
        encoder.activations(to_tensor(images[start : start + batch_size]).to(compute.device)).float().cpu().numpy()
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)


def merge_batch_norm(module: nn.Module) -> nn.Module:
    """Put every BatchNorm that follows a convolution into its weights, in place: the same function when evaluating."""
    for (name, child), (next_name, following) in pairwise(list(module.named_children())):
        if isinstance(child, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            setattr(module, name, nn.utils.fusion.fuse_conv_bn_eval(child, following))
            setattr(module, next_name, nn.Identity())
    for child in module.children():
        merge_batch_norm(child)
    return module
