"""Measures: classifier scores, fidelity and diversity of synthetic images, copying, and the verdict on an arm."""

from stda.measure.collect import conclusion, cost_table, verdict_sentence
from stda.measure.copying import copying_table, near_copies, nearest_features, nearest_images, nearest_pairs
from stda.measure.fidelity import fid, fidelity_table, kid, prdc
from stda.measure.scores import metrics_table, scores
from stda.measure.verdict import arm_table, judge

__all__ = [
    "arm_table",
    "conclusion",
    "copying_table",
    "cost_table",
    "fid",
    "fidelity_table",
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
