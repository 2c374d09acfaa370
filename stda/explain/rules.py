"""Rules that send relevance back through one linear layer, and the way through max-pooling.

A rule shares the relevance of an output among the inputs that made it.  It is written once, for any linear map: a
convolution or dense layer (:class:`Kernel`), average pooling (:class:`Average`) or the addition of branches
(:class:`Addition`).  A call takes the map, its input, its output (bias included) and the relevance of that output, and
returns the relevance of the input.  An output that nothing supports (a denominator of zero) drops its relevance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from stda import BadInput

# In sums whose terms are all of one sign, denominators are kept this far from zero.  Where that matters all terms are
# zero, so the large quotient meets only zeros.
TINY = 1e-20

Change = Callable[[Tensor], Tensor]  # what a rule makes of a layer's weights


def unchanged(weight: Tensor) -> Tensor:
    """Return the weights."""
    return weight


def positive(weight: Tensor) -> Tensor:
    """Return the positive part."""
    return weight.clamp(min=0)


def negative(weight: Tensor) -> Tensor:
    """Return the negative part."""
    return weight.clamp(max=0)


def squared(weight: Tensor) -> Tensor:
    """Return the squares."""
    return weight.square()


def alike(weight: Tensor) -> Tensor:
    """Return ones."""
    return torch.ones_like(weight)


class Linear(Protocol):
    """The linear part of a layer."""

    bias: Tensor | None
    bounds: tuple[Tensor, Tensor] | None  # lowest and highest possible input, where it is the (scaled) image
    nonnegative: bool  # no input is ever negative: it comes from a ReLU
    weights_differ: bool  # weights can be negative or unequal

    def apply(self, x: Tensor, change: Change, bias: Tensor | None = None) -> Tensor:
        """Return the output for ``x`` with changed weights."""

    def transpose(self, y: Tensor, x: Tensor, change: Change) -> Tensor:
        """Send ``y`` back through changed weights, into the shape of the input ``x``."""


class Kernel:
    """A convolution or a dense layer; changed weights are made once."""

    weights_differ = True

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        *,
        nonnegative: bool = False,  # as in Linear
        bounds: tuple[Tensor, Tensor] | None = None,  # as in Linear
    ) -> None:
        self.layer, self.bias, self.nonnegative, self.bounds = layer, layer.bias, nonnegative, bounds
        self.changed: dict[Change, Tensor] = {unchanged: layer.weight.detach()}

    def weight(self, change: Change) -> Tensor:
        """Return the changed weights."""
        if change not in self.changed:
            self.changed[change] = change(self.changed[unchanged])
        return self.changed[change]

    def apply(self, x: Tensor, change: Change, bias: Tensor | None = None) -> Tensor:
        """Return the output for ``x``."""
        layer, weight = self.layer, self.weight(change)
        if isinstance(layer, nn.Linear):
            return functional.linear(x, weight, bias)
        return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def transpose(self, y: Tensor, x: Tensor, change: Change) -> Tensor:
        """Send ``y`` back through changed weights, into the shape of the input ``x``."""
        layer, weight = self.layer, self.weight(change)
        if isinstance(layer, nn.Linear):
            return y @ weight
        return nn.grad.conv2d_input(x.shape, weight, y, layer.stride, layer.padding, layer.dilation, layer.groups)


class Average:
    """Average pooling, whose weights are positive and equal within a window: no change of them matters."""

    bias, bounds, weights_differ = None, None, False

    def __init__(self, layer: nn.AvgPool2d | nn.AdaptiveAvgPool2d, *, nonnegative: bool = False) -> None:
        self.layer, self.nonnegative = layer, nonnegative

    def apply(self, x: Tensor, change: Change, bias: Tensor | None = None) -> Tensor:
        """Return the averages of ``x``."""
        return self.layer(x)

    def transpose(self, y: Tensor, x: Tensor, change: Change) -> Tensor:
        """Send ``y`` back through changed weights, into the shape of the input ``x``."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(self.layer(x), x, y)[0]


class Addition:
    """The sum of branches, stacked along the first axis: like a layer whose weights are all one."""

    bias, bounds, weights_differ = None, None, False

    def __init__(self, *, nonnegative: bool = False) -> None:
        self.nonnegative = nonnegative

    def apply(self, x: Tensor, change: Change, bias: Tensor | None = None) -> Tensor:
        """Return the sum over branches."""
        return x.sum(dim=0)

    def transpose(self, y: Tensor, x: Tensor, change: Change) -> Tensor:
        """Return ``y`` for every branch."""
        return y.expand_as(x)


class Rule(Protocol):
    """A rule: frozen, so that equal rules are equal."""

    def __call__(self, linear: Linear, x: Tensor, out: Tensor, relevance: Tensor) -> Tensor:
        """Return the relevance of the input ``x`` of a linear map whose output ``out`` has this relevance."""


@dataclass(frozen=True)
class Epsilon:
    """Share in proportion to the contributions ``x w``, the bias taking its share (Bach et al. 2015, eqs. 56 and 58).

    ``epsilon`` moves each denominator away from zero, towards the sign that it has (zero counts as positive), and
    swallows relevance; 0 is the plain z rule, whose outputs of exactly zero drop theirs.  BadInput if it is negative.
    """

    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < float("inf"):
            raise BadInput(f"epsilon is {self.epsilon}; it must be a number, zero or more.")

    def __call__(self, linear: Linear, x: Tensor, out: Tensor, relevance: Tensor) -> Tensor:
        """Return the relevance of the input; the denominators are the saved outputs, so only half the work is left."""
        if self.epsilon:
            total = torch.copysign(out.new_tensor(self.epsilon), out).add_(out)
            shares = torch.div(relevance, total, out=total)
        else:
            shares = (relevance / out).masked_fill_(out == 0, 0)
        return linear.transpose(shares, x, unchanged) * x


@dataclass(frozen=True)
class AlphaBeta:
    """Share ``alpha`` by the positive contributions and ``-beta`` by the negative ones (Bach et al. 2015, eq. 60).

    With ``bias``, a positive bias takes its share of the first and a negative one of the second (as in iNNvestigate
    and zennit).  Without, and with beta = 0, it is z+, which hands on all it gets (Montavon et al. 2017, eq. 17).
    Each half is dropped where there are no contributions of its sign.
    """

    alpha: float
    beta: float
    bias: bool = True

    def __call__(self, linear: Linear, x: Tensor, out: Tensor, relevance: Tensor) -> Tensor:
        """Return the relevance of the input; inputs without negative values take half the work."""
        up, down = (x, None) if linear.nonnegative else (x.clamp(min=0), x.clamp(max=0))
        bias = linear.bias if self.bias else None
        result = _by_sign(linear, [(up, positive), (down, negative)], _part(bias, positive), relevance)
        result = result if self.alpha == 1 else result.mul_(self.alpha)
        if self.beta == 0:
            return result
        against = _by_sign(linear, [(up, negative), (down, positive)], _part(bias, negative), relevance, above=False)
        return result.sub_(against, alpha=self.beta)


@dataclass(frozen=True)
class Bounded:
    """Share in proportion to ``x w - low w+ - high w-`` (z^B, Montavon et al. 2017, eq. 20).

    For inputs between the map's ``bounds``.  Written as ``(x - low) w+ + (x - high) w-``, whose terms are all
    positive: the published form cancels large numbers.
    """

    def __call__(self, linear: Linear, x: Tensor, out: Tensor, relevance: Tensor) -> Tensor:
        """Return the relevance of the input."""
        low, high = (_fitting(bound, x) for bound in linear.bounds)
        up, down = (x - low).clamp_(min=0), (x - high).clamp_(max=0)
        return _by_sign(linear, [(up, positive), (down, negative)], None, relevance)


@dataclass(frozen=True)
class ByWeight:
    """Share in proportion to changed weights, whatever the input is.

    Squares of them are w^2 (Montavon et al. 2017, eq. 13), ones the flat rule (Lapuschkin et al. 2019).
    """

    change: Change

    def __call__(self, linear: Linear, x: Tensor, out: Tensor, relevance: Tensor) -> Tensor:
        """Return the relevance of the input; the denominators are those of one image."""
        ones = torch.ones_like(x[:, :1] if isinstance(linear, Addition) else x[:1])
        total = linear.apply(ones, self.change).clamp_(min=TINY)
        return linear.transpose(relevance / total, x, self.change)


def _fitting(bound: Tensor, x: Tensor) -> Tensor:
    """Return a bound per channel for inputs that may be flattened."""
    if x.ndim == 2 and bound.numel() > 1:
        return bound.flatten().repeat_interleave(x.shape[1] // bound.numel())
    return bound


def _part(bias: Tensor | None, change: Change) -> Tensor | None:
    """Return a part of a bias, if there is one."""
    return None if bias is None else change(bias)


def _by_sign(
    linear: Linear,
    terms: list[tuple[Tensor | None, Change]],  # no value: there is none of that sign
    bias: Tensor | None,
    relevance: Tensor,
    *,
    above: bool = True,  # all terms are positive; else all are negative
) -> Tensor:
    """Share relevance in proportion to the terms ``value * change(weights)``, all of one sign."""
    kept = [(v, change) for v, change in terms if v is not None and (linear.weights_differ or change is positive)]
    if not kept:
        return torch.zeros_like(terms[0][0])
    total = None
    for value, change in kept:
        part = linear.apply(value, change, bias if total is None else None)
        total = part if total is None else total.add_(part)
    total = total.clamp_(min=TINY) if above else total.clamp_(max=-TINY)
    shares = torch.div(relevance, total, out=total)
    result = None
    for value, change in kept:
        part = linear.transpose(shares, value, change) * value
        result = part if result is None else result.add_(part)
    return result


def max_pool(layer: nn.MaxPool2d, x: Tensor, relevance: Tensor) -> Tensor:
    """Give all relevance to the winner of each window (of equals to the first), as the gradient and zennit do.

    ``x`` may be finer than ``relevance``: who wins is decided in its own precision.
    """
    sides = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    geometry = [[side] * 2 if isinstance(side, int) else list(side) for side in sides]
    _, winners = functional.max_pool2d(x, *geometry, ceil_mode=layer.ceil_mode, return_indices=True)
    return torch.ops.aten.max_pool2d_with_indices_backward(
        relevance, x.to(relevance.dtype), *geometry, layer.ceil_mode, winners
    )
