"""Region perturbation: is a map right about what matters?  (Samek et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from stda import BadInput
from stda.compute import rng
from stda.explain.methods import Target, attribute, check_images, evidence, method_of, targets_of
from stda.explain.subject import Subject, evaluating
from stda.study import sub_seed

if TYPE_CHECKING:
    from stda.compute import Compute

REPLACEMENTS = ("mean", "zeros", "noise", "blur")
RANDOM, MAGNITUDE = "random", "input magnitude"  # the reference orders
FIXED, RECOMPUTED = "fixed", "recomputed"

Maps = np.ndarray | Tensor  # relevances (N, C, H, W), or (N, H, W) with the channels summed
Remap = Callable[[Tensor, Tensor], Maps]  # images (N, C, H, W) and target classes (N,) to maps


def default_region_size(size: int) -> int:
    """Return the side of a region in pixels: 9 at 224 px as published, in proportion at other sizes, at least 4."""
    return max(4, round(9 * size / 224))


def perturbation_curves(
    model: nn.Module,
    images: Tensor,
    maps: Mapping[str, Maps],
    *,
    seed: int,
    region_size: int = 0,  # pixels; 0: default_region_size
    replace: str | Sequence[str] = "mean",  # one or several of REPLACEMENTS
    fill: Sequence[float] | np.ndarray | None = None,  # mean colour of the train fold, 0 to 255 per channel
    random_orders: int = 5,
    n_regions: int = 0,  # how many are replaced one after the other; 0: 16 percent of them, as published (100 of 625)
    recomputed: Sequence[str] | Mapping[str, Remap] = (),  # methods whose ranking is made anew as regions go, too
    recompute_every: int = 1,  # regions replaced between two rankings
    target: Target = None,
    compute: Compute | None = None,
    batch_size: int = 0,  # images in one forward pass; 0: what is fast, by image size and device
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> pd.DataFrame:
    """Replace regions, most relevant first, and record the probability of the target class.

    ``images`` is float32 ``(N, C, H, W)`` in [-1, 1]; ``maps`` name to relevances ``(N, C, H, W)`` or ``(N, H, W)``.
    Regions are squares of a grid (smaller at the right and lower edge) ranked by mean relevance, or mean absolute value
    for methods whose sign is no evidence (:func:`stda.explain.evidence`); equal ones come in an order drawn at
    random, so that a map without content does as well as chance and no better.  Two reference orders
    are always part of the result: "random", and "input magnitude", the mean absolute value in [-1, 1], which is the
    distance from mid-grey.  ``replace`` is "mean" (``fill``), "zeros" (mid-grey), "noise" (``fill`` plus Gaussian noise
    of the image's own spread) or "blur" (a Gaussian of the region's side).

    ``recomputed`` names methods of :data:`METHODS`, or maps names to functions of images and targets: every
    ``recompute_every`` regions they explain the perturbed image anew, and the most relevant regions still there are
    next.  The target stays that of the unperturbed image.

    Returns columns ``method, replace, ranking`` ("fixed" or "recomputed"), ``order`` (of random: 0, 1, ...), ``image,
    regions`` (0, 1, ...), ``probability``.  Raises BadInput for settings or shapes that do not fit.
    """
    check_images(images)
    region_size = region_size or default_region_size(images.shape[-1])
    replaces = list(dict.fromkeys([replace] if isinstance(replace, str) else replace))
    batch_size = batch_size or _batch_size(model, images)
    again = _remaps(model, recomputed, seed, batch_size)
    _check(images, maps, again, region_size, random_orders, replaces, recompute_every)
    if n_regions < 0 or batch_size < 1:
        raise BadInput(f"n_regions is {n_regions} and batch_size {batch_size}; neither is ever negative.")
    orders = _Orders(images, region_size, n_regions, seed)
    fixed = list(orders.fixed(maps, random_orders))
    tables = []
    with evaluating(model):
        targets = targets_of(model, images, target, batch_size=batch_size)
        probe = _Probe(model, images, targets, region_size, orders.n_regions, compute, batch_size)
        for how in replaces:
            noise = rng(sub_seed(seed, "noise"))
            filled = replacement(images, how, fill=fill, blur=region_size, noise=noise)
            fresh = orders.recomputed(again, filled, targets, recompute_every)
            for rounds, ranking in ((fixed, FIXED), (fresh, RECOMPUTED)):
                for name, order, ranks in rounds:
                    tables.append(_long(name, how, ranking, order, probe(filled, ranks)))
                    if callback:
                        steps = len(replaces) * (len(fixed) + len(again))
                        callback({"step": len(tables), "steps": steps, "method": name, "replace": how})
    return pd.concat(tables, ignore_index=True)


def _batch_size(model: nn.Module, images: Tensor) -> int:
    """Return how many images a forward pass takes: 512 of 64 px on a GPU; 32 on a CPU, where activations fit a cache.

    Of larger images as many fewer as they have more pixels, but 8.
    """
    many = 32 if next(model.parameters()).device.type == "cpu" else 512
    return min(many, max(8, many * 64**2 // (images.shape[-1] * images.shape[-2])))


def _remaps(
    model: nn.Module, recomputed: Sequence[str] | Mapping[str, Remap], seed: int, batch_size: int
) -> dict[str, Remap]:
    """Return the functions that explain perturbed images, by name; raise for methods that cannot."""
    if isinstance(recomputed, Mapping):
        return dict(recomputed)
    names = [recomputed] if isinstance(recomputed, str) else recomputed
    subject = Subject(model, seed=seed)
    fitted = [name for name in names if method_of(name, subject).fitted]
    if fitted:
        raise BadInput(f"Method '{fitted[0]}' needs patterns: map its name to a function of images and targets.")

    def explained(x: Tensor, target: Tensor, *, method: str) -> Tensor:
        return attribute(model, x, method, target, seed=seed, batch_size=min(64, batch_size))

    return {name: partial(explained, method=name) for name in names}


def _check(
    images: Tensor,
    maps: Mapping[str, Maps],
    remaps: Mapping[str, Remap],
    region_size: int,
    random_orders: int,
    replaces: Sequence[str],
    every: int,
) -> None:
    """Raise BadInput for settings that do not fit."""
    names = {*maps, *remaps}
    if not names or names & {RANDOM, MAGNITUDE} or random_orders < 1 or not len(images):
        raise BadInput(
            f"Region perturbation needs images, maps (none called '{RANDOM}' or '{MAGNITUDE}', which are always there) "
            "and at least 1 random order."
        )
    if not 1 <= region_size <= images.shape[-1]:
        raise BadInput(f"region_size is {region_size}; it must be between 1 and {images.shape[-1]} pixels.")
    unknown = [how for how in replaces if how not in REPLACEMENTS]
    if unknown or not replaces:
        raise BadInput(f"replace is {unknown or 'empty'}; it must be one or several of {', '.join(REPLACEMENTS)}.")
    if every < 1:
        raise BadInput(f"recompute_every is {every}; a ranking must be used for at least 1 region.")


def replacement(
    images: Tensor, replace: str, *, fill: Sequence[float] | np.ndarray | None, blur: float, noise: torch.Generator
) -> Tensor:
    """Return the images whose pixels take the place of replaced ones, ``(N, C, H, W)`` in [-1, 1]."""
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
    spread = images.std(dim=(2, 3), keepdim=True, correction=0)
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


def region_relevance(maps: Maps, region_size: int) -> Tensor:
    """Return the mean relevance of each region, float64 ``(N, rows, columns)``, channels summed."""
    maps = torch.as_tensor(maps).detach().cpu()
    maps = maps.double() if maps.ndim == 3 else maps.sum(dim=1, dtype=torch.float64)
    return functional.avg_pool2d(maps[:, None], region_size, ceil_mode=True, count_include_pad=False)[:, 0]


def _swapped(images: Tensor, filled: Tensor, regions: Tensor, region_size: int) -> Tensor:
    """Return the images with some regions, bool ``(N, rows, columns)``, taken from ``filled``."""
    height, width = images.shape[2:]
    pixels = regions.repeat_interleave(region_size, dim=1).repeat_interleave(region_size, dim=2)
    return torch.where(pixels[:, None, :height, :width], filled, images)


class _Orders:
    """Orders of replacement: int64 ``(N, rows, columns)``, the place of each region, 0 first."""

    def __init__(self, images: Tensor, region_size: int, n_regions: int, seed: int) -> None:
        self.images, self.region_size, self.seed = images, region_size, seed
        rows, columns = (-(-side // region_size) for side in images.shape[2:])
        self.shape = (len(images), rows, columns)
        self.n_regions = min(n_regions or -(-rows * columns * 100 // 625), rows * columns)
        self.ties = self._shuffled(rng(sub_seed(seed, "ties")))

    def fixed(self, maps: Mapping[str, Maps], random_orders: int) -> Iterator[tuple[str, int, Tensor]]:
        """Yield name, order and ranks of every map and of the reference orders."""
        for name, values in [*maps.items(), (MAGNITUDE, self.images.abs())]:
            yield name, 0, self._ordered(self._relevance(name, values)).argsort(dim=1).view(self.shape)
        noise = rng(sub_seed(self.seed, "random orders"))
        for order in range(random_orders):
            yield RANDOM, order, self._shuffled(noise).view(self.shape)

    def recomputed(
        self, remaps: Mapping[str, Remap], filled: Tensor, targets: Tensor, every: int
    ) -> Iterator[tuple[str, int, Tensor]]:
        """Yield name, order and ranks of maps made anew every few regions; what is never reached comes last."""
        for name, remap in remaps.items():
            ranks = torch.full((self.shape[0], self.shape[1] * self.shape[2]), self.shape[1] * self.shape[2])
            x = self.images
            for start in range(0, self.n_regions, every):
                places = torch.arange(start, min(start + every, self.n_regions))
                relevance = self._relevance(name, remap(x, targets))
                relevance[ranks < start] = -torch.inf
                chosen = self._ordered(relevance)[:, : len(places)]
                ranks.scatter_(1, chosen, places.expand_as(chosen))
                done = (ranks <= places[-1]).view(self.shape)
                x = _swapped(self.images, filled, done, self.region_size)
            yield name, 0, ranks.view(self.shape)

    def _shuffled(self, noise: torch.Generator) -> Tensor:
        return torch.rand(len(self.images), self.shape[1] * self.shape[2], generator=noise).argsort(dim=1)

    def _relevance(self, name: str, maps: Maps) -> Tensor:
        """Return the relevance of each region, ``(N, regions)``; raise where the maps do not fit the images."""
        if tuple(maps.shape) not in (tuple(self.images.shape), (len(self.images), *self.images.shape[2:])):
            raise BadInput(f"The maps of '{name}' have shape {tuple(maps.shape)}, the images {self.images.shape}.")
        relevance = region_relevance(evidence(name, maps), self.region_size).flatten(1)
        if not torch.isfinite(relevance).all():
            raise BadInput(
                f"The maps of '{name}' are not finite: the network that they explain is broken; train again."
            )
        return relevance

    def _ordered(self, relevance: Tensor) -> Tensor:
        """Return the regions ``(N, regions)``, most relevant first, equal ones in the order drawn for ties."""
        places = relevance.gather(1, self.ties).argsort(dim=1, descending=True, stable=True)
        return self.ties.gather(1, places)


class _Probe:
    """Turns ranks of regions into probabilities of the target class, in batches over images and steps together."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        region_size: int,
        n_regions: int,
        compute: Compute | None,
        batch_size: int,
    ) -> None:
        first = next(model.parameters())
        self.model, self.compute, self.region_size, self.n_regions = model, compute, region_size, n_regions
        self.images, self.targets = images.to(first.device, first.dtype), targets.to(first.device)
        self.batch_size = batch_size
        rows = torch.arange(len(images), device=first.device).split(self.batch_size)
        self.clean = torch.cat([self._probability(self.images[part], part) for part in rows])

    @torch.no_grad()
    def __call__(self, filled: Tensor, ranks: Tensor) -> np.ndarray:
        """Return the probabilities ``(N, n_regions + 1)``; column k has the k first regions replaced."""
        filled, ranks = filled.to(self.images), ranks.to(self.images.device)
        parts = []
        for pairs in torch.arange(len(ranks) * self.n_regions, device=ranks.device).split(self.batch_size):
            rows, steps = pairs // self.n_regions, pairs % self.n_regions + 1
            x = _swapped(self.images[rows], filled[rows], ranks[rows] < steps.view(-1, 1, 1), self.region_size)
            parts.append(self._probability(x, rows))
        return torch.cat([self.clean[:, None], torch.cat(parts).view(-1, self.n_regions)], dim=1).numpy()

    @torch.no_grad()
    def _probability(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the probability of the target class of these rows, float64 on the CPU."""
        x = x.contiguous(memory_format=torch.channels_last)
        if self.compute is None:
            logits = self.model(x)
        else:
            with self.compute.autocast():
                logits = self.model(x)
        return logits.double().softmax(dim=1).gather(1, self.targets[rows][:, None])[:, 0].cpu()


def _long(name: str, replace: str, ranking: str, order: int, probabilities: np.ndarray) -> pd.DataFrame:
    """Return one round as rows."""
    n, steps = probabilities.shape
    return pd.DataFrame(
        {
            "method": name,
            "replace": replace,
            "ranking": ranking,
            "order": order,
            "image": np.repeat(np.arange(n), steps),
            "regions": np.tile(np.arange(steps), n),
            "probability": probabilities.ravel(),
        }
    )


def mean_curves(curves: pd.DataFrame, *, replace: str = "") -> dict[str, np.ndarray]:
    """Return the curve of each image by method, ``(images, regions + 1)``, random orders averaged: what is drawn.

    ``replace`` says which replacement where the curves hold several.  A recomputed ranking is called "<method>,
    recomputed".  Raises BadInput where the curves are of several arms or replacements: they are drawn one by one.
    """
    curves = curves[curves["replace"] == replace] if replace else curves
    for column in [c for c in ("arm", "replace") if c in curves]:
        if curves[column].nunique() != 1:
            raise BadInput(f"Take the curves of one {column}, not of {sorted(set(curves[column]))}.")
    return {
        name if ranking == FIXED else f"{name}, {ranking}": values
        for (name, ranking), values in _by_method(curves).items()
    }


def _by_method(curves: pd.DataFrame) -> dict[tuple[str, str], np.ndarray]:
    """Return ``(images, regions + 1)`` by method and ranking, in the order of the rows, random orders averaged."""
    keys = list(dict.fromkeys(zip(curves["method"], curves["ranking"], strict=True)))
    table = curves.groupby(["method", "ranking", "image", "regions"])["probability"].mean().unstack("regions")
    return {key: table.loc[key].to_numpy() for key in keys}


def aopc_table(
    curves: pd.DataFrame,
    *,
    groups: Sequence[str] | np.ndarray | None = None,  # the lesion of each image; None: every image is its own
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the area over the perturbation curve of each method and how far it is above the reference orders.

    ``curves`` is of :func:`perturbation_curves`, or several joined with a column ``arm``.  AOPC is the mean over
    regions = 0 ... L of ``p(0) - p(regions)``, then over images (Samek et al. 2017, eq. 12, for probabilities).
    ``over_random`` and ``over_input`` are the paired differences to the mean of the random orders and to the order of
    input magnitude under the same replacement; ``_low`` and ``_high`` bound them (:func:`mean_interval` over lesions:
    nan with one lesion, and for a reference against itself).  A recomputed ranking is compared with the same
    references.  Columns: ``arm`` (if given), ``method, replace, ranking, aopc, over_random, over_random_low,
    over_random_high, over_input, over_input_low, over_input_high, images``.  Raises BadInput where curves or a
    reference are missing or ``groups`` does not fit.
    """
    if not len(curves):
        raise BadInput("There is no area over no curve: pass all rows of perturbation_curves.")
    by = [column for column in ("arm", "replace") if column in curves]
    tables = []
    for key, part in curves.groupby(by, sort=False):
        areas = {name: (values[:, :1] - values).mean(axis=1) for name, values in _by_method(part).items()}
        table = pd.DataFrame(list(areas), columns=["method", "ranking"])
        values = np.stack(list(areas.values()), axis=1)
        table["aopc"] = values.mean(axis=0)
        for column, reference in (("over_random", RANDOM), ("over_input", MAGNITUDE)):
            if (reference, FIXED) not in areas:
                raise BadInput(f"The curves have no order '{reference}': pass all rows of perturbation_curves.")
            gains = values - areas[reference, FIXED][:, None]
            bounds = np.stack(mean_interval(gains, groups, confidence=confidence))
            bounds[:, list(areas).index((reference, FIXED))] = np.nan
            table[column], table[f"{column}_low"], table[f"{column}_high"] = gains.mean(axis=0), *bounds
        tables.append(table.assign(images=len(values), **dict(zip(by, key, strict=True))))
    table = pd.concat(tables, ignore_index=True)
    first = [*by[:-1], "method", "replace", "ranking"]
    return table[[*first, *(column for column in table if column not in first)]]


def mean_interval(
    values: np.ndarray,
    groups: Sequence[str] | np.ndarray | None = None,  # the lesion of each image; None: every image is its own
    *,
    confidence: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Return low and high of the mean over images: Student's interval with lesions as the unit.

    ``values`` is ``(N,)`` or ``(N, K)`` for K means at once.  Images with a nan are left out.  The standard error is
    that of a ratio of lesion sums to lesion sizes (Cochran 1977), with one image of each that of the textbook mean.
    With fewer than two lesions the bounds are nan.
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    groups = np.arange(len(values)) if groups is None else np.asarray(groups, dtype=str)
    if len(groups) != len(values):
        raise BadInput(f"{len(groups)} groups came with {len(values)} images: give the lesion of each image.")
    known = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    names, member = np.unique(groups[known], return_inverse=True)
    if len(names) < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    mean, n = values[known].mean(axis=0), len(names)
    off = np.zeros((n, *values.shape[1:]))
    np.add.at(off, member, values[known] - mean)
    half = t.ppf((1 + confidence) / 2, n - 1) * np.sqrt(n / (n - 1) * np.square(off).sum(axis=0)) / known.sum()
    return mean - half, mean + half
