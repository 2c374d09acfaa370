"""Checks of one class: its rates against each other and against whole numbers of images."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import ceil, floor

from stda.measure.claims.counts import bounds
from stda.measure.claims.model import CONSISTENT, IMPOSSIBLE, INCONSISTENT, UNKNOWN, Finding, Row, Table
from stda.measure.claims.numbers import Printed, count_text, show, span

HARMONIC = "F1 is the harmonic mean of precision and recall"
RECALL = "recall is a whole number of right answers"
PRECISION = "precision is right answers over a whole number of predictions"
F1_COUNTS = "F1 comes from whole numbers of images"
FITS = "the predictions of a class fit into the test set"
SPECIFICITY = "specificity fits precision and recall"
ONE_VS_REST = "accuracy of a class fits its sensitivity and specificity"


def check_row(table: Table, row: Row) -> Iterator[Finding]:
    """Check one class; each finding names it, and one wrong number is not reported twice."""
    found = [_harmonic(row)]
    support = table.support(row)
    if support is None:
        lack = "the number of its test images is missing (a column support, or prior with n)"
        found += [(RECALL, UNKNOWN, lack)] if "recall" in row.rates else []
        counted = {"recall", "precision"} <= row.rates.keys() and "prior" not in row.rates
        found += [(FITS, UNKNOWN, lack)] if counted else []
    else:
        found += _counted(table, row, support, f1_fits=found[0] is None or found[0][1] == CONSISTENT)
    found += [_predicted_share(row) if support is None else None, _class_accuracy(table, row)]
    for statement, finding, arithmetic in filter(None, found):
        yield Finding(table.name, statement, finding, f"{row.name}: {arithmetic}", (row.name,))


def harmonic(precision: Fraction, recall: Fraction) -> Fraction:
    """Return F1, 0 where both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else Fraction(0)


def _harmonic(row: Row) -> tuple[str, str, str] | None:
    names = ("precision", "recall", "f1")
    lacking = [name for name in names if name not in row.rates]
    if "f1" in lacking:
        return None
    if lacking:
        return HARMONIC, UNKNOWN, f"{' and '.join(lacking)} missing"
    p, r, f = (row.rates[name] for name in names)
    low, high = harmonic(p.low, r.low), harmonic(p.high, r.high)
    said = (
        f"the harmonic mean of precision {p.text} and recall {r.text} is {span(low, high, f)}, rounding included "
        f"(precision {_ends(p)}, recall {_ends(r)})"
    )
    if f.meets(low, high):
        return HARMONIC, CONSISTENT, f"{said}; F1 {f.text} fits."
    return HARMONIC, INCONSISTENT, f"{said}, but F1 {f.text} stands for {_ends(f)}."


def _counted(table: Table, row: Row, support: tuple[int, int], *, f1_fits: bool) -> list[tuple[str, str, str]]:
    """Check against whole numbers: recall, then precision, then F1, then the size of the test set, then specificity."""
    found = []
    images = f"{count_text(*support)} images"
    if "recall" in row.rates:
        if bounds(row, support, use=("recall",)) is None:
            return [(RECALL, IMPOSSIBLE, _no_right_answers(row.rates["recall"], support))]
        low, high = bounds(row, support, use=("recall",)).right
        found.append((RECALL, CONSISTENT, f"{count_text(low, high)} of {images} are right."))
    if "precision" not in row.rates:
        return found + _specificity_counts(table, row, support)
    if bounds(row, support, use=("recall", "precision")) is None:
        return [*found, (PRECISION, IMPOSSIBLE, _no_predictions(row, support))]
    found.append((PRECISION, CONSISTENT, "whole numbers of predictions exist."))
    use = ("recall", "precision")
    if "f1" in row.rates and f1_fits:
        if bounds(row, support, use=(*use, "f1")) is None:
            told = f"no whole numbers of right answers and predictions give F1 {row.rates['f1'].text} beside precision "
            told += f"{row.rates['precision'].text}" + (f" and recall {row.rates['recall'].text}" if found else "")
            return [*found, (F1_COUNTS, IMPOSSIBLE, f"with {images}, {told}.")]
        use = (*use, "f1")
    return found + _against_set(table, row, support, use)


def _against_set(table: Table, row: Row, support: tuple[int, int], use: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Check the predictions of a class against the number of test images, and specificity."""
    n = table.n
    if n is None:
        return [(FITS, UNKNOWN, "the number of test images is missing (a line 'n: 7599')")]
    for heeded in dict.fromkeys((use[:2], use)):  # the plainer argument first, without F1
        least = bounds(row, support, use=heeded).predicted[0]
        if bounds(row, support, use=heeded, n=n) is None:
            return [(FITS, IMPOSSIBLE, _too_many(row, support, n, least))]
    most = bounds(row, support, use=use, n=n).predicted[1]
    found = [(FITS, CONSISTENT, f"{count_text(least, int(most))} of {count_text(*n)} images get this answer.")]
    if "specificity" not in row.rates:
        return found
    spec = row.rates["specificity"].text
    if bounds(row, support, use=(*use, "specificity"), n=n) is None:
        low, high = bounds(row, support, use=use, n=n).wrong
        others = max(n[0] - support[1], 0), n[1] - support[0]
        told = f"precision and recall leave {count_text(low, int(high))} false positives among "
        told += f"{count_text(*others)} images of other classes, which no specificity of {spec} has."
        return [*found, (SPECIFICITY, INCONSISTENT, told)]
    return [*found, (SPECIFICITY, CONSISTENT, f"specificity {spec} fits.")]


def _specificity_counts(table: Table, row: Row, support: tuple[int, int]) -> list[tuple[str, str, str]]:
    """Check that specificity is a whole number of right answers about the images of other classes."""
    n = table.n
    if "specificity" not in row.rates or n is None or n[0] != n[1] or support[0] != support[1] or support[0] > n[0]:
        return []
    printed = row.rates["specificity"]
    if bounds(row, support, use=("recall", "specificity"), n=n) is None:
        told = _no_right_answers(printed, (n[0] - support[0],) * 2).replace("recall", "specificity")
        return [(SPECIFICITY, IMPOSSIBLE, told)]
    return [(SPECIFICITY, CONSISTENT, f"specificity {printed.text} is a whole number of {n[0] - support[0]:,} images.")]


def _no_right_answers(recall: Printed, support: tuple[int, int]) -> str:
    s = support[0]
    if s == support[1] == 0:
        return f"there is no image of this class, so recall is undefined (0/0), but {recall.text} is printed."
    below, above = floor(recall.low * s), ceil(recall.high * s)
    near = [f"{k}/{s} is {span(Fraction(k, s), Fraction(k, s), recall)}" for k in (below, above) if 0 <= k <= s]
    told = f"recall {recall.text} of {count_text(*support)} images is no whole number of right answers: "
    return told + f"{' and '.join(near)}, but {recall.text} stands for {_ends(recall)}."


def _no_predictions(row: Row, support: tuple[int, int]) -> str:
    precision = row.rates["precision"]
    right = bounds(row, support, use=("recall",)).right
    begin = f"recall {row.rates['recall'].text} of " if "recall" in row.rates else ""
    begin += f"{count_text(*support)} images leaves {count_text(*right)} right answers"
    if right == (0, 0):
        return f"{begin}, so precision is 0 or undefined, but {precision.text} is printed."
    k = max(right[0], 1)
    if not precision.high:
        return f"{begin}, so precision is above 0, but {precision.text} is printed."
    low, high = k / precision.high, k / precision.low if precision.low else k
    return (
        f"{begin}; {k} over precision {precision.text} ({_ends(precision)}) is {float(low):.2f} to {float(high):.2f} "
        "predictions, where no whole number lies" + (" (nor for the others)." if right[1] > k else ".")
    )


def _too_many(row: Row, support: tuple[int, int], n: tuple[int, int], least: int) -> str:
    recall, precision = row.rates.get("recall"), row.rates["precision"]
    others, right = n[1] - support[0], bounds(row, support, use=("recall",)).right[0]
    if recall is None or not precision.high or ceil(right / precision.high) < least:
        told = f"its rates together take at least {least:,} predictions"
    else:
        told = f"recall of at least {show(recall.low, recall.digits + 1, percent=recall.percent)} of "
        told += f"{count_text(*support)} images is {right:,} right answers or more; at a precision of at most "
        told += f"{show(precision.high, precision.digits + 1, percent=precision.percent)} these take {right:,} / "
        told += f"{show(precision.high, precision.digits + 1)} = {float(right / precision.high):,.1f} predictions"
    if least > n[1]:
        return f"{told}, but the test set has {n[1]:,} images."
    return f"{told}, of which more would be wrong than there are images of other classes ({others:,})."


def _predicted_share(row: Row) -> tuple[str, str, str] | None:
    """Check the share of predictions when only the prior is known: recall x prior / precision is at most 1."""
    if not {"recall", "precision", "prior"} <= row.rates.keys():
        return None
    low, _ = predicted_share(row)
    r, p, prior = (row.rates[name] for name in ("recall", "precision", "prior"))
    told = f"recall {r.text} x prior {prior.text} / precision {p.text}, rounding included, is at least {float(low):.3f}"
    if low > 1:
        return FITS, IMPOSSIBLE, f"{told} of all predictions, more than there are."
    return FITS, CONSISTENT, f"{told} of all predictions."


def predicted_share(row: Row) -> tuple[Fraction, Fraction]:
    """Return the least and the most share of predictions of this class, from recall, prior and precision."""
    r, p, prior = (row.rates[name] for name in ("recall", "precision", "prior"))
    low = r.low * prior.low / p.high if p.high else Fraction(0)
    high = min(Fraction(1), r.high * prior.high / p.low) if p.low else Fraction(1)
    return low, high


def _class_accuracy(table: Table, row: Row) -> tuple[str, str, str] | None:
    """Check the accuracy of one class against the rest (or, another usage, its recall)."""
    if "accuracy" not in row.rates:
        return None
    if not {"recall", "specificity"} <= row.rates.keys():
        return ONE_VS_REST, UNKNOWN, "its sensitivity or specificity is missing"
    accuracy, r, spec = (row.rates[name] for name in ("accuracy", "recall", "specificity"))
    low, high = min(r.low, spec.low), max(r.high, spec.high)
    told = f"accuracy lies between sensitivity {r.text} and specificity {spec.text}"
    support, n = table.support(row), table.n
    if support and n and n[0] > 0:
        shares = Fraction(support[0], n[1]), Fraction(min(support[1], n[0]), n[0])
        ends = [(share * a + (1 - share) * b) for share in shares for a, b in ((r.low, spec.low), (r.high, spec.high))]
        low, high = min(ends), max(ends)
        told = f"sensitivity {r.text} and specificity {spec.text} at {count_text(*support)} of {count_text(*n)} images "
        told += f"give an accuracy of {span(low, high, accuracy)}"
    if accuracy.meets(low, high) or accuracy.meets(r.low, r.high):
        return ONE_VS_REST, CONSISTENT, f"{told}; {accuracy.text} fits."
    return ONE_VS_REST, INCONSISTENT, f"{told}, but {accuracy.text} is printed (and is not the recall either)."


def _ends(printed: Printed) -> str:
    digits = printed.digits + 1
    if printed.low == printed.high:
        return printed.text
    return (
        f"{show(printed.low, digits)} to {show(printed.high, digits)}"
        if not printed.percent
        else (f"{show(printed.low, digits, percent=True)} to {show(printed.high, digits, percent=True)}")
    )
