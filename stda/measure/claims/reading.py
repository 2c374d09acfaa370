"""Read claims from what a person pastes: tables and facts in Markdown, CSV, LaTeX or scikit-learn's report.

A file holds one or more tables.  A Markdown heading (``#``) begins a new one and names it; so does a table of classes
after another.  Its first column is ``class`` (a row per class of one model) or ``model`` (a row per model: its overall
rates); an empty header means class.  The other columns are those of :data:`stda.measure.claims.words.COLUMNS`.  Rows
named accuracy, macro avg, weighted avg, micro avg, average or total are facts about the whole.  Lines ``key: value``
are facts too, of the table of their heading, or of all when they stand above the first heading and table.  Prose is
passed over; lines that look like facts but are unknown are listed as not used.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path

from stda import BadInput
from stda.measure.claims.grids import Grid, find_grid
from stda.measure.claims.model import RATES, Claims, Row, Table
from stda.measure.claims.numbers import parse_count, parse_rate, plain_above_one, plain_between, tidy
from stda.measure.claims.words import (
    AVERAGE,
    COLUMN,
    COUNT,
    MEASURE,
    RATE,
    WORD,
    average_of,
    in_percent,
    nearest,
    plain,
)

FACT = re.compile(r"^\s*(?:[-*+>]\s+)?[*_]*([^:|]{1,40}?)[*_]*\s*[:=][*_]*\s*(.+?)\s*$")

CELLS = re.compile(
    r"^\s*\|?\s*([^|,;:\t]{1,40}?)\s*[|,;\t]\s*(\.?\d[\d.,'’_/ \u00a0]*%?)\s*[|,;\t\s]*$"
)  # a fact in a table

A_RATE = re.compile(r"0?[.,]\d+|[01][.,]0|[\d.,]+\s*%")  # in a column of counts


def read(path: str | Path | Sequence[str | Path]) -> Claims:
    """Read the claims of one file, or of several whose tables follow each other (before, after).

    Raises:
        BadInput: the file is missing or no text, has no table or fact, or something in it cannot be read; one
            sentence names the line, the value and the remedy.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    tables = []
    for one in map(Path, paths):
        try:
            text = one.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise BadInput(f"There is no file {one}; give the path of a table in Markdown or CSV.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{one} cannot be read as text ({error}); save the table as UTF-8 text.") from None
        try:
            tables += parse(text, name=one.stem).tables
        except BadInput as error:
            raise BadInput(f"{one}: {error}") from None
    return Claims(tables, ", ".join(str(one) for one in paths))


def parse(text: str, *, name: str = "table") -> Claims:
    """Read claims from text; see the module for the format.  ``name`` is that of a table without a heading.

    Raises:
        BadInput: as :func:`read`.
    """
    lines = text.splitlines()
    shared, tables, current = _Section(""), [], _Section("")
    number = 0
    while number < len(lines):
        heading = re.match(r"^\s{0,3}#{1,6}\s+(.+?)\s*#*\s*$", lines[number])
        grid, following = (None, number + 1) if heading else find_grid(lines, number)
        if heading:
            tables += current.tables(shared)
            current = _Section(tidy(heading[1]))
        elif grid:
            if current.grid:
                tables += current.tables(shared)
                current = _Section("")
            current.grid = grid
        elif fact := FACT.match(lines[number]):
            (current if current.name or current.grid else shared).take(fact[1], fact[2], number + 1)
        elif (fact := CELLS.match(lines[number])) and is_fact(fact[1]):
            (current if current.name or current.grid else shared).take(fact[1], fact[2].rstrip(",; "), number + 1)
        number = following
    tables += current.tables(shared)
    tables = tables or _Section(name).tables(shared)
    if not tables:
        raise BadInput("nothing to audit was found; a table needs a header such as 'class, precision, recall, F1'.")
    for position, table in enumerate(tables, 1):
        table.name = table.name or (name if len(tables) == 1 else f"{name}, table {position}")
    return Claims(tables, name)


def is_fact(key: str) -> bool:
    """Say whether a name is that of a rate or a count of the whole."""
    return plain(key) in COUNT or plain(key) in RATE or bool(average_of(key)[0])


class _Section:
    """What stands below one heading: facts, and at most one grid."""

    def __init__(self, name: str) -> None:
        self.name, self.grid = name, None
        self.facts: list[tuple[str, str, int]] = []
        self.unused: list[str] = []

    def take(self, key: str, value: str, line: int) -> None:
        """Keep a line ``key: value``, if it is one."""
        known, number = plain(key), re.fullmatch(r"[\d.,'’_ \u00a0/–-]+\s*%?", tidy(value))
        if known in WORD or (is_fact(key) and re.match(r"[~≈]?[.,]?\d", tidy(value))):
            self.facts.append((key, value, line))
        elif number:
            near = nearest(known, {**COUNT, **RATE, **WORD})
            if near:
                raise BadInput(f"Line {line}: '{key.strip()}' is not known; did you mean '{near}'? Correct it.")
            self.unused.append(f"{key.strip()}: {value}")

    def tables(self, shared: _Section) -> list[Table]:
        """Make the tables of this section, with the facts shared by all below its own."""
        base = Table(self.name, unused=[*self.unused])
        facts = [*shared.facts, *self.facts]
        if not self.facts and not self.grid and (self.name or not shared.facts):
            return []
        percent = any(plain(key) in WORD and WORD[plain(key)] == "units" and "perc" in v.lower() for key, v, _ in facts)
        for key, value, line in facts:
            _take_fact(base, key, value, f"Line {line}: {key.strip()}", percent=percent)
        if not self.grid:
            return [base] if base.facts or base.averages else []
        units = _units(self.grid, percent)
        if _first_column(self.grid) == "model":
            return _models(self.grid, units, base)
        _fill(base, self.grid, units)
        return [base]


def _take_fact(table: Table, key: str, value: str, what: str, *, percent: bool) -> None:
    """Put one fact where it belongs."""
    name, (kind, rate) = plain(key), average_of(key)
    if WORD.get(name) == "averaging":
        if plain(value) not in (*AVERAGE, "binary"):
            raise BadInput(f"{what} is '{value}'; it must be macro, weighted, micro or binary.")
        table.averaging = AVERAGE.get(plain(value), "binary")
    elif WORD.get(name) == "labels":
        if plain(value) not in ("single", "1", "one", "multi", "several"):
            raise BadInput(f"{what} is '{value}'; it must be single or multi (more than one label per image).")
        table.labels = "multi" if plain(value) in ("multi", "several") else "single"
    elif name in COUNT and not kind:
        if (count := parse_count(value, what=what)) is not None:
            table.counts[COUNT[name]] = count
    elif kind or name in RATE:
        printed = parse_rate(value, what=what, percent=percent or plain_above_one(value))
        if printed is not None and kind:
            table.averages.setdefault(kind, {})[rate] = printed
        elif printed is not None:
            table.facts[RATE[name]] = printed


def _first_column(grid: Grid) -> str:
    first = COLUMN.get(plain(grid.header[0]), "") if plain(grid.header[0]) else "class"
    if first not in ("class", "model"):
        raise BadInput(
            f"The first column '{grid.header[0]}' (its first row is line {grid.lines[0]}) must be 'class' (a row per "
            "class of one model) or 'model' (a row per model); rename it."
        )
    return first


def _units(grid: Grid, percent: bool) -> dict[int, tuple[str, bool]]:
    """Return name and unit (percent or not) of every column that is used, by its position.

    Raises:
        BadInput: a misspelt column, one that occurs twice, or one whose unit cannot be told.
    """
    names: dict[int, str] = {}
    for place, header in enumerate(grid.header[1:], 1):
        name = MEASURE.get(plain(header), "")
        if not name and (near := nearest(plain(header), MEASURE)):
            raise BadInput(f"The column '{header}' is not known; did you mean '{near}'? Rename it.")
        if name in names.values():
            raise BadInput(f"The columns hold '{name}' twice; one table is one model, so split it in two.")
        if name:
            names[place] = name
    stated = {place for place in names if percent or in_percent(grid.header[place])}
    cells = {p: [row[p] for row in grid.rows] for p, name in names.items() if name in RATES and p not in stated}
    above = {place for place in cells if any(map(plain_above_one, cells[place]))}
    for place, column in cells.items():
        header = grid.header[place]
        if place in above and not _percentages(column):
            raise BadInput(
                f"Column '{header}' has numbers above 1 among numbers below; correct them, or say with a line "
                "'units: percent' that all are percentages."
            )
        if above and place not in above and any(map(plain_between, column)):
            raise BadInput(
                f"Column '{header}' is at most 1 while '{grid.header[min(above)]}' is in percent; say which with a "
                "line 'units: percent', or put % signs."
            )
    return {place: (name, place in stated or bool(above)) for place, name in names.items()}


def _percentages(cells: list[str]) -> bool:
    """Say whether a column with numbers above one reads like percentages, and not like a slip among fractions."""
    above, below = sum(map(plain_above_one, cells)), sum(map(plain_between, cells))
    largest = max(float(tidy(cell).replace(",", ".")) for cell in cells if plain_above_one(cell))
    return above >= below and largest >= 2


def _rates(cells: list[str], units: dict[int, tuple[str, bool]], who: str) -> dict:
    rates = {}
    for place, (name, percent) in units.items():
        if name in RATES:
            printed = parse_rate(cells[place], what=f"{who}: {name}", percent=percent)
            if printed is not None:
                rates[name] = printed
    return rates


def _count(cells: list[str], units: dict[int, tuple[str, bool]], who: str) -> tuple[int, int] | None:
    for place, (name, _) in units.items():
        if name == "support":
            return parse_count(cells[place], what=f"{who}: support")
    return None


def _models(grid: Grid, units: dict[int, tuple[str, bool]], base: Table) -> list[Table]:
    """Make a table of facts from every row, a model."""
    tables = []
    for cells, line in zip(grid.rows, grid.lines, strict=True):
        table, who = copy.deepcopy(base), f"Line {line} ({tidy(cells[0])})"
        table.name = ": ".join(filter(None, (base.name, tidy(cells[0]))))
        table.facts |= _rates(cells, units, who)
        count = _count(cells, units, who)
        if count:
            table.counts["n"] = count
        tables.append(table)
    return tables


def _fill(table: Table, grid: Grid, units: dict[int, tuple[str, bool]]) -> None:
    """Put the rows of a grid into the table: classes, averages, accuracy and total."""
    table.unused += [f"column {header}" for p, header in enumerate(grid.header) if p and p not in units]
    for cells, line in zip(grid.rows, grid.lines, strict=True):
        name, who = tidy(cells[0]), f"Line {line} ({tidy(cells[0]) or 'no name'})"
        known = plain(name)
        if not any(cells[1:]):
            continue
        if known == "samples avg":
            table.labels = table.labels or "multi"
        elif known in AVERAGE:
            table.averages.setdefault(AVERAGE[known], {}).update(_rates(cells, units, who))
            _take_total(table, cells, units, who)
        elif known in ("accuracy", "acc", "balanced accuracy"):
            _take_accuracy(table, known, cells, units, who)
            if known != "balanced accuracy":
                _take_total(table, cells, units, who)
        elif known in COUNT and sum(map(bool, cells[1:])) == 1:  # a class may be called n
            value = next(cell for cell in cells[1:] if cell)
            if (count := parse_count(value, what=who)) is not None:
                table.counts[COUNT[known]] = count
        else:
            if name in {row.name for row in table.rows}:
                raise BadInput(f"{who}: the class occurs twice; put the other model below a heading of its own.")
            table.rows.append(Row(name, _rates(cells, units, who), _count(cells, units, who)))
    _take_overall_accuracy(table)
    if not table.rows and not table.facts:
        raise BadInput("the table has no class; its first column must name one in each row.")


def _take_overall_accuracy(table: Table) -> None:
    """Make the accuracy in a row "overall" that of the whole, unless it may average those of classes: then unused."""
    for kind, rates in table.averages.items():
        if (printed := rates.get("accuracy")) is None:
            continue
        if kind == "unnamed" and not any("accuracy" in row.rates for row in table.rows):
            table.facts.setdefault("accuracy", printed)
        else:
            table.unused.append(f"average accuracy {printed.text} (write a line 'accuracy: ...' if it is that of all)")


def _take_total(table: Table, cells: list[str], units: dict[int, tuple[str, bool]], who: str) -> None:
    """Keep the number of test images from a row about the whole, unless the cell holds a rate (pandas repeats it)."""
    place = next((p for p, (name, _) in units.items() if name == "support"), None)
    if place is None or A_RATE.fullmatch(tidy(cells[place])):
        return
    count = parse_count(cells[place], what=f"{who}: support")
    if count and table.counts.get("n", count) != count:
        raise BadInput(f"{who}: {cells[place]} test images, but elsewhere {table.counts['n'][0]}; correct one.")
    if count:
        table.counts["n"] = count


def _take_accuracy(table: Table, name: str, cells: list[str], units: dict[int, tuple[str, bool]], who: str) -> None:
    """Keep the accuracy that stands in a row of its own: under its own column, F1's, or the only one filled."""
    places = {column: place for place, (column, _) in units.items()}
    support = places.get("support")
    filled = [place for place, cell in enumerate(cells) if place and cell and place != support]
    if not filled and support is not None and A_RATE.fullmatch(tidy(cells[support])):
        filled = [support]  # "accuracy" across the columns of rates, its number at the end of the line
    wanted = next((places[key] for key in (name, "f1") if places.get(key) in filled), None)
    if wanted is None and filled:
        wanted = filled[0]
    if wanted is not None:
        percent = units.get(wanted, ("", False))[1] or plain_above_one(cells[wanted])
        printed = parse_rate(cells[wanted], what=who, percent=percent)
        if printed is not None:
            table.facts[RATE[name]] = printed
