"""A composite gives every layer its rule; one walk from the last layer to the first applies them.

How relevance passes what is no convolution or dense layer, *(reading)* where no source is named: one to one through
ReLU (zennit), the input scale and flattening; to the winner in max-pooling (iNNvestigate, zennit); by a rule of their
own through average pooling and additions: contributions for z and epsilon (zennit's norm rule), positive ones for z+
and alpha-beta (their weights are positive, so a negative half would often be missing, and alpha = 2 double what
arrives), equal shares for w^2 and flat.  Concatenated branches each take the relevance of their channels, and at the
input that branches share their relevances are summed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stda.explain import rules
from stda.explain.layers import ADD, AVERAGES, CONCATENATE, KERNELS, Parallel, Scale, Trace
from stda.explain.rules import Rule

LOW, HIGH = -1.0, 1.0  # smallest and largest pixel value that a tensor of the study can have
Bounds = tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Composite:
    """Which rule each layer follows: that of its place if there is one, else that of its kind."""

    conv: Rule  # convolutions
    dense: Rule  # dense layers
    mixing: Rule  # average pooling and additions, whose weights are all alike
    first: Rule | None = None  # convolutions and dense layers that read the image
    open_ended: Rule | None = None  # convolutions and dense layers without a ReLU behind them

    def rule(self, layer: nn.Module, *, first: bool, rectified: bool) -> Rule:
        """Return the rule of a convolution or dense layer."""
        if first and self.first:
            return self.first
        if not rectified and self.open_ended:
            return self.open_ended
        return self.dense if isinstance(layer, nn.Linear) else self.conv


@dataclass
class Step:
    """One layer and how relevance passes it: ``rule`` and ``linear`` where it has one, ``branches`` of a Parallel."""

    layer: nn.Module
    rule: Rule | None = None
    linear: rules.Linear | None = None
    branches: list[list[Step]] = field(default_factory=list)


@dataclass
class _Flow:
    """What is known of the values that reach a layer."""

    bounds: Bounds  # of the image's values; None behind the first convolution or dense layer
    nonnegative: bool = False


def plan(layers: nn.Sequential, composite: Composite) -> list[Step]:
    """Return a step for each layer, in their order."""
    first = next(layers.parameters())
    bounds = tuple(torch.full((), end, dtype=first.dtype, device=first.device) for end in (LOW, HIGH))
    return _plan(list(layers), composite, _Flow(bounds), rectified=False)[0]


def _plan(layers: list[nn.Module], composite: Composite, flow: _Flow, *, rectified: bool) -> tuple[list[Step], _Flow]:
    """Plan a chain of layers that gets ``flow``; ``rectified`` says whether a ReLU follows it."""
    steps = []
    for i, layer in enumerate(layers):
        step = Step(layer)
        if isinstance(layer, KERNELS):
            behind = _rectified(layers[i + 1 :], rectified)
            step.rule = composite.rule(layer, first=flow.bounds is not None, rectified=behind)
            step.linear = rules.Kernel(layer, nonnegative=flow.nonnegative, bounds=flow.bounds)
            flow = _Flow(None)
        elif isinstance(layer, AVERAGES):
            step.rule, step.linear = composite.mixing, rules.Average(layer, nonnegative=flow.nonnegative)
        elif isinstance(layer, Scale):
            ends = [layer(end) for end in flow.bounds] if flow.bounds else []
            flow = _Flow((torch.minimum(*ends), torch.maximum(*ends)) if ends else None)
        elif isinstance(layer, nn.ReLU):
            flow = _Flow(flow.bounds, nonnegative=True)
        elif isinstance(layer, Parallel):
            behind = _rectified(layers[i + 1 :], rectified)
            ways = [_plan(list(branch), composite, flow, rectified=behind) for branch in layer.branches]
            step.branches = [steps for steps, _ in ways]
            flow = _Flow(None, nonnegative=all(end.nonnegative for _, end in ways))
            if layer.join == ADD:
                step.rule, step.linear = composite.mixing, rules.Addition(nonnegative=flow.nonnegative)
        steps.append(step)
    return steps, flow


def _rectified(behind: list[nn.Module], outside: bool) -> bool:
    """Say whether the values that enter these layers meet a ReLU before anything that computes with them."""
    computing = [layer for layer in behind if not isinstance(layer, nn.MaxPool2d | nn.Flatten)]
    return isinstance(computing[0], nn.ReLU) if computing else outside


def walk(steps: list[Step], passed: Trace, relevance: Tensor, *, seen: list[Tensor] | None = None) -> Tensor:
    """Send the relevance of the output back to the input, through the layers of a forward pass.

    ``seen`` is given the relevance of the output and then that of each layer's input, last layer first.
    """
    if seen is not None:
        seen.append(relevance)
    outputs = [*passed.inputs[1:], passed.output]
    for i in range(len(steps) - 1, -1, -1):
        step, x = steps[i], passed.inputs[i]
        if step.branches:
            relevance = _through_branches(step, passed.inner[i], outputs[i], relevance)
        elif step.rule is not None:
            # values of a forward pass may be finer than the relevance is
            relevance = step.rule(step.linear, x.to(relevance.dtype), outputs[i].to(relevance.dtype), relevance)
        elif isinstance(step.layer, nn.MaxPool2d):
            relevance = rules.max_pool(step.layer, x, relevance)
        elif isinstance(step.layer, nn.Flatten):
            relevance = relevance.reshape(x.shape)
        if seen is not None:
            seen.append(relevance)
    return relevance


def _through_branches(step: Step, inner: list[Trace], out: Tensor, relevance: Tensor) -> Tensor:
    """Divide relevance among branches, send it back through each, and sum it at the input they share."""
    given = [branch.output for branch in inner]
    if step.layer.join == CONCATENATE:
        parts = relevance.split([values.shape[1] for values in given], dim=1)
    else:
        stacked = torch.stack(given).to(relevance.dtype)
        parts = step.rule(step.linear, stacked, out.to(relevance.dtype), relevance)
    ways = zip(step.branches, inner, parts, strict=True)
    return sum(walk(steps, branch, part) for steps, branch, part in ways)
