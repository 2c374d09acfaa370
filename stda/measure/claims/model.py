"""What a paper claims: tables of rates, as they were read from a file."""

from __future__ import annotations

from dataclasses import dataclass, field

from stda.measure.claims.numbers import Printed

IMPOSSIBLE, INCONSISTENT = "impossible", "inconsistent"  # no classifier answers so; two printed numbers disagree
TRIVIAL, REDUNDANT = "below the trivial line", "one number, not two"  # possible, and telling
COMPUTED, CONSISTENT, UNKNOWN = "computed", "consistent", "cannot be checked"
RATES = ("precision", "recall", "f1", "specificity", "accuracy", "balanced accuracy", "npv", "prior")


@dataclass
class Row:
    """One class: its printed rates (names of :data:`RATES`) and its number of test images (least, most)."""

    name: str
    rates: dict[str, Printed] = field(default_factory=dict)
    support: tuple[int, int] | None = None


@dataclass
class Table:
    """One model on one test set: rows of classes, overall rates, averages over classes, and counts.

    ``facts`` are overall rates by name; ``averages`` holds rates by kind of average (macro, weighted, micro, unnamed);
    ``counts`` are (least, most) of n, classes, positives, negatives.
    """

    name: str
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, Printed] = field(default_factory=dict)
    averages: dict[str, dict[str, Printed]] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    averaging: str = ""
    labels: str = ""  # single or multi (labels per image) where it is said
    unused: list[str] = field(default_factory=list)

    @property
    def n_classes(self) -> int | None:
        """Number of classes as stated, else as listed; None if neither."""
        stated = self.counts.get("classes")
        return stated[0] if stated else len(self.rows) or None

    @property
    def multi_label(self) -> bool:
        """Whether answers need not add up to the test set: said so, or as scikit-learn's report shows it.

        It prints a row "micro avg" in place of accuracy when images have several labels or classes are left out.
        """
        return self.labels == "multi" or (
            not self.labels and bool(self.rows) and "micro" in self.averages and "accuracy" not in self.facts
        )

    @property
    def complete(self) -> bool:
        """Whether every class is listed, as far as the number of classes, or else of images, tells.

        Without a word on either it is taken for granted, except of one class alone, which no classifier is for.
        """
        supports, n = [row.support for row in self.rows], self.counts.get("n")
        if "classes" not in self.counts:
            short = n is not None and None not in supports and sum(s[1] for s in supports) < n[0]
            return len(self.rows) > 1 and not short
        return bool(self.rows) and self.n_classes == len(self.rows)

    @property
    def assumed(self) -> str:
        """A sentence where the listed classes are taken for all without a number of classes or images that says so."""
        supports, n = [row.support for row in self.rows], self.counts.get("n")
        told = n is not None and None not in supports and sum(s[1] for s in supports) >= n[0]
        if "classes" in self.counts or told or not self.complete:
            return ""
        return f" (Taken for granted: there are {len(self.rows)} classes; a line 'classes: 7' says otherwise.)"

    @property
    def n(self) -> tuple[int, int] | None:
        """Test images (least, most): as stated, else the sum of the supports when every class is listed.

        None where answers need not add up: a report's total then counts labels, or the images of some classes.
        """
        if self.multi_label:
            return None
        if "n" in self.counts:
            return self.counts["n"]
        supports = [row.support for row in self.rows]
        if not self.complete or None in supports:
            return None
        return sum(s[0] for s in supports), sum(s[1] for s in supports)

    def support(self, row: Row) -> tuple[int, int] | None:
        """Return the test images of a class (least, most): as stated, else its prior of the n test images."""
        if row.support or "prior" not in row.rates or not self.n:
            return row.support
        prior = row.rates["prior"]
        return int(prior.low * self.n[0]), -int(-prior.high * self.n[1] // 1)


@dataclass(frozen=True)
class Finding:
    """What one check found: ``finding`` is one of the seven words above, ``arithmetic`` the sentence that shows it.

    ``subjects`` are the classes it is about (empty: the whole table).
    """

    table: str
    statement: str
    finding: str
    arithmetic: str
    subjects: tuple[str, ...] = ()


@dataclass
class Claims:
    """Tables in the order they were read."""

    tables: list[Table]
    source: str = ""
