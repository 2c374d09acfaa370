"""Two tables of one test set: what change of accuracy their recalls allow, and how sure a change can be."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from stda.measure.claims.model import COMPUTED, CONSISTENT, INCONSISTENT, UNKNOWN, Finding, Table
from stda.measure.claims.numbers import count_text, whole_numbers
from stda.measure.claims.sums import Interval, mean_range
from stda.measure.claims.wholes import class_shares, wilson_text

CHANGE = "the change of accuracy comes from changes of recall"
ANY = "the change of accuracy, whatever the classes' shares"
MCNEMAR = "the change of accuracy against chance (exact McNemar)"


def compare(before: Table, after: Table) -> list[Finding]:
    """Run every check that needs two tables; it takes for granted that both are of one test set."""
    shared = before.name.rpartition(": ")[0]  # models of one table
    later = after.name.removeprefix(f"{shared}: ") if shared else after.name
    name = f"{before.name} → {later}"
    if lack := _different(before, after):
        return [Finding(name, CHANGE, UNKNOWN, lack)]
    return [Finding(name, *one) for one in (*_changes(before, after), *_chance(before, after))]


def mcnemar(difference: int, regressions: np.ndarray) -> np.ndarray:
    """Return the exact two-sided McNemar p of ``regressions`` answers that got worse: float, the shape given.

    ``difference`` more answers got better than worse (0 or more), so the discordant pairs are ``difference`` plus twice
    the regressions; p is twice the lower binomial tail at one half, at most 1 (McNemar 1947, in its exact form).
    """
    from scipy.stats import binom

    worse = np.asarray(regressions)
    return np.minimum(1.0, 2 * binom.cdf(worse, difference + 2 * worse, 0.5))


def _different(before: Table, after: Table) -> str:
    """Say why two tables cannot be of one test set, empty if they can."""
    ours, others = {row.name for row in before.rows}, {row.name for row in after.rows}
    if ours and others and ours != others:
        return "the classes differ: " + ", ".join(sorted(ours ^ others))
    if before.n and after.n and (before.n[0] > after.n[1] or after.n[0] > before.n[1]):
        return f"the test sets differ: {count_text(*before.n)} images and {count_text(*after.n)}"
    mine, theirs = class_shares(before), class_shares(after)
    if mine and theirs:
        aligned = [theirs[[row.name for row in after.rows].index(row.name)] for row in before.rows]
        if any(a[0] > b[1] or b[0] > a[1] for a, b in zip(mine, aligned, strict=True)):
            return "the test sets differ: the classes have other shares"
    return ""


def _changes(before: Table, after: Table) -> Iterator[tuple[str, str, str]]:
    """Compare the change of accuracy with the changes of recall, at the shares given and at any."""
    later = {row.name: row.rates.get("recall") for row in after.rows}
    pairs = [(row.name, row.rates.get("recall"), later.get(row.name)) for row in before.rows]
    if not (before.complete and after.complete) or any(None in pair for pair in pairs) or before.multi_label:
        return
    changes = [(b.low - a.high, b.high - a.low) for _, a, b in pairs]
    claimed = _claimed(before, after)
    shares = class_shares(before) or class_shares(after)
    if shares and (mean := mean_range(shares, changes)):
        yield _judged(CHANGE, "at the classes' shares given, the recalls allow", mean, claimed, "")
    least, most = min(low for low, _ in changes), max(high for _, high in changes)
    name, a, b = pairs[max(range(len(pairs)), key=lambda c: changes[c][1])]
    told = f" (most for {name}, recall {a.text} to {b.text})"
    yield _judged(ANY, "whatever the classes' shares, the recalls allow", (least, most), claimed, told)


def _claimed(before: Table, after: Table) -> tuple[Interval, str] | None:
    a, b = before.facts.get("accuracy"), after.facts.get("accuracy")
    if a is None or b is None:
        return None
    return (b.low - a.high, b.high - a.low), f"accuracy {a.text} to {b.text}"


def _judged(
    statement: str, words: str, allowed: Interval, claimed: tuple[Interval, str] | None, more: str
) -> tuple[str, str, str]:
    told = f"{words} a change of {_points(allowed[0])} to {_points(allowed[1])} points of accuracy{more}"
    if claimed is None:
        return statement, COMPUTED, f"{told}."
    (low, high), said = claimed
    said = f"{said} is a change of {_points(low)} to {_points(high)}, rounding included"
    if low <= allowed[1] and allowed[0] <= high:
        return statement, CONSISTENT, f"{told}; {said}."
    return statement, INCONSISTENT, f"{told}, but {said}."


def _points(share: Fraction) -> str:
    return f"{float(share) * 100:+.1f}".replace("-", "\N{MINUS SIGN}")


def _chance(before: Table, after: Table) -> Iterator[tuple[str, str, str]]:
    """Give the p values that two accuracies on one test set allow, over all overlaps of their right answers."""
    a, b = before.facts.get("accuracy"), after.facts.get("accuracy")
    if a is None or b is None:
        return
    n = before.n or after.n
    if n is None or n[0] != n[1] or not n[0]:
        yield MCNEMAR, UNKNOWN, "the number of test images is missing (a line 'n: 7599')"
        return
    first, second = whole_numbers(a, n[0]), whole_numbers(b, n[0])
    if first[0] > first[1] or second[0] > second[1]:
        return
    told = f"{count_text(*first)} and {count_text(*second)} of {n[0]:,} are right"
    told += f" ({wilson_text(*first, n[0])}, and {wilson_text(*second, n[0]).partition('interval ')[2]}). "
    corners = sorted({(first[0], second[1]), (first[1], second[0])}, key=lambda ends: -abs(ends[1] - ends[0]))
    yield MCNEMAR, COMPUTED, told + " ".join(_overlaps(*ends, n[0]) for ends in corners)


def _overlaps(first: int, second: int, n: int, *, level: float = 0.05) -> str:
    """Say how p goes with the number of images whose answer changed against the trend."""
    difference, turned = abs(second - first), "got worse" if second >= first else "got better"
    most = min(first, n - second) if second >= first else min(second, n - first)
    against = np.arange(most + 1)
    p = mcnemar(difference, against)
    told = f"With {difference:,} images between them, p is {_p(p[0])} if no image {turned}"
    below = int((p <= level).sum())
    if below == 0:
        return f"{told}, and larger otherwise: never at most {level}."
    if below > most:
        return f"{told} and {_p(p[-1])} with {most:,}, the most there can be: at most {level} always."
    return (
        f"{told}; it is at most {level} for up to {below - 1:,} such images ({_p(p[below - 1])}), {_p(p[below])} with "
        f"{below:,}, and {_p(p[-1])} with {most:,}, the most there can be."
    )


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"
