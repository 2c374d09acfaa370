"""Checkpoints of adversarial training: one file that holds everything, so that a killed fit goes on bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stda import BadInput
from stda.generators.adversarial.training import Training, diverged
from stda.images import ImageSet

CHECKPOINT_FILE = "checkpoint.safetensors"
MakeOptimizer = Callable[[str, nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: finished models, sample grids, the model in training, and facts about the fit."""

    finished: dict[str, dict[str, Tensor]]  # per model, the state of its averaged generator
    grids: dict[int, tuple[str, np.ndarray]]  # step of the fit -> model and picture
    tensors: dict[str, Tensor]  # of the model in training
    facts: dict[str, Any]


@dataclass
class Checkpoints:
    """The one checkpoint of a fit in ``folder`` (None: none is kept), written every ``every`` steps.

    ``fit`` is the digest of all that decides the result (:func:`fit_digest`); the file of another fit is not used.
    """

    folder: Path | None
    every: int
    fit: str
    last_step: int = 0  # of the fit, all models counted

    @property
    def path(self) -> Path:
        """Path of the file."""
        return Path(self.folder) / CHECKPOINT_FILE

    def due(self, step: int) -> bool:
        """Tell whether a checkpoint is to be written after this step."""
        return self.folder is not None and step % self.every == 0

    def describe(self) -> str:
        """Return where the last checkpoint is, in words; "" when none was written."""
        return f"step {self.last_step}: {self.path}" if self.last_step else ""

    def write(
        self,
        training: Training,
        finished: dict[str, nn.Module],
        grids: dict[int, tuple[str, np.ndarray]],
        *,
        history: list[dict[str, Any]],
        steps: int,
        **facts: Any,
    ) -> None:
        """Write the model in training, the finished ones, grids and facts; until it is whole the old file stays.

        Raises TrainingDiverged instead of keeping weights that are not finite, and BadInput when it cannot be written.
        """
        tensors, state = pack(training)
        bad = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
        if bad:
            raise diverged(bad[0], {"step": len(history), "steps": steps}, checkpoint=self.describe())
        for number, network in enumerate(finished.values()):
            # cloned: the model in training may just have become a finished one
            state_dict = network.state_dict().items()
            tensors |= {f"finished.{number}.{key}": plain(value).clone() for key, value in state_dict}
        tensors |= {f"grid.{step}": torch.from_numpy(grid) for step, (_, grid) in grids.items()}
        facts |= {"history": history, "finished": list(finished), "grids": {k: name for k, (name, _) in grids.items()}}
        # as a tensor: the file's own header holds no more than 100 MB of text
        text = bytearray(json.dumps({**state, **facts}).encode())
        self._replace({**tensors, "facts": torch.frombuffer(text, dtype=torch.uint8)})
        self.last_step = len(history)

    def _replace(self, tensors: dict[str, Tensor]) -> None:
        """Write the file under another name, then put it in the place of the old one."""
        partial = self.path.with_suffix(f".partial-{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, metadata={"fit": self.fit})
            partial.replace(self.path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise BadInput(
                f"Cannot write the checkpoint {self.path} ({error}): free some disk space, or set STDA_RUNS to a "
                "folder that can be written."
            ) from None

    def read(self) -> Saved | None:
        """Return the checkpoint of this fit; None when there is none, or one of another fit, or a damaged one."""
        if self.folder is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                if file.metadata()["fit"] != self.fit:
                    return None
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is not a mapping)
            facts = json.loads(tensors.pop("facts").numpy().tobytes())
        except (SafetensorError, KeyError, TypeError, ValueError, OSError):
            return None
        self.last_step = len(facts["history"])
        finished = {name: split_off(tensors, f"finished.{i}.") for i, name in enumerate(facts["finished"])}
        grids = {int(step): (name, tensors[f"grid.{step}"].numpy()) for step, name in facts["grids"].items()}
        return Saved(finished, grids, tensors, facts)


def fit_digest(train: ImageSet, held_out: ImageSet | None, **settings: Any) -> str:
    """Return the SHA-256 of the images and labels a fit sees, of its plain settings, and of the code that fits."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    for images in (train, held_out):
        if images is not None:
            digest.update(np.ascontiguousarray(images.images))
            digest.update("\0".join(images.labels).encode())
    return digest.hexdigest()


def pack(training: Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of one model in training as tensors and as plain values."""
    tensors = {"noise": training.noise.get_state()}
    for name, network in training.networks.items():
        tensors |= {f"network.{name}.{key}": plain(value) for key, value in network.state_dict().items()}
    for name, optimizer in training.optimizers.items():
        for key, parameter in training.networks[name].named_parameters():
            state = optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{key}.{item}": plain(value) for item, value in state.items()}
    tensors |= {f"best.{key}": plain(value) for key, value in training.best_state.items()}
    facts = {
        "step": training.step,
        "optimizers": list(training.optimizers),
        "augmentation": training.augmentation.state(),
        "best": training.best,
        "best_step": training.best_step,
        "looks_since_best": training.looks_since_best,
    }
    return tensors, facts


def unpack(saved: Saved, training: Training, make_optimizer: MakeOptimizer) -> None:
    """Put a saved state into a training that has just been started."""
    tensors, facts = saved.tensors, saved.facts
    training.noise.set_state(tensors["noise"])
    for name, network in training.networks.items():
        network.load_state_dict(split_off(tensors, f"network.{name}."))
    training.optimizers = {name: make_optimizer(name, training.networks[name]) for name in facts["optimizers"]}
    for name, optimizer in training.optimizers.items():
        for key, parameter in training.networks[name].named_parameters():
            state = split_off(tensors, f"optimizer.{name}.{key}.")
            if state:
                optimizer.state[parameter] = {item: placed(value, parameter) for item, value in state.items()}
    training.augmentation.restore(facts["augmentation"])
    training.best_state = split_off(tensors, "best.")
    for fact in ("step", "best", "best_step", "looks_since_best"):
        setattr(training, fact, facts[fact])


def placed(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor of an optimiser's state where its parameter lies: same device and memory order."""
    if value.shape != parameter.shape:  # the count of steps
        return value.to(parameter.device)
    return torch.empty_like(parameter).copy_(value)


def plain(value: Tensor) -> Tensor:
    """Return a tensor on the CPU in plain memory order."""
    return value.detach().cpu().contiguous()


def split_off(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
