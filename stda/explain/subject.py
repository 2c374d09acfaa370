"""What every attribution method is given: the network to explain, once for all batches of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from stda import BadInput
from stda.compute import rng
from stda.explain.layers import has_addition, layered

ANY, LAYERS, CHAIN = "any", "layers", "chain"
LOGIT, DIFFERENCE, NOTHING = "logit", "difference", ""
PRECISIONS = (torch.float32, torch.float64, torch.bfloat16)  # the rules divide by numbers below the smallest of float16


@dataclass(frozen=True)
class Method:
    """An attribution method: ``run(subject, x, target, **knobs)`` returns relevances of the shape of ``x``.

    ``title`` is its name in figures, ``source`` its paper.  ``network`` says what it can explain: ``any`` network with
    a gradient, one whose ``layers`` have rules, or a ``chain`` of them without additions (no residual network, for
    the reason in ``why``).  ``signed``: relevance may be negative.  ``evidence``: relevances share out the logit, so
    that a positive one speaks for the class; of other methods, such as the gradient, the size alone says how much a
    pixel matters.  ``conserves`` says what the relevances promise to sum to: the ``logit``, its ``difference`` to that
    of a baseline, or nothing.  ``fitted``: needs patterns.
    """

    run: Callable[..., Tensor]
    title: str
    source: str
    network: str = ANY
    why: str = ""
    signed: bool = True
    evidence: bool = True
    conserves: str = NOTHING
    fitted: bool = False


class Subject:
    """A network in evaluation mode, in the form that a method needs; made once, used for every batch of images.

    ``dtype`` is the precision of the computation (None: that of the model's weights), ``seed`` that of all random
    numbers.  ``memo`` is for what a method prepares once, such as weights of one sign; a method that goes layer by
    layer appends the relevances on its way to the list ``seen``, if there is one.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None = None, seed: int = 0) -> None:
        first = first_weight(model)
        self.model, self.dtype, self.device = model, dtype or first.dtype, first.device
        if self.dtype not in PRECISIONS:
            raise BadInput(f"No relevances in {self.dtype}: take one of {', '.join(map(str, PRECISIONS))}.")
        self.noise = rng(seed)
        self.memo: dict[Any, Any] = {}
        self.seen: list[Tensor] | None = None

    @cached_property
    def layers(self) -> nn.Sequential:
        """The network as a sequence of layers (:mod:`stda.explain.layers`); raises BadInput where it has no rules."""
        return layered(self.model).to(self.device, self.dtype, memory_format=torch.channels_last)

    @cached_property
    def front(self) -> nn.Sequential:
        """The layers up to the second max-pooling in float32, where the computation is coarser than that; else none.

        On smooth pictures the neighbours that max-pooling chooses from are so alike there that bf16 cannot tell which
        is the largest, and relevance goes to the wrong pixel: deep Taylor of VGG11-BN at 224 px then has a cosine of
        .98 with float32, instead of .9999.
        """
        pools = [i for i, layer in enumerate(self.layers) if isinstance(layer, nn.MaxPool2d)]
        if torch.finfo(self.dtype).bits >= 32 or not pools:
            return nn.Sequential()
        front = layered(self.model)[: pools[:2][-1] + 1]
        return front.to(self.device, torch.float32, memory_format=torch.channels_last)

    @cached_property
    def network(self) -> nn.Module:
        """What gradients are taken of: the layers where they can be had, for they are faster; else the model itself."""
        try:
            return self.layers
        except BadInput:
            if self.dtype == next(self.model.parameters()).dtype:
                return self.model
            return deepcopy(self.model).to(self.dtype)

    @property
    def classes(self) -> list[str]:
        """The labels in the order of the logits; empty when the model does not know them."""
        return list(getattr(self.model, "classes", []))

    def normal(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Draw standard normal numbers ``shape``, one image (first axis) after the other: batches change nothing."""
        drawn = [torch.randn(tuple(shape[1:]), generator=self.noise) for _ in range(shape[0])]
        return torch.stack(drawn).to(self.device, self.dtype) if drawn else torch.zeros(tuple(shape))

    def prepare(self, x: Tensor) -> Tensor:
        """Bring images to where and how the network computes."""
        return x.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)

    def obstacle(self, method: Method) -> str:
        """Return why this network cannot be explained by a method, or nothing."""
        if method.network == ANY:
            return ""
        try:
            added = has_addition(self.layers)
        except BadInput as error:
            return str(error)
        return method.why if method.network == CHAIN and added else ""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into evaluation mode (no dropout, fixed BatchNorm) and back into its mode afterwards."""
    modes = [(part, part.training) for part in model.modules()]  # a BatchNorm may be frozen in a model that trains
    model.eval()
    try:
        yield model
    finally:
        for part, training in modes:
            part.training = training


def first_weight(model: nn.Module) -> Tensor:
    """Return a weight of the model, which has its device and precision; raise where there is none."""
    first = next(model.parameters(), None)
    if first is None:
        raise BadInput("The network has no weights: there is nothing to explain.")
    return first


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, *, batch_size: int) -> Tensor:
    """Return the logits ``(N, K)`` on the CPU, in the model's precision; raise for images that it cannot read."""
    if batch_size < 1:
        raise BadInput(f"batch_size is {batch_size}; a forward pass takes at least 1 image.")
    first = first_weight(model)
    with evaluating(model):
        try:
            return torch.cat([model(part.to(first.device, first.dtype)).cpu() for part in images.split(batch_size)])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"The network cannot read images of shape {tuple(images.shape)} ({reason}).") from error
