"""The registry of attribution methods, and the one call for all of them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stda import BadInput
from stda.explain import gradients, lrp, patterns
from stda.explain.subject import Method, Subject, evaluating, logits_of
from stda.images import ImageSet

# one class for all images (index or label), one per image, or None: the class with the largest logit of each image
Target = None | int | str | Sequence | np.ndarray | Tensor

PIXELS = 2**18  # in a batch: some GB of activations for VGG16, at any size of image
METHODS: dict[str, Method] = {**gradients.METHODS, **lrp.METHODS, **patterns.METHODS}


def attribute(
    model: nn.Module,
    images: Tensor,
    method: str,
    target: Target = None,
    *,
    batch_size: int = 0,  # images at once; 0: as many as have 2**18 pixels together, at most 64
    dtype: torch.dtype | None = None,  # precision of the computation; None: that of the model's weights
    seed: int = 0,  # of the methods that draw random numbers
    **knobs: Any,
) -> Tensor:
    """Return the relevance of every input value for the target logit, float32 ``(N, C, H, W)`` on the CPU.

    ``images`` is float32 NCHW in [-1, 1]; ``method`` a name of :data:`METHODS`, whose keyword arguments are ``knobs``.
    ``target`` is None (each image's largest logit), one class index or label, or one of them per image.  BatchNorm is
    merged into the kernels, softmax is not part of what is explained, and dropout is off.

    Raises BadInput for an unknown method or target, images of a wrong shape or range, a network that the method cannot
    explain, knobs it does not have, missing patterns, and values that are not finite.
    """
    subject = Subject(model, dtype=dtype, seed=seed)
    chosen = method_of(method, subject)
    check_images(images)
    batch_size = batch_size or max(1, min(64, PIXELS // max(1, images.shape[2:].numel())))
    parts = []
    with evaluating(model):
        targets = targets_of(model, images, target, batch_size=batch_size)
        for start in range(0, len(images), batch_size):
            x = subject.prepare(images[start : start + batch_size])
            try:
                relevance = chosen.run(subject, x, targets[start : start + batch_size].to(x.device), **knobs)
            except TypeError as error:
                raise _unknown_knob(method, knobs, error) from error
            parts.append(relevance.detach().to("cpu", torch.float32).contiguous())
    result = torch.cat(parts) if parts else torch.zeros(images.shape)
    if not torch.isfinite(result).all():
        raise BadInput(f"The {method} maps are not finite: the model's weights or activations are not; train it again.")
    return result


def evidence(method: str, maps: np.ndarray | Tensor) -> np.ndarray:
    """Return how much each pixel matters, by maps of a method: float64 ``(N, H, W)``.

    Relevances ``(N, C, H, W)`` are summed over the channels (``(N, H, W)`` are taken as they are).  Where a method's
    sign is no evidence for or against the class (:class:`Method`), the absolute values count.
    """
    values = np.asarray(maps, dtype=np.float64)
    if method in METHODS and not METHODS[method].evidence:
        values = np.abs(values)
    return values.sum(axis=1) if values.ndim == 4 else values


def obstacles(model: nn.Module) -> dict[str, str]:
    """Return for every method why it cannot explain this network, in one sentence; empty where it can."""
    subject = Subject(model)
    return {name: subject.obstacle(method) for name, method in METHODS.items()}


def described(names: Sequence[str]) -> pd.DataFrame:
    """Return a row per method: ``method, title, source``, what relevances ``sum to``, and what is to be ``read``."""
    known = {name: method_of(name) for name in names}
    read = {name: ("for, against" if m.signed else "for") if m.evidence else "size" for name, m in known.items()}
    return pd.DataFrame(
        [(name, m.title, m.source, m.conserves or "nothing", read[name]) for name, m in known.items()],
        columns=["method", "title", "source", "sums to", "read"],
    )


def knobs_for(
    model: nn.Module, names: Sequence[str], train: ImageSet, *, estimator: str = "linear"
) -> dict[str, dict[str, Any]]:
    """Return by method the keyword arguments it cannot do without: patterns fitted on the train fold, for most none."""
    needed = [name for name in names if method_of(name).fitted]
    fitted = patterns.fit_patterns(model, train, estimator=estimator) if needed else None
    return {name: {"patterns": fitted} if name in needed else {} for name in names}


def method_of(name: str, subject: Subject | None = None) -> Method:
    """Return the method of this name; raise where it is unknown or cannot explain this network."""
    if name not in METHODS:
        raise BadInput(f"Unknown attribution method '{name}'; it must be one of {', '.join(METHODS)}.")
    obstacle = subject.obstacle(METHODS[name]) if subject else ""
    if obstacle:
        raise BadInput(f"{METHODS[name].title} cannot explain this network. {obstacle}")
    return METHODS[name]


def _unknown_knob(method: str, knobs: dict[str, Any], error: TypeError) -> Exception:
    """Turn the TypeError of a knob that a method lacks into a sentence; leave every other one as it is."""
    import inspect

    known = [name for name, p in inspect.signature(METHODS[method].run).parameters.items() if p.kind == p.KEYWORD_ONLY]
    unknown = [name for name in knobs if name not in known]
    if not unknown:
        return error
    return BadInput(f"Method '{method}' has no knob '{unknown[0]}'; it has {', '.join(known) or 'none'}.")


def targets_of(model: nn.Module, images: Tensor, target: Target = None, *, batch_size: int = 256) -> Tensor:
    """Return the class index explained for each image, int64 ``(N,)`` on the CPU; see :func:`attribute`."""
    logits = logits_of(model, images, batch_size=batch_size)
    if not torch.isfinite(logits).all():
        raise BadInput("The network's logits are not finite: its weights or activations are not; train it again.")
    if target is None:
        return logits.argmax(dim=1)
    single = isinstance(target, str) or not hasattr(target, "__len__") or getattr(target, "ndim", 1) == 0
    given = [target] if single else list(target)
    if len(given) not in (1, len(images)):
        raise BadInput(f"{len(given)} targets came with {len(images)} images: give one for all, or one for each.")
    classes = list(getattr(model, "classes", []))
    unknown = [name for name in given if isinstance(name, str) and name not in classes]
    if unknown:
        raise BadInput(f"Target '{unknown[0]}' is not a class of the model; its classes are {classes}.")
    try:
        index = [classes.index(t) if isinstance(t, str) else operator.index(t) for t in given]
    except (TypeError, ValueError):  # ValueError: a tensor of several numbers
        kinds = sorted({type(t).__name__ for t in given})
        raise BadInput(
            f"target is of {', '.join(kinds)}; give a label or a class index, or one of them for each image."
        ) from None
    index = torch.tensor(index, dtype=torch.int64)
    if len(index) and (index.min() < 0 or index.max() >= logits.shape[1]):
        raise BadInput(f"Targets {sorted(set(index.tolist()))} are out of range; there are {logits.shape[1]} classes.")
    return index.expand(len(images)).clone()


def check_images(images: Tensor) -> None:
    """Raise unless images are finite floating-point NCHW in [-1, 1]."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        found = f"{images.dtype} {tuple(images.shape)}" if hasattr(images, "dtype") else type(images).__name__
        raise BadInput(f"Attribution takes float images as a tensor (N, C, H, W), got {found}.")
    if len(images) and not (images.abs().max() <= 1.0 + 1e-4):  # also false for NaN
        raise BadInput("Attribution takes finite images in [-1, 1]: make them with ImageSet.as_tensor().")
