"""A network as a sequence of layers, the form in which relevance is sent back through it.

Kept are convolutions and dense layers (kernels), ReLU, pooling and flattening.  BatchNorm is merged into the kernel
before it, exactly up to rounding; dropout has no effect on a prediction; softmax is taken away on purpose, for what is
explained is the logit.  The branches of fire modules (SqueezeNet) and of residual blocks (ResNet-18) become one layer
:class:`Parallel`, the input scale of a pretrained network a layer :class:`Scale`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from stda import BadInput

KERNELS = (nn.Conv2d, nn.Linear)
AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
KEPT = (*KERNELS, nn.MaxPool2d, *AVERAGES, nn.Flatten)
IDLE, SOFTMAX = (nn.Dropout, nn.Identity), (nn.Softmax, nn.LogSoftmax)  # both are left out
ADD, CONCATENATE = "add", "concatenate"


class Scale(nn.Module):
    """``x * gain + bias`` with one gain and bias per channel: how a pretrained network wants its input."""

    def __init__(self, gain: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("gain", gain.detach().clone())
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled input."""
        return x * self.gain + self.bias


class Parallel(nn.Module):
    """Branches that read the same input; their outputs are added (residual block) or concatenated (fire module).

    An empty branch hands its input on: the shortcut of a residual block.
    """

    def __init__(self, branches: Sequence[nn.Sequential], join: str) -> None:
        super().__init__()
        self.branches, self.join = nn.ModuleList(branches), join

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined outputs."""
        return self.joined([branch(x) for branch in self.branches])

    def joined(self, outputs: Sequence[Tensor]) -> Tensor:
        """Join outputs of the branches."""
        return torch.cat(list(outputs), dim=1) if self.join == CONCATENATE else torch.stack(list(outputs)).sum(dim=0)


def layered(model: nn.Module) -> nn.Sequential:
    """Return the model as a sequence of its layers, frozen copies: the model itself is left alone.

    Takes a :class:`stda.classify.Classifier`, a nest of ``nn.Sequential``, and torchvision's VGG, AlexNet, SqueezeNet
    and ResNet-18 or -34.  The sequence computes what the model computes in evaluation mode (softmax aside), and no
    ReLU of it works in place.  Raises BadInput for any other layer, naming it, and a softmax that is not the last.
    """
    layers: list[nn.Module] = []
    ended = False
    for layer in _leaves(model):
        if ended and not isinstance(layer, IDLE):
            raise BadInput("A softmax inside the network has no rule: only one behind the logits can be taken away.")
        ended = ended or isinstance(layer, SOFTMAX)
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            if not layers or not isinstance(layers[-1], KERNELS) or layer.running_mean is None:
                raise BadInput("A BatchNorm stands behind no convolution or dense layer: it cannot be merged into one.")
            fuse = fuse_conv_bn_eval if isinstance(layers[-1], nn.Conv2d) else fuse_linear_bn_eval
            layers[-1] = fuse(layers[-1], deepcopy(layer).eval())
        elif isinstance(layer, nn.ReLU):
            layers.append(nn.ReLU())
        elif isinstance(layer, Scale | Parallel):
            layers.append(deepcopy(layer))
        elif isinstance(layer, KEPT):
            _check(layer)
            layers.append(deepcopy(layer).eval())
        elif not isinstance(layer, IDLE + SOFTMAX):
            raise BadInput(
                f"The layer {type(layer).__name__} has no rule: relevance goes back through convolutions, dense "
                "layers, ReLU, pooling, fire modules and residual blocks only; take a gradient method instead."
            )
    return nn.Sequential(*layers).requires_grad_(False).eval()


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a network first to last, branches as :class:`Parallel`."""
    from torchvision.models import AlexNet, ResNet, SqueezeNet
    from torchvision.models.resnet import BasicBlock
    from torchvision.models.squeezenet import Fire
    from torchvision.models.vgg import VGG

    parts: Sequence[nn.Module] | None = None
    if isinstance(module, nn.Sequential):
        parts = list(module)
    elif hasattr(module, "provenance") and hasattr(module, "net"):  # stda.classify.Classifier
        scaled = module.provenance.get("normalisation")
        parts = [*([Scale(module.gain, module.bias)] if scaled else []), module.net]
    elif isinstance(module, VGG | AlexNet):
        parts = [module.features, module.avgpool, nn.Flatten(), module.classifier]
    elif isinstance(module, SqueezeNet):
        parts = [module.features, module.classifier, nn.Flatten()]
    elif isinstance(module, ResNet):
        stem = [module.conv1, module.bn1, module.relu, module.maxpool]
        stages = [module.layer1, module.layer2, module.layer3, module.layer4]
        parts = [*stem, *stages, module.avgpool, nn.Flatten(), module.fc]
    elif isinstance(module, Fire):
        small = nn.Sequential(module.expand1x1, module.expand1x1_activation)
        large = nn.Sequential(module.expand3x3, module.expand3x3_activation)
        parts = [module.squeeze, module.squeeze_activation, Parallel([layered(small), layered(large)], CONCATENATE)]
    elif isinstance(module, BasicBlock):
        main = nn.Sequential(module.conv1, module.bn1, module.relu, module.conv2, module.bn2)
        shortcut = module.downsample or nn.Sequential()
        parts = [Parallel([layered(main), layered(shortcut)], ADD), nn.ReLU()]
    if parts is None:
        yield module
    else:
        for part in parts:
            yield from _leaves(part)


def _check(layer: nn.Module) -> None:
    """Raise for a form of a layer that the rules do not cover."""
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        raise BadInput(f"The rules need zero padding given in pixels, got {layer}: take a gradient method instead.")


def has_addition(layers: nn.Sequential) -> bool:
    """Say whether some branches are added, as in a residual network."""
    return any(isinstance(layer, Parallel) and layer.join == ADD for layer in layers.modules())


@dataclass
class Trace:
    """What a forward pass left: ``inputs`` of each layer, ``output`` of the last.

    ``inner`` has the traces of the branches of each :class:`Parallel` layer, by the layer's number.
    """

    inputs: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None
    inner: dict[int, list[Trace]] = field(default_factory=dict)


def trace(layers: nn.Sequential, x: Tensor) -> Trace:
    """Run the layers on ``x`` and keep what each of them was given."""
    kept = Trace()
    for i, layer in enumerate(layers):
        kept.inputs.append(x)
        if isinstance(layer, Parallel):
            kept.inner[i] = [trace(branch, x) for branch in layer.branches]
            x = layer.joined([branch.output for branch in kept.inner[i]])
        else:
            x = layer(x)
    kept.output = x
    return kept
