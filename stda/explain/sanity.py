"""Parameter randomisation: does a map depend on what the network has learnt?  (Adebayo et al. 2018).

A map that stays as it was after the network has lost all that it learnt shows the image, not what the network sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stda import BadInput
from stda.compute import rng
from stda.explain.layers import KERNELS, Parallel, layered
from stda.explain.methods import METHODS, Target, attribute, knobs_for, targets_of
from stda.explain.perturbation import mean_interval
from stda.explain.quality import NO, UNDECIDED, YES, rank_correlation
from stda.images import ImageSet

NONE = "none"  # name of the layer in the rows of the network as it was trained
COLUMNS = ("method", "layer", "randomised", "image", "spearman", "ssim")
CLIPPED = 0.99  # quantile of a map that is drawn white, as saliency maps are drawn; larger values are, too


def randomisation_table(
    model: nn.Module,
    images: Tensor,
    methods: Sequence[str],
    *,
    seed: int,  # of the new weights, and of methods that draw random numbers
    target: Target = None,
    train: ImageSet | None = None,  # train fold, for methods with patterns: fitted anew for every set of weights
    estimator: str = "linear",  # of the patterns
    cascading: bool = True,  # from the top down, layer by layer; False: each layer alone
    knobs: Mapping[str, Mapping[str, Any]] | None = None,  # keyword arguments of a method, by its name
    batch_size: int = 64,
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> pd.DataFrame:
    """Draw the weights of more and more layers anew and compare each map with that of the trained network.

    ``images`` and ``target`` are those of :func:`stda.explain.attribute`; the class explained stays that of the trained
    network.  Returns the columns ``method``, ``layer`` (last one drawn anew, "none" first, then from the top), how many
    are ``randomised``, ``image`` (number), and the similarity of the absolute maps, channels summed first: ``spearman``
    rank correlation over pixels and ``ssim`` (maps scaled to their 99 % quantile, 8 bits).  Not cascading, every layer
    is drawn alone, so ``randomised`` is 1.

    A layer is a convolution or dense layer with its BatchNorm; the branches of a fire module or residual block count as
    one, and so does a block of a network whose layers have no rules, such as MobileNetV2.  New weights and biases are
    normal around zero with the layer's own root mean square, so activations keep about their size *(reading; the paper
    draws from the initialiser)*; with shuffled weights more target logits turned negative.  An equal map has similarity
    1.  Where there is no map to compare both are nan: a map of zeros, such as deep Taylor's for a logit that is not
    positive, says nothing about any pixel, and no map with all values equal has an order, unless both are the same.

    Raises BadInput for unknown methods, methods that cannot explain the network, and missing ``train``.
    """
    _check(images, methods, train)
    layers = _copied(model)
    units = _units(layers)
    noise, trained = rng(seed), deepcopy(layers.state_dict())
    redrawn = {name: _redrawn(unit, noise) for name, unit in units.items()}
    settings = {"target": targets_of(model, images, target), "seed": seed, "batch_size": batch_size}

    def explained() -> dict[str, np.ndarray]:
        fitted = knobs_for(layers, methods, train, estimator=estimator)
        own = {method: {**(knobs or {}).get(method, {}), **fitted[method]} for method in methods}
        maps = {method: attribute(layers, images, method, **settings, **own[method]) for method in methods}
        return {method: values.sum(dim=1).abs().numpy() for method, values in maps.items()}

    before = explained()
    tables = [_compared(before, before, NONE, 0)]
    for step, (name, unit) in enumerate(units.items(), start=1):
        if not cascading:
            layers.load_state_dict(trained)
        unit.load_state_dict(redrawn[name], strict=False)  # statistics of a BatchNorm stay
        after = explained()
        tables.append(_compared(before, after, name, step if cascading else 1))
        if callback:
            callback({"step": step, "steps": len(units), "layer": name})
    return pd.concat(tables, ignore_index=True)


def forget(model: nn.Module, n_layers: int, *, seed: int) -> nn.Module:
    """Return the network (in layers, if they have rules), the last ``n_layers`` drawn anew.

    It is that of a step of :func:`randomisation_table`.  Raises BadInput for more layers than there are.
    """
    layers = _copied(model)
    units = list(_units(layers).values())
    if not 0 <= n_layers <= len(units):
        raise BadInput(f"{n_layers} layers cannot be drawn anew; the network has {len(units)} with weights.")
    noise = rng(seed)
    for unit in units[:n_layers]:
        unit.load_state_dict(_redrawn(unit, noise), strict=False)
    return layers


def sanity_summary(
    table: pd.DataFrame,
    *,
    threshold: float = 0.5,  # rank correlation that a method must fall below
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return how much of its maps each method keeps when the network forgets, and whether it reads the weights.

    ``table`` is that of :func:`randomisation_table`; a column ``arm`` in front is kept.  Columns: ``method``,
    ``spearman_after`` with its interval ``low`` to ``high`` and ``ssim_after``, when all layers are drawn anew;
    ``answer``; ``spearman_mean`` with ``mean_low`` and ``mean_high``, over all steps from the first layer drawn anew
    to the last; ``images`` that have a map when all layers are drawn anew; ``blank``, the share of image-steps without
    a map.  Of a table whose layers were drawn alone both are the mean over the layers.  Every image is averaged over
    the steps at which it has a map, and left out where it has none.  Intervals are Student's over
    images; the luck of the one draw of weights is not in them, and they are not corrected for the number of methods.

    ``answer`` says whether the method reads the weights *(reading: Adebayo et al. look at curves and pictures)*: "yes"
    if both intervals lie below ``threshold``, "no" if one of them lies at or above it, else "undecided", as for a
    single image, which has no interval, and for a method without any map to compare.  The second interval is for maps
    that change only when the lowest layers do, such as those of guided backprop: they are blind to all that comes
    after.  A "yes" is necessary, not sufficient: maps of fresh noise get it, too.  With a large ``blank`` it rests on
    the few images whose maps survived.

    Raises BadInput for a table without layers drawn anew, and for a threshold or confidence out of range.
    """
    if not 0 < threshold <= 1 or not 0 < confidence < 1:
        raise BadInput(f"threshold is {threshold} and confidence {confidence}; both must be between 0 and 1.")
    drawn = table[table["randomised"] > 0]
    if not len(drawn):
        raise BadInput("The table has no row of a network drawn anew: make it with explain.randomisation_table.")
    keys = [key for key in ("arm", "method") if key in table]
    rows = []
    for names, part in drawn.groupby(keys, sort=False):
        last = part[part["randomised"] == part["randomised"].max()]
        after, mean = (some.groupby("image")[["spearman", "ssim"]].mean() for some in (last, part))
        spread = (mean_interval(some["spearman"].to_numpy(), confidence=confidence) for some in (after, mean))
        (low, high), (mean_low, mean_high) = ([float(bound) for bound in bounds] for bounds in spread)
        row = {"spearman_after": after["spearman"].mean(), "low": low, "high": high, "ssim_after": after["ssim"].mean()}
        row |= {"answer": _answer((low, mean_low), (high, mean_high), threshold)}
        row |= {"spearman_mean": mean["spearman"].mean(), "mean_low": mean_low, "mean_high": mean_high}
        row |= {"images": int(after["spearman"].count()), "blank": part["spearman"].isna().mean()}
        rows.append({**dict(zip(keys, names, strict=True)), **row})
    return pd.DataFrame(rows)


def _answer(lows: Sequence[float], highs: Sequence[float], threshold: float) -> str:
    """Return whether the weights are read; a bound that is nan decides nothing."""
    if all(high < threshold for high in highs):
        return YES
    return NO if any(low >= threshold for low in lows) else UNDECIDED


def _check(images: Tensor, methods: Sequence[str], train: ImageSet | None) -> None:
    """Raise for no images, no methods, unknown ones, and patterns without a train fold."""
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not len(methods):
        raise BadInput(f"methods is {list(methods)}; give some of {', '.join(METHODS)}.")
    if not len(images):
        raise BadInput("The randomisation check needs at least one image.")
    fitted = [method for method in methods if METHODS[method].fitted]
    if fitted and train is None:
        raise BadInput(f"Method '{fitted[0]}' needs train, the train fold, to which its patterns are fitted.")


def _copied(model: nn.Module) -> nn.Module:
    """Return a frozen copy of the network, in layers if they all have rules."""
    try:
        return layered(model)
    except BadInput:
        return deepcopy(model).requires_grad_(False).eval()


def _units(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with weights by their names, such as "dense 3", "conv 5" or "block 2", top first."""
    counts = dict.fromkeys(("conv", "dense", "block"), 0)
    units: dict[str, nn.Module] = {}
    for part in _parts(network):
        kind = "conv" if isinstance(part, nn.Conv2d) else "dense" if isinstance(part, nn.Linear) else "block"
        counts[kind] += 1
        units[f"{kind} {counts[kind]}"] = part
    return dict(reversed(units.items()))


def _parts(network: nn.Module) -> Iterator[nn.Module]:
    """Yield what is drawn anew as one, first to last; chains of several kernels are opened, blocks are not."""
    inner = [part for part in network.children() if next(part.parameters(), None) is not None]
    for part in inner:
        n_kernels = sum(isinstance(layer, KERNELS) for layer in part.modules())
        chain = isinstance(part, nn.Sequential) or (len(inner) == 1 and not isinstance(part, Parallel))
        if chain and n_kernels > 1:
            yield from _parts(part)
        else:
            yield part


def _redrawn(unit: nn.Module, noise: torch.Generator) -> dict[str, Tensor]:
    """Return new weights and biases, normal around zero, each tensor with the root mean square of its old one."""
    drawn = {}
    for name, old in unit.named_parameters():
        new = torch.randn(old.shape, generator=noise).to(old)
        drawn[name] = new * old.detach().square().mean().sqrt()
    return drawn


def _compared(before: dict[str, np.ndarray], after: dict[str, np.ndarray], layer: str, randomised: int) -> pd.DataFrame:
    """Return the rows of one state of the network."""
    from stda.measure.similarity import ssim

    tables = []
    for method, old in before.items():
        new = after[method]
        equal = (old == new).all(axis=(1, 2)) & old.any(axis=(1, 2))  # two maps of zeros are no maps
        constant = _constant(old) | _constant(new)
        values = {"spearman": rank_correlation(old, new), "ssim": ssim(_drawn(old), _drawn(new), dtype="float32")}
        rows = {"method": method, "layer": layer, "randomised": randomised, "image": np.arange(len(old))}
        rows |= {key: np.where(equal, 1.0, np.where(constant, np.nan, value)) for key, value in values.items()}
        tables.append(pd.DataFrame(rows, columns=COLUMNS))
    return pd.concat(tables, ignore_index=True)


def _constant(maps: np.ndarray) -> np.ndarray:
    return maps.max(axis=(1, 2)) == maps.min(axis=(1, 2))


def _drawn(maps: np.ndarray) -> np.ndarray:
    """Return absolute maps as grey pictures, uint8 ``(N, H, W, 1)``; the quantile :data:`CLIPPED` becomes white."""
    white = np.quantile(maps, CLIPPED, axis=(1, 2), keepdims=True)
    white = np.where(white > 0, white, maps.max(axis=(1, 2), keepdims=True))  # fewer pixels than 1 % have any relevance
    shares = np.divide(maps, white, out=np.zeros_like(maps, dtype=np.float64), where=white > 0)
    return np.round(255 * shares.clip(max=1)).astype(np.uint8)[..., None]
