"""PatternNet and PatternAttribution: the signal that a neuron answers to, estimated on the train fold.

A weight vector says what a neuron computes, not what it looks for: it also has to cancel the distractor, all that
varies in the data without saying anything about the class.  The pattern of a neuron is the direction of the input in
which its output varies over the data (Kindermans et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stda import BadInput
from stda.explain.layers import KERNELS, Parallel, Scale, Trace, has_addition, trace
from stda.explain.subject import CHAIN, Method, Subject, evaluating, logits_of
from stda.images import ImageSet, require_train, to_tensor

LINEAR, POSITIVE = "linear", "relu_positive"
ESTIMATORS = (LINEAR, POSITIVE)
WHY = (
    "Patterns are the signal of one neuron, the sum of its own inputs; the addition of a residual block is no such "
    "neuron, and what its two summands share of the signal is not defined in Kindermans et al. 2018."
)


@dataclass(frozen=True)
class Patterns:
    """One pattern for every neuron of every kernel layer, in the shape of the layer's weights.

    ``kernels`` maps the layer's name in ``layered(model)``, such as "3" or "5.branches.0.0", to its patterns, in the
    precision of the model.  ``estimator`` is one of :data:`ESTIMATORS`, ``n_images`` how many images were used.
    """

    kernels: dict[str, Tensor]
    estimator: str
    n_images: int


@torch.no_grad()
def fit_patterns(
    model: nn.Module,
    images: ImageSet,
    *,
    estimator: str = LINEAR,  # linear, or relu_positive: over the inputs that a ReLU lets through
    batch_size: int = 128,  # images per forward pass; changes nothing but memory and rounding
) -> Patterns:
    """Return the patterns of a network, estimated on images of the train fold in one pass (Kindermans et al. 2018).

    The linear estimator is ``a = cov(x, y) / var(y)`` over all images and positions, where x is the input and
    y the output of a neuron; so ``w . a = 1``.  ``relu_positive`` takes for kernels with a ReLU behind them only the
    x whose y is positive, the a+ of the two-component estimator; both moments are centred within these x, as in
    iNNvestigate.  The paper centres y by its mean over all x: then the denominator is no variance, and with biases
    it is zero or negative for some neurons of a trained network *(reading)*.  A neuron whose output does not vary has
    the pattern zero.

    Raises BadInput for rows that are not of the train fold, images that the network cannot read, an unknown estimator,
    and networks without patterns.
    """
    require_train(images, "A set of patterns")
    if estimator not in ESTIMATORS:
        raise BadInput(f"estimator is '{estimator}'; it must be one of {', '.join(ESTIMATORS)}.")
    subject = Subject(model)
    if has_addition(subject.layers):
        raise BadInput(WHY)
    logits_of(model, to_tensor(images.images[:1]), batch_size=1)  # raises where the network cannot read the images
    sums: dict[str, _Moments] = {}
    with evaluating(model):
        for start in range(0, len(images), batch_size):
            x = subject.prepare(to_tensor(images.images[start : start + batch_size]))
            for name, layer, value, output, rectified in _kernels(subject.layers, trace(subject.layers, x)):
                chosen = output > 0 if rectified and estimator == POSITIVE else None
                sums.setdefault(name, _Moments(layer)).add(value, output, chosen)
    return Patterns({name: moments.pattern() for name, moments in sums.items()}, estimator, len(images))


def _kernels(
    layers: nn.Sequential, passed: Trace, prefix: str = ""
) -> Iterator[tuple[str, nn.Module, Tensor, Tensor, bool]]:
    """Yield name, layer, input and output of every kernel layer, and whether a ReLU stands behind it."""
    values = [*passed.inputs, passed.output]
    for i, layer in enumerate(layers):
        if isinstance(layer, Parallel):
            for b, (branch, inner) in enumerate(zip(layer.branches, passed.inner[i], strict=True)):
                yield from _kernels(branch, inner, f"{prefix}{i}.branches.{b}.")
        elif isinstance(layer, KERNELS):
            rectified = i + 1 < len(layers) and isinstance(layers[i + 1], nn.ReLU)
            yield f"{prefix}{i}", layer, values[i], values[i + 1], rectified


class _Moments:
    """Sums over the data from which the patterns of one layer follow; float64, whatever the network computes in.

    The sum of patch times output over all positions is the gradient of the weights, so no patch is ever copied out.
    Outputs are taken relative to their mean in the first batch, which leaves every covariance as it is and keeps the
    sums small, so that little is lost in the subtraction of products of means.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.middle: Tensor | None = None
        self.n = self.y = self.yy = self.x = torch.zeros((), dtype=torch.float64, device=layer.weight.device)
        self.xy = torch.zeros_like(layer.weight, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor, chosen: Tensor | None) -> None:
        """Add a batch of inputs and outputs; ``chosen`` (bool, shape of y) says which outputs count, None all."""
        places = (0, 2, 3) if y.ndim == 4 else (0,)
        weight = torch.ones_like(y) if chosen is None else chosen.to(y.dtype)
        n = weight.sum(places, dtype=torch.float64)
        if self.middle is None:
            self.middle = (y * weight).sum(places, dtype=torch.float64) / n.clamp(min=1)
        shift = self.middle.to(y.dtype)
        y = (y - (shift.view(1, -1, 1, 1) if y.ndim == 4 else shift)) * weight
        self.n = self.n + n
        self.y = self.y + y.sum(places, dtype=torch.float64)
        self.yy = self.yy + y.double().square().sum(places)
        self.x = self.x + self._products(x, weight, same=chosen is None).double()
        self.xy += self._products(x, y)

    def _products(self, x: Tensor, y: Tensor, *, same: bool = False) -> Tensor:
        """Return the sums of patch times output in the shape of the weights; ``same``: of one output for all."""
        weight = self.layer.weight
        if isinstance(self.layer, nn.Linear):
            return (y[:, :1] if same else y).T @ x
        groups = self.layer.groups
        y = y[:, :groups] if same else y
        shape, geometry = (y.shape[1], *weight.shape[1:]), (self.layer.stride, self.layer.padding, self.layer.dilation)
        sums = nn.grad.conv2d_weight(x, shape, y, *geometry, groups)
        return sums.repeat_interleave(len(weight) // groups, dim=0) if same and groups > 1 else sums

    def pattern(self) -> Tensor:
        """Return ``cov(x, y) / var(y)``, and zero for neurons whose output varies by no more than rounding."""
        n, each = self.n.clamp(min=1), (-1, *[1] * (self.layer.weight.ndim - 1))
        mean = self.y / n
        variance = self.yy / n - mean.square()
        rounding = 16 * torch.finfo(self.layer.weight.dtype).eps * (self.middle + mean).abs()
        varies = variance > rounding.square()
        scale = torch.where(varies, 1 / (n * torch.where(varies, variance, 1.0)), 0.0)
        covariance = self.xy.addcmul(self.x, mean.view(each), value=-1)
        return covariance.mul_(scale.view(each)).to(self.layer.weight.dtype).contiguous()


def pattern_net(
    subject: Subject,
    x: Tensor,
    target: Tensor,
    *,
    patterns: Patterns | None = None,  # explain.fit_patterns(model, the train fold)
) -> Tensor:
    """Return the signal in the input that the target logit answers to (PatternNet, Kindermans et al. 2018).

    The logit goes back like a gradient with patterns in place of weights: ReLU passes what it passed, max-pooling gives
    to its winner, average pooling is as for the gradient.  It starts with the value of the logit, as in iNNvestigate.
    The pattern of an input scale ``g x + b`` is ``1 / g``, so the signal is in the units of x.
    """
    return _backward(subject, x, target, patterns, attribution=False)


def pattern_attribution(
    subject: Subject,
    x: Tensor,
    target: Tensor,
    *,
    patterns: Patterns | None = None,  # explain.fit_patterns(model, the train fold)
) -> Tensor:
    """Return how much each input value adds to the target logit by its signal (Kindermans et al. 2018).

    As :func:`pattern_net` with weight times pattern in place of the weights; an input scale hands on what it gets.
    """
    return _backward(subject, x, target, patterns, attribution=True)


def _backward(subject: Subject, x: Tensor, target: Tensor, patterns: Patterns | None, *, attribution: bool) -> Tensor:
    key = ("patterns", id(patterns), attribution)
    if key not in subject.memo:
        subject.memo[key] = _weights(subject, patterns, attribution)
    with torch.no_grad():
        passed = trace(subject.layers, x)
        start = torch.zeros_like(passed.output).scatter_(1, target[:, None], passed.output.gather(1, target[:, None]))
    return _through(subject.layers, passed, start, subject.memo[key])


def _weights(subject: Subject, patterns: Patterns | None, attribution: bool) -> dict[str, Tensor]:
    """Return what stands in for the weights of each layer by its name; raise unless the patterns are of this network.

    They are if ``w . a = 1``, which holds for no other network; tested by the median over the neurons of each layer,
    so that rounding, which is coarse for some neurons in bf16, is no matter.
    """
    if patterns is None:
        raise BadInput("The method needs patterns=explain.fit_patterns(model, train), fitted on the train fold.")
    layers = {name: layer for name, layer in subject.layers.named_modules() if isinstance(layer, KERNELS)}
    found: dict[str, Tensor] = {}
    for name, layer in layers.items():
        pattern = patterns.kernels.get(name)
        if len(layers) != len(patterns.kernels) or pattern is None or pattern.shape != layer.weight.shape:
            raise _foreign()
        pattern = pattern.to(layer.weight.device)
        products = layer.weight * pattern
        sums = products.flatten(1).sum(1)[pattern.flatten(1).any(1)]
        if len(sums) and (sums - 1).abs().median() > 0.1:
            raise _foreign()
        found[name] = (products if attribution else pattern).to(layer.weight.dtype)
    for name, layer in subject.layers.named_modules():
        if isinstance(layer, Scale):
            found[name] = torch.ones_like(layer.gain) if attribution else layer.gain.reciprocal()
    return found


def _foreign() -> BadInput:
    return BadInput("These patterns are of another network: fit them with explain.fit_patterns(model, train) again.")


def _through(
    layers: nn.Sequential, passed: Trace, relevance: Tensor, weights: dict[str, Tensor], prefix: str = ""
) -> Tensor:
    """Send relevance from the output of the layers to their input."""
    for i in range(len(layers) - 1, -1, -1):
        layer, value, weight = layers[i], passed.inputs[i], weights.get(f"{prefix}{i}")
        if isinstance(layer, Parallel):  # concatenated: additions were refused
            parts = relevance.split([inner.output.shape[1] for inner in passed.inner[i]], dim=1)
            sent = [
                _through(branch, passed.inner[i][b], parts[b], weights, f"{prefix}{i}.branches.{b}.")
                for b, branch in enumerate(layer.branches)
            ]
            relevance = torch.stack(sent).sum(dim=0)
        elif isinstance(layer, nn.Linear):
            relevance = relevance @ weight
        elif isinstance(layer, nn.Conv2d):
            geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
            relevance = nn.grad.conv2d_input(value.shape, weight, relevance, *geometry)
        elif isinstance(layer, Scale):
            relevance = relevance * weight
        else:
            relevance = _gradient(layer, value, relevance)
    return relevance


def _gradient(layer: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """Send relevance back through a ReLU, a pooling or a flattening as the gradient goes."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(layer(x), x, relevance)[0]


METHODS = {
    "pattern_net": Method(pattern_net, "PatternNet", "Kindermans et al. 2018", CHAIN, WHY, evidence=False, fitted=True),
    "pattern_attribution": Method(
        pattern_attribution, "PatternAttribution", "Kindermans et al. 2018", CHAIN, WHY, fitted=True
    ),
}
