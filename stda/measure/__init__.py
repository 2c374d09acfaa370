"""Measures: classifier scores, fidelity and diversity of synthetic images, copying, and the verdict on an arm."""

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
from stda.measure.fidelity import fid, fidelity_table, kid, prdc
from stda.measure.scores import metrics_table, scores
from stda.measure.verdict import arm_table, judge

__all__ = [
    "Collected",
    "arm_table",
    "collect",
    "conclusion",
    "copying_table",
    "cost_table",
    "fid",
    "fidelity_table",
    "interval_rows",
    "interval_texts",
    "judge",
    "kid",
    "metrics_table",
    "near_copies",
    "nearest_features",
    "nearest_images",
    "nearest_pairs",
    "prdc",
    "scores",
    "verdict_sentence",
]
