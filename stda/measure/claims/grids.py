"""Find tables in text: Markdown, CSV (comma, semicolon, tab), LaTeX and scikit-learn's classification report."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass

from stda import BadInput
from stda.measure.claims.words import COLUMN, MEASURE, nearest, plain

NUMBER = re.compile(r"\d*\.?\d+%?")


@dataclass
class Grid:
    """Cells of a table, its first row the header; ``lines`` are the line numbers in the file, from 1."""

    header: list[str]
    rows: list[list[str]]
    lines: list[int]


def find_grid(lines: list[str], start: int) -> tuple[Grid | None, int]:
    """Return the table whose header is line ``start`` (from 0), or None, and the number of the line to go on with.

    Raises:
        BadInput: a row with more cells than the header.
    """
    for cells in (_markdown, _latex, _report, *(_delimited(mark) for mark in "\t;,")):
        header = cells(lines[start], None)
        if not header or not _is_header(header):
            continue
        grid, stop, rule = Grid(header, [], []), start + 1, cells is _markdown
        while stop < len(lines):
            row = cells(lines[stop], header)
            if row is None and not (cells is _report and not lines[stop].strip()):
                break
            if row and not (rule and _is_rule(row)):
                _check_width(row, header, stop + 1)
                grid.rows.append([*row, *[""] * (len(header) - len(row))])
                grid.lines.append(stop + 1)
            stop += 1
        if any(re.search(r"\d", cell) for row in grid.rows for cell in row[1:]):  # else it is prose with commas
            return grid, stop
    return None, start + 1


def _markdown(line: str, header: list[str] | None) -> list[str] | None:
    text = line.strip()
    if "|" not in text or (header and not text):
        return None
    return [cell.strip() for cell in text.removeprefix("|").removesuffix("|").split("|")]


def _latex(line: str, header: list[str] | None) -> list[str] | None:
    text = line.strip()
    if header and re.match(r"\\(hline|toprule|midrule|bottomrule|cline|cmidrule)", text):
        return []
    if "&" not in text:
        return None
    cells = []
    for cell in re.sub(r"\\\\.*$", "", text).split("&"):
        wide = re.fullmatch(r"\\multicolumn\{(\d+)\}\{[^}]*\}\{(.*)\}", cell.strip())
        cells += [wide[2], *[""] * (int(wide[1]) - 1)] if wide else [cell.strip()]
    return cells


def _delimited(mark: str):  # noqa: ANN202 (a reader of lines, as its neighbours)
    def cells(line: str, header: list[str] | None) -> list[str] | None:
        if mark not in line:
            return None
        return [cell.strip() for cell in next(csv.reader([line], delimiter=mark, skipinitialspace=True))]

    return cells


def _report(line: str, header: list[str] | None) -> list[str] | None:
    """Read a line of a classification report: names to the left, numbers to the right, spaces between."""
    text = line.strip()
    if header is None:
        words = re.split(r"\s+", text)
        known = len(words) >= 2 and all(plain(word) in MEASURE for word in words)
        return ["", *words] if known and line.startswith((" ", "precision")) else None
    if not text:
        return None
    tokens = text.split()
    n_numbers = next((i for i, token in enumerate(reversed(tokens)) if not NUMBER.fullmatch(token)), len(tokens))
    n_numbers = min(n_numbers, len(header) - 1)  # a class may be called "grade 2", or just 2
    if not n_numbers:
        return None
    # "accuracy   0.84   100": the numbers stand under the last columns
    blank = [""] * (len(header) - 1 - n_numbers)
    return [" ".join(tokens[:-n_numbers]), *blank, *tokens[-n_numbers:]]


def _is_header(header: list[str]) -> bool:
    names = [plain(cell) for cell in header]
    if (
        len(names) < 2
        or any(len(name) > 40 for name in names)
        or any(re.fullmatch(r"[\d.,%\s]+", cell) for cell in header)
    ):
        return False
    known = sum(name in MEASURE for name in names[1:])
    near = sum(bool(nearest(name, MEASURE)) for name in names[1:])
    return known >= 1 or (near >= 1 and names[0] in COLUMN) or (near >= 2 and not names[0])


def _is_rule(row: list[str]) -> bool:
    return all(re.fullmatch(r":?-{1,}:?", cell) for cell in row)


def _check_width(row: list[str], header: list[str], number: int) -> None:
    if len(row) > len(header):
        raise BadInput(
            f"Line {number} has {len(row)} cells, its table's header {len(header)}; put quotes around numbers with a "
            "comma in them, or separate the cells by semicolons."
        )
