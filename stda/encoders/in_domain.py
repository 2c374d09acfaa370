"""The small classifier trained on the train fold ("in-domain"): an encoder, and the pseudo-labeller."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stda import BadInput
from stda.encoders.base import IN_DOMAIN, Encoder, encode, merge_batch_norm
from stda.images import ImageSet, require_train, to_tensor

if TYPE_CHECKING:
    from stda.compute import Compute

IN_DOMAIN_CHANNELS = {"conv1_1": 32, "conv2_1": 64, "conv3_1": 128, "conv3_2": 128, "conv4_1": 256}


class InDomain(Encoder):
    """The small classifier trained on the train fold, as an encoder and as the pseudo-labeller of style transfer."""

    def __init__(
        self, trunk: nn.Sequential, head: nn.Linear, classes: list[str], size: int, provenance: dict[str, Any]
    ) -> None:
        blocks = {name: position for position, name in enumerate(trunk._modules) if not name.startswith("pool")}
        super().__init__(IN_DOMAIN, trunk, blocks, provenance, min_size=size)
        self.head, self.classes, self.size = head.requires_grad_(False), list(classes), size

    @torch.no_grad()
    def classify(self, images: ImageSet, compute: Compute, *, batch_size: int = 256) -> np.ndarray:
        """Return class probabilities, float32 ``(N, K)`` in the order of ``classes``.

        Computed in float32.  The network was trained with all classes equally often: these are probabilities under
        equal class frequencies, not under those of the data set.
        """
        if images.images.shape[1:3] != (self.size, self.size):
            found = "x".join(map(str, images.images.shape[1:3]))
            raise BadInput(f"The in-domain classifier was trained at {self.size} px but got {found}: resize first.")
        if not len(images):
            return np.zeros((0, len(self.classes)), np.float32)
        features = torch.from_numpy(encode(self, images.images, compute=compute, batch_size=batch_size))
        return self.head(features.to(compute.device)).softmax(dim=1).cpu().numpy()


def in_domain_network(n_classes: int) -> tuple[nn.Sequential, nn.Linear]:
    """Build the trunk (VGG-like: conv3 - BatchNorm - ReLU, max-pooling between blocks) and the head, untrained."""
    trunk, channels, block = nn.Sequential(), 3, "1"
    for name, width in IN_DOMAIN_CHANNELS.items():
        if name[4] != block:
            trunk.add_module(f"pool{block}", nn.MaxPool2d(2))
            block = name[4]
        conv = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        trunk.add_module(name, nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)))
        channels = width
    return trunk, nn.Linear(channels, n_classes)


def train_in_domain(
    train: ImageSet,
    *,
    steps: int,
    seed: int,
    compute: Compute,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    callback: Callable[[dict], None] | None = None,
) -> InDomain:
    """Train the small classifier on the train fold and return it frozen.

    Classes are drawn equally often, images flipped and turned by quarters, AdamW with warm-up and cosine decay
    over ``steps``.  ``callback`` receives ``{"step", "steps", "loss", "accuracy"}`` (of the batch) after each step.
    Raises BadInput for rows that are not of the train fold, a single class, or images under 16 px.
    """
    require_train(train, "The in-domain encoder")
    classes = train.classes
    if len(classes) < 2 or train.size < 16:
        raise BadInput(f"The in-domain encoder needs 2 classes at 16 px; got {len(classes)} at {train.size} px.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        trunk, head = in_domain_network(len(classes))
    network = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    network.to(compute.device, memory_format=torch.channels_last).train()
    batches = _balanced_batches(train, classes, steps, batch_size, seed)
    _train(network, batches, steps, learning_rate, compute, callback)

    trunk = merge_batch_norm(network.cpu().eval()[0])
    provenance = {
        "name": IN_DOMAIN,
        "source": f"trained on {len(train)} images of the train fold, {steps} steps of {batch_size}, seed {seed}",
        "sha256": _digest({**_named("trunk", trunk), **_named("head", head)}),
        "normalisation": "half",
    }
    return InDomain(trunk, head, classes, train.size, provenance)


def _balanced_batches(
    train: ImageSet, classes: list[str], steps: int, batch_size: int, seed: int
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches with every class equally likely, each image mirrored, flipped and transposed by its own coins."""
    random = np.random.default_rng(seed)
    labels = np.searchsorted(classes, train.labels.astype(str))
    members = [np.flatnonzero(labels == c) for c in range(len(classes))]
    for _ in range(steps):
        targets = random.integers(len(classes), size=batch_size)
        rows = np.array([random.choice(members[c]) for c in targets])
        images = train.images[rows]
        coins = random.random((3, batch_size)) < 0.5
        images[coins[0]] = images[coins[0], :, ::-1]
        images[coins[1]] = images[coins[1], ::-1]
        images[coins[2]] = images[coins[2]].swapaxes(1, 2)
        yield to_tensor(images), torch.from_numpy(targets)


def _train(
    network: nn.Module,
    batches: Iterable,
    steps: int,
    learning_rate: float,
    compute: Compute,
    callback: Callable[[dict], None] | None,
) -> None:
    """Run the training loop of the in-domain classifier."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
    # linear rise over a tenth of the steps, cosine fall to zero
    rise = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for step, (images, targets) in enumerate(batches, start=1):
        images = images.to(compute.device, memory_format=torch.channels_last)
        targets = targets.to(compute.device)
        with compute.autocast():
            logits = network(images)
        loss = functional.cross_entropy(logits.float(), targets)
        if not torch.isfinite(loss):
            raise BadInput(f"Training the in-domain encoder diverged at step {step}: lower its learning rate.")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if callback:
            accuracy = (logits.argmax(dim=1) == targets).float().mean()
            callback({"step": step, "steps": steps, "loss": loss.item(), "accuracy": accuracy.item()})


def save_in_domain(encoder: InDomain, folder: Path) -> None:
    """Write ``encoder.safetensors`` and ``encoder.json`` into an existing folder."""
    from safetensors.torch import save_file

    facts = {"classes": encoder.classes, "size": encoder.size, "provenance": encoder.provenance}
    tensors = {**_named("trunk", encoder.trunk), **_named("head", encoder.head)}
    save_file(tensors, Path(folder) / "encoder.safetensors")
    (Path(folder) / "encoder.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def load_in_domain(folder: Path) -> InDomain:
    """Read what :func:`save_in_domain` wrote; raises BadInput when it is missing or does not fit its SHA-256."""
    from safetensors.torch import load_file

    weights, facts_path = Path(folder) / "encoder.safetensors", Path(folder) / "encoder.json"
    if not (weights.is_file() and facts_path.is_file()):
        raise BadInput(f"No trained in-domain encoder in {folder}: run notebook 01_data first.")
    facts = json.loads(facts_path.read_text(encoding="utf-8"))
    tensors = load_file(weights)
    if _digest(tensors) != facts["provenance"]["sha256"]:
        raise BadInput(f"{weights} is not the file that {facts_path.name} describes (SHA-256): run 01_data again.")
    with torch.device("meta"):
        trunk, head = in_domain_network(len(facts["classes"]))
        merge_batch_norm(trunk.eval())
    for prefix, module in (("trunk.", trunk), ("head.", head)):
        part = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        module.load_state_dict(part, strict=True, assign=True)
    trunk.to(memory_format=torch.channels_last)
    return InDomain(trunk, head, facts["classes"], facts["size"], facts["provenance"])


def _named(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a module by prefixed name, on the CPU, in plain memory order."""
    return {f"{prefix}.{key}": value.detach().cpu().contiguous() for key, value in module.state_dict().items()}


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names and values, independent of the file format."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode() + tensors[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
