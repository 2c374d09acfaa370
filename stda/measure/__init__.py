"""Measures: scores, fidelity, realism and labels of synthetic images, copying, repeatability, and the verdict."""

from stda.measure.artefacts import artefact_scores, calibrate_detectors
from stda.measure.attention import attention_sentence, attention_table
from stda.measure.bias import association_table, class_prevalence, detect_artefacts, prevalence_table
from stda.measure.calibration import calibrate, calibration_sentence, calibration_table, top_answers
from stda.measure.collected import (
    Collected,
    collect,
    conclusion,
    interval_rows,
    interval_texts,
    tuning_table,
    verdict_sentence,
)
from stda.measure.copying import CopySearch, CopyWatch, authenticity, copying_table, near_copies, nearest_pairs
from stda.measure.costs import cost_table, equal_compute, gain_sentence, gain_table
from stda.measure.diversity import class_diversity
from stda.measure.exchange import exchange_sentence, exchange_table, exchange_texts, learning_curve
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
from stda.measure.leakage import inflation_sentence, inflation_table, leaked_share
from stda.measure.membership import membership_attack, membership_table
from stda.measure.neighbours import (
    nearest_images,
)
from stda.measure.placebos import differences, placebo_bands, placebo_sentence, placebo_table
from stda.measure.power import power_table
from stda.measure.pyramids import pyramid_distance, sliced_wasserstein, structure_table
from stda.measure.realism import border_artefacts, ghosting, real_or_synthetic
from stda.measure.repeatability import prediction_agreement, repeatability_sentence, spread_table, training_scores
from stda.measure.rulers import PLAIN, growth_table, ruler_table, spoil
from stda.measure.scores import metrics_table, scores
from stda.measure.similarity import class_similarity, ms_ssim, ssim
from stda.measure.sweep import arm_settings, curve_arms, same_recipe, saturation, saturation_sentence, sweep_table
from stda.measure.switching import disturbed_sentence, switch_rates, switch_sentence, switch_table, switches
from stda.measure.telltale import Telltale, find_telltale, position_auc, power_spectrum, spectrum_table
from stda.measure.two_class import two_class_sentence, two_class_table, two_class_texts
from stda.measure.variance import variance_sentence, variance_table
from stda.measure.verdict import arm_table, best_baseline, judge

__all__ = [
    "COPIES_ROW",
    "PLAIN",
    "REAL_ROW",
    "Collected",
    "CopySearch",
    "CopyWatch",
    "Telltale",
    "arm_settings",
    "arm_table",
    "artefact_scores",
    "association_table",
    "attention_sentence",
    "attention_table",
    "authenticity",
    "best_baseline",
    "border_artefacts",
    "calibrate",
    "calibrate_detectors",
    "calibration_sentence",
    "calibration_table",
    "class_diversity",
    "class_fidelity",
    "class_prevalence",
    "class_similarity",
    "collect",
    "conclusion",
    "confidence_curve",
    "copying_table",
    "cost_table",
    "curve_arms",
    "detect_artefacts",
    "differences",
    "disturbed_sentence",
    "equal_compute",
    "exchange_sentence",
    "exchange_table",
    "exchange_texts",
    "feature_scale",
    "fid",
    "fidelity_table",
    "find_telltale",
    "flip_rate",
    "gain_sentence",
    "gain_table",
    "ghosting",
    "growth_table",
    "inflation_sentence",
    "inflation_table",
    "interval_rows",
    "interval_texts",
    "judge",
    "kid",
    "kid_of_subsets",
    "label_fidelity",
    "leaked_share",
    "learning_curve",
    "membership_attack",
    "membership_table",
    "metrics_table",
    "ms_ssim",
    "near_copies",
    "nearest_images",
    "nearest_pairs",
    "placebo_bands",
    "placebo_sentence",
    "placebo_table",
    "position_auc",
    "power_spectrum",
    "power_table",
    "prdc",
    "prediction_agreement",
    "prevalence_table",
    "pyramid_distance",
    "real_or_synthetic",
    "repeatability_sentence",
    "ruler_table",
    "same_recipe",
    "saturation",
    "saturation_sentence",
    "scores",
    "sliced_wasserstein",
    "spectrum_table",
    "spoil",
    "spread_table",
    "ssim",
    "structure_table",
    "sweep_table",
    "switch_rates",
    "switch_sentence",
    "switch_table",
    "switches",
    "top_answers",
    "training_scores",
    "tuning_table",
    "two_class_sentence",
    "two_class_table",
    "two_class_texts",
    "variance_sentence",
    "variance_table",
    "verdict_sentence",
]
