"""The audit as a table, on paper and for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from stda import BadInput
from stda.measure.claims.compare import compare
from stda.measure.claims.model import (
    COMPUTED,
    CONSISTENT,
    IMPOSSIBLE,
    INCONSISTENT,
    REDUNDANT,
    TRIVIAL,
    UNKNOWN,
    Claims,
    Finding,
)
from stda.measure.claims.reading import read
from stda.measure.claims.wholes import check_table

ORDER = (IMPOSSIBLE, INCONSISTENT, TRIVIAL, REDUNDANT, COMPUTED, CONSISTENT, UNKNOWN)
STYLES = {IMPOSSIBLE: "bold red", INCONSISTENT: "red", TRIVIAL: "yellow", REDUNDANT: "yellow", UNKNOWN: "dim"}
EXAMPLES_DIR = Path(__file__).with_name("examples")


def find(claims: Claims) -> list[Finding]:
    """Run every check on every table, and on the first table against each later one."""
    found = [finding for table in claims.tables for finding in check_table(table)]
    for later in claims.tables[1:]:
        found += compare(claims.tables[0], later)
    return found


def audit(claims: Claims) -> pd.DataFrame:
    """Audit claims: a row per statement with columns ``table, statement, finding, arithmetic``.

    ``finding`` is, in this order within a table: impossible (no classifier answers so), inconsistent (two printed
    numbers disagree), below the trivial line, one number, not two; computed (what follows, such as intervals),
    consistent, cannot be checked.  Classes that pass a check share a row, and so do those that lack the same for it.
    Every check takes rounding into account and is a necessary condition: what a confusion matrix can give is never
    impossible or inconsistent.
    """
    rows: dict[tuple, list[Finding]] = {}
    found = find(claims)
    tables = list(dict.fromkeys(finding.table for finding in found))
    for place, finding in enumerate(found):
        lack = finding.arithmetic.removeprefix(f"{finding.subjects[0]}: ") if finding.subjects else ""
        shared = finding.subjects and finding.finding in (CONSISTENT, UNKNOWN)
        key = (finding.table, finding.finding, finding.statement, lack if finding.finding == UNKNOWN else "")
        rows.setdefault(key if shared else (*key, place), []).append(finding)
    listed = sorted(rows.values(), key=lambda group: (tables.index(group[0].table), ORDER.index(group[0].finding)))
    return pd.DataFrame([_row(group) for group in listed], columns=["table", "statement", "finding", "arithmetic"])


def passed(found: pd.DataFrame) -> bool:
    """Say whether an audit found nothing impossible and nothing inconsistent."""
    return not found["finding"].isin((IMPOSSIBLE, INCONSISTENT)).any()


def summary(found: pd.DataFrame) -> str:
    """Say in a sentence how many statements ended how."""
    counts = found["finding"].value_counts()
    parts = [f"{counts[word]} {word}" for word in ORDER if word in counts]
    return f"{len(found)} statements: {', '.join(parts)}."


def examples() -> list[str]:
    """Return the names of the shipped examples."""
    return sorted(path.stem for path in EXAMPLES_DIR.glob("*.md"))


def example(name: str) -> Claims:
    """Read a shipped example, one of :func:`examples`.

    Raises:
        BadInput: there is no such example.
    """
    if name not in examples():
        raise BadInput(f"There is no example '{name}'; there are {', '.join(examples())}.")
    return read(EXAMPLES_DIR / f"{name}.md")


def audit_examples() -> pd.DataFrame:
    """Audit every shipped example by itself: the table of :func:`audit` with a first column ``claims``."""
    return pd.concat([audit(example(name)).assign(claims=name) for name in examples()], ignore_index=True)[
        ["claims", "table", "statement", "finding", "arithmetic"]
    ]


def tally(found: pd.DataFrame) -> pd.DataFrame:
    """Count the findings of :func:`audit_examples`: a row per example, a column per kind of finding."""
    counts = found.groupby(["claims", "finding"]).size().unstack(fill_value=0)
    return counts.reindex(columns=[word for word in ORDER if word in counts]).reset_index().rename_axis(columns=None)


def run(files: Sequence[str | Path], *, as_json: bool = False) -> int:
    """Audit files (or examples, as ``example:NAME``), print what was found, and return the exit code: 0, or 1 if wrong.

    Raises:
        BadInput: as :func:`stda.measure.claims.read`.
    """
    given = [str(file) for file in files]
    parts = [example(file[8:]) if file.startswith("example:") else read(file) for file in given]
    claims = Claims([table for part in parts for table in part.tables], ", ".join(given))
    found = audit(claims)
    if as_json:
        content = {"source": claims.source, "passed": passed(found), "findings": found.to_dict("records")}
        print(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        _print(found)
    return 0 if passed(found) else 1


def _row(group: Sequence[Finding]) -> dict[str, str]:
    first = asdict(group[0])
    if len(group) > 1 or (first["subjects"] and first["finding"] in (CONSISTENT, UNKNOWN)):
        names = ", ".join(name for finding in group for name in finding.subjects)
        lack = first["arithmetic"].removeprefix(f"{first['subjects'][0]}: ")
        first["arithmetic"] = names if first["finding"] == CONSISTENT else f"{names}: {lack}"
    return {key: first[key] for key in ("table", "statement", "finding", "arithmetic")}


def _print(found: pd.DataFrame) -> None:
    """Print a table per audited table, as wide as the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    console = Console()
    for name, part in found.groupby("table", sort=False):
        grid = Grid(title=Text(str(name), style="bold"), title_justify="left", box=box.HORIZONTALS, show_lines=True)
        for column, width in (("finding", 22), ("statement", 34), ("arithmetic", None)):
            grid.add_column(column, max_width=width)
        for row in part.itertuples():
            grid.add_row(
                Text(row.finding, style=STYLES.get(row.finding, "")), Text(row.statement), Text(row.arithmetic)
            )
        console.print(grid)
    console.print(Text(summary(found)))
