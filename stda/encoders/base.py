"""What an encoder is: a frozen chain of layers, its layers by name, its pooled features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
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
ENCODER_PRECISIONS = ("float32", "bf16")
# layers that carry style, and the layer that carries content, with the names of the network's field:
# VGG as in Gatys et al. 2015 and the Keras tool (conv5_2), torchvision's position in `features` for the others
LAYERS = {
    "vgg16": (("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"), "conv5_2"),
    "vgg19": (("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"), "conv5_2"),
    "squeezenet1_0": (("1", "4", "7", "10"), "10"),
    "mobilenet_v2": (("1", "3", "6", "13"), "6"),
    IN_DOMAIN: (("conv1_1", "conv2_1", "conv3_1", "conv4_1"), "conv4_1"),
}
# of pixels in [0, 1]; "byte" is the Inception graph's (p - 128) / 128
NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "byte": ((128 / 255,) * 3, (128 / 255,) * 3),
}
# ImageNet networks answer to 224 px: smaller images are enlarged to this before their features are pooled
MIN_FEATURE_SIZE = 128
# what a batch holds unless told otherwise: on a CPU, more than this falls out of its caches
PIXELS_AT_ONCE = {"cpu": 750_000, "cuda": 8_000_000}


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
        self.style_layers, self.content_layer = LAYERS.get(name, ((), ""))  # Inception only measures
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

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the trunk is given: normalised, and enlarged to ``min_size`` (bilinear) where it is smaller."""
        x = x * self.gain + self.bias
        if x.shape[-1] < self.min_size:
            x = functional.interpolate(x, size=(self.min_size, self.min_size), mode="bilinear", align_corners=False)
        return x

    @torch.no_grad()
    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """Return the deepest activations ``(N, D, h, w)``.

        Images smaller than ``min_size`` are enlarged to it first: ImageNet networks see nothing at 32 px.
        """
        return self.trunk(self.prepare(x).to(next(self.trunk.parameters()).dtype))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the :meth:`activations` averaged over positions, float32 ``(N, D)``."""
        return self.activations(x).mean(dim=(2, 3), dtype=torch.float32)

    def in_precision(self, precision: str) -> Encoder:
        """Return this encoder for "float32", or a copy whose trunk computes in bfloat16 for "bf16"."""
        if precision not in ENCODER_PRECISIONS:
            raise BadInput(f"precision is '{precision}'; encoders have {' and '.join(ENCODER_PRECISIONS)}.")
        if precision == "float32":
            return self
        rounded = copy.deepcopy(self)
        rounded.trunk.to(torch.bfloat16)
        return rounded


def encode(
    encoder: Encoder,
    images: np.ndarray,
    *,
    compute: Compute,
    precision: str = "float32",  # of the convolutions; "bf16" is for watching a training, not for reported numbers
    batch_size: int | None = None,  # images at a time; None: PIXELS_AT_ONCE, as the encoder sees them
) -> np.ndarray:
    """Return pooled features of uint8 ``(N, H, W, 3)`` images, float32 ``(N, D)``, batch by batch.

    Only a batch at a time is turned into floats, so ``images`` may be a memory map of any length.  ``precision`` alone
    decides how the network computes: neither autocast nor TensorFloat-32 reaches it.
    """
    encoder = encoder.to(compute.device).in_precision(precision)
    some = images if len(images) else np.zeros((1, encoder.min_size, encoder.min_size, 3), np.uint8)
    size = batch_size or _fitting(encoder, some, compute)
    return _by_batches(encoder.features, some, compute, size)[: len(images)]


def activations(encoder: Encoder, images: np.ndarray, *, compute: Compute) -> np.ndarray:
    """Return the deepest activations of uint8 ``(N, H, W, 3)`` images, N > 0, float32 ``(N, D, h, w)``.

    Their averages over positions are what :func:`encode` returns.  Many numbers: meant for some hundred images.
    """
    size = _fitting(encoder, images, compute)
    return _by_batches(encoder.to(compute.device).activations, images, compute, size)


def _fitting(encoder: Encoder, images: np.ndarray, compute: Compute) -> int:
    """Return how many of these images a batch holds."""
    return max(1, PIXELS_AT_ONCE[compute.device.type] // max(*images.shape[1:3], encoder.min_size) ** 2)


def _by_batches(
    function: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray, compute: Compute, batch_size: int
) -> np.ndarray:
    """Apply a function of image tensors batch by batch, in the precision of its weights."""
    with torch.autocast(compute.device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        parts = [
            function(to_tensor(images[start : start + batch_size]).to(compute.device)).float().cpu().numpy()
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
