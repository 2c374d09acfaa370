"""Explanations: where a classifier looks, and whether the maps that say so are right."""

from stda.explain.focus import artefact_table, focus_table, usable_masks
from stda.explain.gradients import completeness_error
from stda.explain.lesson import last_neuron, relevance_by_layer
from stda.explain.methods import METHODS, attribute, described, evidence, knobs_for, obstacles, targets_of
from stda.explain.patterns import Patterns, fit_patterns
from stda.explain.perturbation import (
    REPLACEMENTS,
    aopc_table,
    default_region_size,
    mean_curves,
    perturbation_curves,
    region_relevance,
)
from stda.explain.quality import conservation_table, method_sentence, method_table, stability_table
from stda.explain.sanity import forget, randomisation_table, sanity_summary

__all__ = [
    "METHODS",
    "REPLACEMENTS",
    "Patterns",
    "aopc_table",
    "artefact_table",
    "attribute",
    "completeness_error",
    "conservation_table",
    "default_region_size",
    "described",
    "evidence",
    "fit_patterns",
    "focus_table",
    "forget",
    "knobs_for",
    "last_neuron",
    "mean_curves",
    "method_sentence",
    "method_table",
    "obstacles",
    "perturbation_curves",
    "randomisation_table",
    "region_relevance",
    "relevance_by_layer",
    "sanity_summary",
    "stability_table",
    "targets_of",
    "usable_masks",
]
