"""Focus: how much of what speaks for the class lies inside the lesion, or on an artefact that was drawn.

The share of positive relevance inside a region is the *relevance mass accuracy* of Arras, Osman and Samek (2022,
Information Fusion 81), channels summed before the sign is taken; of methods whose sign is no evidence, such as the
gradient, absolute values count (:func:`stda.explain.evidence`).  Read it against the share of the pixels that the
region covers: a map that spreads its relevance evenly has just that much inside, and so has a random one in the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from stda import BadInput
from stda.explain.methods import Target, attribute, evidence, targets_of
from stda.images import ImageSet, to_tensor

FOCUS_COLUMNS = ("method", "image_id", "group", "label", "inside", "area", "gain")
ARTEFACT_COLUMNS = (
    "method",
    "artefact",
    "image_id",
    "group",
    "label",
    "inside",
    "before",
    "area",
    "gain",
    "drawn_in",
)
WHOSE = ["image_id", "group", "label"]
VISIBLE = 8  # grey levels of 255 by which a channel must differ for a pixel to count as drawn


def usable_masks(masks: np.ndarray) -> np.ndarray:
    """Say of each mask, uint8 ``(N, H, W)`` with 255 inside, whether it has an inside and an outside: bool ``(N,)``.

    In a mask without one of them the share inside is the same for every map.
    """
    inside = np.asarray(masks) > 127
    return inside.any(axis=(1, 2)) & ~inside.all(axis=(1, 2))


def focus_table(
    maps: Mapping[str, np.ndarray | Tensor],  # relevances (N, C, H, W) or (N, H, W) by method
    masks: np.ndarray,  # uint8 (N, H, W), 255 in the lesion
    table: pd.DataFrame,  # of the explained images: image_id, group, label
) -> pd.DataFrame:
    """Measure how much of the relevance that speaks for the class lies inside the lesion.

    Returns a row per method and image with :data:`FOCUS_COLUMNS`: ``inside`` is the share of positive relevance
    (channels summed first) in the mask, ``area`` the share of pixels there, both in 0..1, ``gain = inside - area``.
    A map without any positive relevance says nothing for the class: its ``inside`` and ``gain`` are nan, so that
    ``table["inside"].isna()`` counts them.

    Raises:
        BadInput: shapes that do not fit, relevances that are not finite, masks that are empty or cover the picture.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or len(masks) != len(table):
        raise BadInput(f"{len(table)} images need masks ({len(table)}, H, W), got {masks.shape}: read one for each.")
    useless = table.loc[~usable_masks(masks), "image_id"].tolist()
    if useless:
        raise BadInput(
            f"The lesion masks of {_some(useless)} are empty or cover the whole picture, so no share inside means "
            "anything: leave these images out (explain.usable_masks says which to keep)."
        )
    inside = masks > 127
    parts = [
        _rows(table).assign(method=name, inside=_shares(name, values, inside), area=inside.mean(axis=(1, 2)))
        for name, values in maps.items()
    ]
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(FOCUS_COLUMNS))
    return found.assign(gain=found["inside"] - found["area"])[list(FOCUS_COLUMNS)]


def artefact_table(
    model: nn.Module,
    images: ImageSet,
    methods: str | Sequence[str],
    drawn: Mapping[str, np.ndarray],  # the same pictures with an artefact drawn over them, uint8 (N, H, W, 3), by kind
    *,
    target: Target = None,  # None: the class that the model chooses on the clean picture
    visible: int = VISIBLE,  # grey levels (of the channel that changed most) from which a pixel counts as drawn
    knobs: Mapping[str, Mapping[str, Any]] | None = None,  # of the methods, by their names
    seed: int = 0,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Measure how much relevance goes to an artefact that was drawn over the pictures, and lay there before.

    The class that is explained is the same before and after, and so are the random numbers of a method.  Returns a row
    per method, artefact and image with :data:`ARTEFACT_COLUMNS`: ``inside`` is the share of positive relevance
    (channels summed first) on the drawn pixels, ``before`` the share that the clean picture's map has on the same
    pixels, ``area`` the share of pixels that were drawn, ``gain = inside - area`` and ``drawn_in = inside - before``:
    what the artefact drew to itself.  Shares are nan for a map without positive relevance, and where no pixel or every
    one was drawn.

    Raises BadInput for pictures of another shape, and what :func:`stda.explain.attribute` raises.
    """
    methods = [methods] if isinstance(methods, str) else list(methods)
    changed = {kind: _changed(kind, images.images, pictures, visible) for kind, pictures in drawn.items()}
    clean = images.as_tensor()
    targets = targets_of(model, clean, target, batch_size=batch_size)
    parts = []
    for method in methods:
        settings = {"seed": seed, "batch_size": batch_size, **(knobs or {}).get(method, {})}
        before = attribute(model, clean, method, targets, **settings)
        for kind, region in changed.items():
            after = attribute(model, to_tensor(drawn[kind]), method, targets, **settings)
            shares = {"inside": _shares(method, after, region), "before": _shares(method, before, region)}
            row = _rows(images.table).assign(method=method, artefact=kind, **shares, area=region.mean(axis=(1, 2)))
            parts.append(row)
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(ARTEFACT_COLUMNS))
    found = found.assign(gain=found["inside"] - found["area"], drawn_in=found["inside"] - found["before"])
    return found[list(ARTEFACT_COLUMNS)]


def _shares(name: str, maps: np.ndarray | Tensor, region: np.ndarray) -> np.ndarray:
    """Return the share of positive relevance in a region, bool ``(N, H, W)``, of each map: ``(N,)``, nan where none.

    Also nan where the region is nothing or everything.
    """
    maps = evidence(name, maps)
    if maps.shape != region.shape:
        raise BadInput(f"The maps of '{name}' have shape {maps.shape}, the regions {region.shape}: they must agree.")
    if not np.isfinite(maps).all():
        raise BadInput(f"The maps of '{name}' are not finite: make them again with explain.attribute.")
    positive = np.maximum(maps, 0)
    total = positive.sum(axis=(1, 2))
    defined = (total > 0) & region.any(axis=(1, 2)) & ~region.all(axis=(1, 2))
    held = np.where(region, positive, 0).sum(axis=(1, 2))
    return np.divide(held, total, out=np.full(len(maps), np.nan), where=defined)


def _changed(kind: str, clean: np.ndarray, drawn: np.ndarray, visible: int) -> np.ndarray:
    """Return which pixels were drawn, bool ``(N, H, W)``."""
    if drawn.shape != clean.shape or drawn.dtype != np.uint8:
        raise BadInput(f"The pictures with {kind} are {drawn.dtype} {drawn.shape}, the clean ones {clean.shape}.")
    return np.abs(drawn.astype(np.int16) - clean).max(axis=-1) > visible


def _rows(table: pd.DataFrame) -> pd.DataFrame:
    return table[WHOSE].reset_index(drop=True)


def _some(names: Sequence[str], *, shown: int = 5) -> str:
    """Name the first few."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more
