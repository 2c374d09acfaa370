"""Tables for notebooks and reports: captioned, rounded, escaped, and the same text in every run."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

DASH = "\N{EN DASH}"  # stands for "not known"
NEGLIGIBLE = 1e-12  # below this a number is rounding noise, whose digits differ between machines


def table(frame: pd.DataFrame, *, caption: str, digits: int | Mapping[str, int] = 3, index: bool = False) -> None:
    """Display a data frame as a captioned HTML table with right-aligned numbers, and as plain text.

    ``digits`` are decimals of floating-point numbers, for all columns or by column; whole numbers, booleans and words
    stay as they are; NaN and None become an en dash.  The output holds no random ids, so that runs can be compared.
    """
    from IPython.display import display

    cells, numeric = formatted(frame, digits=digits, index=index)
    display(
        {"text/html": html_table(cells, numeric, caption), "text/plain": plain_table(cells, numeric, caption)}, raw=True
    )


def text(words: str) -> None:
    """Display a computed paragraph, as HTML and as plain text."""
    from IPython.display import display

    display({"text/html": f'<p class="stda-text">{html.escape(words)}</p>', "text/plain": words}, raw=True)


def formatted(
    frame: pd.DataFrame, *, digits: int | Mapping[str, int] = 3, index: bool = False
) -> tuple[dict[str, list[str]], dict[str, bool]]:
    """Return the cells as text by column, and which columns hold numbers."""
    if index:
        frame = frame.reset_index()
    cells, numeric = {}, {}
    for position, column in enumerate(frame.columns):
        values = list(frame.iloc[:, position])
        decimals = digits.get(str(column), 3) if isinstance(digits, Mapping) else digits
        name = str(column) if str(column) not in cells else f"{column} ({position})"
        cells[name] = [cell_text(value, decimals) for value in values]
        known = [value for value in values if not _missing(value)]
        numeric[name] = bool(known) and all(_is_number(value) for value in known)
    return cells, numeric


def cell_text(value: object, digits: int = 3) -> str:
    """Format one value: rounded, a true minus sign, an en dash for what is missing."""
    if _missing(value):
        return DASH
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value).replace("-", "\N{MINUS SIGN}")
    if isinstance(value, float | np.floating):
        return _number(float(value), digits)
    return str(value)


def html_table(cells: Mapping[str, list[str]], numeric: Mapping[str, bool], caption: str) -> str:
    """Write cells as HTML, everything escaped."""
    right = {name: ' style="text-align:right"' if numeric[name] else ' style="text-align:left"' for name in cells}
    head = "".join(f'<th scope="col"{right[name]}>{html.escape(name)}</th>' for name in cells)
    rows = zip(*cells.values(), strict=True)
    body = "\n".join(
        "<tr>" + "".join(f"<td{right[n]}>{html.escape(c)}</td>" for n, c in zip(cells, row, strict=True)) + "</tr>"
        for row in rows
    )
    if not body:
        body = f'<tr><td colspan="{len(cells)}">none</td></tr>'
    return (
        f'<table class="stda-table">\n<caption>{html.escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    )


def plain_table(cells: Mapping[str, list[str]], numeric: Mapping[str, bool], caption: str) -> str:
    """Write cells as aligned plain text under the caption."""
    columns = []
    for name, values in cells.items():
        width = max(len(text) for text in (name, *values))
        columns.append([text.rjust(width) if numeric[name] else text.ljust(width) for text in (name, *values)])
    lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    return "\n".join([caption, *lines])


def _number(value: float, digits: int) -> str:
    if math.isinf(value):
        return "\N{MINUS SIGN}\N{INFINITY}" if value < 0 else "\N{INFINITY}"
    text = f"{0.0 if abs(value) < NEGLIGIBLE else value:.{digits}f}"
    if float(text) == 0:
        # a small p value or learning rate must not read as nothing
        text = f"{0:.{digits}f}" if abs(value) < NEGLIGIBLE else f"{value:.1e}"
    return text.replace("-", "\N{MINUS SIGN}")


def _missing(value: object) -> bool:
    return (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, float | np.floating) and math.isnan(value))
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
