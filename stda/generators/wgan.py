"""Conditional WGAN with gradient penalty (Gulrajani et al. 2017) as in the ISIC-2019 report; METHODS, section 2."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stda import BadInput
from stda.generators.adversarial.layers import ConvPool, UpConv, double, n_doublings, one_hot
from stda.generators.adversarial.training import adam
from stda.generators.adversarial.wasserstein import Wasserstein


def start_weights(module: nn.Module) -> None:
    """Initialise convolutions and dense layers after He (the paper's choice), biases with zero."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def channels_per_level(size: int, width: int) -> list[int]:
    """Return the channels from 4 px up to ``size``: 64 px gives 8d, 8d, 4d, 2d, d; 32 px 4d, 4d, 2d, d."""
    n = n_doublings(size, who="wgan", largest=256)
    return [width * min(8, 2 ** min(level, n - 1)) for level in reversed(range(n + 1))]


class LayerNorm(nn.Module):
    """Normalise each image over channels and pixels; scale and shift per channel, as in the paper's code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` of the same shape and type."""
        # group normalisation with one group is the same mathematics, and its kernel is the fastest we measured
        return F.group_norm(x, 1, self.scale.to(x.dtype), self.shift.to(x.dtype))


class UpBlock(nn.Module):
    """Residual block that doubles the size: BatchNorm, ReLU, 3x3 convolution, twice."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n_in), UpConv(n_in, n_out, 3)
        self.norm2, self.conv2 = nn.BatchNorm2d(n_out), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, n_out, 2 H, 2 W)``."""
        deep = self.conv1(F.relu(self.norm1(x)))
        deep = self.conv2(F.relu(self.norm2(deep)))
        # a 1x1 convolution and repeating pixels commute: convolve the small picture
        return deep + double(self.shortcut(x))


class DownBlock(nn.Module):
    """Residual block that halves the size: LayerNorm, ReLU, 3x3 convolution, twice, then mean pooling."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = LayerNorm(n_in), nn.Conv2d(n_in, n_in, 3, padding=1)
        self.norm2, self.conv2 = LayerNorm(n_in), ConvPool(n_in, n_out, 3)
        self.shortcut = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, n_out, H / 2, W / 2)``."""
        deep = self.conv1(F.relu(self.norm1(x)))
        deep = self.conv2(F.relu(self.norm2(deep)))
        return deep + self.shortcut(F.avg_pool2d(x, 2))


class WGenerator(nn.Module):
    """Latents whose first K entries are replaced by the one-hot label, to images, by residual up-blocks."""

    def __init__(self, *, size: int, width: int, latent: int, n_classes: int) -> None:
        super().__init__()
        if n_classes >= latent:
            raise BadInput(f"latent is {latent}; the label takes its first {n_classes} entries: make it larger.")
        self.n_classes = n_classes
        channels = channels_per_level(size, width)
        self.linear = nn.Linear(latent, channels[0] * 16)
        self.blocks = nn.Sequential(*(UpBlock(a, b) for a, b in pairwise(channels)))
        self.norm, self.to_rgb = nn.BatchNorm2d(channels[-1]), nn.Conv2d(channels[-1], 3, 3, padding=1)
        self.apply(start_weights)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return images ``(N, 3, size, size)`` in [-1, 1]."""
        z = torch.cat([one_hot(labels, self.n_classes), z[:, self.n_classes :]], dim=1)
        x = self.linear(z).unflatten(1, (-1, 4, 4))
        return torch.tanh(self.to_rgb(F.relu(self.norm(self.blocks(x)))))


class WCritic(nn.Module):
    """Images to one score and K class logits, by residual down-blocks without BatchNorm.

    A ReLU before the mean pooling *(reading: as in the paper's residual network for CIFAR-10)*.
    """

    def __init__(self, *, size: int, width: int, n_classes: int) -> None:
        super().__init__()
        channels = channels_per_level(size, width)[::-1]
        self.from_rgb = nn.Conv2d(3, channels[0], 3, padding=1)
        self.blocks = nn.Sequential(*(DownBlock(a, b) for a, b in pairwise(channels)))
        self.score, self.classify = nn.Linear(channels[-1], 1), nn.Linear(channels[-1], n_classes)
        self.apply(start_weights)

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features ``(N, C)``, float32."""
        return F.relu(self.blocks(self.from_rgb(images))).float().mean(dim=(2, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores ``(N,)`` and class logits ``(N, K)``."""
        features = self.features(images)
        return self.score(features).flatten(), self.classify(features)


@dataclass(kw_only=True, eq=False)
class WGAN(Wasserstein):
    """Conditional WGAN-GP with a class head; the step is :meth:`Wasserstein.advance`."""

    name: ClassVar[str] = "wgan"

    width: int = 64  # d: channels at the full size
    latent: int = 128
    learning_rate: float = 1e-4
    n_critic: int = 5

    def make_generator(self, n_classes: int) -> nn.Module:
        """Return an untrained generator network."""
        return WGenerator(size=self.size, width=self.width, latent=self.latent, n_classes=n_classes)

    def make_critic(self, n_classes: int) -> nn.Module:
        """Return an untrained critic."""
        return WCritic(size=self.size, width=self.width, n_classes=n_classes)

    def make_optimizer(self, name: str, network: nn.Module) -> torch.optim.Optimizer:
        """Return Adam as the paper sets it, which lazy penalties change (:meth:`second_decay`)."""
        return adam(network, self.learning_rate, (0.0, self.second_decay(name, 0.9)))
