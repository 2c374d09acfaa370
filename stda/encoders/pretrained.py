"""ImageNet networks of torchvision as encoders, from a weights file or from torchvision's cache."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from stda import BadInput
from stda.encoders.base import IN_DOMAIN, LAYERS, MIN_FEATURE_SIZE, NORMALISATIONS, Encoder, merge_batch_norm
from stda.runs import sha256

NETWORKS = tuple(name for name in LAYERS if name != IN_DOMAIN)
# weight files whose input scale is not torchvision's, by SHA-256: MobileNet V2 converted from TensorFlow
HALF_NORMALISED = ("ce29918bb034a8e9dd7014b8d5fa4732b5ddc69730b50b085ddaaed4fb42bbe9",)


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
    digest = checked_digest(path, cached=weights == "cache")
    if normalisation == "auto":
        normalisation = "half" if digest in HALF_NORMALISED else "imagenet"
    if normalisation not in NORMALISATIONS:
        raise BadInput(f"normalisation is '{normalisation}'; it must be one of auto, {', '.join(NORMALISATIONS)}.")
    source = "torchvision cache" if weights == "cache" else "file"
    provenance = {"name": name, "source": source, "file": path.name, "sha256": digest, "normalisation": normalisation}
    trunk = _trunk(name, read_state(path), path)
    return Encoder(name, trunk, layer_ends(name, trunk), provenance, MIN_FEATURE_SIZE)


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


def checked_digest(path: Path, *, cached: bool) -> str:
    """Return the SHA-256 of a weights file; raise when a cached one does not begin as its name says."""
    digest = sha256(path)
    if cached and not digest.startswith(path.stem.rsplit("-", 1)[-1]):
        raise BadInput(
            f"The cached weights {path} are damaged (SHA-256 {digest[:8]}...): delete the file, fetch it again."
        )
    return digest


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict without running any code in it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        kind = type(error).__name__
        raise BadInput(f"{path} is not a readable PyTorch state dict ({kind}): give another file.") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadInput(f"{path} holds no state dict (names and tensors): give a saved state_dict().")
    return state


def finite_state(state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in float32; raise when one holds what is not a finite number."""
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise BadInput(f"{path} holds weights that are not finite numbers: get an intact copy.")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _trunk(name: str, state: dict[str, torch.Tensor], path: Path) -> nn.Sequential:
    """Build the convolutional part of a torchvision network around loaded weights, BatchNorm merged."""
    from torchvision.models import get_model

    with torch.device("meta"):  # no memory, no random numbers: what is not loaded cannot be used by accident
        trunk = get_model(name, weights=None).features
    part = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    part = finite_state(part, path)
    try:
        trunk.load_state_dict(part, strict=True, assign=True)
    except RuntimeError:
        raise BadInput(f"{path} does not hold weights of {name}: give a state dict of torchvision's {name}.") from None
    return merge_batch_norm(trunk.eval()).to(memory_format=torch.channels_last)


def layer_ends(name: str, trunk: nn.Sequential) -> dict[str, int]:
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
