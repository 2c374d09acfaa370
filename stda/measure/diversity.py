"""Diversity: how different from each other the images of a class are, beside the real ones of that class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from stda import BadInput
from stda.measure.distances import squared_distances


def class_diversity(
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    *,
    reference: str,
    max_samples: int = 500,  # images of a class that are compared, at most
) -> pd.DataFrame:
    """Return how far two random images of a class lie apart in each set, over how far they do in the reference.

    ``features`` maps a set's name to (n, D), ``labels`` to the (n,) classes.  The distance is Euclidean and averaged
    over all pairs of different images.  1: as diverse as real images; 0: all images of a class are one (mode collapse).
    A set that ignores its labels has more than 1 in narrow classes.  Columns ``set, label, n, n_reference, diversity``,
    the last nan where a class has fewer than two images on either side.
    """
    if reference not in features:
        raise BadInput(f"The sets {list(features)} must hold the reference '{reference}'.")
    for name, values in features.items():
        if len(values) != len(labels[name]):
            raise BadInput(f"Set '{name}' has {len(values)} rows but {len(labels[name])} labels; they must agree.")
    rows = []
    for label in sorted(set(labels[reference])):
        parts = {name: np.asarray(x)[np.asarray(labels[name]) == label][:max_samples] for name, x in features.items()}
        real = _mean_distance(parts[reference])
        for name, part in parts.items():
            if name != reference:
                counts = {"n": len(part), "n_reference": len(parts[reference])}
                rows.append({"set": name, "label": label, **counts, "diversity": _mean_distance(part) / real})
    return pd.DataFrame(rows, columns=["set", "label", "n", "n_reference", "diversity"])


def _mean_distance(x: np.ndarray) -> float:
    """Return the mean distance of two different rows, nan for fewer than two."""
    if len(x) < 2:
        return float("nan")
    x = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)  # far from the origin differences would be lost
    return float(np.sqrt(squared_distances(x, x)).sum() / (len(x) * (len(x) - 1)))
