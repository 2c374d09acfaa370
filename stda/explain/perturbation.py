"""Region perturbation: is a map right about what matters?  (Samek et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from stda import BadInput
from stda.compute import rng
from stda.explain.methods import Target, targets_of
from stda.explain.subject import evaluating

if TYPE_CHECKING:
    from stda.compute import Compute

REPLACEMENTS = ("mean", "zeros", "noise", "blur")
RANDOM = "random"
N_RESAMPLES = 2000


def default_region_size(size: int) -> int:
    """Return the side of a region in pixels: 9 at 224 px as published, in proportion at other sizes, at least 4."""
    return max(4, round(9 * size / 224))


def perturbation_curves(
    model: nn.Module,
    images: Tensor,
    maps: Mapping[str, np.ndarray | Tensor],
    *,
    seed: int,
    region_size: int = 0,  # pixels; 0: default_region_size
    replace: str = "mean",
    fill: Sequence[float] | np.ndarray | None = None,  # mean colour of the train fold, 0 to 255 per channel
    random_orders: int = 5,
    n_regions: int = 0,  # how many regions are replaced one after the other; 0: half of them
    target: Target = None,
    compute: Compute | None = None,
    batch_size: int = 512,
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> pd.DataFrame:
    """Replace regions, most relevant first, and record the probability of the target class.

    ``images`` is float32 ``(N, C, H, W)`` in [-1, 1]; ``maps`` name to relevances ``(N, C, H, W)`` or ``(N, H, W)``.
    Regions are squares of a grid (smaller at the right and lower edge), ranked by mean relevance; random orders are
    the reference.  ``replace`` is "mean" (``fill``), "zeros" (mid-grey), "noise" (``fill`` plus Gaussian noise of the
    image's own spread) or "blur" (a Gaussian of the region's side).  Returns columns ``method`` (or "random"),
    ``order`` (of random: 0, 1, ...), ``image``, ``regions`` (0, 1, ...), ``probability``.  Raises BadInput for settings
    or shapes that do not fit.
    """
    region_size = region_size or default_region_size(images.shape[-1])
    noise = rng(seed)
    rounds = _rounds(images, maps, region_size, random_orders, noise)
    filled = replacement(images, replace, fill=fill, blur=region_size, noise=noise)
    total = rounds[0][2][0].numel()
    n_regions = min(n_regions or -(-total // 2), total)
    device = next(model.parameters()).device
    curve = _Curve(model, images.to(device), filled.to(device), region_size, n_regions, compute, batch_size)
    with evaluating(model):
        targets = targets_of(model, images, target).to(device)
        tables = []
        for step, (name, order, ranks) in enumerate(rounds, start=1):
            tables.append(_long(name, order, curve(ranks.to(device), targets)))
            if callback:
                callback({"step": step, "steps": len(rounds), "method": name})
    return pd.concat(tables, ignore_index=True)


def _rounds(
    images: Tensor,
    maps: Mapping[str, np.ndarray | Tensor],
    region_size: int,
    random_orders: int,
    noise: torch.Generator,
) -> list[tuple[str, int, Tensor]]:
    """Return name, order and ranks ``(N, rows, columns)`` of every map and of every random order."""
    if RANDOM in maps or not maps or random_orders < 1 or not len(images):
        raise BadInput(f"Region perturbation needs images, maps (none called '{RANDOM}') and at least 1 random order.")
    rounds = [(name, 0, _ranks(name, images, values, region_size)) for name, values in maps.items()]
    shape = rounds[0][2].shape
    for order in range(random_orders):
        shuffled = torch.rand(len(images), shape[1:].numel(), generator=noise).argsort(dim=1)
        rounds.append((RANDOM, order, shuffled.view(shape)))
    return rounds


def replacement(
    images: Tensor, replace: str, *, fill: Sequence[float] | np.ndarray | None, blur: float, noise: torch.Generator
) -> Tensor:
    """Return the images whose pixels take the place of replaced ones, ``(N, C, H, W)`` in [-1, 1]."""
    if replace not in REPLACEMENTS:
        raise BadInput(f"replace is '{replace}'; it must be one of {', '.join(REPLACEMENTS)}.")
    if replace == "zeros":
        return torch.zeros_like(images)
    if replace == "blur":
        return _blurred(images, blur)
    if fill is None or len(fill) != images.shape[1]:
        raise BadInput(f"replace '{replace}' needs fill, the mean colour of the train fold, one value per channel.")
    colour = torch.tensor(np.asarray(fill, dtype=np.float32)).view(1, -1, 1, 1) / 127.5 - 1
    colour = colour.to(images).expand_as(images)
    if replace == "mean":
        return colour
    spread = images.std(dim=(2, 3), keepdim=True)
    drawn = torch.randn(images.shape, generator=noise).to(images)
    return (colour + spread * drawn).clamp(-1, 1)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of standard deviation ``sigma`` pixels, edges repeated."""
    reach = min(round(3 * sigma), 4 * images.shape[-1])
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2).to(images)
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)
    padded = functional.pad(images, [reach] * 4, mode="replicate")
    rows = functional.conv2d(padded, weights, groups=images.shape[1])
    return functional.conv2d(rows, weights.transpose(2, 3), groups=images.shape[1])


def region_relevance(maps: np.ndarray | Tensor, region_size: int) -> Tensor:
    """Return the mean relevance of each region, float64 ``(N, rows, columns)``, channels summed."""
    maps = torch.as_tensor(np.asarray(maps), dtype=torch.float64)
    maps = maps.sum(dim=1) if maps.ndim == 4 else maps
    return functional.avg_pool2d(maps[:, None], region_size, ceil_mode=True, count_include_pad=False)[:, 0]


def _ranks(name: str, images: Tensor, maps: np.ndarray | Tensor, region_size: int) -> Tensor:
    """Return the place of each region in the order of replacement, int64 ``(N, rows, columns)``, 0 first."""
    if tuple(maps.shape) not in (tuple(images.shape), (len(images), *images.shape[2:])):
        raise BadInput(f"The maps of '{name}' have shape {tuple(maps.shape)}, the images {tuple(images.shape)}.")
    if not 1 <= region_size <= images.shape[-1]:
        raise BadInput(f"region_size is {region_size}; it must be between 1 and {images.shape[-1]} pixels.")
    relevance = region_relevance(maps, region_size)
    order = relevance.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).view(relevance.shape)


class _Curve:
    """Turns ranks of regions into probabilities of the target class, in batches over images and steps together."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        filled: Tensor,
        region_size: int,
        n_regions: int,
        compute: Compute | None,
        batch_size: int,
    ) -> None:
        self.model, self.images, self.filled, self.compute = model, images, filled, compute
        self.region_size, self.n_steps, self.batch_size = region_size, n_regions + 1, batch_size

    @torch.no_grad()
    def __call__(self, ranks: Tensor, targets: Tensor) -> np.ndarray:
        """Return the probabilities ``(N, n_regions + 1)``; column k has the k first regions replaced."""
        height, width = self.images.shape[2:]
        place = ranks.repeat_interleave(self.region_size, dim=1).repeat_interleave(self.region_size, dim=2)
        place = place[:, None, :height, :width]
        parts = []
        for pairs in torch.arange(len(self.images) * self.n_steps, device=ranks.device).split(self.batch_size):
            rows, steps = pairs // self.n_steps, pairs % self.n_steps
            replaced = place[rows] < steps.view(-1, 1, 1, 1)
            x = torch.where(replaced, self.filled[rows], self.images[rows])
            probabilities = self._logits(x).float().softmax(dim=1)
            parts.append(probabilities.gather(1, targets[rows][:, None])[:, 0].cpu())
        return torch.cat(parts).view(-1, self.n_steps).numpy()

    def _logits(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if self.compute is None:
            return self.model(x)
        with self.compute.autocast():
            return self.model(x)


def _long(name: str, order: int, probabilities: np.ndarray) -> pd.DataFrame:
    """Return one round as rows."""
    n, steps = probabilities.shape
    return pd.DataFrame(
        {
            "method": name,
            "order": order,
            "image": np.repeat(np.arange(n), steps),
            "regions": np.tile(np.arange(steps), n),
            "probability": probabilities.ravel(),
        }
    )


def mean_curves(curves: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the curve of each image by method, ``(images, regions + 1)``, random orders averaged: what is drawn."""
    order = list(dict.fromkeys(curves["method"]))
    table = curves.groupby(["method", "image", "regions"])["probability"].mean().unstack("regions")
    return {name: table.loc[name].to_numpy() for name in order}


def aopc_table(
    curves: pd.DataFrame, *, groups: Sequence[str] | None = None, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Return the area over the perturbation curve of each method and how far it is above random orders.

    ``curves`` is of :func:`perturbation_curves`, or several joined with a column ``arm``.  AOPC is the mean over
    regions = 0 ... L of ``p(0) - p(regions)``, then over images (Samek et al. 2017, eq. 12, for probabilities).
    ``gain`` is the paired difference to the mean of the random orders; ``low`` and ``high`` bound it (bootstrap over
    lesions, ``groups`` naming that of each image, else over images; nan for random itself).  Columns: ``arm`` (if
    given), ``method, aopc, gain, low, high, images``.
    """
    arms = list(dict.fromkeys(curves["arm"])) if "arm" in curves else [None]
    rows = []
    for arm in arms:
        part = mean_curves(curves if arm is None else curves[curves["arm"] == arm])
        areas = {name: (values[:, :1] - values).mean(axis=1) for name, values in part.items()}
        for name, area in areas.items():
            gain = area - areas[RANDOM]
            low, high = (np.nan, np.nan) if name == RANDOM else _interval(gain, groups, confidence, seed)
            row = {"method": name, "aopc": area.mean(), "gain": gain.mean(), "low": low, "high": high}
            rows.append(({} if arm is None else {"arm": arm}) | row | {"images": len(area)})
    return pd.DataFrame(rows)


def _interval(values: np.ndarray, groups: Sequence[str] | None, confidence: float, seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over images, groups (lesions) drawn as wholes."""
    _, member = np.unique(np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(member, values), np.bincount(member)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(N_RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
