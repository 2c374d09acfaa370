"""A network as a plain chain of layers, the form in which relevance is sent back through it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from stda import BadInput

KERNELS = (nn.Conv2d, nn.Linear)
KEPT = (*KERNELS, nn.ReLU, nn.MaxPool2d, nn.Flatten)
# no effect on a prediction, or taken away on purpose: what is explained is the logit, not the softmax
DROPPED = (nn.Dropout, nn.Identity, nn.Softmax, nn.LogSoftmax)


def chain(model: nn.Module) -> list[nn.Module]:
    """Return frozen copies of a model's layers in order: kernels, ReLU, max-pooling, flatten.

    BatchNorm is merged into the kernel before it (exactly, up to rounding); dropout and softmax are left out.  Takes
    a :class:`stda.classify.Classifier` or a nest of ``nn.Sequential``.  Raises BadInput for any other layer, and for
    branches such as those of residual networks, naming it.
    """
    layers: list[nn.Module] = []
    for layer in _leaves(getattr(model, "net", model)):
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            if not layers or not isinstance(layers[-1], KERNELS) or layer.running_mean is None:
                raise BadInput("A BatchNorm stands behind no convolution or dense layer: it cannot be merged into one.")
            fuse = fuse_conv_bn_eval if isinstance(layers[-1], nn.Conv2d) else fuse_linear_bn_eval
            layers[-1] = fuse(layers[-1], deepcopy(layer).eval())
        elif isinstance(layer, KEPT):
            _check(layer)
            layers.append(deepcopy(layer).eval())
        elif not isinstance(layer, DROPPED):
            raise BadInput(
                f"Deep Taylor is not defined here for the layer {type(layer).__name__}: it needs a plain chain of "
                "convolutions, dense layers, ReLU and max-pooling, such as vgg8; take a gradient method instead."
            )
    if getattr(model, "provenance", {}).get("normalisation"):
        raise BadInput(
            "Deep Taylor is not defined here for a network that rescales its input: take a gradient method instead."
        )
    return [layer.requires_grad_(False) for layer in layers]


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of nested sequences, first to last."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _leaves(child)
    else:
        yield module


def _check(layer: nn.Module) -> None:
    """Raise for a padding that the rules do not cover."""
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        raise BadInput(f"Deep Taylor needs zero padding given in pixels, got {layer}: take a gradient method instead.")


def forward(layers: list[nn.Module], x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the input of every layer and the output of the last."""
    inputs = []
    for layer in layers:
        inputs.append(x)
        # not in place: the input of the next layer may still be asked for
        x = x.clamp(min=0) if isinstance(layer, nn.ReLU) else layer(x)
    return inputs, x
