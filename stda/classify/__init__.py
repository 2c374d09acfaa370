"""Classifiers: networks, arms, augmentation, training, predictions."""

from stda.classify.arms import PROTOCOLS, SAMPLERS, Arm, Training, assemble
from stda.classify.augment import AUGMENTS, classic
from stda.classify.chosen import trained_arms
from stda.classify.controls import OVERSAMPLE, SELF_TRAINING
from stda.classify.fitting import Budget, Fitted, equal_compute, fit, learning_rates, predict_mean, seconds_per_step
from stda.classify.labels import LABELS
from stda.classify.networks import NETWORKS, VGG8, Classifier, build
from stda.classify.outcome import (
    best_arms,
    even_rows,
    even_sample,
    load_model,
    prediction_table,
    repeat_table,
    save_model,
)
from stda.classify.train import balanced_accuracy, example_batch, predict, train_classifier

__all__ = [
    "AUGMENTS",
    "LABELS",
    "NETWORKS",
    "OVERSAMPLE",
    "PROTOCOLS",
    "SAMPLERS",
    "SELF_TRAINING",
    "VGG8",
    "Arm",
    "Budget",
    "Classifier",
    "Fitted",
    "Training",
    "assemble",
    "balanced_accuracy",
    "best_arms",
    "build",
    "classic",
    "equal_compute",
    "even_rows",
    "even_sample",
    "example_batch",
    "fit",
    "learning_rates",
    "load_model",
    "predict",
    "predict_mean",
    "prediction_table",
    "repeat_table",
    "save_model",
    "seconds_per_step",
    "train_classifier",
    "trained_arms",
]
