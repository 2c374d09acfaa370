"""What every GAN here shares: its knobs, the loop of a fit, and images of asked classes; the pieces lie beside it."""

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
from stda.generators.adversarial.augment import Augmentation
from stda.generators.adversarial.checkpoint import Checkpoints, fit_digest, plain, split_off
from stda.generators.adversarial.fitting import Fit
from stda.generators.adversarial.sampling import RENDER_BATCH, great_circle, latents, render
from stda.generators.adversarial.training import Training, measure_batch_norm
from stda.generators.adversarial.watching import Judge, Watching
from stda.generators.base import Callback, Generator, image_seeds, read_settings, synthetic_table, write_settings
from stda.images import ImageSet, require_train

WEIGHTS_FILE = "model.safetensors"
GRID_COLUMNS = 8
# name of the one model of a generator that knows all classes
ALL = "(all)"
CHOICES = {
    "sampling": ("balanced", "empirical"),
    "fake_labels": ("matched", "uniform", "empirical"),
    "augment": ("none", "diffaugment", "adaptive"),
    "keep": ("last", "best"),
}
MAY_BE_ZERO = ("beta1", "grid_every", "watch_every", "patience", "truncation", "phase_images", "label_smoothing")


@dataclass(kw_only=True, eq=False)
class Adversarial(Generator):
    """What the GANs have in common; a subclass brings its networks and its step.

    A subclass says how its networks and optimisers are built (:meth:`make_generator`, :meth:`make_critic`,
    :meth:`make_optimizer`), what one step does (:meth:`advance`) and what its critic thinks (:meth:`opinion`).  All
    randomness of training comes from one seeded source.
    """

    batch_size: int = 64
    sampling: str = "balanced"  # real batches: "balanced" classes or "empirical"; see Batches
    fake_labels: str = "matched"  # labels of fakes: as the real batches are drawn, or "uniform", "empirical"
    ema_decay: float = 0.999  # of the averaged generator, which makes all images
    # what the critic sees: images as they are, always transformed (DiffAugment), or as often as it overfits (adaptive)
    augment: str = "none"
    augment_policy: list[str] = field(default_factory=lambda: ["color", "translation", "cutout"])
    augment_target: float = 0.6  # of the overfitting signal, for "adaptive"
    augment_images: int = 50_000  # real images over which "adaptive" can go from 0 to 1 (paper: 500,000, for long runs)
    # latents are cut off at this many standard deviations when images are made; 0: nowhere.  A progressive GAN brings
    # latents to one length first, so there it changes little
    truncation: float = 0.0
    grid_every: int = 250  # steps between sample grids handed to the callback; 0: none
    watch_every: int = 0  # steps between looks at held-out images; 0: none
    watch_images: int = 256  # images per look
    keep: str = "last"  # weights that make images: the last, or the best by the judge of the looks
    patience: int = 0  # looks without improvement after which training stops; 0: it never stops early
    checkpoint_every: int = 200  # steps between checkpoints, where a fit is given a folder for them
    compute: Compute = field(default_factory=setup)
    classes: list[str] = field(init=False, default_factory=list)
    size: int = field(init=False, default=0)
    models: dict[str, nn.Module] = field(init=False, default_factory=dict)
    kept: dict[str, int] = field(init=False, default_factory=dict)  # per model, the step whose weights were kept
    resumed_at: int = field(init=False, default=0)  # step of the checkpoint that the fit went on from; 0: it had none

    def __post_init__(self) -> None:
        for knob, allowed in CHOICES.items():
            if getattr(self, knob) not in allowed:
                raise BadInput(f"{knob} is '{getattr(self, knob)}'; it must be one of {', '.join(allowed)}.")
        for knob, value in self.knobs().items():
            may_be_zero = knob.endswith("_weight") or knob in MAY_BE_ZERO
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and not (value > 0 or (value == 0 and may_be_zero)):
                raise BadInput(f"{knob} is {value}; it must be {'0 or more' if may_be_zero else 'positive'}.")
        self.augmentation()  # refuses an unknown policy

    # ------------------------------------------------------------------------------------------ what a subclass brings

    @abstractmethod
    def make_generator(self, n_classes: int) -> nn.Module:
        """Return an untrained generator network for ``self.size``: ``(latents, class indices) -> images``."""

    @abstractmethod
    def make_critic(self, n_classes: int) -> nn.Module:
        """Return an untrained critic (or discriminator) for ``self.size``."""

    @abstractmethod
    def make_optimizer(self, name: str, network: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of the network called "generator" or "critic"."""

    @abstractmethod
    def advance(self, training: Training) -> dict[str, Any]:
        """Take one step (all critic updates and one generator update) and return its losses."""

    @abstractmethod
    def opinion(self, training: Training, images: Tensor, labels: Tensor) -> Tensor:
        """Return what the critic thinks of images of the full size, ``(N,)`` in the unit of the record's ``d_real``."""

    def split_by_model(self, train: ImageSet) -> dict[str, ImageSet]:
        """Return which images each model is trained on; here one model, called :data:`ALL`, for all classes."""
        return {ALL: train}

    def full_grown(self, training: Training) -> bool:
        """Tell whether the networks make images of the full size, so that a look may choose these weights."""
        return True

    def as_pixels(self, images: Tensor) -> Tensor:
        """Return a network's output as images of the full size; here it already is."""
        return images

    def knobs(self) -> dict[str, Any]:
        """Return the constructor's arguments that are plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name != "compute"}

    def model_classes(self, model: str) -> list[str]:
        """Return the classes that a model was trained on."""
        return self.classes if model == ALL else [model]

    # ------------------------------------------------------------------------------------------ fitting

    def fit(
        self,
        train: ImageSet,
        *,
        steps: int,  # generator updates; several models (one per class) share them evenly
        seed: int,
        callback: Callback | None = None,
        held_out: ImageSet | None = None,  # of the validation fold: looked at every watch_every steps, never trained on
        judge: Judge | None = None,  # (held-out, synthetic) -> numbers; keep="best" and patience go by its "kid"
        checkpoints: Path | None = None,  # a folder: a fit that was killed goes on from there, bit for bit
    ) -> pd.DataFrame:
        """Train on the train fold and return the history, one row per step.

        A look adds ``d_train`` and ``d_held_out`` (the critic's mean opinion of real images it learns from and of ones
        it does not) and the numbers of the judge, such as ``kid``.  Raises TrainingDiverged on a non-finite loss.
        """
        require_train(train, self.name)
        self.classes, self.size = train.classes, train.size
        sets = self.split_by_model(train)
        if steps < len(sets):
            raise BadInput(f"steps is {steps}; {self.name} trains {len(sets)} models and needs at least as many steps.")
        watching = Watching(held_out, judge, self.watch_every, self.watch_images, self.patience)
        if (self.keep == "best" or self.patience) and not (self.watch_every and judge and held_out is not None):
            raise BadInput("keep='best' and patience go by looks: set watch_every, and give held_out and judge.")
        settings = {"name": self.name, "knobs": self.knobs(), "steps": steps, "seed": seed}
        machine = {key: value for key, value in self.compute.describe().items() if key != "peak_gpu_mb"}
        settings |= {"machine": machine, "torch": torch.__version__, "judge": getattr(judge, "identity", "")}
        digest = fit_digest(train, held_out, **settings) if checkpoints else ""
        self.models, self.kept = {}, {}  # a fit that fails leaves no older models behind
        fit = Fit(self, steps, callback, watching, Checkpoints(checkpoints, self.checkpoint_every, digest))
        fit.run(sets, seed)
        self.models, self.kept, self.resumed_at = fit.models, fit.kept, fit.resumed_at
        return pd.DataFrame(fit.history)

    def augmentation(self) -> Augmentation:
        """Return what transforms the images that the critic sees, as it is at the start of training."""
        policy = tuple(self.augment_policy)
        return Augmentation(self.augment, policy, target=self.augment_target, images_to_full=self.augment_images)

    @property
    def fake_distribution(self) -> str:
        """How the classes of fakes are drawn in training, "uniform" or "empirical"."""
        matched = {"balanced": "uniform", "empirical": "empirical"}[self.sampling]
        return matched if self.fake_labels == "matched" else self.fake_labels

    def fakes(self, training: Training, n: int) -> tuple[Tensor, Tensor]:
        """Return n random latents and class indices for training, on the device."""
        z = torch.randn(n, self.latent, generator=training.noise)
        labels = training.batches.fake_labels(n, self.fake_distribution)
        return z.to(self.compute.device), labels.to(self.compute.device)

    def reals(self, training: Training, n: int) -> tuple[Tensor, Tensor]:
        """Return n real images and their class indices, on the device."""
        images, labels = training.batches.draw(n)
        return images.to(self.compute.device), labels.to(self.compute.device)

    def augmented(self, training: Training, images: Tensor) -> Tensor:
        """Return images as the critic sees them, which is as they are unless ``augment`` says otherwise."""
        return images if self.augment == "none" else training.augmentation(images.float(), training.noise)

    def settle(self, network: nn.Module, shares: Tensor) -> None:
        """Measure BatchNorm statistics of the averaged weights, on fixed latents with the classes of training."""

        def inputs(i: int) -> tuple[Tensor, Tensor]:
            noise = rng(i)
            z = torch.randn(RENDER_BATCH, self.latent, generator=noise)
            labels = torch.multinomial(shares, RENDER_BATCH, replacement=True, generator=noise)
            return z.to(self.compute.device), labels.to(self.compute.device)

        measure_batch_norm(network, inputs)

    # ------------------------------------------------------------------------------------------ images

    def class_indices(self, labels: Sequence[str], classes: list[str]) -> Tensor:
        """Return the index of each label among the classes of a model."""
        return torch.from_numpy(np.searchsorted(classes, np.asarray(labels, dtype=str)))

    def render(self, network: nn.Module, z: Tensor, labels: Tensor) -> np.ndarray:
        """Return uint8 ``(n, H, W, 3)`` for latents and class indices ``(n,)`` or shares of classes ``(n, K)``."""
        return render(network, z, labels, device=self.compute.device, finish=self.as_pixels)

    def draw(self, network: nn.Module, labels: Sequence[str], classes: list[str], seeds: Sequence[int]) -> ImageSet:
        """Return images of one model for labels and image seeds."""
        z = latents(seeds, self.latent, truncation=self.truncation)
        pixels = self.render(network, z, self.class_indices(labels, classes))
        return ImageSet(pixels, synthetic_table(self.name, labels, seeds))

    def grid(self, network: nn.Module, n_classes: int) -> np.ndarray:
        """Return a picture of the averaged generator's state: a row per class, always the same latents."""
        seeds = image_seeds(0, GRID_COLUMNS) * n_classes  # a column is one latent in every class
        labels = torch.arange(n_classes).repeat_interleave(GRID_COLUMNS)
        pixels = self.render(network, latents(seeds, self.latent, truncation=self.truncation), labels)
        rows = pixels.reshape(n_classes, GRID_COLUMNS, self.size, self.size, 3)
        return np.ascontiguousarray(rows.transpose(0, 2, 1, 3, 4)).reshape(n_classes * self.size, -1, 3)

    def model_of(self, label: str) -> str:
        """Return the name of the model that knows a class; raise BadInput when none does."""
        if not self.models:
            raise BadInput(f"{self.name} has not been fitted: call fit or load it from a folder first.")
        if label not in self.classes:
            raise BadInput(f"{self.name} knows no class ['{label}']; it was fitted on {self.classes}.")
        return ALL if ALL in self.models else label

    def images_for(self, labels: Sequence[str], seeds: Sequence[int], *, truncation: float | None = None) -> np.ndarray:
        """Return uint8 ``(n, H, W, 3)`` for labels and image seeds, each label by the model that knows it.

        ``truncation`` takes the place of the knob.
        """
        limit = self.truncation if truncation is None else truncation
        models = np.array([self.model_of(label) for label in labels], dtype=str)
        labels, seeds = np.asarray(labels, dtype=str), np.asarray(seeds, dtype=np.int64)
        pixels = np.empty((len(labels), self.size, self.size, 3), np.uint8)
        for model in sorted(set(models)):
            rows = np.flatnonzero(models == model)
            z = latents(seeds[rows].tolist(), self.latent, truncation=limit)
            indices = self.class_indices(labels[rows], self.model_classes(model))
            pixels[rows] = self.render(self.models[model], z, indices)
        return pixels

    def interpolate(self, label: str, *, seeds: tuple[int, int], n: int = 8) -> np.ndarray:
        """Return n images of a class, uint8 ``(n, H, W, 3)``, between the latents of two image seeds."""
        model = self.model_of(label)
        start, end = latents(seeds, self.latent, truncation=self.truncation)
        indices = self.class_indices([label] * n, self.model_classes(model))
        return self.render(self.models[model], great_circle(start, end, n), indices)

    def class_walk(self, start: str, end: str, *, seed: int, n: int = 8) -> np.ndarray:
        """Return n images of one latent, uint8 ``(n, H, W, 3)``, while its label goes from one class to another."""
        if (model := self.model_of(start)) != self.model_of(end) or model != ALL:
            raise BadInput(f"{self.name} has a model per class, so no way leads from '{start}' to '{end}' within one.")
        corners = torch.eye(len(self.classes))[self.class_indices([start, end], self.classes)]
        z = latents([seed], self.latent, truncation=self.truncation).expand(n, -1)
        return self.render(self.models[model], z, torch.lerp(*corners, torch.linspace(0, 1, n)[:, None]))

    def generate(self, labels: Sequence[str], *, seed: int) -> ImageSet:
        """Return one synthetic image per asked label."""
        return self.make(synthetic_table(self.name, labels, image_seeds(seed, len(labels))))

    def regenerate(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the pixels of rows that :meth:`generate` wrote, bit for bit on the same machine and threads.

        Another processor or number of threads sums in another order: at most one of 256 levels differs.
        """
        return self.images_for(rows["label"].tolist(), rows["image_seed"].tolist())

    # ------------------------------------------------------------------------------------------ on disk

    def save(self, folder: Path) -> None:
        """Write knobs, classes and the averaged generators into an existing folder (JSON and safetensors)."""
        if not self.models:
            raise BadInput(f"{self.name} has not been fitted: there is nothing to save.")
        tensors = {
            f"{number}.{key}": plain(value)
            for number, network in enumerate(self.models.values())
            for key, value in network.state_dict().items()
        }
        save_file(tensors, Path(folder) / WEIGHTS_FILE)
        facts = {"classes": self.classes, "size": self.size, "models": list(self.models), "kept": self.kept}
        write_settings(folder, self.name, knobs=self.knobs(), **facts)

    @classmethod
    def load(cls, folder: Path, *, compute: Compute | None = None) -> Adversarial:
        """Open what :meth:`save` wrote, on the device of ``compute`` (default: this process's)."""
        settings = read_settings(folder)
        path = Path(folder) / WEIGHTS_FILE
        if not path.is_file():
            raise BadInput(f"{folder} has no {WEIGHTS_FILE}: delete the folder and run its notebook again.")
        generator = cls(**settings["knobs"], compute=compute or setup())
        generator.classes, generator.size, generator.kept = (settings[key] for key in ("classes", "size", "kept"))
        tensors = load_file(path)
        for number, model in enumerate(settings["models"]):
            state = split_off(tensors, f"{number}.")
            generator.models[model] = generator.open_model(len(generator.model_classes(model)), state)
        return generator

    def open_model(self, n_classes: int, state: dict[str, Tensor]) -> nn.Module:
        """Return a generator network with these weights, ready to make images."""
        network = self.make_generator(n_classes)
        network.load_state_dict(state)
        return network.to(self.compute.device).eval().requires_grad_(False)
