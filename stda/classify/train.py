"""Training: the same number of optimiser updates for every arm, the best checkpoint by the validation fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from stda import BadInput
from stda.classify.arms import Arm, batches
from stda.classify.augment import Augment, augmentation
from stda.classify.networks import Classifier, build
from stda.compute import rng
from stda.images import ImageSet, require_train, to_tensor, to_uint8

if TYPE_CHECKING:
    from stda.compute import Compute

WEIGHT_DECAY = 0.05


def train_classifier(
    train: ImageSet,
    val: ImageSet,
    *,
    classes: Sequence[str],  # labels in the order of the outputs: those of the real train fold, sorted
    steps: int,  # optimiser updates, however large the training set is
    seed: int,
    compute: Compute,
    network: str = "vgg8",
    weights: str = "none",  # none: from scratch; cache: torchvision's cache; else a weights file
    batch_size: int = 128,
    learning_rate: float = 2e-3,  # peak of the one-cycle schedule
    augment: str = "classic",
    sampler: str = "balanced",
    evaluate_every: int = 0,  # steps between looks at the validation fold; 0: a tenth of the steps
    average: float = 0.0,  # > 0: decay of a running mean of the weights, which is then what is validated and kept
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Classifier, pd.DataFrame]:
    """Train a classifier and return it as it was at its best balanced accuracy on the validation fold.

    AdamW, cross-entropy, one-cycle schedule in steps.  ``train`` has rows of split train and synthetic, ``val`` real
    rows of split val.  The history has a row per step: ``step``, ``loss``, ``learning_rate``, and at looks
    ``val_loss``, ``val_balanced_accuracy``, ``kept`` (the best so far).  ``callback`` gets ``step``, ``steps``,
    ``loss`` after each step, and ``val_balanced_accuracy`` at looks.

    Raises BadInput for rows of another fold, an image in both sets, labels outside ``classes``, image sizes that
    differ, and a loss that is no longer finite.
    """
    classes = list(classes)
    _check_folds(train, val, classes)
    if steps < 1 or batch_size < 2:
        raise BadInput(f"steps is {steps} and batch_size {batch_size}; at least 1 and 2 are needed.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)  # first weights and dropout
        model = build(network, n_classes=len(classes), size=train.size, weights=weights)
        model.classes = classes
        model.to(compute.device, memory_format=torch.channels_last)
        feed = _feed(train, classes, augmentation(augment), sampler, batch_size, seed, compute)
        keeper = _Keeper(model, val, compute, average)
        history = _loop(model, feed, keeper, steps, learning_rate, evaluate_every, callback)
    keeper.restore()
    return model.eval(), pd.DataFrame(history)


def _loop(
    model: Classifier,
    feed: Iterable[tuple[torch.Tensor, torch.Tensor]],
    keeper: _Keeper,
    steps: int,
    learning_rate: float,
    evaluate_every: int,
    callback: Callable[[dict[str, Any]], None] | None,
) -> list[dict[str, float]]:
    """Run the updates and return the history."""
    optimiser = torch.optim.AdamW(_weight_groups(model), lr=learning_rate, fused=True)
    # a one-cycle schedule needs at least a few steps to rise and fall in
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=max(steps, 8), pct_start=0.25)
    every, history = evaluate_every or max(1, math.ceil(steps / 10)), []
    for step, (images, targets) in zip(range(1, steps + 1), feed, strict=False):
        # one update
        model.train()
        with keeper.compute.autocast():
            logits = model(images)
        loss = functional.cross_entropy(logits.float(), targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        record = {"step": step, "loss": loss.item(), "learning_rate": schedule.get_last_lr()[0]}
        schedule.step()
        keeper.follow(step)
        if not math.isfinite(record["loss"]):
            raise BadInput(f"Training diverged at step {step} (loss {record['loss']}): lower learning_rate.")

        # now and then, and at the end, a look at the validation fold
        if step % every == 0 or step == steps:
            record |= keeper.look()
        history.append(record)
        if callback:
            shown = ("step", "loss", "val_balanced_accuracy")
            callback({"steps": steps, **{name: record[name] for name in shown if name in record}})
    return history


def _weight_groups(model: torch.nn.Module) -> list[dict]:
    """Return the parameters with weight decay on matrices and kernels, and none on biases and BatchNorm."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


class _Keeper:
    """Looks at the validation fold and keeps the weights that did best there."""

    def __init__(self, model: Classifier, val: ImageSet, compute: Compute, average: float) -> None:
        self.model, self.compute, self.decay = model, compute, average
        self.pixels, self.targets = val.images, _codes(val.labels, model.classes)
        self.best, self.best_state = -1.0, {}
        self.mean = {k: v.detach().clone() for k, v in model.state_dict().items()} if average else {}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the running mean of the weights, which forgets the first ones quickly."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.model.state_dict().items() if self.mean else ():
            self.mean[name].lerp_(value, 1 - decay) if value.is_floating_point() else self.mean[name].copy_(value)

    def look(self) -> dict[str, float]:
        """Score the weights on the validation fold and keep them if they are no worse than the best so far."""
        now = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        if self.mean:
            self.model.load_state_dict(self.mean)
        logits = _logits(self.model, self.pixels, self.compute, batch_size=256, autocast=True)
        if self.mean:
            self.model.load_state_dict(now)
        loss = functional.cross_entropy(logits, torch.from_numpy(self.targets)).item()
        score = balanced_accuracy(self.targets, logits.argmax(dim=1).numpy())
        kept = score >= self.best  # of equals the later: it has a lower learning rate behind it
        if kept:
            self.best = score
            self.best_state = {k: v.clone() for k, v in self.mean.items()} if self.mean else now
        return {"val_loss": loss, "val_balanced_accuracy": score, "kept": kept}

    def restore(self) -> None:
        """Put the best weights back into the model."""
        self.model.load_state_dict(self.best_state)


def balanced_accuracy(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean recall over the classes that occur; both are class indices ``(N,)``."""
    return float(np.mean([(predicted[targets == c] == c).mean() for c in np.unique(targets)]))


def _check_folds(train: ImageSet, val: ImageSet, classes: list[str]) -> None:
    """Raise unless the folds are what their names say; no switch turns this off."""
    require_train(train.select(train.table["split"].to_numpy() != "synthetic"), "A classifier")
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


def _codes(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the class index ``(N,)`` of each label."""
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[label] for label in labels], dtype=np.int64)


def _feed(
    train: ImageSet, classes: list[str], augment: Augment, sampler: str, batch_size: int, seed: int, compute: Compute
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Yield augmented batches and their targets on the device, without end, all randomness from ``seed``."""
    targets, noise = _codes(train.labels, classes), rng(seed)
    for rows in batches(targets, sampler=sampler, batch_size=batch_size, seed=seed):
        images = to_tensor(train.images[rows]).to(compute.device)
        yield augment(images, noise), torch.from_numpy(targets[rows]).to(compute.device)


def example_batch(train: ImageSet, arm: Arm, *, n: int = 36, seed: int = 0) -> np.ndarray:
    """Return n images as training would see them, sampled and augmented: uint8 ``(n, H, W, 3)``."""
    labels = _codes(train.labels, train.classes)
    rows = next(batches(labels, sampler=arm.sampler, batch_size=n, seed=seed))
    return to_uint8(augmentation(arm.augment)(to_tensor(train.images[rows]), rng(seed)))


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
