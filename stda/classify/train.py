"""Training: the same number of optimiser updates for every arm, the best checkpoint by the validation fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from stda import BadInput
from stda.classify.arms import Arm, batches
from stda.classify.augment import augmentation, mix
from stda.classify.labels import codes, targets
from stda.classify.losses import Loss, loss_function
from stda.classify.networks import Classifier, build
from stda.compute import rng
from stda.images import HELD_BACK, ImageSet, require_train, to_tensor, to_uint8
from stda.study import sub_seed

if TYPE_CHECKING:
    from stda.compute import Compute

WEIGHT_DECAY = 0.05


class Diverged(BadInput):
    """The loss of a training is no longer finite: the learning rate is too high."""


def train_classifier(
    train: ImageSet,
    val: ImageSet,
    *,
    classes: Sequence[str],  # labels in the order of the outputs: those of the real train fold, sorted
    steps: int,  # optimiser updates of both phases together, however large the training set is
    seed: int,
    compute: Compute,
    network: str = "vgg8",
    weights: str = "none",  # none: from scratch; cache: torchvision's cache; else a weights file
    batch_size: int = 128,
    learning_rate: float = 2e-3,  # peak of the one-cycle schedule of each phase
    augment: str = "classic",
    sampler: str = "balanced",
    loss: str = "cross-entropy",  # stda.classify.losses.LOSSES
    pretrain: ImageSet | None = None,  # images of a phase before ``train``
    pretrain_steps: int = 0,  # how many of the steps that phase has
    evaluate_every: int = 0,  # steps between looks at the validation fold; 0: a tenth of the steps
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Classifier, pd.DataFrame]:
    """Train a classifier and return it as it was at its best balanced accuracy on the validation fold.

    AdamW, one-cycle schedule in steps, the loss against the labels, or against the probabilities in ``target_<class>``
    where a set has these columns.  ``train`` and ``pretrain`` have rows of split train and synthetic, ``val`` real rows
    of split val.  Each phase has an optimiser and a schedule of its own; the checkpoint is chosen in the last.  The
    history has a row per step: ``step`` (over both phases), ``phase`` (pretrain, train), ``loss``, ``learning_rate``,
    and at looks ``val_loss``, ``val_balanced_accuracy``, ``kept`` (the best so far).  ``callback`` gets ``step``,
    ``steps``, ``loss`` after each step, and ``val_balanced_accuracy`` at looks.

    Raises BadInput for rows of another fold, an image in both sets, labels outside ``classes``, image sizes that
    differ, probabilities that do not sum to one, and (as Diverged) a loss that is no longer finite.
    """
    classes, phases = list(classes), _phases(train, pretrain, steps, pretrain_steps)
    for phase in phases:
        _check_folds(phase.images, val, classes)
    if steps < 1 or batch_size < 2:
        raise BadInput(f"steps is {steps} and batch_size {batch_size}; at least 1 and 2 are needed.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)  # first weights and dropout
        model = build(network, n_classes=len(classes), size=train.size, weights=weights)
        model.classes = classes
        model.to(compute.device, memory_format=torch.channels_last)
        keeper, every, history = _Keeper(model, val, compute), evaluate_every or math.ceil(steps / 10), []
        for phase in phases:
            phase_seed = seed if phase.last else sub_seed(seed, phase.name)
            feed = _feed(phase.images, classes, augment, sampler, batch_size, phase_seed, compute)
            criterion = loss_function(loss, np.bincount(codes(phase.images.labels, classes), minlength=len(classes)))
            for record in _loop(model, feed, criterion, keeper, phase, learning_rate, every):
                history.append(record)
                if callback:
                    shown = ("step", "loss", "val_balanced_accuracy")
                    callback({"steps": steps, **{name: record[name] for name in shown if name in record}})
    keeper.restore()
    return model.eval(), pd.DataFrame(history)


@dataclass(frozen=True)
class _Phase:
    """A stretch of the training on one set of images, steps ``first`` to ``stop - 1`` of the whole."""

    name: str
    images: ImageSet
    first: int
    stop: int
    last: bool  # no phase follows: checkpoints are kept


def _phases(train: ImageSet, pretrain: ImageSet | None, steps: int, pretrain_steps: int) -> list[_Phase]:
    """Return the one or two phases of a training."""
    if pretrain is None and pretrain_steps == 0:
        return [_Phase("train", train, 1, steps + 1, last=True)]
    if pretrain is None or not 0 < pretrain_steps < steps:
        found = "no images" if pretrain is None else f"{len(pretrain)} images"
        raise BadInput(
            f"Pre-training was given {pretrain_steps} of {steps} steps and {found}; give it images and at least one "
            "step, and leave one to the training."
        )
    change = pretrain_steps + 1
    return [
        _Phase("pretrain", pretrain, 1, change, last=False),
        _Phase("train", train, change, steps + 1, last=True),
    ]


def _loop(
    model: Classifier,
    feed: Iterable[tuple[torch.Tensor, torch.Tensor]],
    criterion: Loss,
    keeper: _Keeper,
    phase: _Phase,
    learning_rate: float,
    every: int,
) -> Iterator[dict[str, Any]]:
    """Run the updates of one phase and yield a row of the history after each."""
    optimiser = torch.optim.AdamW(_weight_groups(model), lr=learning_rate, fused=True)
    # a one-cycle schedule needs at least a few steps to rise and fall in
    length = max(phase.stop - phase.first, 8)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=length, pct_start=0.25)
    for step, (images, wanted) in zip(range(phase.first, phase.stop), feed, strict=False):
        # one update
        model.train()
        with keeper.compute.autocast():
            logits = model(images)
        loss = criterion(logits.float(), wanted)  # class indices or probabilities
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        rate = schedule.get_last_lr()[0]
        record = {"step": step, "phase": phase.name, "loss": loss.item(), "learning_rate": rate}
        schedule.step()
        if not math.isfinite(record["loss"]):
            raise Diverged(f"Training diverged at step {step} (loss {record['loss']}): lower learning_rate.")

        # now and then, and at the end, a look at the validation fold
        if step % every == 0 or step == phase.stop - 1:
            record |= keeper.look(keep=phase.last)
        yield record


def _weight_groups(model: torch.nn.Module) -> list[dict]:
    """Return the parameters with weight decay on matrices and kernels, and none on biases and BatchNorm."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


class _Keeper:
    """Looks at the validation fold and keeps the weights that did best there."""

    def __init__(self, model: Classifier, val: ImageSet, compute: Compute) -> None:
        self.model, self.compute = model, compute
        self.pixels, self.targets = val.images, codes(val.labels, model.classes)
        self.best, self.best_state = -1.0, {}

    def look(self, *, keep: bool) -> dict[str, float]:
        """Score the weights on the validation fold and, if asked, keep them if they are no worse than the best."""
        logits = _logits(self.model, self.pixels, self.compute, batch_size=256, autocast=True)
        loss = functional.cross_entropy(logits, torch.from_numpy(self.targets)).item()
        score = balanced_accuracy(self.targets, logits.argmax(dim=1).numpy())
        kept = keep and score >= self.best  # of equals the later: it has a lower learning rate behind it
        if kept:
            self.best = score
            self.best_state = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        return {"val_loss": loss, "val_balanced_accuracy": score, "kept": kept}

    def restore(self) -> None:
        """Put the best weights back into the model."""
        self.model.load_state_dict(self.best_state)


def balanced_accuracy(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean recall over the classes that occur; both are class indices ``(N,)``."""
    return float(np.mean([(predicted[targets == c] == c).mean() for c in np.unique(targets)]))


def _check_folds(train: ImageSet, val: ImageSet, classes: list[str]) -> None:
    """Raise unless the folds are what their names say; no switch turns this off."""
    # protocol synthetic-only has no real rows, and only the oracle's arms have any that were held back
    real = ~train.table["split"].isin(["synthetic", HELD_BACK]).to_numpy()
    if real.any() or not len(train):
        require_train(train.select(real), "A classifier")
    wrong = sorted(set(val.table["split"]) - {"val"})
    if wrong or not len(val):
        found = f"rows of split {wrong}" if wrong else "no rows"
        raise BadInput(f"A classifier is chosen on the val fold only, but was given {found}: pass select(split='val').")
    both = sorted(set(train.table["image_id"]) & set(val.table["image_id"]))
    if both:
        raise BadInput(f"Image '{both[0]}' and {len(both) - 1} more are in train and in val: split the images again.")
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise BadInput(f"classes are {classes}; at least two different labels are needed.")
    unknown = sorted({*train.labels, *val.labels} - set(classes))
    if unknown:
        raise BadInput(f"Labels {unknown} are not among the classes {classes}: every label must be in the train fold.")
    if train.images.shape[1:3] != val.images.shape[1:3]:
        raise BadInput(f"Train images have {train.size} px and validation images {val.size}: resize them alike.")


def _feed(
    train: ImageSet, classes: list[str], augment: str, sampler: str, batch_size: int, seed: int, compute: Compute
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Yield augmented batches and their targets on the device, without end, all randomness from ``seed``."""
    wanted, noise, change = targets(train, classes), rng(seed), augmentation(augment)
    for rows in batches(codes(train.labels, classes), sampler=sampler, batch_size=batch_size, seed=seed):
        images = to_tensor(train.images[rows]).to(compute.device)
        yield mix(
            augment, change(images, noise), torch.from_numpy(wanted[rows]).to(compute.device), len(classes), noise
        )


def example_batch(train: ImageSet, arm: Arm, *, n: int = 36, seed: int = 0) -> np.ndarray:
    """Return n images as training would see them, sampled and augmented: uint8 ``(n, H, W, 3)``."""
    labels = codes(train.labels, train.classes)
    rows = next(batches(labels, sampler=arm.sampler, batch_size=n, seed=seed))
    noise = rng(seed)
    images = augmentation(arm.augment)(to_tensor(train.images[rows]), noise)
    mixed, _ = mix(arm.augment, images, torch.from_numpy(labels[rows]), len(train.classes), noise)
    return to_uint8(mixed)


@torch.no_grad()
def _logits(
    model: Classifier, pixels: np.ndarray, compute: Compute, *, batch_size: int, autocast: bool = False
) -> torch.Tensor:
    """Return float32 logits ``(N, K)`` of uint8 images, on the CPU."""
    model.eval()
    parts = [torch.zeros(0, model.n_classes)]
    for start in range(0, len(pixels), batch_size):
        images = to_tensor(pixels[start : start + batch_size]).to(compute.device)
        if autocast:
            with compute.autocast():
                logits = model(images)
        else:
            logits = model(images)
        parts.append(logits.float().cpu())
    return torch.cat(parts)


def predict(model: Classifier, images: ImageSet, compute: Compute, *, batch_size: int = 256) -> np.ndarray:
    """Return class probabilities, float32 ``(N, K)`` in the order of ``model.classes``.

    Computed in float32 whatever the training precision: a probability should not depend on it.  Under the balanced
    sampler they are probabilities for equally frequent classes, not for those of the data set.
    """
    if len(images) and images.images.shape[1:3] != (model.size, model.size):
        found = "x".join(map(str, images.images.shape[1:3]))
        raise BadInput(f"This {model.name} was trained at {model.size} px but got images of {found}: resize them.")
    model.to(compute.device)
    return _logits(model, images.images, compute, batch_size=batch_size).softmax(dim=1).numpy()
