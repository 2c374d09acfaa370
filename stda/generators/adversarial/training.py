"""The pieces of adversarial training: batches, averaged weights, gradient penalty, optimiser steps, divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stda.images import ImageSet


class TrainingDiverged(RuntimeError):
    """A loss is no longer a finite number; the message names the step and the remedy."""


class Batches:
    """Random batches of real images, flipped at random, from uint8 pixels in memory.

    ``sampling="balanced"`` draws every class equally often; "empirical" draws every image equally often, as the
    papers do.  Balanced is the default of this study because a class of 1 % would be in every second batch of 64 only,
    and because a critic that sees rare classes more often among fakes than among real images scores them as fake.
    """

    def __init__(self, images: ImageSet, classes: Sequence[str], *, sampling: str, noise: torch.Generator) -> None:
        labels = np.searchsorted(list(classes), images.labels.astype(str))
        self.labels = torch.from_numpy(labels)
        self.pixels = torch.from_numpy(np.ascontiguousarray(images.images.transpose(0, 3, 1, 2)))
        self.noise = noise
        self.counts = torch.bincount(self.labels, minlength=len(classes))
        self.weights = (1.0 / self.counts[self.labels]).double() if sampling == "balanced" else None

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Return n images, float32 ``(n, 3, H, W)`` in [-1, 1], drawn with replacement, and their class indices."""
        if self.weights is None:
            rows = torch.randint(len(self.labels), (n,), generator=self.noise)
        else:
            rows = torch.multinomial(self.weights, n, replacement=True, generator=self.noise)
        pixels = self.pixels[rows]
        for axis in (2, 3):  # a lesion has no up and no left: each image is flipped on its own, on either axis
            flipped = torch.rand(n, generator=self.noise) < 0.5
            pixels = torch.where(flipped.view(n, 1, 1, 1), pixels.flip(axis), pixels)
        images = pixels.to(torch.float32).div_(127.5).sub_(1.0)
        return images.contiguous(memory_format=torch.channels_last), self.labels[rows]

    def fake_labels(self, n: int, distribution: str) -> Tensor:
        """Return n class indices for fake images, "uniform" over classes or "empirical" as in the data."""
        if distribution == "uniform":
            return torch.randint(len(self.counts), (n,), generator=self.noise)
        return torch.multinomial(self.counts.double(), n, replacement=True, generator=self.noise)


@dataclass(eq=False)
class Training:
    """All that changes while one model is trained, and so all that a checkpoint has to hold.

    ``networks`` has "generator", "average" (its running mean) and "critic"; ``noise`` is the only source of randomness.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    batches: Batches
    noise: torch.Generator
    steps: int
    step: int = 0


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Return the two-sided penalty E[(|grad critic(x)| - 1)^2] at ``x = mix * real + (1 - mix) * fake``.

    ``mix`` has one number in [0, 1] per image.  The images and the norm stay float32; the convolutions between may run
    in bf16: on a residual critic at 32 px its gradient agreed with float32 to cosine .99998 and 0.4 % in length, at
    two thirds of the time.  Gulrajani et al. 2017, eq. 3.
    """
    mix = mix.view(-1, 1, 1, 1)
    between = (mix * real + (1 - mix) * fake).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, *, decay: float, step: int) -> None:
    """Move the averaged weights: ``d * average + (1 - d) * network`` with ``d = min(decay, (1 + step) / (10 + step))``.

    The ramp lets the mean forget the first random weights, which matters in short runs.  BatchNorm's running
    statistics are copied here and measured anew for the averaged weights before images are made
    (:func:`measure_batch_norm`).
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for mean, now in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(now)


@torch.no_grad()
def measure_batch_norm(
    network: nn.Module, inputs: Callable[[int], tuple[Tensor, Tensor]], *, batches: int = 16
) -> None:
    """Set BatchNorm's statistics to those of these weights: the mean over some batches of ``inputs(i)``.

    The running statistics of the trained weights do not belong to averaged weights.  No effect without BatchNorm.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
    network.train()
    for i in range(batches):
        network(*inputs(i))
    network.eval()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def gradient_norm(network: nn.Module) -> float:
    """Return the Euclidean norm of all gradients of a network together."""
    return float(nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Keep a network's weights out of the graph: the generator's step needs the critic's input gradient only."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def adam(network: nn.Module, learning_rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Return fused Adam (one kernel for all weights; about the cost of a copy)."""
    return torch.optim.Adam(network.parameters(), lr=learning_rate, betas=betas, fused=True)


def update(optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module) -> float:
    """Take one optimiser step down ``loss`` and return the norm of the gradient."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = gradient_norm(network)
    optimizer.step()
    return norm


def check_finite(record: dict[str, Any], name: str) -> None:
    """Raise TrainingDiverged when a number of the record is not finite."""
    bad = [key for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    if bad:
        raise TrainingDiverged(
            f"{name}: {', '.join(bad)} became non-finite at step {record['step']} of {record['steps']}; lower "
            "learning_rate, raise batch_size or set precision to float32."
        )
