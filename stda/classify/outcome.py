"""What a trained classifier leaves behind: its file, its table of predictions, and which arms and images to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from stda import BadInput
from stda.classify.networks import Classifier, build
from stda.images import ImageSet
from stda.sections import may_be_baseline

if TYPE_CHECKING:
    from stda.compute import Compute

WEIGHTS_FILE, SETTINGS_FILE = "model.safetensors", "model.json"


def prediction_table(images: ImageSet, probabilities: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Return a row per image: ``image_id, group, split, label, predicted`` and a ``p_<class>`` per class.

    ``probabilities`` is ``(N, K)`` in the order of ``classes``; raises BadInput when the numbers do not agree.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.shape != (len(images), len(classes)):
        raise BadInput(
            f"{len(images)} images and {len(classes)} classes came with probabilities {probabilities.shape}; "
            "predict these images with a model of these classes."
        )
    table = images.table[["image_id", "group", "split", "label"]].reset_index(drop=True)
    table["predicted"] = np.asarray(classes, dtype=object)[probabilities.argmax(axis=1)]
    columns = {f"p_{name}": probabilities[:, i] for i, name in enumerate(classes)}
    return pd.concat([table, pd.DataFrame(columns)], axis=1)


def repeat_table(predictions: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the test predictions of several trainings of one arm below each other.

    ``predictions`` are tables of :func:`prediction_table`, the first that of the arm's own model.  The columns are
    ``repeat`` (0, 1, ...), ``image_id``, ``label``, ``predicted`` and a ``p_<class>`` per class; other folds are left
    out.  Raises BadInput when the trainings were not tested on the same images.
    """
    parts = [table[table["split"] == "test"].assign(repeat=number) for number, table in enumerate(predictions)]
    if any(part["image_id"].tolist() != parts[0]["image_id"].tolist() for part in parts):
        raise BadInput("Repeats were tested on different images: predict the same test fold with each of them.")
    opinions = [column for column in parts[0] if column.startswith("p_")]
    return pd.concat(parts, ignore_index=True)[["repeat", "image_id", "label", "predicted", *opinions]]


def save_model(model: Classifier, folder: Path) -> None:
    """Write ``model.safetensors`` and ``model.json`` into an existing folder."""
    from safetensors.torch import save_file

    facts = {**model.settings, "classes": model.classes, "provenance": model.provenance}
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, Path(folder) / WEIGHTS_FILE)
    (Path(folder) / SETTINGS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def load_model(folder: Path, compute: Compute | None = None) -> Classifier:
    """Open what :func:`save_model` wrote, ready to predict; raises BadInput when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights, settings = Path(folder) / WEIGHTS_FILE, Path(folder) / SETTINGS_FILE
    if not (weights.is_file() and settings.is_file()):
        raise BadInput(f"No trained classifier in {folder}: run notebook 06_classification for this arm first.")
    try:
        facts = json.loads(settings.read_text(encoding="utf-8"))
        classes, provenance = facts.pop("classes"), facts.pop("provenance")
        with torch.random.fork_rng(devices=[]):  # the random first weights are replaced at once
            net = build(**facts).net
        model = Classifier(net, **facts, provenance=provenance)
        model.load_state_dict(load_file(weights))
    except (json.JSONDecodeError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"The classifier in {folder} is damaged ({reason}): delete the folder, run 06 again.") from None
    model.classes = classes
    model.to(compute.device if compute else "cpu", memory_format=torch.channels_last)
    return model.eval()


def best_arms(trained: pd.DataFrame, *, score: str = "val_balanced_accuracy") -> pd.DataFrame:
    """Return the best arm without a generator and the best with one (if any), by their score on the validation fold.

    ``trained`` has a row per arm with columns ``arm``, ``synthetic``, ``kind`` (:func:`stda.sections.arm_kind`) and
    ``score``.  Controls that add real images of the train fold count as without; placebos with a generator's images,
    oracles and subsets are never chosen.  Ties go to the first row.
    """
    missing = [c for c in ("arm", "synthetic", "kind", score) if c not in trained]
    if missing or not len(trained):
        raise BadInput(f"No trained arms to choose from ({len(trained)} rows, missing {missing}): run 06 first.")
    pairs = zip(trained["kind"], trained["synthetic"], strict=True)
    plain = pd.Series([may_be_baseline(*pair) for pair in pairs], index=trained.index)
    best = [part[score].idxmax() for part in (trained[plain], trained[trained["kind"] == "synthetic"]) if len(part)]
    return trained.loc[best].reset_index(drop=True)


def even_rows(images: ImageSet, n: int, *, seed: int | None = None) -> np.ndarray:
    """Return up to n row numbers, taken in turn from the classes: in order, or drawn at random with a seed."""
    order = np.arange(len(images)) if seed is None else np.random.default_rng(seed).permutation(len(images))
    labels = pd.Series(images.labels[order])
    turn = labels.groupby(labels).cumcount().to_numpy()  # the how-manieth of its class
    return order[np.lexsort((labels.to_numpy().astype(str), turn))][:n]


def even_sample(images: ImageSet, n: int, *, seed: int) -> ImageSet:
    """Return up to n images drawn at random, evenly from the classes, sorted by class."""
    rows = even_rows(images, n, seed=seed)
    return images.select(rows[np.argsort(images.labels[rows].astype(str), kind="stable")])
