"""What a reader sees: figures with alt text, tables, progress, notebooks as HTML, and the index of a study."""

from stda.show.attributions import attribution_grid, gallery, through_arms
from stda.show.bias import prevalence, switch_rates
from stda.show.charts import (
    arms,
    arms_figure,
    class_counts,
    effects,
    effects_figure,
    loss_curves,
    recall_heatmap,
    reliability,
)
from stda.show.copies import copies
from stda.show.evidence import agreement, confidence_curve, repeatability
from stda.show.exchange import exchange, sweep
from stda.show.explained import attention, focus, perturbation_curves, sanity_curves
from stda.show.figures import PALETTE, figure, grid, mosaic, show
from stda.show.leakage import inflation
from stda.show.lesson import neuron
from stda.show.progress import progress
from stda.show.render import render_notebook
from stda.show.rulers import faults, growth
from stda.show.sheets import Watch, class_sheet, confusion, ladder, training_grids, wanted_counts
from stda.show.site import build_index
from stda.show.tables import table, text
from stda.show.telltale import evidence_maps, spectra, told_by_place
from stda.show.two_class import calibration, two_class
from stda.show.variance import variance_parts

__all__ = [
    "PALETTE",
    "Watch",
    "agreement",
    "arms",
    "arms_figure",
    "attention",
    "attribution_grid",
    "build_index",
    "calibration",
    "class_counts",
    "class_sheet",
    "confidence_curve",
    "confusion",
    "copies",
    "effects",
    "effects_figure",
    "evidence_maps",
    "exchange",
    "faults",
    "figure",
    "focus",
    "gallery",
    "grid",
    "growth",
    "inflation",
    "ladder",
    "loss_curves",
    "mosaic",
    "neuron",
    "perturbation_curves",
    "prevalence",
    "progress",
    "recall_heatmap",
    "reliability",
    "render_notebook",
    "repeatability",
    "sanity_curves",
    "show",
    "spectra",
    "sweep",
    "switch_rates",
    "table",
    "text",
    "through_arms",
    "told_by_place",
    "training_grids",
    "two_class",
    "variance_parts",
    "wanted_counts",
]
