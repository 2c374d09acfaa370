"""Losses of a batch of pictures against their targets, over one encoder.

Gatys, Ecker, Bethge 2015 (arXiv:1508.06576) with the conventions of the Keras tool that ST-DA used, and the variant of
Novak and Nikulin 2016 (arXiv:1605.04603).  Where this departs from the tool:

- Features of each layer are divided by their RMS over train pictures and multiplied by :data:`FEATURE_RMS`, so that the
  same weights mean the same for every encoder (the tool takes VGG's activations as they are; Gatys et al. rescale VGG).
- The style loss of a layer has Gatys' factor 1 / (4 C^2 M^2) with the layer's C channels and M positions; the tool puts
  the picture's 3 channels and its number of pixels there for every layer.  Both hold but for chaining ``tool``, which
  stays bounded below only in the proportions that the encoder and the tool's factor give to the layers.
- A style's mask says where the style picture gives style, the content's mask where the result takes it, and Grams are
  means over what is inside; the tool lays one mask over both and does not divide by its area.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from stda import BadInput
from stda.compute import Compute
from stda.encoders import Encoder
from stda.generators.style.losses import (
    CONTENT_SCALINGS,
    content_loss,
    cross_gram,
    gram,
    style_loss,
    total_variation,
)
from stda.generators.style.targets import Cache, Regions, Stack, Target, content_maps, stack, style_maps
from stda.generators.style.trunk import Trunk, convolution_layers, in_order
from stda.images import to_tensor

FEATURE_RMS = 100.0  # the scale on which the tool's weights give visible style and recognisable content (chosen by eye)
POSITIONS = {"none": 1.0, "sqrt": 0.5, "size": 0.0}  # power of the number of positions in the content loss
VARIANTS = ("gatys", "improved")
CHAININGS = ("none", "tool", "adjacent")

Features = dict[str, torch.Tensor]
Grams = tuple[torch.Tensor, ...]  # one (R, C, K) per term of the style loss


@dataclass(frozen=True)
class Recipe:
    """What the losses are made of; weights and scalings have the tool's defaults."""

    style_layers: tuple[str, ...] = ()  # empty: the encoder's own, or all its convolutions for variant improved
    content_layer: str = ""  # empty: the encoder's own
    content_weight: float = 0.025
    style_weight: float = 1.0
    tv_weight: float = 8.5e-5
    style_scale: float = 1.0  # another factor of the style weights
    content_scaling: str = "none"  # or sqrt, size: see losses.content_loss
    variant: str = "gatys"  # equal layers, plain Grams; improved: weights halving with depth, Grams of F - 1
    chaining: str = "none"  # adjacent: Grams between a layer and the next; tool: a layer's loss minus the next one's
    pooling: str = "max"  # or average
    padding: str = "zeros"  # or reflect

    def __post_init__(self) -> None:
        allowed = {"content_scaling": CONTENT_SCALINGS, "variant": VARIANTS, "chaining": CHAININGS}
        for knob, values in allowed.items():
            if getattr(self, knob) not in values:
                raise BadInput(f"{knob} is '{getattr(self, knob)}'; it must be one of {', '.join(values)}.")
        weights = (self.content_weight, self.style_weight, self.tv_weight, self.style_scale)
        if min(weights) < 0:
            raise BadInput(f"The weights of content, style and tv and the style scale are {weights}: none may be < 0.")
        if self.chaining == "tool" and self.variant != "improved":
            raise BadInput("chaining 'tool' belongs to variant 'improved': choose that, or chaining 'adjacent'.")


class Engine:
    """The style transfer losses over one encoder; targets are made once per picture and kept.

    ``scales`` has a factor per layer, measured by :meth:`calibrate`.  Encoder and gradients run in the precision of
    ``compute``, sums over positions and channels in at least float32.
    """

    def __init__(
        self, encoder: Encoder, recipe: Recipe, compute: Compute, *, scales: dict[str, float] | None = None
    ) -> None:
        usual = convolution_layers(encoder) if recipe.variant == "improved" else encoder.style_layers
        self.style_layers = in_order(encoder, recipe.style_layers or usual)
        self.content_layer = recipe.content_layer or encoder.content_layer
        self.terms = style_terms(self.style_layers, recipe.variant, recipe.chaining)
        self.recipe, self.compute, self.scales = recipe, compute, scales
        layers = (*self.style_layers, self.content_layer)
        self.trunk = Trunk(encoder, layers, compute, pooling=recipe.pooling, padding=recipe.padding)
        self.cache = Cache()
        self._latest: tuple[list[Target], Stack] | None = None

    @torch.no_grad()
    def calibrate(self, pictures: Iterable[np.ndarray]) -> dict[str, float]:
        """Measure, keep and return the factors that bring each layer's features to :data:`FEATURE_RMS`.

        ``pictures`` are uint8 ``(H, W, 3)``.  Raises BadInput for layers that are zero on all of them.
        """
        squares = []
        for picture in pictures:
            found = self.trunk(self.tensor(picture))
            squares.append({layer: features.double().square().mean().item() for layer, features in found.items()})
        if not squares:
            raise BadInput("The scale of the layers is measured on train pictures: give at least one.")
        rms = {layer: float(np.sqrt(np.mean([row[layer] for row in squares]))) for layer in squares[0]}
        dead = [layer for layer, value in rms.items() if not value > 0]
        if dead:
            raise BadInput(
                f"Layers {dead} of {self.trunk.name} are zero on these pictures: choose other style or content layers."
            )
        self.cache.clear()
        self.scales = {layer: FEATURE_RMS / value for layer, value in rms.items()}
        return self.scales

    def tensor(self, picture: np.ndarray, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Return a uint8 ``(H, W, 3)`` picture as ``(1, 3, h, w)`` in [-1, 1] on the device, resized to ``size``."""
        x = to_tensor(picture[None]).contiguous().to(self.compute.device)
        if size in (None, picture.shape[:2]):
            return x
        return functional.interpolate(x, size=size, mode="bilinear", antialias=True)

    @torch.no_grad()
    def target(
        self,
        content: tuple[str, np.ndarray],  # name and picture
        styles: Sequence[tuple[str, np.ndarray, float]],  # name, picture and weight of each
        *,
        size: tuple[int, int] | None = None,  # (h, w) of the content; styles are resized by the same factor
        content_mask: np.ndarray | None = None,  # (H, W), non-zero where the result takes the style
        style_masks: Sequence[np.ndarray | None] | None = None,  # one per style, non-zero where it gives the style
        content_regions: np.ndarray | None = None,  # (H, W) integer labels: each region has a Gram of its own
        style_regions: Sequence[np.ndarray] | None = None,  # one per style, with the labels that the content has
    ) -> Target:
        """Return what the result of one content and its styles is compared with.

        Pictures are uint8 ``(H, W, 3)``; their names are their keys in the cache.  Masks are averaged over the area of
        each layer's positions; a layer sees some pixels across a mask's edge.  The loss is summed over regions.  Raises
        BadInput.
        """
        masks, maps = _one_each(styles, style_masks, "masks"), _one_each(styles, style_regions, "label maps")
        if self.scales is None:
            raise BadInput("The scale of the layers is not known: call calibrate with train pictures first.")
        if (content_regions is None) != (style_regions is None):
            raise BadInput("Label maps are for the content and for every style: give all of them or none.")
        name, picture = content
        features, sizes = self._content(name, picture, size)
        labels, inside = content_maps(name, picture.shape[:2], content_mask, content_regions)
        factor = 1.0 if size is None else size[0] / picture.shape[0]

        found = []
        for (name, picture, _), mask, regions in zip(styles, masks, maps, strict=True):
            where = style_maps(name, picture.shape[:2], mask, regions, labels)
            found.append(self._style(name, picture, factor, where))
        weights = [float(weight) for _, _, weight in styles]
        grams, spread = self._mixed(found, weights)
        regions = None if inside is None else self._shrink(inside, sizes)
        return Target(features, grams, sum(weights), spread, regions, shrunk=factor**-2)

    def losses(self, x: torch.Tensor, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
        """Return the weighted losses ``content``, ``style`` and ``tv``, each ``(B,)``, of ``(B, 3, H, W)`` in [-1, 1].

        There is one target per picture, and no picture's loss depends on another's.  At a smaller size than that of the
        content picture, sums over pixels are brought to what they would be there, so that the losses keep their
        balance: the content loss by the number of positions, the total variation (its differences grow with coarser
        pixels, to the power 2.5, while their number falls) by that number to the power 1 / 4.
        """
        wanted, layer, recipe = self._stacked(targets), self.content_layer, self.recipe
        features = self.trunk(x)
        content = content_loss(features[layer], wanted.content, recipe.content_scaling)
        found = self._grams(features, x.shape[-2:].numel(), wanted.regions, wanted.owners)
        style = self._style_losses(found, wanted.grams)
        if wanted.counts is not None:
            style = torch.stack([regions.sum() for regions in style.split(wanted.counts)])
        content = content * wanted.shrunk ** POSITIONS[recipe.content_scaling]
        return {
            "content": recipe.content_weight * self.scales[layer] ** 2 * content,
            "style": recipe.style_weight * recipe.style_scale * (wanted.weights * style + wanted.spreads),
            "tv": recipe.tv_weight * total_variation(x * 127.5) / wanted.shrunk**0.25,
        }

    def _grams(
        self,
        features: Features,
        n_pixels: int,  # of the picture
        regions: Regions | None = None,  # where each of R counts
        owners: torch.Tensor | None = None,  # (R,): which picture each region is of; None: its own
    ) -> Grams:
        """Return the Gram matrices ``(R, C, K)`` of features, scaled afterwards: they are small."""
        if owners is not None:
            features = {layer: features[layer][owners] for layer in self.style_layers}
        scales, found = self._style_scales(), []
        for shallow, deep, _ in self.terms:
            shifts = tuple(1 / scales[layer] if self.recipe.variant == "improved" else 0.0 for layer in (shallow, deep))
            weights = None if regions is None else regions[shallow]
            if shallow == deep:
                matrix = gram(features[shallow], weights, shifts[0])
            else:
                matrix = cross_gram(features[shallow], features[deep], weights, shifts)
            # the tool's factor 1 / (4 3^2 N^2) of N pixels in the place of 1 / (4 C^2 M^2)
            factor = features[shallow][0].numel() / (3 * n_pixels) if self.recipe.chaining == "tool" else 1.0
            found.append(scales[shallow] * scales[deep] * factor * matrix)
        return tuple(found)

    def _style_scales(self) -> dict[str, float]:
        """Return the factor of every style layer's features; for chaining ``tool`` one that they have in common."""
        if self.recipe.chaining != "tool":
            return self.scales
        common = np.mean([self.scales[layer] ** -2.0 for layer in self.style_layers]) ** -0.5
        return dict.fromkeys(self.style_layers, float(common))

    def _style_losses(self, found: Grams, wanted: Grams) -> torch.Tensor:
        """Return the weighted sum over terms, ``(R,)``."""
        parts = [weight * style_loss(a, b) for (_, _, weight), a, b in zip(self.terms, found, wanted, strict=True)]
        return torch.stack(parts).sum(dim=0)

    def _content(
        self, name: str, picture: np.ndarray, size: tuple[int, int] | None
    ) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
        """Return the content features of a picture and ``(h, w)`` of every style layer."""

        def make() -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
            features = self.trunk(self.tensor(picture, size))
            return features[self.content_layer], {layer: features[layer].shape[-2:] for layer in self.style_layers}

        return self.cache.get(("content", name, size or picture.shape[:2]), make, lambda value: [value[0]])

    def _style(self, name: str, picture: np.ndarray, factor: float, maps: np.ndarray | None) -> Grams:
        """Return the Gram matrices of a picture resized by ``factor``, per region of ``maps`` bool ``(R, H, W)``."""
        size = tuple(max(round(side * factor), 1) for side in picture.shape[:2])
        digest = b"" if maps is None else hashlib.sha256(maps.tobytes()).digest()

        def make() -> Grams:
            features = self.trunk(self.tensor(picture, size))
            if maps is None:
                return self._grams(features, size[0] * size[1])
            sizes = {layer: features[layer].shape[-2:] for layer in self.style_layers}
            expanded = {layer: features[layer].expand(len(maps), -1, -1, -1) for layer in self.style_layers}
            return self._grams(expanded, size[0] * size[1], self._shrink(maps, sizes))

        return self.cache.get(("style", name, size, digest), make, list)

    def _mixed(self, found: list[Grams], weights: list[float]) -> tuple[Grams, float]:
        """Return the weighted mean of the styles' Gram matrices and the weighted sum of their losses to it."""
        if min(weights) < 0 or not sum(weights) > 0:
            raise BadInput(f"The style weights are {weights}: none may be negative and one must be positive.")
        total = sum(weights)
        parts = zip(*found, strict=True)
        mean = tuple(sum(w / total * a for w, a in zip(weights, styles, strict=True)) for styles in parts)
        losses = [w * self._style_losses(grams, mean).sum().item() for w, grams in zip(weights, found, strict=True)]
        return mean, sum(losses)

    def _shrink(self, maps: np.ndarray, sizes: dict[str, tuple[int, int]]) -> Regions:
        """Return bool maps ``(R, H, W)`` as the share of each layer's positions, ``(R, 1, h, w)``."""
        wide = torch.from_numpy(maps[:, None]).to(
            self.compute.device, torch.promote_types(self.trunk.dtype, torch.float32)
        )
        return {layer: functional.adaptive_avg_pool2d(wide, size) for layer, size in sizes.items()}

    def _stacked(self, targets: Sequence[Target]) -> Stack:
        """Return the targets of a batch as one, kept from one evaluation to the next."""
        if self._latest is None or [id(t) for t in self._latest[0]] != [id(t) for t in targets]:
            self._latest = list(targets), stack(targets)
        return self._latest[1]


def style_terms(layers: Sequence[str], variant: str, chaining: str) -> list[tuple[str, str, float]]:
    """Return pairs of layers whose Gram matrix is compared, a layer with itself or with the next, and their weights.

    Variant ``gatys``: equal, summing to 1.  ``improved``: halving with depth (Novak and Nikulin 2016), summing to
    1.  Chaining ``tool`` is what the Keras tool makes of it: weights doubling with depth times a layer's
    loss minus the next one's, by which the deepest layer is pushed away from the style: a loss without lower bound,
    which ran away within 40 evaluations with layers of one scale and not with the tool's proportions (SqueezeNet).
    """
    if chaining != "none" and len(layers) < 2:
        raise BadInput(f"chaining '{chaining}' goes from layer to layer but there is only {list(layers)}: give more.")
    if chaining == "tool":
        last = len(layers) - 2
        rising = [0.0, *(2.0 ** (i - last) for i in range(last + 1)), 0.0]
        return [(layer, layer, b - a) for layer, (a, b) in zip(layers, pairwise(rising), strict=True)]
    pairs = list(pairwise(layers)) if chaining == "adjacent" else [(layer, layer) for layer in layers]
    weights = [2.0**-i if variant == "improved" else 1.0 for i in range(len(pairs))]
    return [(shallow, deep, w / sum(weights)) for (shallow, deep), w in zip(pairs, weights, strict=True)]


def _one_each(styles: Sequence, given: Sequence | None, what: str) -> Sequence:
    """Return one entry per style, None where nothing is given."""
    if not styles:
        raise BadInput("A content picture needs at least one style: give a style picture with its weight.")
    if given is not None and len(given) != len(styles):
        raise BadInput(f"There are {len(styles)} styles but {len(given)} {what} for them: give one for each.")
    return [None] * len(styles) if given is None else given
