"""DCGAN (Radford, Metz and Chintala 2016) per class, unconditional, conditional or as ACGAN; METHODS, section 2."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as bound_spectral_norm

from stda import BadInput
from stda.generators.adversarial.gan import Adversarial
from stda.generators.adversarial.layers import n_doublings, one_hot
from stda.generators.adversarial.rejection import opinions, until_seen
from stda.generators.adversarial.training import Training, adam, frozen, update
from stda.generators.base import Callback, read_settings, write_settings
from stda.images import ImageSet

if TYPE_CHECKING:
    from stda.compute import Compute
    from stda.encoders import InDomain

# which networks are told the class: (generator, discriminator); in acgan the discriminator has to say it
TOLD = {
    "per-class": (False, False),
    "unconditional": (False, False),
    "conditional": (True, True),
    "acgan": (True, False),
}


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
    """Images (and label maps) to one logit by strided 4x4 convolutions, LeakyReLU 0.2, BatchNorm except first.

    With ``n_classes`` it also has a head that names the class (ACGAN).  ``spectral_norm`` divides each layer's weights
    by their largest singular value and takes the place of BatchNorm, which would undo it (Miyato et al. 2018).
    """

    def __init__(
        self, *, size: int, width: int, n_labels: int, n_classes: int = 0, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        self.n_labels = n_labels
        n_down = n_doublings(size, who="dcgan", largest=256)
        channels = [3 + n_labels, *(width * 2**level for level in range(n_down))]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(channels):
            normalised = bool(layers) and not spectral_norm
            layers += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1, bias=not normalised)]
            layers += [nn.BatchNorm2d(n_out)] if normalised else []
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1 + n_classes, 4))
        self.apply(weaken)
        if spectral_norm:
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d):
                    bound_spectral_norm(layer)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(N,)``, positive for real, and class logits ``(N, n_classes)``, both float32.

        A conditional model sees its label as constant extra channels.
        """
        if self.n_labels:
            maps = one_hot(labels, self.n_labels).to(images.dtype)[:, :, None, None]
            images = torch.cat([images, maps.expand(-1, -1, *images.shape[2:])], dim=1)
        out = self.layers(images).flatten(1).float()
        return out[:, 0], out[:, 1:]


@dataclass(kw_only=True, eq=False)
class DCGAN(Adversarial):
    """DCGAN with the non-saturating loss.

    ``mode`` "per-class" trains one unconditional model per class, which share the steps evenly; "unconditional" trains
    one model of all classes and keeps an image when ``labeller`` sees the asked class in it; "conditional" trains one
    that is told the class (the generator in its latent vector, the discriminator as constant channels); in "acgan" the
    discriminator is not told the class but has to name it (Odena, Olah and Shlens 2017).
    """

    name: ClassVar[str] = "dcgan"

    mode: str = "per-class"
    width: int = 64  # channels before the last layer
    latent: int = 100
    learning_rate: float = 2e-4
    beta1: float = 0.5  # of Adam; beta2 is 0.999
    class_weight: float = 1.0  # acgan: of the class head's cross-entropy
    max_tries: int = 64  # unconditional: images drawn until one is seen as the asked class
    labeller: InDomain | None = None  # unconditional: who sees it, a classifier trained on the same train fold
    # what holds a discriminator back
    critic_rate: float = 1.0  # factor of its learning rate
    label_smoothing: float = 0.0  # one-sided: a real image counts as 1 minus this (Salimans et al. 2016)
    spectral_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in TOLD:
            raise BadInput(f"mode is '{self.mode}'; it must be one of {', '.join(TOLD)}.")
        if self.label_smoothing >= 0.5:
            raise BadInput(f"label_smoothing is {self.label_smoothing}; it must be below 0.5, or real counts as fake.")

    def knobs(self) -> dict[str, Any]:
        """Return the constructor's arguments that are plain values."""
        return {name: value for name, value in super().knobs().items() if name != "labeller"}

    # ------------------------------------------------------------------------------------------ networks

    def split_by_model(self, train: ImageSet) -> dict[str, ImageSet]:
        """Return the images of each class in per-class mode, else all of them."""
        if self.mode != "per-class":
            return super().split_by_model(train)
        return {label: train.select(label=label) for label in self.classes}

    def make_generator(self, n_classes: int) -> nn.Module:
        """Return an untrained generator network."""
        told, _ = TOLD[self.mode]
        return DCGenerator(size=self.size, width=self.width, latent=self.latent, n_labels=n_classes * told)

    def make_critic(self, n_classes: int) -> nn.Module:
        """Return an untrained discriminator."""
        _, told = TOLD[self.mode]
        return DCDiscriminator(
            size=self.size,
            width=self.width,
            n_labels=n_classes * told,
            n_classes=n_classes * (self.mode == "acgan"),
            spectral_norm=self.spectral_norm,
        )

    def make_optimizer(self, name: str, network: nn.Module) -> torch.optim.Optimizer:
        """Return Adam as the paper sets it, the discriminator's slower where ``critic_rate`` says so."""
        factor = self.critic_rate if name == "critic" else 1.0
        return adam(network, self.learning_rate * factor, (self.beta1, 0.999))

    # ------------------------------------------------------------------------------------------ training

    def fit(
        self, train: ImageSet, *, steps: int, seed: int, callback: Callback | None = None, **more: Any
    ) -> pd.DataFrame:
        """Train on the train fold (:meth:`Adversarial.fit`); mode "unconditional" needs its labeller."""
        self.require_labeller()
        known = self.labeller and (self.labeller.classes, self.labeller.size)
        if known not in (None, (train.classes, train.size)):
            raise BadInput(
                f"The labeller knows {known[0]} at {known[1]} px, the train fold has {train.classes} at {train.size} "
                "px: train it on this fold."
            )
        return super().fit(train, steps=steps, seed=seed, callback=callback, **more)

    def advance(self, training: Training) -> dict[str, Any]:
        """Update the discriminator, then the generator, on one batch of real and one of fake images."""
        generator, critic = training.networks["generator"], training.networks["critic"]
        real, real_labels = self.reals(training, self.batch_size)
        z, labels = self.fakes(training, self.batch_size)

        # discriminator: real and fake apart, so that no BatchNorm batch holds both
        with self.compute.autocast():
            fake = generator(z, labels)
            score_real, class_real = critic(self.augmented(training, real), real_labels)
            score_fake, class_fake = critic(self.augmented(training, fake.detach()), labels)
        critic_loss = F.softplus(-score_real).mean() + F.softplus(score_fake).mean()
        # -(1 - s) log D - s log(1 - D) = -log D + s * logit
        critic_loss = critic_loss + self.label_smoothing * score_real.mean()
        record = {}
        if self.mode == "acgan":
            record["d_class_loss"] = F.cross_entropy(class_real, real_labels)
            record["d_class_loss_fake"] = F.cross_entropy(class_fake, labels)
            critic_loss = critic_loss + self.class_weight * (record["d_class_loss"] + record["d_class_loss_fake"])
        critic_gradient = update(training.optimizers["critic"], critic_loss, critic)
        training.augmentation.observe(score_real)

        # generator: the same fakes, judged by the updated discriminator
        with frozen(critic):
            with self.compute.autocast():
                score, class_logits = critic(self.augmented(training, fake), labels)
            generator_loss = F.softplus(-score).mean()
            if self.mode == "acgan":
                record["g_class_loss"] = F.cross_entropy(class_logits, labels)
                generator_loss = generator_loss + self.class_weight * record["g_class_loss"]
            generator_gradient = update(training.optimizers["generator"], generator_loss, generator)

        record |= {"g_loss": generator_loss, "d_loss": critic_loss}
        record |= {"d_real": score_real.sigmoid().mean(), "d_fake": score_fake.sigmoid().mean()}
        record["d_accuracy_real"] = (score_real > 0).float().mean()
        record["d_accuracy_fake"] = (score_fake < 0).float().mean()
        numbers = {key: value.item() for key, value in record.items()}
        return numbers | {"g_gradient": generator_gradient, "d_gradient": critic_gradient}

    def opinion(self, training: Training, images: Tensor, labels: Tensor) -> Tensor:
        """Return the discriminator's probability that an image is real."""
        # of a copy: BatchNorm and spectral norm take note of every pass, and a look must not change the training
        score, _ = deepcopy(training.networks["critic"])(images, labels)
        return score.sigmoid()

    # ------------------------------------------------------------------------------------------ images

    def grid(self, network: nn.Module, n_classes: int) -> np.ndarray:
        """Return a picture of the averaged generator's state: a row per class it is told, always the same latents."""
        told, _ = TOLD[self.mode]
        return super().grid(network, n_classes if told else 1)

    def class_walk(self, start: str, end: str, *, seed: int, n: int = 8) -> np.ndarray:
        """Return n images of one latent, uint8 ``(n, H, W, 3)``, while its label goes from one class to another."""
        if self.mode == "unconditional":
            raise BadInput("mode 'unconditional' knows no classes, so there is no way from one to another.")
        return super().class_walk(start, end, seed=seed, n=n)

    def make(self, rows: pd.DataFrame) -> ImageSet:
        """Return the images of rows that :meth:`generate` or :meth:`plan` made.

        Mode "unconditional" draws until the labeller sees the asked class; the label is then what it sees, and the
        columns are those of :func:`until_seen`.
        """
        if self.mode != "unconditional":
            return super().make(rows)
        self.require_labeller()
        for label in set(rows["label"]):
            self.model_of(label)  # refuses a class that it was not fitted on
        pixels, columns = until_seen(
            rows["label"].tolist(),
            rows["image_seed"].tolist(),
            draw=lambda seeds: self.images_for(self.classes[:1] * len(seeds), seeds),  # whose label nobody reads
            judge=lambda images: opinions(self.labeller, images, self.compute),
            classes=self.labeller.classes,
            max_tries=self.max_tries,
        )
        return ImageSet(pixels, rows.assign(**columns))

    def require_labeller(self) -> None:
        """Raise BadInput where mode "unconditional" has no classifier to go by."""
        if self.mode == "unconditional" and self.labeller is None:
            raise BadInput("mode 'unconditional' needs a classifier that says what an image shows: pass labeller.")

    # ------------------------------------------------------------------------------------------ on disk

    def save(self, folder: Path) -> None:
        """Write what :meth:`Adversarial.save` writes, and in mode "unconditional" which classifier it went by."""
        super().save(folder)
        if self.mode == "unconditional":
            settings = read_settings(folder) | {"labeller": self.labeller.provenance}
            write_settings(folder, settings.pop("generator"), **settings)

    @classmethod
    def load(cls, folder: Path, *, compute: Compute | None = None, labeller: InDomain | None = None) -> DCGAN:
        """Open what :meth:`save` wrote; mode "unconditional" needs the classifier it was saved with."""
        saved = read_settings(folder).get("labeller")
        if saved and (labeller is None or labeller.provenance["sha256"] != saved["sha256"]):
            given = labeller.provenance["sha256"][:8] if labeller else "none"
            raise BadInput(f"{folder} went by the labeller {saved['sha256'][:8]}, but was given {given}: pass that.")
        generator = super().load(folder, compute=compute)
        generator.labeller = labeller
        return generator
