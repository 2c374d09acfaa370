"""Classifiers: VGG8 of the style-transfer papers, and torchvision's networks, behind one module.

BatchNorm and synthetic images: a training batch of an arm mixes real and synthetic images, so the running statistics
of BatchNorm are those of the mixture, while validation and test images are all real.  When the two look different,
every layer is shifted a little at test time, and an arm can lose for that reason alone.  Every arm has this trap in
the same form; ``batch_norm=False`` builds the VGG8 without it, to see how much of an effect it explains.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from stda import BadInput
from stda.encoders import HALF_NORMALISED, NORMALISATIONS, cached_weights
from stda.runs import sha256

# torchvision name -> (prefix of the last layer, which is always trained anew; smallest image side it can take)
TORCHVISION = {
    "vgg11_bn": ("classifier.6.", 32),
    "vgg16_bn": ("classifier.6.", 32),
    "alexnet": ("classifier.6.", 63),
    "resnet18": ("fc.", 32),
    "squeezenet1_0": ("classifier.1.", 32),
    "mobilenet_v2": ("classifier.1.", 32),
}
NETWORKS = ("vgg8", *TORCHVISION)
VGG8_CHANNELS = (32, 64, 128, 256, 256)
VGG8_DENSE = (256, 256)
DROPOUT = 0.3


class Classifier(nn.Module):
    """A network that takes float32 NCHW in [-1, 1] and returns logits ``(N, K)``, and what is needed to build it again.

    ``net`` is the network itself; ``name``, ``size`` (pixels), ``width``, ``batch_norm``, ``n_classes``; ``classes``
    (labels in the order of the logits, empty before training); ``provenance`` of its first weights.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        size: int,
        n_classes: int,
        width: float = 1.0,
        batch_norm: bool = True,
        provenance: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.name, self.size, self.n_classes = net, name, size, n_classes
        self.width, self.batch_norm = width, batch_norm
        self.provenance = provenance or {"weights": "none", "normalisation": ""}
        self.classes: list[str] = []
        normalisation = self.provenance["normalisation"]
        if normalisation:
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALISATIONS[normalisation])
            # x is in [-1, 1]: ((x + 1) / 2 - mean) / std = x * gain + bias
            self.register_buffer("gain", 0.5 / std, persistent=False)
            self.register_buffer("bias", (0.5 - mean) / std, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(N, K)``; a pretrained network gets the input scale it was trained with."""
        if self.provenance["normalisation"]:
            x = x * self.gain + self.bias
        return self.net(x)

    @property
    def settings(self) -> dict:
        """What :func:`build` needs to make this network again, its weights aside."""
        names = ("name", "n_classes", "size", "width", "batch_norm")
        return {name: getattr(self, name) for name in names}


class Features(nn.Sequential):
    """A sequence that computes a ReLU with max-pooling behind it in the other order, for a fourth of the work.

    The two commute, and exactly so: values and gradients stay the same bit for bit.  The layers stay in the order in
    which they were given, for attribution and for files of weights.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layers in their order return."""
        layers = list(self)
        for i, (layer, behind) in enumerate(pairwise(self)):
            if isinstance(layer, nn.ReLU) and isinstance(behind, nn.MaxPool2d):
                layers[i : i + 2] = behind, layer
        for layer in layers:
            x = layer(x)
        return x


class VGG8(nn.Sequential):
    """Eight weight layers: five 3x3 convolutions with ReLU and 2x2 max-pooling, three dense layers with dropout.

    The depth and the widths 32, 64, 128, 256, 256 are our reading of "VGG8" in Mikolajczyk and Grochowski 2018, 2019,
    who do not print them.  BatchNorm after each convolution is a departure: without it 600 steps from scratch do not
    get far; it merges into the convolutions exactly, so attribution never sees it.  Pooling stops when the map is one
    pixel wide (images under 32 px).
    """

    def __init__(
        self,
        n_classes: int,
        *,
        size: int,
        channels: Sequence[int] = VGG8_CHANNELS,
        dense: Sequence[int] = VGG8_DENSE,
        dropout: float = DROPOUT,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        features, side = Features(), size
        for i, (n_in, n_out) in enumerate(pairwise((3, *channels)), start=1):
            features.add_module(f"conv{i}", nn.Conv2d(n_in, n_out, kernel_size=3, padding=1, bias=not batch_norm))
            if batch_norm:
                features.add_module(f"norm{i}", nn.BatchNorm2d(n_out))
            features.add_module(f"relu{i}", nn.ReLU(inplace=True))
            if side >= 2:
                features.add_module(f"pool{i}", nn.MaxPool2d(2))
                side //= 2
        head = nn.Sequential()
        for i, (n_in, n_out) in enumerate(pairwise((channels[-1] * side**2, *dense)), start=1):
            head.add_module(f"dropout{i}", nn.Dropout(dropout))
            head.add_module(f"dense{i}", nn.Linear(n_in, n_out))
            head.add_module(f"relu{i}", nn.ReLU(inplace=True))
        head.add_module(f"dropout{len(dense) + 1}", nn.Dropout(dropout))
        head.add_module(f"dense{len(dense) + 1}", nn.Linear(dense[-1], n_classes))
        self.add_module("features", features)
        self.add_module("flatten", nn.Flatten())
        self.add_module("head", head)
        self.apply(_he_init)


def _he_init(module: nn.Module) -> None:
    """Draw weights for ReLU networks (He et al. 2015); PyTorch's own default shrinks the signal layer by layer."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_out" if isinstance(module, nn.Conv2d) else "fan_in")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build(
    name: str,
    *,
    n_classes: int,
    size: int,  # image side in pixels
    weights: str = "none",  # none: from scratch; cache: torchvision's cache; else the path of a weights file
    width: float = 1.0,  # VGG8 only: factor on all channel and dense widths
    batch_norm: bool = True,  # VGG8 only
) -> Classifier:
    """Build a classifier for ``n_classes``; its random first weights come from PyTorch's global random state.

    Pretrained weights are read, never downloaded; the last layer is always new.  Raises BadInput for an unknown
    network, an image size it cannot take, fewer than two classes, or weights that are missing or do not fit.
    """
    if name not in NETWORKS:
        raise BadInput(f"Unknown network '{name}'; it must be one of {', '.join(NETWORKS)}.")
    if n_classes < 2:
        raise BadInput(f"A classifier needs at least 2 classes, got {n_classes}: check the labels of the train fold.")
    facts = {"name": name, "size": size, "n_classes": n_classes, "width": width, "batch_norm": batch_norm}
    smallest = TORCHVISION[name][1] if name in TORCHVISION else 8
    if size < smallest:
        raise BadInput(f"{name} needs images of at least {smallest} px, got {size}: raise image_size or take vgg8.")
    if name == "vgg8":
        if weights != "none":
            raise BadInput(f"There are no ready weights of vgg8, got weights '{weights}': set weights to 'none'.")
        if not width > 0:
            raise BadInput(f"width is {width}; it must be positive: a factor on the channels of vgg8.")
        channels, dense = ([max(4, round(c * width)) for c in widths] for widths in (VGG8_CHANNELS, VGG8_DENSE))
        return Classifier(VGG8(n_classes, size=size, channels=channels, dense=dense, batch_norm=batch_norm), **facts)

    from torchvision.models import get_model

    net = get_model(name, weights=None, num_classes=n_classes)
    if hasattr(net, "features"):
        net.features = Features(OrderedDict(net.features.named_children()))
    provenance = None if weights == "none" else _load_pretrained(net, name, weights)
    return Classifier(net, **facts, provenance=provenance)


def _load_pretrained(net: nn.Module, name: str, weights: str) -> dict[str, str]:
    """Load all weights but those of the last layer, and return where they came from."""
    path = cached_weights(name) if weights == "cache" else Path(weights)
    if not path.is_file():
        where = "in torchvision's cache" if weights == "cache" else "there"
        raise BadInput(
            f"The weights of {name} are not {where} ({path}): put the file there, name another, or set weights 'none'."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {key: value for key, value in state.items() if not key.startswith(TORCHVISION[name][0])}
        missing, unknown = net.load_state_dict(state, strict=False)
    except Exception as error:  # the reader raises many kinds; all of them mean that this file will not do
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path} cannot be read as weights of {name} ({reason}): name another file.") from None
    missing = [key for key in missing if not key.startswith(TORCHVISION[name][0])]
    if missing or unknown:
        raise BadInput(f"{path} does not fit {name} (for example {[*missing, *unknown][0]}): name another file.")
    digest = sha256(path)
    normalisation = "half" if digest in HALF_NORMALISED else "imagenet"
    source = "torchvision cache" if weights == "cache" else "file"
    return {"weights": source, "file": path.name, "sha256": digest, "normalisation": normalisation}
