"""Methods that send relevance back through the layers: the LRP family and deep Taylor decomposition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stda.explain import rules
from stda.explain.layers import KERNELS, trace
from stda.explain.subject import CHAIN, LOGIT, Method, Subject

LOW, HIGH = -1.0, 1.0  # smallest and largest pixel value that a tensor of the study can have


def deep_taylor(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Return the deep Taylor decomposition of the target logit (Montavon et al. 2017), all values >= 0.

    As in iNNvestigate: z+ without bias at kernels with a ReLU behind them, w^2 at the others (here the last layer),
    and only a positive logit is explained: where it is not, the map is zero.  The map sums to the logit.  A separate
    ReLU passes relevance on unchanged (as zennit does; iNNvestigate's treats it as part of the kernel before it).
    """
    return _deep_taylor(subject, x, target, bounded=False)


def deep_taylor_bounded(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Return the deep Taylor decomposition with z^B at the input: pixel values are known to lie in [-1, 1].

    Unlike z+, the rule of the first layer can give relevance to values near zero, which is mid-grey and not absence.
    """
    return _deep_taylor(subject, x, target, bounded=True)


@torch.no_grad()
def _deep_taylor(subject: Subject, x: Tensor, target: Tensor, *, bounded: bool) -> Tensor:
    layers = list(subject.layers)
    passed = trace(subject.layers, x)
    inputs, logits = passed.inputs, passed.output
    relevance = torch.zeros_like(logits)
    relevance.scatter_(1, target[:, None], logits.gather(1, target[:, None]).clamp(min=0))
    first = next(i for i, layer in enumerate(layers) if isinstance(layer, KERNELS))
    for i in range(len(layers) - 1, -1, -1):
        layer, value = layers[i], inputs[i]
        if isinstance(layer, nn.MaxPool2d):
            relevance = rules.max_pool(layer, value, relevance)
        elif isinstance(layer, nn.Flatten):
            relevance = relevance.reshape(value.shape)
        elif isinstance(layer, KERNELS):
            activated = i + 1 < len(layers) and isinstance(layers[i + 1], nn.ReLU)
            if i == first and bounded:
                relevance = rules.z_bounded(layer, value, relevance, low=LOW, high=HIGH)
            elif activated:
                relevance = rules.z_plus(layer, value, relevance, nonnegative=_behind_relu(layers, i))
            else:
                relevance = rules.w_square(layer, value, relevance)
    return relevance


def _behind_relu(layers: list[nn.Module], i: int) -> bool:
    """Say whether the input of layer i cannot be negative: the last layer before it that is not a pooling is a ReLU."""
    before = [layer for layer in layers[:i] if not isinstance(layer, nn.MaxPool2d | nn.Flatten)]
    return bool(before) and isinstance(before[-1], nn.ReLU)


WHY_DEEP_TAYLOR = "TODO"
METHODS = {
    "deep_taylor": Method(
        deep_taylor, "deep Taylor", "Montavon et al. 2017", CHAIN, WHY_DEEP_TAYLOR, signed=False, conserves=LOGIT
    ),
    "deep_taylor_bounded": Method(
        deep_taylor_bounded,
        "deep Taylor, bounded",
        "Montavon et al. 2017",
        CHAIN,
        WHY_DEEP_TAYLOR,
        signed=False,
        conserves=LOGIT,
    ),
}
