"""Measures: scores, fidelity, realism and labels of synthetic images, copying, repeatability, and the verdict."""

from stda.measure.collected import (
    Collected,
    collect,
    conclusion,
    cost_table,
    interval_rows,
    interval_texts,
    verdict_sentence,
)
from stda.measure.copying import copying_table, near_copies, nearest_features, nearest_images, nearest_pairs
from stda.measure.diversity import class_diversity
from stda.measure.fidelity import fid, fidelity_table, kid, prdc
from stda.measure.labels import confidence_curve, flip_rate, label_fidelity
from stda.measure.realism import border_artefacts, ghosting, real_or_synthetic
from stda.measure.repeatability import prediction_agreement, repeatability_sentence, spread_table, training_scores
from stda.measure.scores import metrics_table, scores
from stda.measure.telltale import Telltale, find_telltale, position_auc, power_spectrum, spectrum_table
from stda.measure.verdict import arm_table, judge

__all__ = [
    "Collected",
    "Telltale",
    "arm_table",
    "border_artefacts",
    "class_diversity",
    "collect",
    "conclusion",
    "confidence_curve",
    "copying_table",
    "cost_table",
    "fid",
    "fidelity_table",
    "find_telltale",
    "flip_rate",
    "ghosting",
    "interval_rows",
    "interval_texts",
    "judge",
    "kid",
    "label_fidelity",
    "metrics_table",
    "near_copies",
    "nearest_features",
    "nearest_images",
    "nearest_pairs",
    "position_auc",
    "power_spectrum",
    "prdc",
    "prediction_agreement",
    "real_or_synthetic",
    "repeatability_sentence",
    "scores",
    "spectrum_table",
    "spread_table",
    "training_scores",
    "verdict_sentence",
]
