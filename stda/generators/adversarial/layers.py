"""Layers the adversarial networks share: resampling, equalised learning rate, PixelNorm, minibatch stddev."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stda import BadInput


def n_doublings(size: int, *, who: str, largest: int) -> int:
    """Return how often 4 px must be doubled to give ``size``; raise BadInput unless it is a power of 2 in range."""
    if size < 8 or size > largest or size & (size - 1):
        raise BadInput(f"{who} cannot make images of {size} px; set the size to a power of 2 from 8 to {largest}.")
    return size.bit_length() - 3


def one_hot(labels: Tensor, n_classes: int) -> Tensor:
    """Turn class indices ``(N,)`` into float32 ``(N, n_classes)``; shares of classes are returned as they are."""
    return labels if labels.is_floating_point() else F.one_hot(labels, n_classes).to(torch.float32)


def spread(weight: Tensor) -> Tensor:
    """Turn a 3x3 kernel into the 4x4 kernel that is the sum of its four shifts by 0 or 1 pixel."""
    weight = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))
    return F.pad(weight, (0, 0, 0, 1)) + F.pad(weight, (0, 0, 1, 0))


def conv_pool(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve 3x3 (zero-padded), then average 2x2.

    Exactly one 4x4 convolution of stride 2, which takes 2.25x less arithmetic.
    """
    return F.conv2d(x, spread(weight) / 4, bias, stride=2, padding=1)


def up_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Double by repeating pixels, then convolve 3x3 (zero-padded).

    Exactly one transposed 4x4 convolution of stride 2, which takes 2.25x less arithmetic.
    """
    kernel = spread(weight).flip(2, 3).transpose(0, 1)
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


def double(x: Tensor) -> Tensor:
    """Double height and width by repeating pixels."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class ConvPool(nn.Conv2d):
    """3x3 convolution and 2x2 mean pooling (:func:`conv_pool`)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C', H / 2, W / 2)``."""
        return conv_pool(x, self.weight, self.bias)


class UpConv(nn.Conv2d):
    """Doubling and 3x3 convolution (:func:`up_conv`)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C', 2 H, 2 W)``."""
        return up_conv(x, self.weight, self.bias)


class PixelNorm(nn.Module):
    """Divide by the root mean square over channels (Karras et al. 2018, sec. 4.2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with unit RMS over dimension 1, computed in float32."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + 1e-8)).to(x.dtype)


class MinibatchStddev(nn.Module):
    """Append one channel: the standard deviation over a group of images, averaged over channels and pixels.

    Groups are consecutive images, so that real and fake images can share a pass without sharing a group; a batch that
    ``group`` does not divide is one group.  Karras et al. 2018, sec. 3.
    """

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Turn ``(N, C, H, W)`` into ``(N, C + 1, H, W)``."""
        n, _, height, width = x.shape
        group = self.group if n % self.group == 0 else n
        grouped = x.float().reshape(n // group, group, -1)
        # 1e-8 inside the root: its derivative stays finite for a group of equal images
        deviation = grouped.var(dim=1, unbiased=False).add(1e-8).sqrt().mean(dim=1)
        channel = deviation.repeat_interleave(group).view(n, 1, 1, 1).expand(n, 1, height, width)
        return torch.cat([x, channel.to(x.dtype)], dim=1)


class EqualConv(nn.Module):
    """Convolution with equalised learning rate: weights N(0, 1), multiplied by ``gain / sqrt(fan_in)`` when used.

    ``resample`` is "" (none), "up" (double first) or "down" (2x2 mean after).  Karras et al. 2018, sec. 4.1.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, *, gain: float = math.sqrt(2), resample: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.scale = gain / math.sqrt(n_in * kernel**2)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved, possibly resampled ``x``, zero-padded to keep its size."""
        weight = self.weight * self.scale
        if self.resample == "up":
            return up_conv(x, weight, self.bias)
        if self.resample == "down":
            return conv_pool(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


class EqualLinear(nn.Module):
    """Dense layer with equalised learning rate (:class:`EqualConv`)."""

    def __init__(self, n_in: int, n_out: int, *, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.scale = gain / math.sqrt(n_in)

    def forward(self, x: Tensor) -> Tensor:
        """Turn ``(N, n_in)`` into ``(N, n_out)``."""
        return F.linear(x, self.weight * self.scale, self.bias)
