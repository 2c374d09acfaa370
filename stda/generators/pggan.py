"""Progressive GAN (Karras et al. 2018), conditional, re-implemented from the paper; METHODS, section 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stda import BadInput
from stda.generators.adversarial.layers import (
    EqualConv,
    EqualLinear,
    MinibatchStddev,
    PixelNorm,
    double,
    n_doublings,
    one_hot,
)
from stda.generators.adversarial.training import Training, adam
from stda.generators.adversarial.wasserstein import Wasserstein

LARGEST = 256
GROUP = 4  # images over which the critic sees the deviation; batches are whole groups, so real and fake never mix


class Phase(NamedTuple):
    """One phase of the schedule: the resolution is ``4 * 2**level``; a fading phase mixes it in from ``level - 1``."""

    level: int
    fading: bool
    images_per_step: int  # real images: batch size times critic updates
    first_step: int  # steps before the phase
    end_step: int  # steps up to its end

    @property
    def resolution(self) -> int:
        """Pixels of a side."""
        return 4 * 2**self.level

    def images(self, step: int) -> int:
        """Return how many real images the critic has seen in this phase after ``step`` steps of the whole run."""
        return self.images_per_step * (min(max(step, self.first_step), self.end_step) - self.first_step)

    def alpha(self, step: int) -> float:
        """Return the share of the new resolution after ``step`` steps: from 0 towards 1 while fading, else 1."""
        return self.images(step) / self.images(self.end_step) if self.fading else 1.0


def schedule(steps: int, images_per_step: Sequence[int], *, phase_images: int, last_share: float) -> list[Phase]:
    """Return the phases of a run: stabilise 4 px, then fade in and stabilise each further level.

    Phases are counted in real images, and a level takes ``images_per_step[level]`` of them in a step.  Every phase but
    the last has ``phase_images`` (the paper: 800,000), rounded up to whole steps, and the last goes on to the end of
    ``steps``.  With ``phase_images`` 0 the last takes ``last_share`` of the run's images, the others share the rest
    evenly.  Some phases are empty when ``steps`` are few, but never the last.
    """
    order = [(0, False), *((level, fading) for level in range(1, len(images_per_step)) for fading in (True, False))]
    early = [images_per_step[level] for level, _ in order[:-1]]
    if phase_images:
        ends = list(accumulate(math.ceil(phase_images / n) for n in early))
        if ends[-1] >= steps:
            raise BadInput(
                f"phase_images is {phase_images}, which takes {ends[-1]} steps before the last phase, but steps is "
                f"{steps}: lower phase_images or raise steps."
            )
    else:
        # steps that each phase takes, up to a factor: its share of the images over the images of one step
        lengths = [(1 - last_share) / len(early) / n for n in early]
        total = sum(lengths) + last_share / images_per_step[-1]
        ends = [min(round(steps * end / total), steps - 1) for end in accumulate(lengths)]
    limits = pairwise([0, *ends, steps])
    return [Phase(*what, images_per_step[what[0]], *limit) for what, limit in zip(order, limits, strict=True)]


def channels_per_level(size: int, base: int, most: int) -> list[int]:
    """Return the channels from 4 px up to ``size``: ``min(base / 2^stage, most)``, with stage 1 at 4 px."""
    n_levels = n_doublings(size, who="pggan", largest=LARGEST) + 1
    return [max(1, min(base // 2 ** (level + 1), most)) for level in range(n_levels)]


def activate(x: Tensor) -> Tensor:
    """Apply LeakyReLU 0.2."""
    return F.leaky_relu(x, 0.2)


class GeneratorBlock(nn.Module):
    """Doubling, then twice: 3x3 convolution, LeakyReLU, PixelNorm."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = EqualConv(n_in, n_out, 3, resample="up")
        self.conv2 = EqualConv(n_out, n_out, 3)
        self.norm = PixelNorm()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, n_out, 2 H, 2 W)``."""
        x = self.norm(activate(self.conv1(x)))
        return self.norm(activate(self.conv2(x)))


class CriticBlock(nn.Module):
    """Twice 3x3 convolution and LeakyReLU, halving the size in the second."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = EqualConv(n_in, n_in, 3)
        self.conv2 = EqualConv(n_in, n_out, 3, resample="down")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, n_out, H / 2, W / 2)``."""
        return activate(self.conv2(activate(self.conv1(x))))


class ProgressiveGenerator(nn.Module):
    """Latents and labels to images of any level; ``level`` and ``alpha`` are where training stands.

    They are buffers, so a saved network knows its level.  Latent vector and one-hot label are each normalised to unit
    RMS, then joined *(reading: normalised together, a label of few classes drowns in a long latent vector)*.
    """

    def __init__(self, *, channels: list[int], latent: int, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.norm = PixelNorm()
        # gain / 4: each 4x4 unit is a convolution output of its own, as in the paper's dense first layer
        self.dense = EqualLinear(latent + n_classes, channels[0] * 16, gain=math.sqrt(2) / 4)
        self.conv = EqualConv(channels[0], channels[0], 3)
        self.blocks = nn.ModuleList(GeneratorBlock(a, b) for a, b in pairwise(channels))
        self.to_rgb = nn.ModuleList(EqualConv(n, 3, 1, gain=1.0) for n in channels)
        self.register_buffer("level", torch.tensor(len(channels) - 1))
        self.register_buffer("alpha", torch.tensor(1.0))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return images ``(N, 3, 4 * 2**level, ...)``, not bounded: the paper's output is linear."""
        level, alpha = int(self.level), float(self.alpha)
        x = torch.cat([self.norm(z), self.norm(one_hot(labels, self.n_classes))], dim=1)
        x = self.norm(activate(self.dense(x)).unflatten(1, (-1, 4, 4)))
        x = self.norm(activate(self.conv(x)))
        before = x
        for block in self.blocks[:level]:
            before, x = x, block(x)
        images = self.to_rgb[level](x)
        if level and alpha < 1:
            images = torch.lerp(double(self.to_rgb[level - 1](before)).float(), images.float(), alpha)
        return images


class ProgressiveCritic(nn.Module):
    """Images of any level to one score and K class logits; mirrors the generator, minibatch stddev at 4 px."""

    def __init__(self, *, channels: list[int], n_classes: int) -> None:
        super().__init__()
        self.from_rgb = nn.ModuleList(EqualConv(3, n, 1) for n in channels)
        # block k leads from level k + 1 to level k
        self.blocks = nn.ModuleList(CriticBlock(b, a) for a, b in pairwise(channels))
        self.stddev = MinibatchStddev(GROUP)
        self.conv = EqualConv(channels[0] + 1, channels[0], 3)
        self.dense = EqualLinear(channels[0] * 16, channels[0])
        self.score, self.classify = EqualLinear(channels[0], 1, gain=1.0), EqualLinear(channels[0], n_classes, gain=1.0)
        self.register_buffer("level", torch.tensor(len(channels) - 1))
        self.register_buffer("alpha", torch.tensor(1.0))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores ``(N,)`` and class logits ``(N, K)``."""
        level, alpha = int(self.level), float(self.alpha)
        x = activate(self.from_rgb[level](images))
        if level:
            x = self.blocks[level - 1](x)
            if alpha < 1:
                old = activate(self.from_rgb[level - 1](F.avg_pool2d(images, 2)))
                x = torch.lerp(old.float(), x.float(), alpha)
            for block in reversed(self.blocks[: level - 1]):
                x = block(x)
        x = activate(self.conv(self.stddev(x)))
        x = activate(self.dense(x.flatten(1)))
        return self.score(x).flatten(), self.classify(x)


def at_level(images: Tensor, level: int, n_levels: int, alpha: float) -> Tensor:
    """Return real images as they are at a level: mean-pooled, and while fading mixed with the level below."""
    images = F.avg_pool2d(images, 2 ** (n_levels - 1 - level))
    if level and alpha < 1:
        images = torch.lerp(double(F.avg_pool2d(images, 2)), images, alpha)
    return images


def set_growth(network: nn.Module, level: int, alpha: float) -> None:
    """Tell a network where training stands."""
    network.level.fill_(level)
    network.alpha.fill_(alpha)


@dataclass(kw_only=True, eq=False)
class ProgressiveGAN(Wasserstein):
    """Progressive GAN with WGAN-GP loss, drift term and a class head on real and fake images.

    A fit passes through the phases of :func:`schedule`.  The defaults are the paper's but for the length of the phases:
    ``fit`` is given the number of steps, and by default they are shared over the phases.
    """

    name: ClassVar[str] = "pggan"

    batch_size: int = 16
    # images per update at 4 px, 8 px, ... up to the full size; empty: batch_size at all (as the paper up to 128 px)
    batch_sizes: list[int] = field(default_factory=list)
    max_channels: int = 512
    channel_base: int = 8192  # channels are min(channel_base / 2^stage, max_channels), stage 1 at 4 px
    latent: int = 512
    learning_rate: float = 1e-3
    phase_images: int = 0  # real images per phase but the last (paper: 800,000); 0: last_share divides the steps
    last_share: float = 0.4  # of all images, for the last phase (full size, nothing fading), where phase_images is 0
    drift_weight: float = 1e-3
    # of the critic's cross-entropy on fakes; it rewards a critic that reads any mark the generator leaves, and with a
    # class_weight of 3 the two agreed on one picture per class: 0 keeps the class head honest
    fake_class_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_share >= 1:
            raise BadInput(f"last_share is {self.last_share}; it must be below 1: the other phases need images too.")
        for knob, sizes in {"batch_size": [self.batch_size], "batch_sizes": self.batch_sizes}.items():
            if any(n < GROUP or n % GROUP for n in sizes):
                raise BadInput(
                    f"{knob} is {getattr(self, knob)}; make each size a multiple of {GROUP}, the group of images over "
                    "which the critic sees the deviation."
                )

    @property
    def channels(self) -> list[int]:
        """Channels per level, from 4 px up."""
        return channels_per_level(self.size, self.channel_base, self.max_channels)

    def make_generator(self, n_classes: int) -> nn.Module:
        """Return an untrained generator network."""
        return ProgressiveGenerator(channels=self.channels, latent=self.latent, n_classes=n_classes)

    def make_critic(self, n_classes: int) -> nn.Module:
        """Return an untrained critic."""
        return ProgressiveCritic(channels=self.channels, n_classes=n_classes)

    def make_optimizer(self, name: str, network: nn.Module) -> torch.optim.Optimizer:
        """Return Adam as the paper sets it; made anew at each resolution (:meth:`enter`)."""
        return adam(network, self.learning_rate, (0.0, self.second_decay(name, 0.99)))

    def batch(self, training: Training) -> int:
        """Return how many real and how many fake images one update sees at this resolution."""
        return self.batch_sizes[int(training.networks["critic"].level)] if self.batch_sizes else self.batch_size

    def phases(self, steps: int) -> list[Phase]:
        """Return the phases of a fit of so many steps; raise BadInput when the knobs do not go together."""
        n_levels = len(self.channels)
        sizes = self.batch_sizes or [self.batch_size] * n_levels
        if len(sizes) != n_levels:
            raise BadInput(
                f"batch_sizes has {len(sizes)} entries; images of {self.size} px take {n_levels}, for 4 px and each "
                f"doubling up to {self.size} px."
            )
        per_step = [self.n_critic * n for n in sizes]
        return schedule(steps, per_step, phase_images=self.phase_images, last_share=self.last_share)

    def advance(self, training: Training) -> dict[str, Any]:
        """Update the critic, then the generator, at the resolution and alpha of this step.

        The record adds ``resolution`` (pixels), ``alpha`` and ``images`` (real images the critic has seen so far).
        """
        phases, done = self.phases(training.steps), training.step - 1
        phase = next(phase for phase in phases if done < phase.end_step)
        self.enter(training, phase.level, phase.alpha(done))
        images = sum(each.images(training.step) for each in phases)
        state = {"resolution": phase.resolution, "alpha": phase.alpha(done), "images": images}
        return state | super().advance(training)

    def enter(self, training: Training, level: int, alpha: float) -> None:
        """Set level and alpha of generator and critic, with fresh optimisers at a new resolution."""
        networks = {name: training.networks[name] for name in ("generator", "critic")}
        if level != int(networks["critic"].level):
            training.optimizers = {name: self.make_optimizer(name, network) for name, network in networks.items()}
        for network in networks.values():
            set_growth(network, level, alpha)

    def reals(self, training: Training, n: int) -> tuple[Tensor, Tensor]:
        """Return n real images as they are at this resolution and alpha, and their class indices."""
        images, labels = super().reals(training, n)
        return self.at_level(training, images), labels

    def at_level(self, training: Training, images: Tensor) -> Tensor:
        """Return real images of the full size as they are at this resolution and alpha."""
        critic = training.networks["critic"]
        return at_level(images, int(critic.level), len(self.channels), float(critic.alpha))

    def opinion(self, training: Training, images: Tensor, labels: Tensor) -> Tensor:
        """Return the critic's scores, which have no unit: only their differences mean something."""
        return super().opinion(training, self.at_level(training, images), labels)

    def full_grown(self, training: Training) -> bool:
        """Tell whether the last phase has begun: full size, nothing fading."""
        average = training.networks["average"]
        return int(average.level) == len(self.channels) - 1 and float(average.alpha) == 1.0

    def as_pixels(self, images: Tensor) -> Tensor:
        """Bring images of a lower level, met while training, to the full size by repeating pixels."""
        factor = self.size // images.shape[-1]
        return images if factor == 1 else F.interpolate(images, scale_factor=factor, mode="nearest")
