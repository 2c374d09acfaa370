"""The engine of style transfer: a picture is redrawn in the style of another by optimising its pixels.

Gatys, Ecker, Bethge 2015 (arXiv:1508.06576) with the conventions of the Keras tool that ST-DA used: the weights of
content, style and total variation, the start images, and L-BFGS calls of 20 loss evaluations as iterations.  Where this
departs from the tool:

- Features of each layer are divided by their RMS over train pictures and multiplied by :data:`FEATURE_RMS`, so that the
  same weights mean the same for every encoder (the tool takes VGG's activations as they are; Gatys et al. rescale VGG).
- The style loss of a layer has Gatys' factor 1 / (4 C^2 M^2) with the layer's C channels and M positions; the tool puts
  the picture's 3 channels and its number of pixels there for every layer.
- L-BFGS keeps its memory from one iteration to the next, and the best picture met is the result.
- L-BFGS works on cosine coefficients weighted by 1 / frequency^0.6 instead of on pixels: the same losses of the same
  pictures, but colour and shading move in the first steps.  On dermoscopy at 96 px, 20 evaluations of SqueezeNet's loss
  reached what took 100 on pixels, without the frame of untouched colour along the border.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stda import BadInput
from stda.compute import Compute, rng
from stda.encoders import Encoder
from stda.images import to_tensor

Grams = dict[str, torch.Tensor]

FEATURE_RMS = 100.0  # the scale on which the tool's weights give visible style and recognisable content (chosen by eye)
EVALUATIONS = 20  # of the loss per iteration, as in the tool
SMOOTHNESS = 0.6  # exponent of 1 / frequency; 0 is pixels, 1 and more made L-BFGS fail with some encoders
FIRST_STEP = 0.1  # grey levels per value of the picture; larger ones have broken the first line search
HISTORY = 10  # longer memories have diverged in bf16
CACHE_SIZE = 128  # pictures whose content or style targets are kept
STARTS = ("content", "noise", "grey")


class _SelfProduct(torch.autograd.Function):
    """F^T F of ``(M, C)``, whose gradient is one product instead of the two that autograd would make."""

    @staticmethod
    def forward(ctx: Any, flat: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(flat)
        return flat.T @ flat

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (flat,) = ctx.saved_tensors
        return flat @ (gradient + gradient.T)


def gram(features: torch.Tensor) -> torch.Tensor:
    """Return the mean over positions of the products of channels, ``(C, C)``, of features ``(1, C, h, w)``.

    At least float32: sums over thousands of positions are not for bf16.
    """
    flat = features[0].flatten(1).T  # (positions, channels): no copy where channels come last in memory
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    return _SelfProduct.apply(flat) / len(flat)


def style_loss(found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return sum((G - A)^2) / (4 C^2) of two position-averaged Gram matrices: Gatys' 1 / (4 C^2 M^2) of summed ones."""
    return (found - target).square().mean() / 4


def content_loss(found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the sum of squared differences of features (the tool's unscaled content loss; Gatys et al. halve it)."""
    return (found - target).square().sum()


def total_variation(pixels: torch.Tensor) -> torch.Tensor:
    """Return sum((dx^2 + dy^2)^1.25) over positions and channels of ``(1, 3, H, W)`` on the scale 0..255."""
    corner = pixels[..., :-1, :-1]
    steps = (corner - pixels[..., 1:, :-1]).square() + (corner - pixels[..., :-1, 1:]).square()
    return steps.pow(1.25).sum()


def layer_scales(encoder: Encoder, layers: Iterable[str], batches: Iterable[torch.Tensor]) -> dict[str, float]:
    """Return, per layer, the factor that brings its features to :data:`FEATURE_RMS` over batches in [-1, 1]."""
    names = tuple(dict.fromkeys(layers))
    squares = []
    with torch.no_grad():
        for batch in batches:
            found = encoder.layers(batch, names)
            squares.append([found[name].double().square().mean().item() for name in names])
    rms = np.sqrt(np.mean(squares, axis=0))
    dead = [name for name, value in zip(names, rms, strict=True) if not value > 0]
    if dead:
        raise BadInput(
            f"Layers {dead} of {encoder.name} are zero on these pictures: choose other style or content layers."
        )
    return {name: FEATURE_RMS / float(value) for name, value in zip(names, rms, strict=True)}


def cosine_matrix(size: int) -> torch.Tensor:
    """Return the orthonormal discrete cosine transform (DCT-II) as a float64 ``(size, size)`` matrix of rows."""
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi / size * (n + 0.5) * n[:, None]) * (2 / size) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def frequency_basis(picture: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that turns coefficients, shaped like ``picture`` ``(1, 3, H, W)``, into a change of it.

    The cosine transform does not wrap around, so nothing leaks from one border to the opposite one.  Coefficients are
    scaled so that L-BFGS' first step, of L1 norm 1, is about :data:`FIRST_STEP`.
    """
    height, width = picture.shape[-2:]
    rows, columns = (cosine_matrix(n).to(picture) for n in (height, width))
    frequency = torch.hypot(torch.arange(height)[:, None] / height, torch.arange(width) / width).to(picture)
    weights = frequency.clamp_min(1 / max(height, width)) ** -SMOOTHNESS
    weights = weights / weights.square().mean().sqrt() * FIRST_STEP / 127.5 * picture.numel()
    return lambda coefficients: rows.T @ (coefficients * weights) @ columns


class NonFiniteLoss(BadInput):
    """The loss became NaN or infinite: the message says so, the caller knows for which picture."""


@dataclass
class Engine:
    """Losses over one encoder, with targets cached per picture, and their minimisation.

    ``scales`` has a factor for every style layer and the content layer (:func:`layer_scales`).  ``compute`` sets the
    precision of the encoder; Gram sums and the optimiser are float32.  After 40
    evaluations at 96 px, bf16 ends within 1 % of float32's loss with the in-domain encoder, 1 to 10 % above it with
    SqueezeNet.
    """

    encoder: Encoder
    scales: dict[str, float]
    style_layers: Sequence[str]
    content_layer: str
    compute: Compute
    content_weight: float
    style_weight: float
    tv_weight: float
    cache: OrderedDict[tuple[str, str], Any] = field(default_factory=OrderedDict)

    def content_target(self, name: str, picture: np.ndarray) -> torch.Tensor:
        """Return the content features of a uint8 ``(H, W, 3)`` picture; ``name`` is its key in the cache."""
        layer = self.content_layer
        return self._cached("content", name, lambda: self.features(self.tensor(picture))[layer].float())

    def style_target(self, name: str, picture: np.ndarray) -> Grams:
        """Return the Gram matrix of every style layer for a uint8 ``(H, W, 3)`` picture, cached under ``name``."""
        return self._cached("style", name, lambda: self.grams(self.features(self.tensor(picture))))

    def tensor(self, picture: np.ndarray) -> torch.Tensor:
        """Return a uint8 ``(H, W, 3)`` picture as ``(1, 3, H, W)`` in [-1, 1] on the device."""
        return to_tensor(picture[None]).contiguous().to(self.compute.device)

    def features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what the encoder gives for ``(1, 3, H, W)`` in [-1, 1] at the style layers and the content layer."""
        with self.compute.autocast():
            return self.encoder.layers(x, self.scales)

    def grams(self, features: dict[str, torch.Tensor]) -> Grams:
        """Return the Gram matrix of every style layer."""
        return {layer: gram(features[layer]) for layer in self.style_layers}

    def losses(
        self, x: torch.Tensor, content: torch.Tensor, styles: Sequence[tuple[float, Grams]]
    ) -> dict[str, torch.Tensor]:
        """Return the weighted losses ``content``, ``style`` and ``tv`` of ``(1, 3, H, W)`` in [-1, 1].

        ``styles`` pairs weights with Gram matrices: several styles are a weighted sum of their losses.  Layers count
        equally.  Features are scaled here, on the small results, not on the feature maps.
        """
        features = self.features(x)
        found = self.grams(features)
        style = torch.zeros((), device=x.device)
        for weight, target in styles:
            for layer in self.style_layers:
                loss = self.scales[layer] ** 4 * style_loss(found[layer], target[layer])
                style = style + weight / len(self.style_layers) * loss
        layer = self.content_layer
        content_part = self.scales[layer] ** 2 * content_loss(features[layer].to(content.dtype), content)
        return {
            "content": self.content_weight * content_part,
            "style": self.style_weight * style,
            "tv": self.tv_weight * total_variation(x * 127.5),
        }

    def minimise(
        self,
        start: torch.Tensor,
        content: torch.Tensor,
        styles: Sequence[tuple[float, Grams]],
        *,
        iterations: int,
        callback: Callable[[dict[str, Any]], None] | None = None,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the best picture met, ``(1, 3, H, W)`` in [-1, 1], and its losses.

        An iteration is one L-BFGS call of 20 loss evaluations; a line search once begun is finished, as in the tool.
        ``callback`` receives after each ``iteration`` the best losses, the ``evaluations`` so far and ``x``.  Raises
        NonFiniteLoss.
        """
        draw = frequency_basis(start)
        variable = torch.zeros_like(start, requires_grad=True)
        best: dict[str, Any] = {"total": float("inf"), "evaluations": 0}

        def evaluate() -> torch.Tensor:
            variable.grad = None
            x = start + draw(variable)
            parts = self.losses(x, content, styles)
            total = parts["content"] + parts["style"] + parts["tv"]
            total.backward()
            _keep_best(best, x.detach(), parts, total.item())
            return total

        limits = {"max_iter": EVALUATIONS, "max_eval": EVALUATIONS, "tolerance_grad": 0, "tolerance_change": 0}
        optimiser = torch.optim.LBFGS([variable], history_size=HISTORY, line_search_fn="strong_wolfe", **limits)
        for iteration in range(1, iterations + 1):
            optimiser.step(evaluate)
            if callback:
                callback({"iteration": iteration, **best})
        return best["x"].clamp(-1, 1), {key: value for key, value in best.items() if key != "x"}

    def _cached(self, kind: str, name: str, make: Callable[[], Any]) -> Any:
        """Return the target of a picture, made once while it is among the last :data:`CACHE_SIZE` used."""
        key = (kind, name)
        if key not in self.cache:
            with torch.no_grad():
                self.cache[key] = make()
            if len(self.cache) > CACHE_SIZE:
                self.cache.popitem(last=False)
        self.cache.move_to_end(key)
        return self.cache[key]


def _keep_best(best: dict[str, Any], x: torch.Tensor, parts: dict[str, torch.Tensor], total: float) -> None:
    """Count an evaluation and remember the picture and its losses if none was better."""
    best["evaluations"] += 1
    if not np.isfinite(total):
        raise NonFiniteLoss(f"the loss is {total} at evaluation {best['evaluations']}")
    if total < best["total"]:
        best.update(total=total, x=x, **{key: value.item() for key, value in parts.items()})


def start_image(kind: str, content: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the picture that the optimisation starts from, ``(1, 3, H, W)`` in [-1, 1].

    ``content`` is the content picture, ``grey`` its luminance (ITU-R 601), ``noise`` uniform over the whole range.
    """
    if kind == "content":
        return content.clone()
    if kind == "grey":
        weights = torch.tensor([0.299, 0.587, 0.114], device=content.device).view(1, 3, 1, 1)
        return (content * weights).sum(dim=1, keepdim=True).expand_as(content).contiguous()
    if kind == "noise":
        return (torch.rand(content.shape, generator=rng(seed)) * 2 - 1).to(content.device)
    raise BadInput(f"start is '{kind}'; it must be one of {', '.join(STARTS)}.")
