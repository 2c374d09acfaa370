"""What every GAN here shares: fitting, sample grids, one seed per image, saving; the pieces are in ``training``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stda import BadInput
from stda.compute import Compute, rng, setup
from stda.generators.adversarial.training import Batches, Training, check_finite, measure_batch_norm, update_average
from stda.generators.base import Callback, Generator, image_seeds, read_settings, synthetic_table, write_settings
from stda.images import ImageSet, require_train, to_uint8

WEIGHTS_FILE = "model.safetensors"
# images are always made in batches of this size (the last one padded): the arithmetic of an image is then the same
# whether it is made with others or alone
RENDER_BATCH = 64
GRID_COLUMNS = 8
# name of the one model of a generator that knows all classes
ALL = "(all)"


@dataclass(kw_only=True, eq=False)
class Adversarial(Generator):
    """What the GANs have in common; a subclass brings its networks and its step.

    A subclass says how a generator and a critic are built (:meth:`make_generator`, :meth:`begin`), and what one step
    does (:meth:`advance`).  All randomness of training comes from one seeded source.
    """

    batch_size: int = 64
    sampling: str = "balanced"  # real batches: "balanced" classes or "empirical"; see Batches
    fake_labels: str = "matched"  # labels of fakes: as the real batches are drawn, or "uniform", "empirical"
    ema_decay: float = 0.999  # of the averaged generator, which makes all images
    grid_every: int = 250  # steps between sample grids handed to the callback; 0: none
    compute: Compute = field(default_factory=setup)
    classes: list[str] = field(init=False, default_factory=list)
    size: int = field(init=False, default=0)
    models: dict[str, nn.Module] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        choices = {"sampling": ("balanced", "empirical"), "fake_labels": ("matched", "uniform", "empirical")}
        for knob, allowed in choices.items():
            if getattr(self, knob) not in allowed:
                raise BadInput(f"{knob} is '{getattr(self, knob)}'; it must be one of {', '.join(allowed)}.")
        for knob, value in self.knobs().items():
            may_be_zero = knob.endswith("_weight") or knob == "grid_every"
            if isinstance(value, (int, float)) and not (value > 0 or (value == 0 and may_be_zero)):
                raise BadInput(f"{knob} is {value}; it must be {'0 or more' if may_be_zero else 'positive'}.")

    @abstractmethod
    def make_generator(self, n_classes: int) -> nn.Module:
        """Return an untrained generator network for ``self.size``: ``(latents, class indices) -> images``."""

    @abstractmethod
    def begin(self, n_classes: int) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
        """Return fresh networks ("generator", "critic") and their optimisers, on the device."""

    @abstractmethod
    def advance(self, training: Training) -> dict[str, Any]:
        """Take one step (all critic updates and one generator update) and return its losses."""

    def knobs(self) -> dict[str, Any]:
        """Return the constructor's arguments that are plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name != "compute"}

    def split_by_model(self, train: ImageSet) -> dict[str, ImageSet]:
        """Return which images each model is trained on; here one model, called :data:`ALL`, for all classes."""
        return {ALL: train}

    def model_classes(self, model: str) -> list[str]:
        """Return the classes that a model was trained on."""
        return self.classes if model == ALL else [model]

    def fit(self, train: ImageSet, *, steps: int, seed: int, callback: Callback | None = None) -> pd.DataFrame:
        """Train on the train fold for ``steps`` generator updates and return the history, one row per step.

        Several models (one per class) share the steps evenly.  Raises TrainingDiverged on a non-finite loss.
        """
        require_train(train, self.name)
        self.classes, self.size = train.classes, train.size
        sets = self.split_by_model(train)
        if steps < len(sets):
            raise BadInput(f"steps is {steps}; {self.name} trains {len(sets)} models and needs at least as many steps.")
        self.models, models, history = {}, {}, []  # a fit that fails leaves no older models behind
        for number, (name, images) in enumerate(sets.items()):
            share = steps * (number + 1) // len(sets) - steps * number // len(sets)
            model_seed = image_seeds(seed, number + 1)[number]
            training = self.start(images, self.model_classes(name), share, model_seed)
            models[name] = self.train_one(training, name, steps, history, callback)
        self.models = models
        return pd.DataFrame(history)

    def start(self, images: ImageSet, classes: list[str], steps: int, seed: int) -> Training:
        """Return the state before the first step; the process's own random state is left alone."""
        noise = rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks, optimizers = self.begin(len(classes))
            networks["average"] = self.make_generator(len(classes)).to(self.compute.device).eval()
        networks["average"].load_state_dict(networks["generator"].state_dict())
        networks["average"].requires_grad_(False)
        batches = Batches(images, classes, sampling=self.sampling, noise=noise)
        return Training(networks, optimizers, batches, noise, steps)

    def train_one(
        self, training: Training, model: str, steps: int, history: list[dict], callback: Callback | None
    ) -> nn.Module:
        """Train one model, append to ``history`` and return the averaged generator, ready to make images."""
        average, classes = training.networks["average"], self.model_classes(model)
        done = len(history)
        while training.step < training.steps:
            training.step += 1
            record = {"step": done + training.step, "steps": steps, "model": model, **self.advance(training)}
            check_finite(record, self.name)
            update_average(average, training.networks["generator"], decay=self.ema_decay, step=training.step)
            history.append({key: value for key, value in record.items() if key != "steps"})
            if callback:
                if self.grid_every and (training.step % self.grid_every == 0 or training.step == training.steps):
                    record["grid"] = self.grid(average, len(classes))
                callback(record)
        self.settle(average, len(classes))
        return average

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """Return one latent vector per seed, float32 N(0, 1) ``(n, latent)``."""
        return torch.stack([torch.randn(self.latent, generator=rng(seed)) for seed in seeds])

    def fakes(self, training: Training, n: int) -> tuple[Tensor, Tensor]:
        """Return n random latents and class indices for training, on the device."""
        z = torch.randn(n, self.latent, generator=training.noise)
        matched = {"balanced": "uniform", "empirical": "empirical"}[self.sampling]
        labels = training.batches.fake_labels(n, matched if self.fake_labels == "matched" else self.fake_labels)
        return z.to(self.compute.device), labels.to(self.compute.device)

    def reals(self, training: Training, n: int) -> tuple[Tensor, Tensor]:
        """Return n real images and their class indices, on the device."""
        images, labels = training.batches.draw(n)
        return images.to(self.compute.device), labels.to(self.compute.device)

    def settle(self, network: nn.Module, n_classes: int) -> None:
        """Measure BatchNorm statistics of the averaged weights, on fixed latents and evenly mixed classes."""

        def inputs(i: int) -> tuple[Tensor, Tensor]:
            z = torch.randn(RENDER_BATCH, self.latent, generator=rng(i))
            labels = torch.arange(RENDER_BATCH).add(i * RENDER_BATCH) % n_classes
            return z.to(self.compute.device), labels.to(self.compute.device)

        measure_batch_norm(network, inputs)

    def as_pixels(self, images: Tensor) -> Tensor:
        """Return a network's output as images of the full size; here it already is."""
        return images

    def grid(self, network: nn.Module, n_classes: int) -> np.ndarray:
        """Return a picture of the averaged generator's state: a row per class, always the same latents."""
        self.settle(network, n_classes)
        seeds = image_seeds(0, GRID_COLUMNS) * n_classes  # a column is one latent in every class
        pixels = self.render(network, np.repeat(np.arange(n_classes), GRID_COLUMNS), seeds)
        rows = pixels.reshape(n_classes, GRID_COLUMNS, self.size, self.size, 3)
        return np.ascontiguousarray(rows.transpose(0, 2, 1, 3, 4)).reshape(n_classes * self.size, -1, 3)

    @torch.no_grad()
    def render(self, network: nn.Module, labels: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Return uint8 ``(n, H, W, 3)`` for class indices and image seeds, in float32 and padded batches."""
        network.eval()
        pixels = []
        for first in range(0, len(seeds), RENDER_BATCH):
            rows = np.arange(first, first + RENDER_BATCH).clip(max=len(seeds) - 1)
            z = self.latents([seeds[row] for row in rows]).to(self.compute.device)
            images = network(z, torch.from_numpy(labels[rows]).to(self.compute.device))
            pixels.append(to_uint8(self.as_pixels(images))[: len(seeds) - first])
        return np.concatenate(pixels) if pixels else np.empty((0, self.size, self.size, 3), np.uint8)

    def images_for(self, labels: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Return uint8 ``(n, H, W, 3)`` for labels and image seeds, each label by the model that knows it."""
        if not self.models:
            raise BadInput(f"{self.name} has not been fitted: call fit or load it from a folder first.")
        unknown = sorted(set(labels) - set(self.classes))
        if unknown:
            raise BadInput(f"{self.name} knows no class {unknown}; it was fitted on {self.classes}.")
        labels = np.asarray(labels, dtype=str)
        pixels = np.empty((len(labels), self.size, self.size, 3), np.uint8)
        for model, network in self.models.items():
            classes = self.model_classes(model)
            rows = np.flatnonzero(np.isin(labels, classes))
            index = np.searchsorted(classes, labels[rows])
            pixels[rows] = self.render(network, index, [int(seeds[row]) for row in rows])
        return pixels

    def generate(self, labels: Sequence[str], *, seed: int) -> ImageSet:
        """Return one synthetic image per asked label."""
        seeds = image_seeds(seed, len(labels))
        return ImageSet(self.images_for(labels, seeds), synthetic_table(self.name, labels, seeds))

    def regenerate(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the pixels of rows that :meth:`generate` wrote, bit for bit on the same machine and threads.

        Another processor or number of threads sums in another order: at most one of 256 levels differs.
        """
        return self.images_for(rows["label"].tolist(), rows["image_seed"].tolist())

    def save(self, folder: Path) -> None:
        """Write knobs, classes and the averaged generators into an existing folder (JSON and safetensors)."""
        if not self.models:
            raise BadInput(f"{self.name} has not been fitted: there is nothing to save.")
        tensors = {
            f"{number}.{key}": value.detach().cpu().contiguous()
            for number, network in enumerate(self.models.values())
            for key, value in network.state_dict().items()
        }
        save_file(tensors, Path(folder) / WEIGHTS_FILE)
        facts = {"classes": self.classes, "size": self.size, "models": list(self.models)}
        write_settings(folder, self.name, knobs=self.knobs(), **facts)

    @classmethod
    def load(cls, folder: Path, *, compute: Compute | None = None) -> Adversarial:
        """Open what :meth:`save` wrote, on the device of ``compute`` (default: this process's)."""
        settings = read_settings(folder)
        path = Path(folder) / WEIGHTS_FILE
        if not path.is_file():
            raise BadInput(f"{folder} has no {WEIGHTS_FILE}: delete the folder and run its notebook again.")
        generator = cls(**settings["knobs"], compute=compute or setup())
        generator.classes, generator.size = settings["classes"], settings["size"]
        tensors = load_file(path)
        for number, model in enumerate(settings["models"]):
            network = generator.make_generator(len(generator.model_classes(model)))
            prefix = f"{number}."
            network.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
            generator.models[model] = network.to(generator.compute.device).eval().requires_grad_(False)
        return generator
