"""Checks of a whole table: sums over classes, accuracy, averages, and pairs of sensitivity and specificity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

from stda.measure.claims.averages import check_averages
from stda.measure.claims.counts import Bounds, bounds
from stda.measure.claims.model import (
    COMPUTED,
    CONSISTENT,
    IMPOSSIBLE,
    INCONSISTENT,
    REDUNDANT,
    TRIVIAL,
    UNKNOWN,
    Finding,
    Row,
    Table,
)
from stda.measure.claims.numbers import Printed, count_text, show, span, whole_numbers
from stda.measure.claims.rows import FITS, check_row, predicted_share
from stda.measure.claims.sums import Interval, mean_range

SUPPORTS = "the images of the classes add up to the test set"
PREDICTIONS = "the predictions of all classes add up to the test set"
WRONG = "wrong answers of a class are missed images of the others"
ACCURACY = "accuracy is the mean of the recalls, weighted by the classes' images"
WHOLE = "accuracy is a whole number of right answers"
LINE = "accuracy against always answering the largest class"
PAIR = "sensitivity and specificity are two numbers"
WILSON = "accuracy with its interval"
REMEDY = "rows of classes, n, or 'averaging: binary' (or micro) would help"


def check_table(table: Table) -> list[Finding]:
    """Run every check that needs one table only."""
    if pair := _binary(table):
        table = pair
    found = [finding for row in table.rows for finding in check_row(table, row)]
    blamed = {name for f in found if f.finding in (IMPOSSIBLE, INCONSISTENT) for name in f.subjects}
    rest: list[tuple[str, str, str] | None] = [_supports(table)]
    if table.multi_label:
        lack = "images have several labels or a class is left out ('labels: single' says that neither is so)"
        rest.append((PREDICTIONS, UNKNOWN, lack))
    elif table.rows:
        rest += [*_sums(table, blamed), _accuracy(table)]
    rest += [_line(table), *_right_ones(table), *([] if pair else _sens_spec(table)), *check_averages(table)]
    if table.unused:
        rest.append(("lines and columns that no check uses", UNKNOWN, "; ".join(table.unused)))
    found += [Finding(table.name, *one) for one in rest if one]
    found = [_with_assumption(finding, table.assumed) for finding in found]
    if not found:
        alone = ", ".join(
            [*table.facts, *(f"{kind} {rate}" for kind, rates in table.averages.items() for rate in rates)]
        )
        found = [Finding(table.name, "the rates printed", UNKNOWN, f"nothing to hold {alone} against; {REMEDY}")]
    return found


def _with_assumption(finding: Finding, assumed: str) -> Finding:
    """Say in a contradiction that it takes the listed classes for all, where it does."""
    by_itself = finding.statement == WHOLE or (finding.subjects and finding.statement != FITS)
    if by_itself or finding.finding not in (IMPOSSIBLE, INCONSISTENT):
        return finding
    return replace(finding, arithmetic=finding.arithmetic + assumed)


def recall_mean(table: Table) -> tuple[Interval, str] | None:
    """Return what accuracy the recalls give (least, most), and what weights that takes; None if recalls are missing."""
    if not table.complete or any("recall" not in row.rates for row in table.rows):
        return None
    recalls = [(row.rates["recall"].low, row.rates["recall"].high) for row in table.rows]
    supports, n = [table.support(row) for row in table.rows], table.n
    if n and n[0] and None not in supports:
        allowed = [bounds(row, s, use=("recall",)) for row, s in zip(table.rows, supports, strict=True)]
        weights = [(Fraction(s[0], n[1]), Fraction(s[1], n[0])) for s in supports]
        mean = mean_range(weights, recalls)
        if mean and None not in allowed:  # whole numbers of right answers are narrower
            low = max(mean[0], Fraction(sum(b.right[0] for b in allowed), n[1]))
            mean = low, min(mean[1], Fraction(sum(b.right[1] for b in allowed), n[0]))
        return (mean, "the numbers of images given") if mean else None
    if shares := class_shares(table):
        mean = mean_range(shares, recalls)
        return (mean, "the priors given") if mean else None
    return (min(low for low, _ in recalls), max(high for _, high in recalls)), "any numbers of images"


def class_shares(table: Table) -> list[Interval] | None:
    """Return the share of each class among the test images (least, most), from priors or supports; None if unknown."""
    if table.rows and all("prior" in row.rates for row in table.rows):
        return [(row.rates["prior"].low, row.rates["prior"].high) for row in table.rows]
    supports, n = [table.support(row) for row in table.rows], table.n
    if not table.rows or None in supports or not n or not n[0]:
        return None
    return [(Fraction(s[0], n[1]), min(Fraction(1), Fraction(s[1], n[0]))) for s in supports]


def _supports(table: Table) -> tuple[str, str, str] | None:
    stated, supports = table.counts.get("n"), [row.support for row in table.rows]
    priors = [row.rates["prior"] for row in table.rows if "prior" in row.rates]
    low, high = sum(prior.low for prior in priors), sum(prior.high for prior in priors)
    if (
        priors
        and (low > 1 or (high < 1 and table.complete and len(priors) == len(table.rows)))
        and not table.multi_label
    ):
        told = f"the priors of {len(priors)} classes add up to {float(low):.3f} to {float(high):.3f}, rounding included"
        return SUPPORTS, INCONSISTENT, f"{told}, and must be 1."
    if not stated or not supports or None in supports or table.multi_label:
        return None
    low, high = sum(s[0] for s in supports), sum(s[1] for s in supports)
    told = f"{count_text(low, high)} images of {len(supports)} classes"
    if low > stated[1] or (high < stated[0] and table.complete):
        return SUPPORTS, INCONSISTENT, f"{told}, but the test set has {count_text(*stated)}."
    if high < stated[0]:
        return SUPPORTS, UNKNOWN, f"{told} of {count_text(*stated)}: a class is not listed, or the number is wrong."
    return SUPPORTS, CONSISTENT, f"{told}."


def _sums(table: Table, blamed: set[str]) -> Iterator[tuple[str, str, str]]:
    """Check that predictions add up to n, and that false positives find images that were missed."""
    supports, n = [table.support(row) for row in table.rows], table.n
    if any("precision" not in row.rates or "recall" not in row.rates for row in table.rows):
        return
    if n is None or None in supports:
        share = _share_sum(table, blamed)
        yield share or (
            PREDICTIONS,
            UNKNOWN,
            "support (or prior) of every class and the number of test images are needed",
        )
        return
    if blamed:
        yield PREDICTIONS, UNKNOWN, f"the rates of {', '.join(sorted(blamed))} do not hold by themselves"
        return
    use = ("precision", "recall", "f1", "specificity")
    allowed = [bounds(row, s, use=use, n=n) for row, s in zip(table.rows, supports, strict=True)]
    if None in allowed:  # specificity rules out what the other rates allow; the class has its own finding
        return
    low, high = sum(b.predicted[0] for b in allowed), sum(b.predicted[1] for b in allowed)
    parts = ", ".join(f"{row.name} {b.predicted[0]:,}" for row, b in zip(table.rows, allowed, strict=True))
    told = f"the classes need at least {low:,} predictions ({parts})"
    if low > n[1]:
        yield PREDICTIONS, IMPOSSIBLE, f"{told}, but the test set has {n[1]:,} images."
    elif table.complete and high < n[0]:
        parts = ", ".join(f"{row.name} {int(b.predicted[1]):,}" for row, b in zip(table.rows, allowed, strict=True))
        told = f"the classes get at most {int(high):,} predictions ({parts})"
        yield PREDICTIONS, IMPOSSIBLE, f"{told}, but each of the {n[0]:,} test images gets one."
    elif table.complete:
        yield PREDICTIONS, CONSISTENT, f"{told} and at most {int(high):,}; the test set has {count_text(*n)} images."
        yield _wrong(table.rows, allowed)
    else:
        yield PREDICTIONS, UNKNOWN, f"{told}, which fits; that they add up needs every class listed"


def _wrong(rows: Sequence[Row], allowed: Sequence[Bounds]) -> tuple[str, str, str]:
    """Compare each class's wrong answers with the images that the other classes missed."""
    for row, own in zip(rows, allowed, strict=True):
        others = [b.missed for b in allowed if b is not own]
        least, most = sum(m[0] for m in others), sum(m[1] for m in others)
        told = f"{row.name}: precision and recall leave "
        if own.wrong[0] > most:
            told += f"at least {own.wrong[0]:,} wrong answers, but the other classes miss at most {most:,} images."
            return WRONG, IMPOSSIBLE, told
        if len(rows) == 2 and own.wrong[1] < least:
            told += (
                f"at most {int(own.wrong[1]):,} wrong answers, but the other class misses at least {least:,} images."
            )
            return WRONG, IMPOSSIBLE, told
    return WRONG, CONSISTENT, "no class has more wrong answers than the others have missed images."


def _share_sum(table: Table, blamed: set[str]) -> tuple[str, str, str] | None:
    """Check that shares of predictions add up to one when priors are known and numbers are not."""
    if any("prior" not in row.rates for row in table.rows) or blamed:
        return None
    shares = [predicted_share(row) for row in table.rows]
    low, high = sum(s[0] for s in shares), sum(s[1] for s in shares)
    told = "recall x prior / precision, summed over the classes and rounding included, is "
    told += f"{float(low):.3f} to {float(high):.3f}"
    if low > 1 or (high < 1 and table.complete):
        return PREDICTIONS, INCONSISTENT, f"{told}; it is the share of all predictions and must be 1."
    return PREDICTIONS, CONSISTENT if table.complete else UNKNOWN, f"{told}; it must be 1."


def _accuracy(table: Table) -> tuple[str, str, str] | None:
    stated = table.facts.get("accuracy")
    implied = recall_mean(table)
    if implied is None:
        return (ACCURACY, UNKNOWN, "the recall of every class is needed") if stated else None
    (low, high), weights = implied
    if stated is None:
        like = next(row.rates["recall"] for row in table.rows)
        ends = [show(end, like.digits + 1, percent=like.percent) for end in (low, high)]
        return ACCURACY, COMPUTED, f"with {weights} the recalls give an accuracy of {' to '.join(dict.fromkeys(ends))}."
    told = f"with {weights} the recalls give an accuracy of {span(low, high, stated)}, rounding included"
    if stated.meets(low, high):
        return ACCURACY, CONSISTENT, f"{told}; {stated.text} fits."
    return ACCURACY, INCONSISTENT, f"{told}, but {stated.text} is printed."


def _line(table: Table) -> tuple[str, str, str] | None:
    """Compare accuracy, stated or implied by the recalls, with the share of the largest class."""
    shares, stated = class_shares(table), table.facts.get("accuracy")
    implied = recall_mean(table)
    if stated is None and (implied is None or not shares):
        return None
    if not shares or table.multi_label:
        return LINE, UNKNOWN, "the numbers of images, or the priors, of the classes are missing"
    largest = max(range(len(shares)), key=lambda c: shares[c][0])
    share = shares[largest][0]
    high = stated.high if stated else implied[0][1]
    said = (
        f"accuracy {stated.text}"
        if stated
        else f"the accuracy of at most {float(high) * 100:.1f} % that the recalls give"
    )
    told = f"always answering {table.rows[largest].name} reaches {float(share) * 100:.1f} %"
    if high < share:
        return LINE, TRIVIAL, f"{told}, more than {said}."
    return LINE, CONSISTENT, f"{told}; {said} does not lie below."


def _right_ones(table: Table) -> Iterator[tuple[str, str, str]]:
    """Check that the accuracy is a whole number of the test images, and give its interval."""
    stated, n = table.facts.get("accuracy"), table.n
    if stated is None:
        return
    if n is None:
        yield WHOLE, UNKNOWN, "the number of test images is missing (a line 'n: 7599')"
        return
    if n[0] != n[1] or not n[0]:
        return
    low, high = whole_numbers(stated, n[0])
    if low > high:
        near = " and ".join(
            f"{k:,} right are {span(Fraction(k, n[0]), Fraction(k, n[0]), stated)}" for k in (high, low)
        )
        yield WHOLE, IMPOSSIBLE, f"of {n[0]:,} images, {near}; {stated.text} is neither."
        return
    yield WHOLE, CONSISTENT, f"{stated.text} of {n[0]:,} images is {count_text(low, high)} right answers."
    yield WILSON, COMPUTED, f"{stated.text} of {n[0]:,} images: {wilson_text(low, high, n[0])}."


def wilson_text(low: int, high: int, n: int) -> str:
    """Write the 95 % Wilson interval of a share of which the right answers are known as a range."""
    from stda.measure.scores import wilson

    return f"95 % Wilson interval {wilson(low, n)[0] * 100:.1f} to {wilson(high, n)[1] * 100:.1f} %"


def _sens_spec(table: Table) -> Iterator[tuple[str, str, str]]:
    """Compare overall sensitivity and specificity with micro-averaging, where one follows from the other."""
    micro = table.averages.get("micro", {}) if "recall" not in table.facts else table.facts
    sens, spec, k = micro.get("recall"), micro.get("specificity"), table.n_classes
    stated = table.averaging == "micro" or "micro" in table.averages
    if sens is None or spec is None or (table.averaging and not stated) or table.multi_label:
        return
    if k is None or (k == 2 and not stated):
        lack = "the number of classes is missing (a line 'classes: 3')" if k is None else "prevalence is missing"
        yield PAIR, UNKNOWN, lack
        return
    low, high = 1 - (1 - sens.low) / (k - 1), 1 - (1 - sens.high) / (k - 1)
    whole, number = "100" if sens.percent else "1", sens.text.removesuffix("%").strip()
    told = f"micro-averaged over {k} classes, specificity is {whole} - ({whole} - {number}) / {k - 1} = "
    told += _shown(low, high, spec)
    if spec.meets(low, high):
        yield PAIR, REDUNDANT, f"{told}, which is the {spec.text} printed: the pair holds one number."
    elif stated:
        yield PAIR, INCONSISTENT, f"{told}, rounding included, but {spec.text} is printed."
    else:
        yield PAIR, CONSISTENT, f"{told}, and {spec.text} is printed: not micro-averaged."


def _shown(low: Fraction, high: Fraction, against: Printed) -> str:
    middle = (low + high) / 2
    exact = show(middle, against.digits, percent=against.percent)
    return exact if against.meets(middle, middle) else span(low, high, against)


def _binary(table: Table) -> Table | None:
    """Return the table of two classes that overall rates of a two-class test stand for, if they do."""
    known = {"positives", "negatives"} & table.counts.keys() or "prior" in table.facts or table.averaging == "binary"
    if table.rows or not (known or table.counts.get("classes") == (2, 2)) or table.averaging not in ("", "binary"):
        return None
    if not {"recall", "specificity"} & table.facts.keys():
        return None
    facts, counts = table.facts, {**table.counts, "classes": (2, 2)}
    for one, other in (("positives", "negatives"), ("negatives", "positives")):
        if "n" in counts and one in counts and other not in counts and counts[one][1] <= counts["n"][0]:
            counts[other] = counts["n"][0] - counts[one][1], counts["n"][1] - counts[one][0]
    positive = Row("positive", {k: facts[k] for k in ("recall", "precision", "f1") if k in facts})
    negative = Row(
        "negative", {k: facts[v] for k, v in (("recall", "specificity"), ("precision", "npv")) if v in facts}
    )
    positive.support, negative.support = counts.get("positives"), counts.get("negatives")
    if "prior" in facts:
        p = facts["prior"]
        positive.rates["prior"] = p
        negative.rates["prior"] = Printed(f"1 - {p.text}", 1 - p.high, 1 - p.low, p.percent, p.digits)
    kept = {k: v for k, v in facts.items() if k in ("accuracy", "balanced accuracy")}
    return Table(table.name, [positive, negative], kept, table.averages, counts, unused=table.unused)
