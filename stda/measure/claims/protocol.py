"""What published claims look like under this study's protocol: each beside the arms that make it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from stda.measure.claims.report import example


@dataclass(frozen=True)
class Published:
    """A claim: what it says, and the example of this package that holds its numbers (empty: none were printed)."""

    source: str
    claim: str
    example: str = ""
    rate: str = "accuracy"

    def change(self) -> float:
        """Return the printed change of the rate, from the first table to the last; nan where none was printed."""
        if not self.example:
            return float("nan")
        tables = example(self.example).tables
        first, last = (table.facts[self.rate] for table in (tables[0], tables[-1]))
        return float(last.low + last.high - first.low - first.high) / 2


# by the generator that makes the claim again
PUBLISHED = {
    "nst": Published(
        "Mikołajczyk and Grochowski 2018, 2019", "style transfer: better scores, more repeatable training"
    ),
    "dcgan": Published("Frid-Adar et al. 2018", "DCGAN, three liver lesions: accuracy", "frid-adar-2018"),
    "wgan": Published(
        "Kosheleva, Alam and Ivannikov 2020", "conditional WGAN, eight skin lesions: accuracy", "isic2019-report"
    ),
    "pggan": Published(
        "a progressive-GAN study", "progressive GAN, three classes: sensitivity", "progressive-gan", "recall"
    ),
}
COLUMNS = ("claim", "source", "printed change", "arm", "difference", "low", "high", "verdict", "beats its placebos")


def under_protocol(verdicts: pd.DataFrame, against: pd.DataFrame, *, arms: Mapping[str, str]) -> pd.DataFrame:
    """Put every published claim beside the judged arms whose generator makes it again.

    ``verdicts`` is the table of measure.judge, ``against`` that of measure.placebo_table, ``arms`` maps an arm to its
    generator.  Returns a row per claim and arm: ``printed change`` is the published difference of its own score on its
    own images (nan where none was printed), ``difference, low, high, verdict`` are this study's, of its metric on its
    images: two questions, side by side, not one number twice.  ``beats its placebos`` is "yes" if the arm is above
    every one of them, "no" if it is below one, else "not shown", or "not tested".  A claim that no arm makes again has
    the verdict "not run".
    """
    rows = []
    for generator, told in PUBLISHED.items():
        base = {"claim": told.claim, "source": told.source, "printed change": told.change()}
        own = [arm for arm in verdicts["arm"] if arms.get(arm) == generator]
        if not own:
            rows.append({**base, "arm": "", "verdict": "not run", "beats its placebos": "not tested"})
        for arm in own:
            row = verdicts.set_index("arm").loc[arm]
            found = {name: row[name] for name in ("difference", "low", "high", "verdict")}
            rows.append({**base, "arm": arm, **found, "beats its placebos": _beats(against, arm)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _beats(against: pd.DataFrame, arm: str) -> str:
    own = against[(against["arm"] == arm) & (against["kind"] == "placebo")]
    if own.empty:
        return "not tested"
    if (own["shown"] == "below").any():
        return "no"
    return "yes" if (own["shown"] == "above").all() else "not shown"
