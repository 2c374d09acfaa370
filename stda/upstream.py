"""Open what notebook 01 left for the later ones: the study's encoder, and the original pictures at any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from stda import data, encoders
from stda.runs import read_manifest


def study_encoder(data_folder: Path) -> encoders.Encoder:
    """Return the encoder that the data stage of a replicate chose (parameters ``encoder`` and ``encoder_weights``)."""
    chosen = read_manifest(data_folder)["parameters"]
    if chosen["encoder"] == "in-domain":
        return encoders.load_in_domain(data_folder / "in_domain")
    return encoders.load_encoder(chosen["encoder"], weights=chosen["encoder_weights"] or "cache")


def picture_reader(data_folder: Path, *, size: int) -> Callable[[list[str]], np.ndarray]:
    """Return a function from image ids to their original pictures, uint8 ``(n, size, size, 3)``."""
    return data.picture_reader(read_manifest(data_folder)["parameters"], size=size)
