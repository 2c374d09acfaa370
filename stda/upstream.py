"""Open what a stage left for later ones: the study's encoder, the original pictures at any size, a generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stda import BadInput, data, encoders, generators, measure
from stda.compute import Compute
from stda.generators.base import Generator, read_settings
from stda.images import ImageSet, read_table
from stda.runs import read_manifest
from stda.sections import NOTEBOOKS

FEWEST_JUDGED = 10  # real images: with fewer, differences of KID are noise

Pictures = np.ndarray | list[np.ndarray]


def study_encoder(data_folder: Path) -> encoders.Encoder:
    """Return the encoder that the data stage of a replicate chose (parameters ``encoder`` and ``encoder_weights``)."""
    chosen = read_manifest(data_folder)["parameters"]
    if chosen["encoder"] == "in-domain":
        return encoders.load_in_domain(data_folder / "in_domain")
    return encoders.load_encoder(chosen["encoder"], weights=chosen["encoder_weights"] or "cache")


def judge_encoder(data_folder: Path) -> encoders.Encoder:
    """Return the encoder that measures fidelity, as the data stage settled it (parameter ``judge``).

    Raises BadInput when its weights are not there, or not those that the data stage had.
    """
    settled = read_manifest(data_folder)["facts"].get("judge")
    if not settled:
        raise BadInput(f"{data_folder} does not say which network judges: run notebooks/01_data.ipynb again.")
    in_domain = encoders.load_in_domain(data_folder / "in_domain")
    found = encoders.choose_judge(settled["name"], study=study_encoder(data_folder), in_domain=in_domain)
    if found.provenance["sha256"] != settled["sha256"]:
        raise BadInput(
            f"The weights of {settled['name']} are not those of the data stage (SHA-256): restore the file, or run "
            "01_data again."
        )
    return found


def picture_reader(data_folder: Path, *, size: int, aspect: str = "square") -> Callable[[list[str]], Pictures]:
    """Return a function from image ids to their original pictures, uint8 ``(n, size, size, 3)``.

    With ``aspect`` "keep" it gives a list of uint8 ``(size, W, 3)`` instead, each W by its own picture.
    """
    return data.picture_reader(read_manifest(data_folder)["parameters"], size=size, aspect=aspect)


def mask_reader(data_folder: Path, *, size: int, aspect: str = "square") -> Callable[[list[str]], Pictures]:
    """Return a function from image ids to their lesion masks, uint8 ``(n, size, size)``, 0 or 255 (or a list)."""
    return data.mask_reader(read_manifest(data_folder)["parameters"], size=size, aspect=aspect)


def lesion_masks(data_folder: Path, images: ImageSet) -> np.ndarray | None:
    """Return the lesion masks of an image set, uint8 ``(N, H, W)``, 0 or 255; None for a source without masks."""
    if not data.has_masks(read_manifest(data_folder)["parameters"]):
        return None
    return mask_reader(data_folder, size=images.size)(list(images.table["image_id"]))


def training_judge(data_folder: Path, compute: Compute) -> Callable[[ImageSet, ImageSet], dict[str, float]]:
    """Return what judges a generator while it trains, from held-out real images and synthetic ones.

    ``kid``: in features of the in-domain network, divided by the root mean square of the real ones'; smaller is better.
    ``near_copies`` and ``authenticity`` (:mod:`stda.measure.copying`): in pixels, against the train fold; the threshold
    of near copies is that of the held-out images it is given.  Fewer than :data:`FEWEST_JUDGED` of these tell nothing:
    nan.
    """
    encoder = encoders.load_in_domain(data_folder / "in_domain")
    # in the precision of the training: a look is for watching, reported numbers are float32
    store = encoders.FeatureStore(encoder, compute=compute, precision=compute.precision)
    copies = measure.CopyWatch(ImageSet.load(data_folder).select(split="train"))

    def judge(real: ImageSet, synthetic: ImageSet) -> dict[str, float]:
        if len(real) < FEWEST_JUDGED:
            return dict.fromkeys(("kid", "near_copies", "authenticity"), math.nan)
        x, y = store.features(real.images), encoders.encode(store.network, synthetic.images, compute=compute)
        scale = measure.feature_scale(x)
        return {"kid": measure.kid(x / scale, y / scale, subsets=0)["kid"], **copies.look(real, synthetic)}

    judge.identity = f"{encoder.provenance['sha256']} {read_manifest(data_folder)['outputs']['images.npy']}"
    return judge


def style_parts(data_folder: Path, *, size: int, aspect: str = "square") -> dict[str, Any]:
    """Return what style transfer is handed: encoder, labeller, readers of pictures and (or None) masks, and resize."""
    settings = read_manifest(data_folder)["parameters"]
    return {
        "encoder": study_encoder(data_folder),
        "labeller": encoders.load_in_domain(data_folder / "in_domain"),
        "pictures": picture_reader(data_folder, size=size, aspect=aspect),
        "masks": mask_reader(data_folder, size=size, aspect=aspect) if data.has_masks(settings) else None,
        "resize": data.resize,
    }


def finished_stage(replicate_dir: Path, stage: str) -> dict[str, Any]:
    """Return the manifest of a stage of a replicate; raise BadInput when it has not been run."""
    folder = replicate_dir / stage
    if not (folder / "manifest.json").is_file():
        job = f"stda job {replicate_dir.parent.name} {replicate_dir.name}/{stage}"
        raise BadInput(f"Run notebooks/{NOTEBOOKS[stage]}.ipynb first, or '{job}': {folder} is missing.")
    return read_manifest(folder)


def train_table(replicate_dir: Path) -> pd.DataFrame:
    """Return the table of a replicate's train fold."""
    finished_stage(replicate_dir, "data")
    table = read_table(replicate_dir / "data" / "table.csv")
    return table[table["split"] == "train"]


def open_generator(replicate_dir: Path, name: str, compute: Compute, *, size: int = 0) -> Generator:
    """Open the fitted generator of a replicate with the parts that its notebook gave it.

    ``size``: pixels of a side of its images, 0 for the size it was fitted at.  Raises BadInput when the data stage or
    the generator's has not been run, or the generator cannot make that size.
    """
    for stage in ("data", name):
        finished_stage(replicate_dir, stage)
    if name == "nst":
        return _open_style_transfer(replicate_dir, compute, size)
    folder, parts = replicate_dir / name, {}
    if read_settings(folder).get("labeller"):  # an unconditional DCGAN goes by its opinion
        parts["labeller"] = encoders.load_in_domain(replicate_dir / "data" / "in_domain")
    generator = generators.load(folder, compute=compute, **parts)
    if size not in (0, generator.size):
        raise BadInput(f"{name} was fitted at {generator.size} px and makes no images of {size} px: leave --size out.")
    return generator


def _open_style_transfer(replicate_dir: Path, compute: Compute, size: int) -> Generator:
    """Open the style transfer of a replicate: at another size, pictures are restyled at that size, not enlarged."""
    data_folder, folder = replicate_dir / "data", replicate_dir / "nst"
    settings = read_settings(folder)
    knobs = settings["knobs"]
    side = size + 2 * knobs["margin"] if size else knobs["style_size"]
    parts = style_parts(data_folder, size=side, aspect=knobs["aspect"])
    generator = generators.load(folder, compute=compute, **parts)
    # whole pictures keep their shape; squares have the size that is asked for
    generator.output_size = 0 if knobs["aspect"] == "keep" else size or generator.output_size
    return generator
