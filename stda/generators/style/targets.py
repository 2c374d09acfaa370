"""What the pictures of style transfer are compared with: masks, label maps, targets of one picture and of a batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stda import BadInput

CACHE_BYTES = 512 * 2**20

Regions = dict[str, torch.Tensor]  # layer -> (R, 1, h, w) in [0, 1]


@dataclass(frozen=True, eq=False)
class Target:
    """What one picture is compared with; R regions (one without label maps), T terms of the style loss.

    The weighted losses to several styles add up to their summed weight times the loss to their weighted mean Gram, plus
    ``spread``, which no picture can change.
    """

    content: torch.Tensor  # (1, C, h, w) features of the content layer
    grams: tuple[torch.Tensor, ...]  # T times (R, C, K)
    weight: float  # summed over styles
    spread: float
    regions: Regions | None  # None: the whole picture
    shrunk: float = 1.0  # pixels of the content picture for one of the result: 4 at half its size


@dataclass(frozen=True, eq=False)
class Stack:
    """The targets of a batch of B pictures in one: their S regions after one another."""

    content: torch.Tensor  # (B, C, h, w)
    grams: tuple[torch.Tensor, ...]  # T times (S, C, K)
    weights: torch.Tensor  # (B,)
    spreads: torch.Tensor  # (B,)
    regions: Regions | None  # layer -> (S, 1, h, w)
    counts: list[int] | None  # regions of each picture; None: one each
    shrunk: torch.Tensor  # (B,)

    @property
    def owners(self) -> torch.Tensor | None:
        """Return which picture each region is of, ``(S,)``; None: its own."""
        if self.counts is None:
            return None
        counts = torch.tensor(self.counts, device=self.weights.device)
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def stack(targets: Sequence[Target]) -> Stack:
    """Join the targets of a batch."""
    content = torch.cat([target.content for target in targets])
    grams = tuple(torch.cat(parts) for parts in zip(*(target.grams for target in targets), strict=True))
    weights = content.new_tensor([target.weight for target in targets], dtype=grams[0].dtype)
    spreads = content.new_tensor([target.spread for target in targets], dtype=grams[0].dtype)
    counts = [len(target.grams[0]) for target in targets]
    regions = None
    masked = next((target.regions for target in targets if target.regions), None)
    if masked:  # a picture without masks counts everywhere
        regions = {
            layer: torch.cat(
                [target.regions[layer] if target.regions else torch.ones_like(like[:1]) for target in targets]
            )
            for layer, like in masked.items()
        }
    shrunk = spreads.new_tensor([target.shrunk for target in targets])
    return Stack(content, grams, weights, spreads, regions, counts if max(counts) > 1 else None, shrunk)


def content_maps(
    name: str, shape: tuple[int, int], mask: np.ndarray | None, labels: np.ndarray | None
) -> tuple[list[int] | None, np.ndarray | None]:
    """Return the labels that occur inside the mask of a content picture, and where: bool ``(R, H, W)``.

    Without a label map the labels are None, without a mask either the map is: the whole picture.
    """
    inside = _inside(name, shape, mask)
    if labels is None:
        return None, inside if inside is None else inside[None]
    _check_size(name, shape, labels, "label map")
    found = np.unique(labels if inside is None else labels[inside]).tolist()
    maps = np.stack([labels == label for label in found])
    return found, maps if inside is None else maps & inside


def style_maps(
    name: str, shape: tuple[int, int], mask: np.ndarray | None, labels: np.ndarray | None, wanted: list[int] | None
) -> np.ndarray | None:
    """Return where a style picture gives the style of each wanted label (of the content): bool ``(R, H, W)``."""
    inside = _inside(name, shape, mask)
    if wanted is None:
        return inside if inside is None else inside[None]
    _check_size(name, shape, labels, "label map")
    maps = np.stack([labels == label for label in wanted])
    maps = maps if inside is None else maps & inside
    missing = [label for label, region in zip(wanted, maps, strict=True) if not region.any()]
    if missing:
        raise BadInput(
            f"The content has regions {missing} but the label map of style {name} (inside its mask) has not: "
            "give them a region in the style, or merge them with another."
        )
    return maps


def _inside(name: str, shape: tuple[int, int], mask: np.ndarray | None) -> np.ndarray | None:
    """Return a mask as bool, checked; None where there is none or it leaves nothing out."""
    if mask is None:
        return None
    _check_size(name, shape, mask, "mask")
    inside = np.asarray(mask) != 0
    if not inside.any():
        raise BadInput(f"The mask of {name} is all black: paint white what is to be stylised, or leave the mask out.")
    return None if inside.all() else inside


def _check_size(name: str, shape: tuple[int, int], found: np.ndarray, what: str) -> None:
    if found.shape != tuple(shape):
        sizes = ["x".join(map(str, size)) for size in (found.shape, shape)]
        raise BadInput(f"The {what} of {name} is {sizes[0]}, its picture {sizes[1]}: give one of the picture's size.")


class Cache:
    """Values made of tensors by key; those not used for longest are forgotten beyond ``limit`` bytes."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.held = limit, 0
        self._values: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Any, make: Callable[[], Any], tensors: Callable[[Any], Sequence[torch.Tensor]]) -> Any:
        """Return the value of a key, made where it is not there; ``tensors`` lists what its memory is counted by."""
        if key not in self._values:
            value = make()
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors(value))
            self._values[key] = value, size
            self.held += size
            while self.held > self.limit and len(self._values) > 1:
                self.held -= self._values.popitem(last=False)[1][1]
        self._values.move_to_end(key)
        return self._values[key][0]

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self.held = 0
