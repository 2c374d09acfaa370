"""Rules that send relevance back through one layer: z+, z^B, w^2, and winner-takes-all through max-pooling.

Each rule takes the layer, its input and the relevance of its output, and returns the relevance of its input.  Biases
take no relevance, so each rule hands on all it gets (Montavon et al. 2017, sections 4.1 to 4.3), except at outputs
that no input supports (a denominator of zero), which drop theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# below this a denominator counts as zero: all its terms are of one sign, so it is nothing but rounding
TINY = 1e-12


def z_plus(layer: nn.Module, x: Tensor, relevance: Tensor, *, nonnegative: bool = False) -> Tensor:
    """Share relevance in proportion to the positive contributions ``(x w)+``, also known as LRP alpha1-beta0.

    ``nonnegative`` says that ``x`` has no negative values (it comes from a ReLU), which halves the work.
    """
    if nonnegative:
        return _by_sign(layer, x, None, relevance)
    return _by_sign(layer, x.clamp(min=0), x.clamp(max=0), relevance)


def z_bounded(layer: nn.Module, x: Tensor, relevance: Tensor, *, low: float, high: float) -> Tensor:
    """Share relevance in proportion to ``x w - low w+ - high w-`` (z^B), for inputs between ``low`` and ``high``.

    Written as ``(x - low) w+ + (x - high) w-``, whose terms are all positive: the published form cancels large numbers.
    """
    return _by_sign(layer, x - low, x - high, relevance)


def w_square(layer: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """Share relevance in proportion to the squared weights, whatever the input is."""
    weight = layer.weight.square()
    shares = _divide(relevance, _apply(layer, torch.ones_like(x), weight))
    return _transpose(layer, x, shares, weight)


def max_pool(layer: nn.MaxPool2d, x: Tensor, relevance: Tensor) -> Tensor:
    """Give all relevance to the winner of each window (of equals to the first), as the gradient and zennit do."""
    sides = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    geometry = [[side] * 2 if isinstance(side, int) else list(side) for side in sides]
    _, winners = functional.max_pool2d(x, *geometry, ceil_mode=layer.ceil_mode, return_indices=True)
    return torch.ops.aten.max_pool2d_with_indices_backward(relevance, x, *geometry, layer.ceil_mode, winners)


def _by_sign(layer: nn.Module, up: Tensor, down: Tensor | None, relevance: Tensor) -> Tensor:
    """Share relevance in proportion to ``up w+ + down w-`` for ``up >= 0`` and ``down <= 0``: all terms positive."""
    positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    total = _apply(layer, up, positive)
    if down is not None:
        total += _apply(layer, down, negative)
    shares = _divide(relevance, total)
    result = up * _transpose(layer, up, shares, positive)
    return result if down is None else result.addcmul_(down, _transpose(layer, down, shares, negative))


def _divide(relevance: Tensor, total: Tensor) -> Tensor:
    """Return ``relevance / total``, and zero where the total is zero."""
    return torch.where(total > TINY, relevance / total.clamp(min=TINY), 0.0)


def _apply(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Run a kernel layer with another weight and no bias."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _transpose(layer: nn.Module, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Run the transpose of a kernel layer with another weight on ``y``, into the shape of its input ``x``."""
    if isinstance(layer, nn.Linear):
        return y @ weight
    return nn.grad.conv2d_input(x.shape, weight, y, layer.stride, layer.padding, layer.dilation, layer.groups)
