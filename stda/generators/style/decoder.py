"""The decoder of feed-forward style transfer: an encoder's layers mirrored, from features back to a picture."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from stda.generators.adversarial.layers import spread


class UpConv(nn.Conv2d):
    """Doubling by repeating pixels, then a reflect-padded 3x3 convolution, as one transposed 4x4 convolution.

    The pixel that reflection puts outside the doubled map equals the one at its border: a repeated border before.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C', 2 H, 2 W)``."""
        x = functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return functional.conv_transpose2d(x, self.kernel(), self.bias, stride=2, padding=3)

    def kernel(self) -> Tensor:
        """Return the weights of the transposed convolution, ``(C, C', 4, 4)``."""
        return spread(self.weight).flip(2, 3).transpose(0, 1)


def centre(chain: nn.Sequential) -> None:
    """Extend the input of kernels that take it without padding, in place: SqueezeNet's first convolution and its pools.

    A feature then lies over what it was computed from, and a decoder that only doubles can put it back.
    """
    for position, layer in enumerate(chain):
        if isinstance(layer, nn.MaxPool2d) and layer.kernel_size % 2:
            layer.padding, layer.ceil_mode = layer.kernel_size // 2, False
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1 and not any(layer.padding):
            chain[position] = nn.Sequential(nn.ReflectionPad2d(layer.kernel_size[0] // 2), layer)


@torch.no_grad()
def mirror(chain: nn.Sequential) -> tuple[nn.Sequential, int]:
    """Return an untrained decoder that undoes a chain of layers step by step, and the stride of the chain.

    A step with weights becomes a reflect-padded 3x3 convolution and ReLU with its channels swapped, a step that halves
    the map a doubling, a step that does both three convolutions, the second of them doubling.  For VGG19 up to conv4_1
    this is the paper's decoder.  He initialisation; draws from torch's global generator.
    """
    steps, stride, x = [], 1, torch.zeros(1, 3, 64, 64).to(next(chain.parameters()))
    for layer in chain:
        y = layer(x)
        steps.append((x.shape[1], y.shape[1], x.shape[2] > y.shape[2], bool(list(layer.parameters()))))
        stride, x = stride * (1 + steps[-1][2]), y

    convolutions, up = [], False
    for n_in, n_out, halves, weighted in reversed(steps):
        widths = [n_out, n_out, n_out // 2, n_in] if halves else [n_out, n_in]
        for place, (wide, narrow) in enumerate(pairwise(widths if weighted else ())):
            convolutions.append((wide, narrow, up or (halves and place == 1)))
            up = False
        up = up or (halves and not weighted)
    layers: list[nn.Module] = []
    for n_in, n_out, up in convolutions:
        kind = UpConv if up else nn.Conv2d
        layers += [kind(n_in, n_out, 3, padding=1, padding_mode="reflect"), nn.ReLU(inplace=True)]
        nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1]), stride  # a picture has both signs: no ReLU at the end


@torch.no_grad()
def settled(decoder: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """Return a frozen copy of a trained decoder whose kernels are summed and converted once, not at every call."""
    layers: list[nn.Module] = []
    for layer in decoder:
        if isinstance(layer, UpConv):
            with torch.device("meta"):  # no random numbers for weights that are replaced
                up = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, 4, stride=2, padding=3)
            up.load_state_dict({"weight": layer.kernel(), "bias": layer.bias.clone()}, assign=True)
            layers += [nn.ReplicationPad2d(1), up]
        else:
            layers.append(copy.deepcopy(layer))
    return nn.Sequential(*layers).requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)
