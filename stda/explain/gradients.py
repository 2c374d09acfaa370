"""Methods that need gradients of the logit, plain or through ReLUs that answer in another way.

The gradient of a sum of points is the sum of their gradients, and the first layers of a network are affine.  Methods
that average gradients over many points use both: they average where the first ReLU or pooling begins, and send the
mean through the first layers once (:func:`_stages`).  Points are computed in batches of bounded size.
"""

from __future__ import annotations

import warnings
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stda import BadInput
from stda.explain.layers import AVERAGES, KERNELS, Parallel, Scale
from stda.explain.subject import DIFFERENCE, LAYERS, Method, Subject, logits_of

AFFINE = (Scale, nn.Flatten, *KERNELS, *AVERAGES)
VALUE_RANGE = 2.0  # pixel values lie in [-1, 1]
POINTS, PIXELS = 16, 2**17  # a batch has so many points, or as many more as have that many pixels together
SMALLEST = 1e-10  # below this a difference of activations counts as none, as in captum


def input_values(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Return the input itself: what a method shows that does not look at the network."""
    return x.clone()


def random(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Return normal noise, a map without any information, drawn from the seed of the subject."""
    return subject.normal(x.shape)


def gradient(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Return the derivative of the target logit by each input value (Simonyan et al. 2014, without absolute values)."""
    return _slope(nn.Sequential(*_stages(subject)), x, target)


def input_x_gradient(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Return the gradient times the input (Shrikumar et al. 2016).

    In a ReLU network without biases the relevances would sum to the logit; biases take their part, so nothing is
    promised.
    """
    return x * gradient(subject, x, target)


def deconvnet(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Return the gradient with ReLUs that pass what is positive on its way back, whatever their input was.

    Zeiler and Fergus 2014, through captum; max-pooling goes back to the winners of the forward pass (its switches).
    """
    return _with_hooks("Deconvolution", subject, x, target)


def guided_backprop(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Return the gradient with ReLUs that pass what is positive on its way back and had a positive input.

    Springenberg et al. 2015, through captum.
    """
    return _with_hooks("GuidedBackprop", subject, x, target)


def integrated_gradients(
    subject: Subject,
    x: Tensor,
    target: Tensor,
    *,
    n_steps: int = 32,  # points on the way from the baseline
    baseline: float
    | Tensor = 0.0,  # image without evidence: a value, or a tensor (C, 1, 1) or (C, H, W); 0 is mid-grey
) -> Tensor:
    """Return the mean gradient on the straight way from ``baseline`` to x, times the difference.

    The relevances sum to the difference of the logits at both ends (completeness) up to the error of the integral,
    which is taken by the Gauss-Legendre rule, as in captum (Sundararajan et al. 2017); :func:`completeness_error`
    measures it.  Raises BadInput for a number of steps below one and a baseline that does not fit.
    """
    _check_count("n_steps", n_steps)
    baseline = baseline_like(baseline, x)
    at_once = _points(x)
    parts = zip(x.split(at_once), baseline.split(at_once), target.split(at_once), strict=True)
    return torch.cat([_integrated(subject, *part, n_steps, at_once) for part in parts]) if len(x) else x.clone()


def _integrated(subject: Subject, x: Tensor, baseline: Tensor, target: Tensor, n_steps: int, at_once: int) -> Tensor:
    """Return the integrated gradients of a few images, several steps at once."""
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    stem, rest = _stages(subject)
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        last = stem(x)
    begin, end, total = stem(baseline), last.detach(), _sum_like(last)
    each = max(1, at_once // len(x))
    for start in range(0, n_steps, each):
        shares, amounts = (nodes[start : start + each] + 1) / 2, weights[start : start + each] / 2
        points = torch.cat([torch.lerp(begin, end, float(share)) for share in shares])
        slopes = _slope(rest, points, target.repeat(len(shares)))
        for amount, slope in zip(amounts, slopes.split(len(x)), strict=True):
            total.add_(slope, alpha=float(amount))
    (mean,) = torch.autograd.grad(last, x, total.to(x.dtype))
    return (x.detach() - baseline) * mean


def completeness_error(
    model: nn.Module,
    images: Tensor,
    maps: Tensor | np.ndarray,
    target: Tensor,  # (N,), the class whose logit was explained
    baseline: float | Tensor = 0.0,  # as given to the method
    *,
    relative: bool = False,
    batch_size: int = 64,
) -> Tensor:
    """Return how far each map's sum is from the difference of the logits of image and baseline, float64 ``(N,)``.

    The error is absolute, in units of the logit; with ``relative`` it is a share of that difference (0 where both are
    zero, infinite where only the difference is).  For integrated gradients and DeepLIFT.  Raises BadInput for a
    baseline, maps or targets that do not fit.
    """
    logits = logits_of(model, images, batch_size=batch_size).double()
    base = logits_of(model, baseline_like(baseline, images[:1]), batch_size=1).double()
    target, maps = torch.as_tensor(target).cpu(), torch.as_tensor(maps).double().cpu()
    if target.shape != logits.shape[:1] or not ((target >= 0) & (target < logits.shape[1])).all():
        raise BadInput(f"The targets must be one of {logits.shape[1]} class indices for each of {len(images)} images.")
    if len(maps) != len(images):
        raise BadInput(f"{len(maps)} maps came with {len(images)} images: give one for each.")
    wanted = (logits - base).gather(1, target[:, None])[:, 0]
    error = (maps.flatten(1).sum(dim=1) - wanted).abs()
    return torch.where(error == 0, error, error / wanted.abs()) if relative else error


def smoothgrad(
    subject: Subject,
    x: Tensor,
    target: Tensor,
    *,
    n_samples: int = 32,  # noisy copies of each image
    noise: float = 0.1,  # standard deviation as a share of the range of pixel values, which is 2
) -> Tensor:
    """Return the mean gradient over copies of the image with normal noise (Smilkov et al. 2017, eq. 1).

    The share is one of the range that all images have, [-1, 1], not of each image's own *(reading)*: the same noise
    for all of them.  Noise of 0 gives the gradient.  Raises BadInput for no sample and noise that is negative.
    """
    _check_count("n_samples", n_samples)
    if not 0 <= noise < float("inf"):
        raise BadInput(f"noise is {noise}; it must be a share of the value range, such as 0.1, and not negative.")
    at_once = _points(x)
    parts = zip(x.split(at_once), target.split(at_once), strict=True)
    smooth = [_smoothed(subject, *part, n_samples, noise * VALUE_RANGE, at_once) for part in parts]
    return torch.cat(smooth) if len(x) else x.clone()


def _smoothed(subject: Subject, x: Tensor, target: Tensor, n_samples: int, spread: float, at_once: int) -> Tensor:
    """Return the mean gradient of a few images, copies in the order image by image."""
    stem, rest = _stages(subject)
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        last = stem(x)
    total = _sum_like(last)
    for rows in torch.arange(len(x) * n_samples, device=x.device).split(at_once):
        image = rows // n_samples
        with torch.no_grad():
            points = stem(torch.add(x[image], subject.normal((len(rows), *x.shape[1:])), alpha=spread))
        total.index_add_(0, image, _slope(rest, points, target[image]).to(total.dtype), alpha=1 / n_samples)
    return torch.autograd.grad(last, x, total.to(x.dtype))[0]


def deeplift(
    subject: Subject,
    x: Tensor,
    target: Tensor,
    *,
    baseline: float
    | Tensor = 0.0,  # image without evidence: a value, or a tensor (C, 1, 1) or (C, H, W); 0 is mid-grey
) -> Tensor:
    """Return the contributions of DeepLIFT's rescale rule to the difference of the logits of x and ``baseline``.

    A ReLU's slope is the difference of its outputs by that of its inputs; max-pooling gives the difference of its
    outputs to the winner of the larger one (Shrikumar et al. 2017, section 3.5.2; pooling as in captum).  The
    relevances sum to the difference of the logits.  Ours and not captum's because captum 0.9 loses contributions where
    max-pooling follows a ReLU or its windows overlap: its maps of VGG and AlexNet do not sum to the difference.
    Raises BadInput for a baseline that does not fit.
    """
    baseline = baseline_like(baseline, x)
    half = _points(x) // 2  # each image is computed beside its baseline
    parts = zip(x.split(half), baseline.split(half), target.split(half), strict=True)
    lifted = [_lifted(subject, *part) for part in parts]
    return torch.cat(lifted) if lifted else x.clone()


def _lifted(subject: Subject, x: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    """Return the contributions of a few images: multipliers times the difference."""
    multipliers = _slope(lambda pair: _rescaled(subject.layers, pair), torch.cat([x, baseline]), target.repeat(2))
    return (x - baseline) * multipliers[: len(x)]


def _rescaled(layers: nn.Sequential, pair: Tensor) -> Tensor:
    """Run the layers on images and then their baselines, with the slopes of the rescale rule on the way back."""
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            pair = _RescaledReLU.apply(pair)
        elif isinstance(layer, nn.MaxPool2d):
            pair = _RescaledMaxPool.apply(pair, layer)
        elif isinstance(layer, Parallel):
            pair = layer.joined([_rescaled(branch, pair) for branch in layer.branches])
        else:
            pair = layer(pair)
    return pair


class _RescaledReLU(torch.autograd.Function):
    """A ReLU whose slope is the difference of outputs by that of inputs, of image and baseline."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, pair: Tensor) -> Tensor:
        ctx.save_for_backward(pair)
        return pair.clamp(min=0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        x, base = ctx.saved_tensors[0].chunk(2)
        slope = _share(x.clamp(min=0) - base.clamp(min=0), x - base, (x > 0).to(x.dtype))
        return grad * torch.cat([slope, slope])


class _RescaledMaxPool(torch.autograd.Function):
    """Max-pooling that hands the difference of its outputs to the winner in the image or in the baseline."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, pair: Tensor, layer: nn.MaxPool2d) -> Tensor:
        ctx.geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
        out, winners = functional.max_pool2d(pair, *ctx.geometry, return_indices=True)
        ctx.save_for_backward(pair, out, winners)
        return out

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        pair, out, winners = ctx.saved_tensors
        *sides, ceil_mode = ctx.geometry
        geometry = [[side] * 2 if isinstance(side, int) else list(side) for side in sides]

        def back(relevance: Tensor) -> Tensor:
            return torch.ops.aten.max_pool2d_with_indices_backward(relevance, pair, *geometry, ceil_mode, winners)

        above, base = out.chunk(2)
        larger = torch.maximum(above, base)
        given, from_base = back(grad * torch.cat([larger - base, above - larger])).chunk(2)
        x, reference = pair.chunk(2)
        slope = _share(given + from_base, x - reference, back(grad).chunk(2)[0])
        return torch.cat([slope, slope]), None


def _share(part: Tensor, difference: Tensor, otherwise: Tensor) -> Tensor:
    """Return ``part / difference``, and the plain gradient where there is no difference."""
    none = difference.abs() < SMALLEST
    return torch.where(none, otherwise, part / torch.where(none, 1.0, difference))


def _slope(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of the target logits by ``x``."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        chosen = network(x).gather(1, target[:, None]).sum()
        (slope,) = torch.autograd.grad(chosen, x)
    return slope


def _with_hooks(name: str, subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Run a method of captum that changes the ReLUs for the length of a call; it warns of that, needlessly here."""
    from captum import attr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return getattr(attr, name)(subject.layers).attribute(x.detach(), target)


class _PooledLinear(nn.Module):
    """Average pooling to a fixed grid, flattening and a dense layer.

    Where the grid has more cells than the input (VGG11 at 64 px: 7x7 from 2x2), the dense layer is merged with the
    pooling, which is linear too: the product gets smaller by the same factor.
    """

    def __init__(self, pool: nn.AdaptiveAvgPool2d, dense: nn.Linear) -> None:
        super().__init__()
        self.pool, self.dense = pool, dense
        self.merged: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return what the three layers return."""
        weight = self._weight(x.shape[1:])
        if weight.shape == self.dense.weight.shape:
            x = self.pool(x)
        return functional.linear(x.flatten(1), weight, self.dense.bias)

    def _weight(self, shape: torch.Size) -> Tensor:
        if shape not in self.merged:
            channels, cells = shape[0], shape[1:].numel()
            unit = torch.eye(cells).to(self.dense.weight).view(cells, 1, *shape[1:])
            spread = self.pool(unit).flatten(1)  # what each cell of the input gives to each of the grid
            if spread.shape[1] > cells:
                kernel = self.dense.weight.view(-1, channels, spread.shape[1])
                self.merged[shape] = (kernel @ spread.T).flatten(1)
            else:
                self.merged[shape] = self.dense.weight
        return self.merged[shape]


def _stages(subject: Subject) -> tuple[nn.Module, nn.Module]:
    """Return the affine layers with which the network begins, and the rest, in an order that computes less.

    A max-pooling goes before its ReLU (they commute, also on the way back), and pooling merges with a dense layer.  A
    network that is no sequence of layers is all rest.
    """
    if "stages" not in subject.memo:
        try:
            layers = list(subject.layers)
        except BadInput:
            subject.memo["stages"] = nn.Sequential(), subject.network
            return subject.memo["stages"]
        stem = list(takewhile(lambda layer: isinstance(layer, AFFINE), layers))
        subject.memo["stages"] = nn.Sequential(*stem), nn.Sequential(*_reordered(layers[len(stem) :]))
    return subject.memo["stages"]


def _reordered(layers: list[nn.Module]) -> list[nn.Module]:
    """Return layers that compute the same with less work."""
    result: list[nn.Module] = []
    for layer in layers:
        kinds = [type(before) for before in result[-2:]]
        if isinstance(layer, nn.MaxPool2d) and kinds[-1:] == [nn.ReLU]:
            result.insert(len(result) - 1, layer)
        elif isinstance(layer, nn.Linear) and kinds == [nn.AdaptiveAvgPool2d, nn.Flatten]:
            result[-2:] = [_PooledLinear(result[-2], layer)]
        else:
            result.append(layer)
    return result


def _points(x: Tensor) -> int:
    """Return how many points of the size of these images are computed at once."""
    return max(POINTS, PIXELS // max(1, x.shape[2:].numel()))


def _sum_like(x: Tensor) -> Tensor:
    """Return zeros to add many tensors like ``x`` to, at least in float32."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32), requires_grad=False)


def _check_count(name: str, n: int) -> None:
    """Raise unless a number of points is one."""
    if not isinstance(n, int | np.integer) or n < 1:
        raise BadInput(f"{name} is {n}; it must be a whole number of at least 1.")


def baseline_like(baseline: float | Tensor | np.ndarray, x: Tensor) -> Tensor:
    """Return the baseline in the shape of ``x``; raise where it does not fit."""
    shape = (1, *x.shape[1:])
    try:
        given = torch.as_tensor(baseline, dtype=x.dtype, device=x.device)
        fits = torch.broadcast_shapes(given.shape, shape) == shape and bool(torch.isfinite(given).all())
    except (TypeError, ValueError, RuntimeError):
        fits = False
    if not fits:
        found = tuple(baseline.shape) if hasattr(baseline, "shape") else baseline
        raise BadInput(
            f"The baseline ({found}) does not fit: give a finite value, or a finite tensor {shape[1:]} for all images."
        )
    return given.expand_as(x).contiguous(memory_format=torch.channels_last)


METHODS = {
    "input": Method(input_values, "input", "what a map is compared with", evidence=False),
    "random": Method(random, "random", "what a map is compared with", evidence=False),
    "gradient": Method(gradient, "gradient", "Simonyan et al. 2014", evidence=False),
    "input_x_gradient": Method(input_x_gradient, "input x gradient", "Shrikumar et al. 2016"),
    "deconvnet": Method(deconvnet, "deconvnet", "Zeiler and Fergus 2014", LAYERS, evidence=False),
    "guided_backprop": Method(guided_backprop, "guided backprop", "Springenberg et al. 2015", LAYERS, evidence=False),
    "integrated_gradients": Method(
        integrated_gradients, "integrated gradients", "Sundararajan et al. 2017", conserves=DIFFERENCE
    ),
    "smoothgrad": Method(smoothgrad, "SmoothGrad", "Smilkov et al. 2017", evidence=False),
    "deeplift": Method(deeplift, "DeepLIFT (rescale)", "Shrikumar et al. 2017", LAYERS, conserves=DIFFERENCE),
}
