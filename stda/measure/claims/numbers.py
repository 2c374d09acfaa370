"""Printed numbers as exact intervals: a number with its last digit rounded stands for all that rounds to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

from stda import BadInput

BLANK = {"", "-", "--", "–", "—", "n/a", "na", "nan", "none", "null", "..."}
MOST_DECIMALS = 12  # more are the noise of a double, not something that was computed exactly
SEPARATORS = " \u00a0\u2009\u202f'’_"  # between thousands


@dataclass(frozen=True)
class Printed:
    """A rate as printed, and the closed interval ``[low, high]`` within [0, 1] of what it can stand for."""

    text: str
    low: Fraction
    high: Fraction
    percent: bool = False
    digits: int = 2  # decimals of the rate as a fraction: 34.5 % has 3

    def meets(self, low: Fraction, high: Fraction) -> bool:
        """Say whether a value between ``low`` and ``high`` rounds to what is printed."""
        return self.low <= high and low <= self.high


def tidy(cell: str) -> str:
    """Return the words of a cell without Markdown's or LaTeX's emphasis and with plain spaces."""
    cell = re.sub(r"\\(?:textbf|textit|mathbf|emph|underline|text|textsc|bm)\{([^}]*)\}", r"\1", cell)
    cell = re.sub(r"\{\\(?:bf|it|em|bfseries|itshape)\s+([^}]*)\}", r"\1", cell.replace(r"\pm", "\N{PLUS-MINUS SIGN}"))
    return re.sub(r"[*`$\\]|__", "", cell.replace("\u00a0", " ").replace("\u2212", "-")).strip()


def parse_rate(cell: str, *, what: str, percent: bool = False) -> Printed | None:
    """Read a rate such as ``.34``, ``0,34``, ``34 %`` or ``143/182``; None for an empty cell.

    The number stands for half a unit of its last printed digit to both sides, ends included (so rounding half up and
    half to even are both covered); trailing zeros count.  A fraction of whole numbers is exact.  ``percent`` says that
    a number without a sign is a percentage.

    Raises:
        BadInput: more than one number (a spread over runs), not a number, or outside 0 to 1; ``what`` names it.
    """
    text = tidy(cell)
    if text.lower() in BLANK:
        return None
    if fraction := re.fullmatch(r"(\d+)\s*/\s*(\d+)", text):
        return _exact(text, int(fraction[1]), int(fraction[2]), what)
    number = text.removesuffix("%").strip().replace(",", ".")
    if not re.fullmatch(r"(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", number.lower()):
        raise BadInput(
            f"{what} is '{text}', which is not one number from 0 to 1 or 0 to 100 %; leave out intervals; averages "
            "over several runs (with \N{PLUS-MINUS SIGN}) cannot be audited, the table of one run can."
        )
    percent = percent or text.endswith("%")
    decimals = max(0, -Decimal(number).as_tuple().exponent)
    value, half = Fraction(Decimal(number)), Fraction(1, 2 * 10 ** min(decimals, MOST_DECIMALS))
    scale = 100 if percent else 1
    if value > scale:
        raise BadInput(f"{what} is {text}, more than {'100 %' if percent else '1'}; correct it (a rate cannot be).")
    low, high = (value - half) / scale, (value + half) / scale
    return Printed(text, max(low, Fraction(0)), min(high, Fraction(1)), percent, decimals + 2 * percent)


def parse_count(cell: str, *, what: str) -> tuple[int, int] | None:
    """Read a count such as ``3863``, ``3,863``, ``3 863``, ``3863.0``, ``3863,0`` or ``3862-3863`` as (least, most).

    Raises:
        BadInput: not a whole number, or one that can be read in two ways (``3.000``); ``what`` names it.
    """
    text = tidy(cell)
    if text.lower() in BLANK:
        return None
    ends = re.split(r"\s*(?:-|–|to)\s*", text) if re.search(r"\d\s*(-|–|to)\s*\d", text) else [text]
    values = [_whole(end.strip(), what) for end in ends]
    if len(values) > 2 or values[0] > values[-1]:
        raise BadInput(f"{what} is '{text}', which is no range of counts; write 3862-3863, the least first.")
    return values[0], values[-1]


def plain_above_one(cell: str) -> bool:
    """Say whether a cell holds a number above one without a percent sign, which only a percentage can be."""
    number = tidy(cell).replace(",", ".")
    return bool(re.fullmatch(r"\d+\.?\d*", number)) and Decimal(number) > 1


def plain_between(cell: str) -> bool:
    """Say whether a cell holds a number without a percent sign that is above 0 and at most 1."""
    number = tidy(cell).replace(",", ".")
    return bool(re.fullmatch(r"\d*\.?\d+|\d+\.", number)) and 0 < Decimal(number) <= 1


def whole_numbers(rate: Printed, total: int) -> tuple[int, int]:
    """Return the least and the most ``k`` with ``k / total`` inside what is printed; least above most if none is."""
    return ceil(rate.low * total), floor(rate.high * total)


def show(value: Fraction | int, digits: int = 3, *, percent: bool = False) -> str:
    """Write a rate as in the table it belongs to: 0.122, or 12.2 % (``digits`` are those of the fraction)."""
    if percent:
        return f"{float(value) * 100:.{max(digits - 2, 0)}f} %"
    return f"{float(value):.{digits}f}"


def span(low: Fraction, high: Fraction, against: Printed) -> str:
    """Write an interval with just enough digits to see on which side of what is printed it lies."""
    digits = against.digits + 1
    for digits in range(against.digits + 1, MOST_DECIMALS):
        scale = 10**digits
        if all(round(a * scale) != round(b * scale) for a, b in ((low, against.high), (high, against.low)) if a != b):
            break
    ends = [show(end, digits, percent=against.percent) for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def count_text(low: int, high: int) -> str:
    """Write a range of counts with thousands separated: 3,862 to 3,863."""
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _exact(text: str, part: int, whole: int, what: str) -> Printed | None:
    if whole == 0 and part == 0:
        return None
    if part > whole:
        raise BadInput(f"{what} is {text}, more than 1; correct it (a rate cannot be).")
    value = Fraction(part, whole)
    return Printed(text, value, value, digits=4)


def _whole(text: str, what: str) -> int:
    if re.fullmatch(r"\d{1,3}\.000", text):
        raise BadInput(f"{what} is '{text}', which is {text[:-4]} or {text.replace('.', '')}; write it without a dot.")
    if whole := re.fullmatch(r"(\d+)(?:\.0*|,00?)", text):
        text = whole[1]
    for mark in (",", ".", *SEPARATORS):
        if re.fullmatch(rf"\d{{1,3}}({re.escape(mark)}\d{{3}})+", text):
            text = text.replace(mark, "")
    if not re.fullmatch(r"\d+", text):
        raise BadInput(f"{what} is '{text}', which is no whole number; write it like 3863 or 3,863.")
    return int(text)
