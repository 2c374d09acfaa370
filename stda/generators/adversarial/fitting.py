"""The loop of every GAN here: step, averaged weights, looks at held-out images, sample grids, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from stda.compute import rng
from stda.generators.adversarial.batches import Batches
from stda.generators.adversarial.checkpoint import Checkpoints, unpack
from stda.generators.adversarial.training import Training, check_finite, update_average
from stda.generators.adversarial.watching import CHOICE, Watching, remember, some
from stda.generators.base import Callback, image_seeds
from stda.images import ImageSet, to_tensor

if TYPE_CHECKING:
    from stda.generators.adversarial.gan import Adversarial


@dataclass(eq=False)
class Fit:
    """One fit of a GAN: its models one after the other, and what they leave behind."""

    gan: Adversarial
    steps: int  # generator updates, shared evenly among the models
    callback: Callback | None
    watching: Watching
    store: Checkpoints
    models: dict[str, nn.Module] = field(default_factory=dict)  # averaged generators of the finished models
    kept: dict[str, int] = field(default_factory=dict)  # per model, the step whose weights these are
    history: list[dict[str, Any]] = field(default_factory=list)
    grids: dict[int, tuple[str, np.ndarray]] = field(default_factory=dict)  # step -> model and sample grid
    resumed_at: int = 0  # step of the checkpoint that the fit goes on from

    def run(self, sets: dict[str, ImageSet], seed: int) -> None:
        """Train a model on each set of images, going on where the checkpoint stands."""
        saved = self.store.read()
        if saved:
            self.history, self.kept, self.grids = saved.facts["history"], saved.facts["kept"], saved.grids
            self.resumed_at = len(self.history)
        for step, (name, grid) in self.grids.items() if self.callback else ():
            self.callback({"step": step, "steps": self.steps, "model": name, "grid": grid})
        for number, (name, images) in enumerate(sets.items()):
            classes = self.gan.model_classes(name)
            if saved and name in saved.finished:
                self.models[name] = self.gan.open_model(len(classes), saved.finished[name])
                continue
            share = self.steps * (number + 1) // len(sets) - self.steps * number // len(sets)
            training = self.start(images, classes, share, image_seeds(seed, number + 1)[number])
            if saved and saved.facts["model"] == name:
                unpack(saved, training, self.gan.make_optimizer)
            self.train_one(training, name, images)

    def start(self, images: ImageSet, classes: list[str], steps: int, seed: int) -> Training:
        """Return the state before the first step; the process's own random state is left alone."""
        gan, noise = self.gan, rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = {"generator": gan.make_generator(len(classes)), "critic": gan.make_critic(len(classes))}
            average = gan.make_generator(len(classes)).to(gan.compute.device).eval()
        networks = {k: v.to(gan.compute.device, memory_format=torch.channels_last) for k, v in made.items()}
        average.load_state_dict(networks["generator"].state_dict())
        networks["average"] = average.requires_grad_(False)
        optimizers = {name: gan.make_optimizer(name, networks[name]) for name in ("generator", "critic")}
        batches = Batches(images, classes, sampling=gan.sampling, noise=noise)
        return Training(networks, optimizers, batches, gan.augmentation(), noise, steps)

    def train_one(self, training: Training, name: str, images: ImageSet) -> None:
        """Train one model to its end; its averaged generator, ready to make images, joins the finished ones."""
        gan, average, classes = self.gan, training.networks["average"], self.gan.model_classes(name)
        held_out, done = self.watching.held_out_of(classes), len(self.history) - training.step
        while training.step < training.steps and not self.watching.stop(training):
            training.step += 1
            record = {"step": done + training.step, "steps": self.steps, "model": name, **gan.advance(training)}
            record |= {"overfitting": training.augmentation.signal, "augment_p": training.augmentation.p}
            check_finite(record, gan.name, checkpoint=self.store.describe())
            update_average(average, training.networks["generator"], decay=gan.ema_decay, step=training.step)
            if held_out is not None and self.watching.due(training):
                record |= self.look(training, images, held_out, classes)
            self.history.append({key: value for key, value in record.items() if key != "steps"})
            if gan.grid_every and (training.step % gan.grid_every == 0 or training.step == training.steps):
                self.settle(training)
                record["grid"] = gan.grid(average, len(classes))
                self.grids[record["step"]] = name, record["grid"]
            if self.store.due(training.step):
                self.keep(training, name)
            if self.callback:
                self.callback(record)
        self.kept[name] = training.step
        if gan.keep == "best" and training.best_state:
            average.load_state_dict(training.best_state)
            self.kept[name] = training.best_step
        self.settle(training)
        self.models[name] = average
        if self.store.folder:
            self.keep(training, name)

    def keep(self, training: Training, name: str) -> None:
        """Write the checkpoint."""
        facts = {"model": name, "history": self.history, "kept": self.kept, "steps": self.steps}
        self.store.write(training, self.models, self.grids, **facts)

    def settle(self, training: Training) -> None:
        """Give the averaged generator the BatchNorm statistics of its weights."""
        self.gan.settle(training.networks["average"], training.batches.shares(self.gan.fake_distribution))

    @torch.no_grad()
    def look(self, training: Training, images: ImageSet, held_out: ImageSet, classes: list[str]) -> dict[str, float]:
        """Return the critic's mean opinion of train and held-out images, and what the judge says of synthetic ones."""
        gan, record = self.gan, {}
        for key, real in {"d_train": some(images, len(held_out)), "d_held_out": held_out}.items():
            record[key] = self.mean_opinion(training, real, classes)
        if self.watching.judge:
            average = training.networks["average"]
            self.settle(training)
            made = gan.draw(average, held_out.labels, classes, image_seeds(1, len(held_out)))
            record |= {name: float(value) for name, value in self.watching.judge(held_out, made).items()}
            if gan.full_grown(training):
                remember(training, record[CHOICE])
        return record

    def mean_opinion(self, training: Training, real: ImageSet, classes: list[str]) -> float:
        """Return the critic's mean opinion of images, asked in batches as it meets them in training.

        Images beyond the last whole batch are left out, for statistics of a batch (BatchNorm, minibatch stddev) depend
        on its size; fewer than one batch are one, cut to groups of four.
        """
        gan, n = self.gan, min(self.gan.batch_size, len(real) // 4 * 4 or len(real))
        scores = []
        for first in range(0, len(real) - n + 1, n):
            part = real.select(slice(first, first + n))
            x, labels = to_tensor(part.images), gan.class_indices(part.labels, classes)
            with gan.compute.autocast():
                found = gan.opinion(training, x.to(gan.compute.device), labels.to(gan.compute.device))
            scores.append(found.float())
        return torch.cat(scores).mean().item()
