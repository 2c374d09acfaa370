"""Frozen feature networks: ImageNet networks of torchvision, or one trained on the train fold ("in-domain").

Style transfer reads single layers of them, the fidelity measures their pooled features.  Weights come from a file, from
torchvision's cache or from the train fold; they are never downloaded and never random, and every encoder says where
its weights came from (``provenance``), which goes into the manifests.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stda import BadInput
from stda.images import ImageSet, require_train, to_tensor
from stda.runs import sha256

if TYPE_CHECKING:
    from stda.compute import Compute

IN_DOMAIN = "in-domain"
# layers that carry style, and the layer that carries content, with the names of the network's field:
# VGG as in Gatys et al. 2015 and the Keras tool (conv5_2), torchvision's position in `features` for the others
LAYERS = {
    "vgg16": (("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"), "conv5_2"),
    "vgg19": (("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"), "conv5_2"),
    "squeezenet1_0": (("1", "4", "7", "10"), "10"),
    "mobilenet_v2": (("1", "3", "6", "13"), "6"),
    IN_DOMAIN: (("conv1_1", "conv2_1", "conv3_1", "conv4_1"), "conv4_1"),
}
NETWORKS = tuple(name for name in LAYERS if name != IN_DOMAIN)
NORMALISATIONS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ((0.5,) * 3, (0.5,) * 3)}
# weight files whose input scale is not torchvision's, by SHA-256: MobileNet V2 converted from TensorFlow
HALF_NORMALISED = ("ce29918bb034a8e9dd7014b8d5fa4732b5ddc69730b50b085ddaaed4fb42bbe9",)
# ImageNet networks answer to 224 px: smaller images are enlarged to this before their features are pooled
MIN_FEATURE_SIZE = 128
IN_DOMAIN_CHANNELS = {"conv1_1": 32, "conv2_1": 64, "conv3_1": 128, "conv3_2": 128, "conv4_1": 256}


class Encoder(nn.Module):
    """A frozen chain of layers that turns images into features.

    Takes float32 NCHW in [-1, 1] and normalises it itself.  ``layer_names`` are the layers that can be asked for, in
    order; ``style_layers`` and ``content_layer`` are the ones style transfer uses unless told otherwise;
    ``provenance`` has ``name``, ``source``, ``sha256`` and ``normalisation``.
    """

    def __init__(
        self, name: str, trunk: nn.Sequential, layer_ends: dict[str, int], provenance: dict[str, Any], min_size: int
    ) -> None:
        super().__init__()
        self.name, self.trunk, self.layer_ends, self.provenance = name, trunk, layer_ends, provenance
        self.min_size = min_size
        self.style_layers, self.content_layer = LAYERS[name]
        mean, std = NORMALISATIONS[provenance["normalisation"]]
        mean, std = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
        # (x + 1) / 2 is in [0, 1]; both steps in one: ((x + 1) / 2 - mean) / std = x * gain + bias
        self.register_buffer("gain", 0.5 / std, persistent=False)
        self.register_buffer("bias", (0.5 - mean) / std, persistent=False)
        self.requires_grad_(False)
        super().train(False)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers that can be asked for, shallow to deep."""
        return tuple(self.layer_ends)

    def train(self, mode: bool = True) -> Encoder:
        """Stay in evaluation mode: an encoder is frozen."""
        return super().train(False)

    def layers(self, x: torch.Tensor, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the activations ``(N, C, h, w)`` of the named layers; layers above the deepest one are not run."""
        names = tuple(names)
        unknown = [name for name in names if name not in self.layer_ends]
        if unknown or not names:
            raise BadInput(f"{self.name} has no layer {unknown}; it has {', '.join(self.layer_names)}.")
        wanted = {self.layer_ends[name]: name for name in names}
        found = {}
        x = x * self.gain + self.bias
        for position, layer in enumerate(self.trunk):
            x = layer(x)
            if position in wanted:
                found[wanted[position]] = x
            if len(found) == len(wanted):
                break
        return found

    @torch.no_grad()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the deepest activations averaged over positions, float32 ``(N, D)``.

        Images smaller than ``min_size`` are enlarged to it first (bilinear): ImageNet networks see nothing at 32 px.
        """
        if x.shape[-1] < self.min_size:
            x = functional.interpolate(x, size=(self.min_size, self.min_size), mode="bilinear", align_corners=False)
        return self.trunk(x * self.gain + self.bias).mean(dim=(2, 3)).to(torch.float32)


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


def encode(encoder: Encoder, images: np.ndarray, *, compute: Compute, batch_size: int = 128) -> np.ndarray:
    """Return pooled features of uint8 ``(N, H, W, 3)`` images, float32 ``(N, D)``, batch by batch, without autocast."""
    encoder.to(compute.device)
    parts = [
        encoder.features(to_tensor(images[start : start + batch_size]).to(compute.device)).cpu().numpy()
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def load_encoder(name: str, *, weights: str = "cache", normalisation: str = "auto") -> Encoder:
    """Return a torchvision network as an encoder.

    ``name`` is one of :data:`NETWORKS`.  ``weights`` is the path of a state dict of the whole network, or ``cache``:
    the file that torchvision has downloaded before, in ``torch.hub.get_dir()/checkpoints`` (its SHA-256 must begin as
    its name says).  Nothing is downloaded.  ``normalisation`` is the input scale the weights were trained with,
    ``imagenet`` or ``half`` (mean = std = 0.5); ``auto`` takes ``imagenet`` except for files known to differ.
    Raises BadInput when the file is missing, unreadable or of another network.
    """
    if name not in NETWORKS:
        hint = " (made by training: encoders.train_in_domain)" if name == IN_DOMAIN else ""
        raise BadInput(f"'{name}'{hint} is not a network with ready weights; these are: {', '.join(NETWORKS)}.")
    path = cached_weights(name) if weights == "cache" else Path(weights)
    if not path.is_file():
        raise BadInput(missing_weights(name, path, cached=weights == "cache"))
    digest = sha256(path)
    if weights == "cache" and not digest.startswith(path.stem.rsplit("-", 1)[-1]):
        raise BadInput(
            f"The cached weights {path} are damaged (SHA-256 {digest[:8]}...): delete the file, fetch it again."
        )
    if normalisation == "auto":
        normalisation = "half" if digest in HALF_NORMALISED else "imagenet"
    if normalisation not in NORMALISATIONS:
        raise BadInput(f"normalisation is '{normalisation}'; it must be auto, {' or '.join(NORMALISATIONS)}.")
    source = "torchvision cache" if weights == "cache" else "file"
    provenance = {"name": name, "source": source, "file": path.name, "sha256": digest, "normalisation": normalisation}
    trunk = _trunk(name, _read_state(path), path)
    return Encoder(name, trunk, _layer_ends(name, trunk), provenance, MIN_FEATURE_SIZE)


def cached_weights(name: str) -> Path:
    """Return the path where torchvision keeps the ImageNet weights of a network (the file may not be there)."""
    from torchvision.models import get_model_weights

    url = get_model_weights(name).IMAGENET1K_V1.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def missing_weights(name: str, path: Path, *, cached: bool) -> str:
    """Return the sentence that says which weights are missing and how to get them."""
    if not cached:
        return f"The weights file '{path}' of encoder {name} does not exist: correct the path, or choose '{IN_DOMAIN}'."
    return (
        f"No ImageNet weights of {name} at {path}: on a machine with a network run torchvision.models.get_model("
        f"'{name}', weights='IMAGENET1K_V1') and copy the file there, name a weights file, or choose '{IN_DOMAIN}'."
    )


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict without running any code in it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        kind = type(error).__name__
        raise BadInput(f"{path} is not a readable PyTorch state dict ({kind}): give another file.") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadInput(f"{path} holds no state dict (names and tensors): give a saved state_dict().")
    return state


def _trunk(name: str, state: dict[str, torch.Tensor], path: Path) -> nn.Sequential:
    """Build the convolutional part of a torchvision network around loaded weights, BatchNorm merged."""
    from torchvision.models import get_model

    with torch.device("meta"):  # no memory, no random numbers: what is not loaded cannot be used by accident
        trunk = get_model(name, weights=None).features
    part = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    part = {key: value.float() if value.is_floating_point() else value for key, value in part.items()}
    try:
        trunk.load_state_dict(part, strict=True, assign=True)
    except RuntimeError:
        raise BadInput(f"{path} does not hold weights of {name}: give a state dict of torchvision's {name}.") from None
    if not all(tensor.isfinite().all() for tensor in part.values()):
        raise BadInput(f"{path} holds weights that are not finite numbers: get an intact copy.")
    return merge_batch_norm(trunk.eval()).to(memory_format=torch.channels_last)


def merge_batch_norm(module: nn.Module) -> nn.Module:
    """Put every BatchNorm that follows a convolution into its weights, in place: the same function when evaluating."""
    for (name, child), (next_name, following) in pairwise(list(module.named_children())):
        if isinstance(child, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            setattr(module, name, nn.utils.fusion.fuse_conv_bn_eval(child, following))
            setattr(module, next_name, nn.Identity())
    for child in module.children():
        merge_batch_norm(child)
    return module


def _layer_ends(name: str, trunk: nn.Sequential) -> dict[str, int]:
    """Map layer names to positions in the trunk, after the activation (in-place ReLUs overwrite what is before it)."""
    if not name.startswith("vgg"):
        return {str(i): i for i in range(len(trunk)) if not isinstance(trunk[i], nn.Conv2d)}
    ends, block, number = {}, 1, 0
    for position, layer in enumerate(trunk):
        if isinstance(layer, nn.ReLU):
            number += 1
            ends[f"conv{block}_{number}"] = position
        elif isinstance(layer, nn.MaxPool2d):
            ends[f"pool{block}"] = position
            block, number = block + 1, 0
    return ends


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
