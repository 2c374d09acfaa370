"""The state of adversarial training and its steps: averaged weights, optimiser steps, BatchNorm, divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stda.generators.adversarial.augment import Augmentation
from stda.generators.adversarial.batches import Batches


class TrainingDiverged(RuntimeError):
    """A loss is no longer a finite number; the message names the step, the last good checkpoint and the remedy."""


@dataclass(eq=False)
class Training:
    """All that changes while one model is trained, and so all that a checkpoint has to hold.

    ``networks`` has "generator", "average" (its running mean) and "critic"; ``noise`` is the only source of randomness.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    batches: Batches
    augmentation: Augmentation
    noise: torch.Generator
    steps: int
    step: int = 0
    # of the quality on held-out images: the best value, its step, the averaged weights then, looks since
    best: float = math.inf
    best_step: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    looks_since_best: int = 0


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


def diverged(what: str, record: dict[str, Any], *, checkpoint: str = "") -> TrainingDiverged:
    """Return the error that names the step, the remedy, and (``checkpoint``) where the last good state is."""
    where = f" The last good checkpoint, of unchanged parameters, is of {checkpoint}." if checkpoint else ""
    return TrainingDiverged(
        f"{what} became non-finite at step {record['step']} of {record['steps']}; lower learning_rate, raise "
        f"batch_size or set precision to float32.{where}"
    )


def check_finite(record: dict[str, Any], name: str, *, checkpoint: str = "") -> None:
    """Raise TrainingDiverged when a number of the record is not finite."""
    bad = [key for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    if bad:
        raise diverged(f"{name}: {', '.join(bad)}", record, checkpoint=checkpoint)
