"""Checks of averages over classes: macro, weighted by the classes' images, micro, and those whose kind is not said."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from stda.measure.claims.model import CONSISTENT, INCONSISTENT, UNKNOWN, Row, Table
from stda.measure.claims.numbers import Printed, span
from stda.measure.claims.rows import harmonic
from stda.measure.claims.sums import Interval, mean_range

AVERAGED = ("precision", "recall", "f1", "specificity")


def check_averages(table: Table) -> Iterator[tuple[str, str, str]]:
    """Compare every stated average with the classes' rates."""
    for kind, rate, stated in _stated(table):
        what = {"unnamed": f"average {rate}", "balanced": "balanced accuracy"}.get(kind, f"{kind} {rate}")
        statement = f"{what} follows from the classes"
        options = _candidates(table, kind, rate)
        if not options:
            lack = f"the {rate} of every class" + (", and its images," if kind == "weighted" else "") + " is needed"
            if kind != "micro" and table.rows:
                yield statement, UNKNOWN, lack
            continue
        fitting = [told for told, (low, high) in options if stated.meets(low, high)]
        if fitting:
            yield statement, CONSISTENT, f"{fitting[0]}; {stated.text} fits."
        elif kind == "unnamed" and not any(told.startswith("weighted") for told, _ in options):
            yield statement, UNKNOWN, "it is not the plain mean; for a weighted one the numbers of images are missing"
        else:
            shown = "; ".join(f"{told}: {span(*ends, stated)}" for told, ends in options)
            yield statement, INCONSISTENT, f"{shown}, rounding included, but {stated.text} is printed."


def _stated(table: Table) -> Iterator[tuple[str, str, Printed]]:
    """List the averages that are stated: kind, rate, number."""
    for kind, rates in table.averages.items():
        yield from ((kind, rate, printed) for rate, printed in rates.items() if rate in AVERAGED)
    if table.rows or table.averaging in ("micro", "weighted"):
        if "balanced accuracy" in table.facts:
            yield "balanced", "recall", table.facts["balanced accuracy"]
        for rate in AVERAGED:
            if rate in table.facts and table.averaging != "binary":
                yield table.averaging or "unnamed", rate, table.facts[rate]


def _candidates(table: Table, kind: str, rate: str) -> list[tuple[str, Interval]]:
    """Return the ways in which a kind of average is computed, each with the range it gives."""
    found, whole = [], table.complete
    if whole and kind in ("macro", "balanced", "unnamed"):
        found += _means(table, rate)
        if rate == "f1" and (p := _means(table, "precision")) and (r := _means(table, "recall")):
            # a second usage of the name (Opitz and Burst 2019, "Macro F1 and Macro F1")
            ends = harmonic(p[0][1][0], r[0][1][0]), harmonic(p[0][1][1], r[0][1][1])
            found.append(("harmonic mean of mean precision and mean recall", ends))
    if whole and kind in ("weighted", "unnamed") and (weighted := _weighted(table, rate)):
        found.append((f"weighted mean of {rate}", weighted))
    # every image has one label and one answer: micro precision, recall and F1, and weighted recall, are the accuracy
    is_accuracy = kind in ("micro", "unnamed") or (kind == "weighted" and rate == "recall" and not found)
    if is_accuracy and rate != "specificity" and not table.multi_label and "accuracy" in table.facts:
        accuracy = table.facts["accuracy"]
        found.append((f"{'micro' if kind == 'unnamed' else kind} {rate} is accuracy", (accuracy.low, accuracy.high)))
    return found


def _means(table: Table, rate: str) -> list[tuple[str, Interval]]:
    """Return the plain mean over all classes, and over those where the rate is defined."""
    known = [row for row in table.rows if rate in row.rates]
    if not known:
        return []
    total = sum(row.rates[rate].low for row in known), sum(row.rates[rate].high for row in known)
    found = [(f"mean of {rate} over {len(table.rows)} classes", _divided(total, len(table.rows)))]
    if len(known) < len(table.rows):  # a blank is 0/0: left out, or counted as 0
        found.append((f"mean of {rate} over {len(known)} classes", _divided(total, len(known))))
    if with_images := _without_empty(table, known, rate):
        found.append((f"mean of {rate} over the classes with images", with_images))
    return found


def _without_empty(table: Table, known: list[Row], rate: str) -> Interval | None:
    """Return the mean over the classes with images, None if all have some; which have none may not be known."""
    empty = [row for row in known if table.support(row) == (0, 0)]
    total = sum(row.rates[rate].low for row in known), sum(row.rates[rate].high for row in known)
    doubtful = [row for row in known if row not in empty and _may_be_empty(table, row)]
    lows = sorted((row.rates[rate].low for row in doubtful), reverse=True)
    highs = sorted(row.rates[rate].high for row in doubtful)
    total = (
        total[0] - sum(row.rates[rate].low for row in empty),
        total[1] - sum(row.rates[rate].high for row in empty),
    )
    ends = [
        _divided((total[0] - sum(lows[:left_out]), total[1] - sum(highs[:left_out])), n_left)
        for left_out in range(0 if empty else 1, len(doubtful) + 1)
        if (n_left := len(known) - len(empty) - left_out) > 0
    ]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None


def _weighted(table: Table, rate: str) -> Interval | None:
    supports, n = [table.support(row) for row in table.rows], table.n
    if table.multi_label and None not in supports:  # the weights are labels then, and add up to those listed
        n = sum(s[0] for s in supports), sum(s[1] for s in supports)
    values = [(row.rates[rate].low, row.rates[rate].high) if rate in row.rates else None for row in table.rows]
    if None in supports or not n or not n[0]:
        return None
    filled = [v if v else (Fraction(0), Fraction(1)) for v in values]  # a class without the rate may weigh nothing
    weights = [(Fraction(s[0], n[1]), Fraction(s[1], n[0])) for s in supports]
    return mean_range(weights, filled)


def _may_be_empty(table: Table, row: Row) -> bool:
    """Say whether a class may lack images: its number allows none, and its recall is printed as 0/0 would be."""
    support, prior, recall = table.support(row), row.rates.get("prior"), row.rates.get("recall")
    some = support[0] > 0 if support else prior is not None and prior.low > 0
    return not some and (recall is None or recall.low <= 0 or recall.high >= 1)


def _divided(ends: Interval, by: int) -> Interval:
    return Fraction(ends[0]) / by, Fraction(ends[1]) / by
