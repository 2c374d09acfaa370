"""Names that tables and facts go by, and which one a misspelt word may have meant."""

from __future__ import annotations

import re
from difflib import get_close_matches

from stda.measure.claims.numbers import tidy

COLUMNS = {
    "class": "class label diagnosis category",
    "model": "model method arm system network experiment run training",
    "precision": "precision, ppv, positive predictive value",
    "recall": "recall, sensitivity, sens, tpr, true positive rate",
    "f1": "f1, f1 score, f score, f measure, fscore, dice",
    "support": "support, n, images, count, test images, # images, n images, number of images, samples",
    "prior": "prior, priors, share, prevalence",
    "accuracy": "accuracy, acc",
    "specificity": "specificity, spec, tnr, true negative rate",
    "balanced accuracy": "balanced accuracy, bacc, bma, balanced multiclass accuracy",
    "npv": "npv, negative predictive value",
}
COUNTS = {
    "n": "n, test images, number of test images, images, number of images, n images, total, samples, n test, lesions",
    "classes": "classes, number of classes, n classes, k",
    "positives": "positives, number of positives, n positives",
    "negatives": "negatives, number of negatives, n negatives",
}
RATES = {
    **{name: COLUMNS[name] for name in ("precision", "recall", "f1", "accuracy", "specificity", "npv")},
    "balanced accuracy": COLUMNS["balanced accuracy"],
    "prior": "prevalence, share of positives",
}
AVERAGES = {
    "macro": "macro, macro avg, macro average, macro mean, unweighted average, unweighted mean",
    "weighted": "weighted, weighted avg, weighted average, weighted mean",
    "micro": "micro, micro avg, micro average",
    "unnamed": "mean, average, avg, overall, all, total, sum",
}
WORDS = {
    "averaging": "averaging, average",
    "units": "units, unit",
    "labels": "labels, labels per image",
    "source": "source, reference, note, paper, title, table",
}


def _index(names: dict[str, str]) -> dict[str, str]:
    split = {name: words.split(", ") if ", " in words else words.split() for name, words in names.items()}
    return {word: name for name, words in split.items() for word in words}


COLUMN = _index(COLUMNS)
MEASURE = {word: name for word, name in COLUMN.items() if name not in ("class", "model")}  # columns after the first
COUNT = _index(COUNTS)
RATE = _index(RATES)
AVERAGE = _index(AVERAGES)
WORD = _index(WORDS)


def plain(text: str) -> str:
    """Return a name in lower case without emphasis, brackets, underscores, hyphens and final dots (Sens.)."""
    text = re.sub(r"[\[(].*?[\])]|%", " ", tidy(text).lower())
    return " ".join(word.rstrip(".") for word in re.sub(r"[-_]", " ", text).split())


def in_percent(header: str) -> bool:
    """Say whether a column's header gives its unit as percent."""
    return "%" in header or "percent" in header.lower()


def nearest(name: str, known: dict[str, str]) -> str:
    """Return the known name that a word most resembles, empty when it resembles none."""
    close = get_close_matches(name, known, n=1, cutoff=0.75)
    return close[0] if close else ""


def average_of(name: str) -> tuple[str, str]:
    """Split "macro F1" into macro and f1; ("", "") when it is no average of a known rate."""
    for kind in ("macro", "weighted", "micro"):
        words = plain(name).split()
        if kind in words:
            rest = " ".join(word for word in words if word not in (kind, "avg", "average", "averaged", "mean"))
            return (kind, RATE[rest]) if rest in RATE else ("", "")
    return "", ""
