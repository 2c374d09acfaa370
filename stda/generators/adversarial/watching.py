"""Quality while training: held-out images are looked at, never trained on, to keep the best state or to stop early."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stda import BadInput
from stda.generators.adversarial.training import Training
from stda.images import ImageSet

# (held-out real images, synthetic ones with the same labels) -> named numbers for the history, nan: cannot tell.  One
# of them is CHOICE, a distance, the smaller the better, by which weights are kept and patience is counted.
# Its attribute "identity" (str, optional) tells judges apart: a fit that is resumed is judged by the same one
Judge = Callable[[ImageSet, ImageSet], dict[str, float]]
CHOICE = "kid"


@dataclass(frozen=True)
class Watching:
    """What is looked at, and when; ``held_out`` is None when nothing is.

    The held-out images are those of the validation fold: what is chosen by them is chosen without the test fold.
    """

    held_out: ImageSet | None
    judge: Judge | None
    every: int  # steps between looks; 0: none
    n_images: int  # held-out images, train images and synthetic images per look, at most
    patience: int  # looks without improvement after which training stops; 0: it never does

    def __post_init__(self) -> None:
        if self.held_out is None:
            return
        others = sorted(set(self.held_out.table["split"]) - {"val"})
        if others or not len(self.held_out):
            found = f"rows of split {others}" if others else "no rows"
            raise BadInput(
                f"Training is watched on the validation fold only, but was given {found}: pass select(split='val')."
            )

    def due(self, training: Training) -> bool:
        """Tell whether this step is followed by a look; the last one always is."""
        last = training.step == training.steps
        return self.held_out is not None and self.every > 0 and (training.step % self.every == 0 or last)

    def held_out_of(self, classes: list[str]) -> ImageSet | None:
        """Return the held-out images of some classes, always the same ones; None when there are none."""
        found = self.held_out.select(label=classes) if self.held_out is not None else ()
        return some(found, self.n_images) if len(found) else None

    def stop(self, training: Training) -> bool:
        """Tell whether patience is at its end."""
        return bool(self.patience) and training.looks_since_best >= self.patience


def some(images: ImageSet, n: int) -> ImageSet:
    """Return at most n of the images in random order, always the same ones."""
    return images.select(np.random.default_rng(0).permutation(len(images))[:n])


def remember(training: Training, value: float) -> None:
    """Note the quality of the averaged weights as they are now, and keep a copy of the best."""
    if math.isnan(value):  # a look that cannot tell changes nothing
        return
    if value < training.best:
        state = training.networks["average"].state_dict()
        training.best_state = {key: tensor.detach().clone() for key, tensor in state.items()}
        training.best, training.best_step, training.looks_since_best = value, training.step, 0
    else:
        training.looks_since_best += 1
