"""Attribution methods: each gives every input value its share in the logit of a target class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stda import BadInput
from stda.explain import rules
from stda.explain.chain import KERNELS, chain, forward

# one class for all images (index or label), one per image, or None: the class with the largest logit of each image
Target = None | int | str | Sequence | np.ndarray | Tensor

LOW, HIGH = -1.0, 1.0  # smallest and largest pixel value that a tensor of the study can have


def gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return the derivative of the target logit by each input value (Simonyan et al. 2014, without absolute values)."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        chosen = model(x).gather(1, target[:, None]).sum()
        (slope,) = torch.autograd.grad(chosen, x)
    return slope


def integrated_gradients(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    n_steps: int = 32,  # points on the way from the baseline
    baseline: float | Tensor = 0.0,  # image without evidence: a value or a tensor that fits x; 0 is mid-grey
) -> Tensor:
    """Return the mean gradient on the straight way from ``baseline`` to x, times the difference.

    The relevances sum to the difference of the logits at both ends (completeness) up to the error of the integral,
    which is taken by the Gauss-Legendre rule, as in captum (Sundararajan et al. 2017).
    """
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    baseline = torch.as_tensor(baseline, dtype=x.dtype, device=x.device).expand_as(x)
    way, total = x - baseline, torch.zeros_like(x)
    each = max(1, 256 // len(x))  # points computed at once: memory stays that of a training batch
    for start in range(0, n_steps, each):
        share = torch.tensor((nodes[start : start + each] + 1) / 2, dtype=x.dtype, device=x.device)
        points = torch.lerp(baseline, x, share.view(-1, 1, 1, 1, 1))
        slopes = gradient(model, points.flatten(0, 1), target.repeat(len(share))).view_as(points)
        weight = torch.tensor(weights[start : start + each] / 2, dtype=x.dtype, device=x.device)
        total += (slopes * weight.view(-1, 1, 1, 1, 1)).sum(dim=0)
    return way * total


def deep_taylor(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return the deep Taylor decomposition of the target logit (Montavon et al. 2017), all values >= 0.

    As in iNNvestigate: z+ without bias at kernels with a ReLU behind them, w^2 at the others (here the last layer),
    and only a positive logit is explained: where it is not, the map is zero.  The map sums to the logit.  A separate
    ReLU passes relevance on unchanged (as zennit does; iNNvestigate's treats it as part of the kernel before it).
    """
    return _deep_taylor(model, x, target, bounded=False)


def deep_taylor_bounded(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return the deep Taylor decomposition with z^B at the input: pixel values are known to lie in [-1, 1].

    Unlike z+, the rule of the first layer can give relevance to values near zero, which is mid-grey and not absence.
    """
    return _deep_taylor(model, x, target, bounded=True)


@torch.no_grad()
def _deep_taylor(model: nn.Module, x: Tensor, target: Tensor, *, bounded: bool) -> Tensor:
    layers = chain(model)
    inputs, logits = forward(layers, x)
    relevance = torch.zeros_like(logits)
    relevance.scatter_(1, target[:, None], logits.gather(1, target[:, None]).clamp(min=0))
    first = next(i for i, layer in enumerate(layers) if isinstance(layer, KERNELS))
    for i in range(len(layers) - 1, -1, -1):
        layer, value = layers[i], inputs[i]
        if isinstance(layer, nn.MaxPool2d):
            relevance = rules.max_pool(layer, value, relevance)
        elif isinstance(layer, nn.Flatten):
            relevance = relevance.view_as(value)
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


# name -> function(model, x, target, **knobs) -> relevances of the shape of x; target is a tensor (N,) of indices
METHODS: dict[str, Callable[..., Tensor]] = {
    "gradient": gradient,
    "integrated_gradients": integrated_gradients,
    "deep_taylor": deep_taylor,
    "deep_taylor_bounded": deep_taylor_bounded,
}


def attribute(
    model: nn.Module, images: Tensor, method: str, target: Target = None, *, batch_size: int = 64, **knobs: Any
) -> Tensor:
    """Return the relevance of every input value for the target logit, float32 ``(N, C, H, W)`` on the CPU.

    ``images`` is float32 NCHW in [-1, 1]; ``method`` a name of :data:`METHODS`, whose keyword arguments are ``knobs``.
    ``target`` is None (each image's largest logit), one class index or label, or one of them per image.  Softmax is
    not part of what is explained, dropout is off, and computation is in the precision of the model's weights.

    Raises BadInput for an unknown method or target, images of a wrong shape or range, and a layer without a rule.
    """
    if method not in METHODS:
        raise BadInput(f"Unknown attribution method '{method}'; it must be one of {', '.join(METHODS)}.")
    _check_images(images)
    first = next(model.parameters())
    parts = []
    with evaluating(model):
        targets = targets_of(model, images, target, batch_size=batch_size)
        for start in range(0, len(images), batch_size):
            x = images[start : start + batch_size].to(first.device, first.dtype)
            chosen = targets[start : start + batch_size].to(first.device)
            parts.append(METHODS[method](model, x, chosen, **knobs).detach().to("cpu", torch.float32))
    result = torch.cat(parts) if parts else torch.zeros(images.shape)
    if not torch.isfinite(result).all():
        raise BadInput(f"The {method} maps are not finite: the model's weights or activations are not; train it again.")
    return result


@torch.no_grad()
def targets_of(model: nn.Module, images: Tensor, target: Target = None, *, batch_size: int = 256) -> Tensor:
    """Return the class index explained for each image, int64 ``(N,)`` on the CPU; see :func:`attribute`."""
    first = next(model.parameters())
    with evaluating(model):
        parts = [model(part.to(first.device, first.dtype)).cpu() for part in images.split(batch_size)]
    logits = torch.cat(parts)
    if target is None:
        return logits.argmax(dim=1)
    given = [target] if isinstance(target, int | str | np.integer) else list(target)
    if len(given) not in (1, len(images)):
        raise BadInput(f"{len(given)} targets came with {len(images)} images: give one for all, or one for each.")
    classes = list(getattr(model, "classes", []))
    unknown = [name for name in given if isinstance(name, str) and name not in classes]
    if unknown:
        raise BadInput(f"Target '{unknown[0]}' is not a class of the model; its classes are {classes}.")
    index = torch.tensor([classes.index(t) if isinstance(t, str) else int(t) for t in given])
    if len(index) and (index.min() < 0 or index.max() >= logits.shape[1]):
        raise BadInput(f"Targets {sorted(set(index.tolist()))} are out of range; there are {logits.shape[1]} classes.")
    return index.expand(len(images)).clone()


@contextmanager
def evaluating(model: nn.Module):  # noqa: ANN201
    """Put the model into evaluation mode (no dropout, fixed BatchNorm) and back into its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)


def _check_images(images: Tensor) -> None:
    """Raise unless images are finite floating-point NCHW in [-1, 1]."""
    if images.ndim != 4 or not images.is_floating_point():
        raise BadInput(f"Attribution takes float images (N, C, H, W), got {images.dtype} {tuple(images.shape)}.")
    if len(images) and not (images.abs().max() <= 1.0 + 1e-4):  # also false for NaN
        raise BadInput("Attribution takes finite images in [-1, 1]: make them with ImageSet.as_tensor().")
