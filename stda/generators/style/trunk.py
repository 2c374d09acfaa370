"""The part of an encoder that style transfer runs: one frozen copy, cut, in its own precision and memory order."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from stda import BadInput
from stda.compute import Compute
from stda.encoders import Encoder

POOLINGS = ("max", "average")
PADDINGS = ("zeros", "reflect")


class Trunk(nn.Module):
    """A frozen copy of an encoder's layers up to the deepest one that is asked for.

    The weights are converted once: autocast would cast frozen ones at every call.  ``pooling`` max or average replaces
    every max-pooling, ``padding`` zeros or reflect what convolutions see beyond the border.
    """

    def __init__(
        self,
        encoder: Encoder,
        layers: Iterable[str],
        compute: Compute,  # device, and bf16 or the encoder's own precision
        *,
        pooling: str = "max",  # Gatys et al. 2015 suggest average
        padding: str = "zeros",  # as the encoders were trained; reflect leaves no frame of zeros along the border
    ) -> None:
        super().__init__()
        for knob, value, allowed in (("pooling", pooling, POOLINGS), ("padding", padding, PADDINGS)):
            if value not in allowed:
                raise BadInput(f"{knob} is '{value}'; it must be one of {', '.join(allowed)}.")
        self.name, self.min_size = encoder.name, encoder.min_size
        self.ends = {encoder.layer_ends[name]: name for name in in_order(encoder, layers)}
        self.dtype = torch.bfloat16 if compute.precision == "bf16" else encoder.gain.dtype
        self.gain, self.bias = encoder.gain.to(compute.device), encoder.bias.to(compute.device)

        chain = copy.deepcopy(encoder.trunk[: max(self.ends) + 1]).requires_grad_(False)
        if pooling == "average":
            _average(chain)
        if padding == "reflect":
            for module in chain.modules():
                if isinstance(module, nn.Conv2d) and any(module.padding):
                    module.padding_mode = "reflect"
        self.chain = chain.to(device=compute.device, dtype=self.dtype, memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the activations ``(B, C, h, w)`` of the layers, of ``(B, 3, H, W)`` in [-1, 1]."""
        try:
            return self._activations(x)
        except RuntimeError:
            if min(x.shape[-2:]) >= self.min_size:
                raise
            size, deepest = " x ".join(map(str, x.shape[-2:])), self.ends[max(self.ends)]
            raise BadInput(
                f"A picture of {size} px is too small for layer {deepest} of {self.name}: "
                "take larger pictures or shallower layers."
            ) from None

    def _activations(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        x = (x * self.gain + self.bias).to(self.dtype, memory_format=torch.channels_last)
        for position, layer in enumerate(self.chain):
            x = layer(x)
            if position in self.ends:
                found[self.ends[position]] = x
        return found


def _average(module: nn.Module) -> None:
    """Replace every max-pooling by average pooling over the same windows, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.MaxPool2d):
            pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
            setattr(module, name, pool)
        else:
            _average(child)


def in_order(encoder: Encoder, layers: Iterable[str]) -> tuple[str, ...]:
    """Return layer names of an encoder, each once, shallow to deep; raises BadInput for one that it lacks."""
    names = set(layers)
    unknown = sorted(names - set(encoder.layer_ends))
    if unknown:
        raise BadInput(f"{encoder.name} has no layer {unknown}; it has {', '.join(encoder.layer_names)}.")
    return tuple(sorted(names, key=encoder.layer_ends.__getitem__))


def convolution_layers(encoder: Encoder) -> tuple[str, ...]:
    """Return the names of the layers that end in a convolution and its activation, shallow to deep: no pooling."""
    pools = (nn.MaxPool2d, nn.AvgPool2d, nn.Dropout)
    return tuple(name for name, end in encoder.layer_ends.items() if not isinstance(encoder.trunk[end], pools))
