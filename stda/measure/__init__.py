"""Measures: scores, fidelity, realism and labels of synthetic images, copying, repeatability, and the verdict."""

from stda.measure.artefacts import artefact_scores, calibrate_detectors
from stda.measure.bias import association_table, class_prevalence, detect_artefacts, prevalence_table
from stda.measure.collected import (
    Collected,
    collect,
    conclusion,
    cost_table,
    interval_rows,
    interval_texts,
    verdict_sentence,
)
from stda.measure.copying import CopySearch, CopyWatch, authenticity, copying_table, near_copies, nearest_pairs
from stda.measure.diversity import class_diversity
from stda.measure.fidelity import (
    COPIES_ROW,
    REAL_ROW,
    class_fidelity,
    feature_scale,
    fid,
    fidelity_table,
    kid,
    kid_of_subsets,
    prdc,
)
from stda.measure.labels import confidence_curve, flip_rate, label_fidelity
from stda.measure.membership import membership_attack, membership_table
from stda.measure.neighbours import (
    nearest_images,
)
from stda.measure.pyramids import pyramid_distance, sliced_wasserstein, structure_table
from stda.measure.realism import border_artefacts, ghosting, real_or_synthetic
from stda.measure.repeatability import prediction_agreement, repeatability_sentence, spread_table, training_scores
from stda.measure.rulers import PLAIN, growth_table, ruler_table, spoil
from stda.measure.scores import metrics_table, scores
from stda.measure.similarity import class_similarity, ms_ssim, ssim
from stda.measure.switching import disturbed_sentence, switch_rates, switch_sentence, switch_table, switches
from stda.measure.telltale import Telltale, find_telltale, position_auc, power_spectrum, spectrum_table
from stda.measure.verdict import arm_table, judge

__all__ = [
    "COPIES_ROW",
    "PLAIN",
    "REAL_ROW",
    "Collected",
    "CopySearch",
    "CopyWatch",
    "Telltale",
    "arm_table",
    "artefact_scores",
    "association_table",
    "authenticity",
    "border_artefacts",
    "calibrate_detectors",
    "class_diversity",
    "class_fidelity",
    "class_prevalence",
    "class_similarity",
    "collect",
    "conclusion",
    "confidence_curve",
    "copying_table",
    "cost_table",
    "detect_artefacts",
    "disturbed_sentence",
    "feature_scale",
    "fid",
    "fidelity_table",
    "find_telltale",
    "flip_rate",
    "ghosting",
    "growth_table",
    "interval_rows",
    "interval_texts",
    "judge",
    "kid",
    "kid_of_subsets",
    "label_fidelity",
    "membership_attack",
    "membership_table",
    "metrics_table",
    "ms_ssim",
    "near_copies",
    "nearest_images",
    "nearest_pairs",
    "position_auc",
    "power_spectrum",
    "prdc",
    "prediction_agreement",
    "prevalence_table",
    "pyramid_distance",
    "real_or_synthetic",
    "repeatability_sentence",
    "ruler_table",
    "scores",
    "sliced_wasserstein",
    "spectrum_table",
    "spoil",
    "spread_table",
    "ssim",
    "structure_table",
    "switch_rates",
    "switch_sentence",
    "switch_table",
    "switches",
    "training_scores",
    "verdict_sentence",
]
