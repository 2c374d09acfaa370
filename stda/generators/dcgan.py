"""DCGAN (Radford, Metz and Chintala 2016), one model per class or one conditional model; METHODS: ISIC-2019 report."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stda import BadInput
from stda.generators.adversarial.gan import Adversarial
from stda.generators.adversarial.layers import n_doublings, one_hot
from stda.generators.adversarial.training import Training, adam, frozen, update
from stda.images import ImageSet

MODES = ("per-class", "conditional")


def weaken(module: nn.Module) -> None:
    """Initialise as the paper does: convolutions N(0, 0.02), BatchNorm scales N(1, 0.02)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class DCGenerator(nn.Module):
    """Latents (and one-hot labels) to images by transposed 4x4 convolutions, BatchNorm and ReLU, tanh at the end."""

    def __init__(self, *, size: int, width: int, latent: int, n_labels: int) -> None:
        super().__init__()
        self.n_labels = n_labels
        n_up = n_doublings(size, who="dcgan", largest=256)
        # 64 px has 8w, 4w, 2w, w channels from 4 px to 32 px; 32 px has one layer less
        channels = [width * 2**level for level in reversed(range(n_up))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent + n_labels, channels[0], 4, bias=False)]
        for n_in, n_out in pairwise(channels):
            layers += [nn.BatchNorm2d(n_in), nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(channels[-1]), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(channels[-1], 3, 4, stride=2, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(weaken)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return images ``(N, 3, size, size)`` in [-1, 1]; ``labels`` are ignored by an unconditional model."""
        if self.n_labels:
            z = torch.cat([z, one_hot(labels, self.n_labels)], dim=1)
        return self.layers(z[:, :, None, None])


class DCDiscriminator(nn.Module):
    """Images (and label maps) to one logit by strided 4x4 convolutions, LeakyReLU 0.2, BatchNorm except first."""

    def __init__(self, *, size: int, width: int, n_labels: int) -> None:
        super().__init__()
        self.n_labels = n_labels
        n_down = n_doublings(size, who="dcgan", largest=256)
        channels = [3 + n_labels, *(width * 2**level for level in range(n_down))]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(channels):
            layers += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1, bias=not layers)]
            layers += [nn.BatchNorm2d(n_out)] if len(layers) > 1 else []
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4))
        self.apply(weaken)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return logits ``(N,)``, positive for real; a conditional model sees its label as constant extra channels."""
        if self.n_labels:
            maps = one_hot(labels, self.n_labels).to(images.dtype)[:, :, None, None]
            images = torch.cat([images, maps.expand(-1, -1, *images.shape[2:])], dim=1)
        return self.layers(images).flatten()


@dataclass(kw_only=True, eq=False)
class DCGAN(Adversarial):
    """DCGAN with the non-saturating loss.

    ``mode="per-class"`` trains one unconditional model per class, which share the steps evenly; "conditional" trains
    one model that is told the class (the generator in its latent vector, the discriminator as constant channels).
    """

    name: ClassVar[str] = "dcgan"

    mode: str = "per-class"
    width: int = 64  # channels before the last layer
    latent: int = 100
    learning_rate: float = 2e-4
    beta1: float = 0.5  # of Adam; beta2 is 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise BadInput(f"mode is '{self.mode}'; it must be one of {', '.join(MODES)}.")

    def split_by_model(self, train: ImageSet) -> dict[str, ImageSet]:
        """Return the images of each class in per-class mode, else all of them."""
        if self.mode == "conditional":
            return super().split_by_model(train)
        return {label: train.select(label=label) for label in self.classes}

    def n_labels(self, n_classes: int) -> int:
        """Return how many labels the networks are told: none when each model has one class."""
        return n_classes if self.mode == "conditional" else 0

    def make_generator(self, n_classes: int) -> nn.Module:
        """Return an untrained generator network."""
        return DCGenerator(size=self.size, width=self.width, latent=self.latent, n_labels=self.n_labels(n_classes))

    def make_critic(self, n_classes: int) -> nn.Module:
        """Return an untrained discriminator."""
        return DCDiscriminator(size=self.size, width=self.width, n_labels=self.n_labels(n_classes))

    def make_optimizer(self, name: str, network: nn.Module) -> torch.optim.Optimizer:
        """Return Adam as the paper sets it."""
        return adam(network, self.learning_rate, (self.beta1, 0.999))

    def advance(self, training: Training) -> dict[str, Any]:
        """Update the discriminator, then the generator, on one batch of real and one of fake images."""
        generator, critic = training.networks["generator"], training.networks["critic"]
        real, real_labels = self.reals(training, self.batch_size)
        z, labels = self.fakes(training, self.batch_size)

        # discriminator: real and fake apart, so that no BatchNorm batch holds both
        with self.compute.autocast():
            fake = generator(z, labels)
            score_real = critic(self.augmented(training, real), real_labels).float()
            score_fake = critic(self.augmented(training, fake.detach()), labels).float()
        critic_loss = F.softplus(-score_real).mean() + F.softplus(score_fake).mean()
        critic_gradient = update(training.optimizers["critic"], critic_loss, critic)
        training.augmentation.observe(score_real)

        # generator: the same fakes, judged by the updated discriminator
        with frozen(critic):
            with self.compute.autocast():
                score = critic(self.augmented(training, fake), labels).float()
            generator_loss = F.softplus(-score).mean()
            generator_gradient = update(training.optimizers["generator"], generator_loss, generator)
        return {
            "g_loss": generator_loss.item(),
            "d_loss": critic_loss.item(),
            "g_gradient": generator_gradient,
            "d_gradient": critic_gradient,
            "d_real": score_real.sigmoid().mean().item(),
            "d_fake": score_fake.sigmoid().mean().item(),
        }

    def opinion(self, training: Training, images: Tensor, labels: Tensor) -> Tensor:
        """Return the discriminator's probability that an image is real."""
        return training.networks["critic"](images, labels).float().sigmoid()
