"""Explanations: where a classifier looks, and whether the maps that say so are right."""

from stda.explain.methods import METHODS, attribute, obstacles, targets_of
from stda.explain.perturbation import (
    REPLACEMENTS,
    aopc_table,
    default_region_size,
    mean_curves,
    perturbation_curves,
    region_relevance,
)

__all__ = [
    "METHODS",
    "REPLACEMENTS",
    "aopc_table",
    "attribute",
    "default_region_size",
    "mean_curves",
    "obstacles",
    "perturbation_curves",
    "region_relevance",
    "targets_of",
]
