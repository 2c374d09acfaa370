"""Features computed once per image set, kept under a key of everything that they follow from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stda import BadInput
from stda.encoders.base import Encoder, encode

if TYPE_CHECKING:
    from stda.compute import Compute

VERSION = 1  # goes up when the same encoder and images would give other features
DIGEST_BYTES = 32
HASHED_AT_ONCE = 1 << 24  # bytes


class FeatureStore:
    """Features of one encoder in one precision, computed once per image set.

    The key of a set is the SHA-256 over the encoder's weights, normalisation and smallest size, the precision, and the
    images' bytes and shape.  With a ``folder`` the features lie there as ``<key>.npy`` with the SHA-256 of the file's
    content behind it, and are computed again when that does not fit; without one they are kept in memory.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        compute: Compute,
        folder: Path | None = None,  # of the cached files, made when first needed
        precision: str = "float32",  # "bf16" serves monitoring; reported numbers are float32
        batch_size: int | None = None,  # images at a time; None: what suits the encoder and the device
    ) -> None:
        self.encoder, self.compute, self.precision, self.batch_size = encoder, compute, precision, batch_size
        self.network = encoder.to(compute.device).in_precision(precision)
        self.identity = self._digest_of_encoder()
        self.folder = None if folder is None else Path(folder)
        self.kept: dict[str, np.ndarray] = {}

    @property
    def provenance(self) -> dict[str, Any]:
        """Return what the encoder says about itself, and the precision."""
        return {**self.encoder.provenance, "precision": self.precision}

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the pooled features of uint8 ``(N, H, W, 3)`` images, float32 ``(N, D)``, read-only.

        Raises BadInput for other images, or when the cache cannot be written.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise BadInput(f"Features are of uint8 images (N, H, W, 3); got {images.dtype} {images.shape}.")
        key = self.key(images)
        found = self.kept.get(key) if self.folder is None else _read(self.folder / f"{key}.npy", len(images))
        if found is None:
            found = encode(self.network, images, compute=self.compute, batch_size=self.batch_size)
            if self.folder is None:
                self.kept[key] = found
            else:
                _write(self.folder / f"{key}.npy", found)
        found.flags.writeable = False  # it may be handed out again
        return found

    def key(self, images: np.ndarray) -> str:
        """Return the digest of everything that the features follow from, as hexadecimal text."""
        digest = hashlib.sha256(f"{self.identity} {images.shape}\n".encode())
        rows = max(1, HASHED_AT_ONCE // max(1, images[:1].nbytes))
        for start in range(0, len(images), rows):  # a memory map is read piece by piece
            digest.update(np.ascontiguousarray(images[start : start + rows]))
        return digest.hexdigest()

    def _digest_of_encoder(self) -> str:
        e = self.encoder
        says = f"stda features {VERSION} {e.name} {e.provenance['normalisation']} {e.min_size} {self.precision}\n"
        digest = hashlib.sha256(says.encode())
        for name, tensor in sorted(self.network.trunk.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def _read(path: Path, n: int) -> np.ndarray | None:
    """Read features of ``n`` images; None when the file is not there, or not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    features, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(features).digest() != digest:
        return None
    found = np.load(io.BytesIO(features), allow_pickle=False)
    return found if found.dtype == np.float32 and found.ndim == 2 and len(found) == n else None


def _write(path: Path, features: np.ndarray) -> None:
    """Write features and the digest of them to a partial name, then give the file its own."""
    content = io.BytesIO()
    np.save(content, features)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content.getbuffer())
            file.write(hashlib.sha256(content.getbuffer()).digest())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        reason = error.strerror or str(error)
        raise BadInput(
            f"The feature cache {path.parent} cannot be written ({reason}): free space, or choose another folder."
        ) from error
