from fractions import Fraction

import pytest

from stda import BadInput
from stda.measure.claims.numbers import Printed, count_text, parse_count, parse_rate, span, whole_numbers


def thousandths(low, high):
    return Fraction(low, 1000), Fraction(high, 1000)


@pytest.mark.parametrize(
    ("cell", "low", "high"),
    [
        (".34", 335, 345),
        ("0,34", 335, 345),
        ("34 %", 335, 345),
        ("34%", 335, 345),
        ("34.0 %", Fraction(3395, 10), Fraction(3405, 10)),
        ("**0.340**", Fraction(3395, 10), Fraction(3405, 10)),
        ("0.3", 250, 350),
        ("0", 0, 500),
        (".00", 0, 5),
        ("1.00", 995, 1000),
        ("100 %", 995, 1000),
        ("3.4e-01", 335, 345),
        ("143/286", 500, 500),
    ],
)
def test_a_rate_stands_for_half_a_unit_of_its_last_digit(cell, low, high):
    printed = parse_rate(cell, what="recall")
    assert (printed.low, printed.high) == thousandths(*(Fraction(end) for end in (low, high)))


def test_a_plain_number_is_a_percentage_where_its_column_is():
    assert parse_rate("34.0", what="recall", percent=True) == Printed(
        "34.0", Fraction(3395, 10_000), Fraction(3405, 10_000), True, 3
    )


def test_the_noise_of_a_double_is_not_believed():
    printed = parse_rate(repr(53 / 63), what="recall")
    assert printed.low <= Fraction(53, 63) <= printed.high
    assert printed.high - printed.low == Fraction(1, 10**12)


@pytest.mark.parametrize("cell", ["", "-", "–", "n/a", "nan", "NaN", " ", "0/0"])
def test_an_empty_cell_is_no_number(cell):
    assert parse_rate(cell, what="recall") is None


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("1.2", "recall is 1.2, more than 1"),
        ("120 %", "recall is 120 %, more than 100 %"),
        ("5/4", "more than 1"),
        ("-0.1", "not one number"),
        (".34 ± .02", "averages over several runs"),
        (".34 (.30, .38)", "not one number"),
        ("good", "not one number"),
    ],
)
def test_what_is_no_rate_is_said_in_a_sentence(cell, said):
    with pytest.raises(BadInput, match="recall is") as error:
        parse_rate(cell, what="recall")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        ("3863", (3863, 3863)),
        ("3,863", (3863, 3863)),
        ("3 863", (3863, 3863)),
        ("3\u00a0863", (3863, 3863)),
        ("3'863", (3863, 3863)),
        ("3.863", (3863, 3863)),
        ("1,003,863", (1003863, 1003863)),
        ("38.0", (38, 38)),
        ("3,862-3,863", (3862, 3863)),
        ("3862 to 3863", (3862, 3863)),
    ],
)
def test_a_count_may_have_separators_or_be_a_range(cell, count):
    assert parse_count(cell, what="support") == count


@pytest.mark.parametrize("cell", ["38.5", "many", "3.000", "20-10", "38,63"])
def test_what_is_no_count_is_said_in_a_sentence(cell):
    with pytest.raises(BadInput, match=r"support is '.+', which is .+; write"):
        parse_count(cell, what="support")


def test_whole_numbers_are_those_inside_the_interval():
    rate = parse_rate(".34", what="recall")
    for total in range(60):
        fits = [k for k in range(total + 1) if rate.low * total <= k <= rate.high * total]
        low, high = whole_numbers(rate, total)
        assert list(range(low, high + 1)) == fits


def test_an_interval_is_shown_with_digits_that_tell_it_from_what_is_printed():
    printed = parse_rate(".11", what="F1")
    assert span(Fraction(1219, 10_000), Fraction(1356, 10_000), printed) == "0.122 to 0.136"
    assert span(Fraction(11502, 100_000), Fraction(12, 100), printed) == "0.11502 to 0.12000"
    assert count_text(3862, 3863) == "3,862 to 3,863"
