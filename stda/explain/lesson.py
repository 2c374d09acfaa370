"""One decision taken apart by hand: its last neuron, and what is left of the relevance at every layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stda import BadInput
from stda.explain import lrp
from stda.explain.layers import AVERAGES, CONCATENATE, KERNELS, Parallel, trace
from stda.explain.lrp import ALPHA2_BETA1, FLAT, W_SQUARE, Z_PLUS, Z
from stda.explain.methods import Target, targets_of
from stda.explain.rules import Kernel, alike, unchanged
from stda.explain.subject import Subject, evaluating

RULES = {"epsilon": Z, "z+": Z_PLUS, "alpha2-beta1": ALPHA2_BETA1, "w²": W_SQUARE, "flat": FLAT}


@dataclass(frozen=True)
class Neuron:
    """A neuron that answers for a class: ``contributions`` x w of its k inputs, ``bias``, and ``output``, their sum.

    ``relevance`` is what each input gets of the output by each rule of :data:`RULES`; all arrays are float64 ``(k,)``.
    """

    contributions: np.ndarray
    bias: float
    output: float
    relevance: dict[str, np.ndarray]

    def sums(self) -> pd.DataFrame:
        """Return what each rule hands on: ``rule, handed on`` (sum), ``kept`` (output minus it), ``for, against``."""
        rows = [
            (rule, given.sum(), self.output - given.sum(), given.clip(min=0).sum(), given.clip(max=0).sum())
            for rule, given in self.relevance.items()
        ]
        return pd.DataFrame(rows, columns=["rule", "handed on", "kept", "for", "against"])


@torch.no_grad()
def last_neuron(model: nn.Module, image: Tensor, target: Target = None) -> Neuron:
    """Return the neuron of the last convolution or dense layer that answers for a class, for one image.

    ``image`` is float32 ``(1, C, H, W)`` in [-1, 1].  A convolution has such a neuron at every place: the one with the
    largest output is taken.  Computed in float64.  Raises BadInput for a network whose layers have no rules.
    """
    _check_single(image)
    with evaluating(model):
        chosen = int(targets_of(model, image, target)[0])
        subject = Subject(model, dtype=torch.float64)
        passed = trace(subject.layers, subject.prepare(image))
    last = max(i for i, layer in enumerate(subject.layers) if isinstance(layer, KERNELS))
    layer, x = subject.layers[last], passed.inputs[last]
    out = layer(x)
    place = (0, chosen)
    if out.ndim == 4:
        place += tuple(np.unravel_index(int(out[0, chosen].argmax()), out.shape[2:]))
    there = torch.zeros_like(out)
    there[place] = 1.0
    linear = Kernel(layer, nonnegative=bool((x >= 0).all()))
    read = linear.transpose(there, x, alike).flatten() > 0
    given = {name: rule(linear, x, out, there * out).flatten()[read].cpu().numpy() for name, rule in RULES.items()}
    contributions = (linear.transpose(there, x, unchanged) * x).flatten()[read].cpu().numpy()
    bias = 0.0 if layer.bias is None else float(layer.bias[chosen])
    return Neuron(contributions, bias, float(out[place]), given)


def relevance_by_layer(model: nn.Module, image: Tensor, methods: Sequence[str], target: Target = None) -> pd.DataFrame:
    """Return the sum of the relevances at each layer, from the logit down to the pixels, for one image.

    ``methods`` are names of the LRP family and deep Taylor.  Columns ``layer`` and one per method; the first row is
    the logit, the row of a layer is the sum at its *input*, and the last row is that of the pixels.  In float64.
    Raises BadInput for no method, and for one that does not work layer by layer.
    """
    if not len(methods):
        raise BadInput("There are no sums without a method: take lrp_epsilon.")
    _check_single(image)
    rows: dict[str, list[float]] = {}
    with evaluating(model):
        chosen = targets_of(model, image, target)
        for name in methods:
            subject = Subject(model, dtype=torch.float64)
            if name not in lrp.METHODS or subject.obstacle(lrp.METHODS[name]):
                raise BadInput(
                    f"'{name}' does not send relevance through this network layer by layer: take lrp_epsilon."
                )
            subject.seen = []
            lrp.METHODS[name].run(subject, subject.prepare(image), chosen.to(subject.device))
            rows[name] = [float(part.sum()) for part in subject.seen]
    return pd.DataFrame({"layer": ["logit", *reversed(_names(subject.layers))], **rows})


def _check_single(image: Tensor) -> None:
    if image.ndim != 4 or len(image) != 1:
        raise BadInput(f"One decision is taken apart at a time: give one image (1, C, H, W), not {tuple(image.shape)}.")


def _names(layers: nn.Sequential) -> list[str]:
    """Return a name for each layer, numbered by its kind."""
    kinds = {nn.Conv2d: "convolution", nn.Linear: "dense", nn.ReLU: "ReLU", nn.MaxPool2d: "max-pooling"}
    kinds |= dict.fromkeys(AVERAGES, "average pooling") | {nn.Flatten: "flatten"}
    counted: Counter[str] = Counter()
    names = []
    for layer in layers:
        kind = kinds.get(type(layer), "input scale")
        if isinstance(layer, Parallel):
            kind = "fire module" if layer.join == CONCATENATE else "residual block"
        counted[kind] += 1
        names.append(f"{kind} {counted[kind]}")
    return names
