"""The text of a cell may be a number in the column's notation, a boolean, or a missing value. A cell with any other
text is refused.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.bundle import Reading

DOLLARS = {"thousands": ",", "unit": "$", "accounting": True}
EURO = {"decimal": ",", "thousands": ".", "unit": "€"}


@pytest.mark.parametrize(
    ("reading", "text", "value"),
    [
        ({}, "1234.5", 1234.5),
        ({}, " -1.5e3 ", -1500),
        ({}, "+.5", 0.5),
        ({}, "\u22125", -5),
        ({"decimal": ","}, "99,2", 99.2),
        ({"decimal": ",", "thousands": "."}, "1.234.567,5", 1234567.5),
        ({"decimal": ",", "thousands": " "}, "1\u202f234,5", 1234.5),
        ({"thousands": "'"}, "1\u2019234.5", 1234.5),
        ({"thousands": ","}, "1,234.56", 1234.56),
        ({"thousands": ","}, "1234.56", 1234.56),
        ({"unit": "%"}, "45 %", 45),
        (DOLLARS, "$1,234.50", 1234.5),
        (DOLLARS, "-$5", -5),
        (DOLLARS, "$-5", -5),
        (DOLLARS, "($1,000)", -1000),
        (DOLLARS, "$(3)", -3),
        (DOLLARS, "7", 7),
        (EURO, "1.234,50\u00a0€", 1234.5),
        ({"accounting": True}, "(12.5)", -12.5),
    ],
)
def test_a_number_is_read_in_its_notation(reading, text, value):
    assert Reading(**reading).number(text) == value


@pytest.mark.parametrize(
    ("reading", "text"),
    [
        ({}, "1,5"),
        ({}, "1_000"),
        ({}, "0x1"),
        ({}, "(5)"),
        ({}, "$5"),
        ({}, "inf"),
        ({}, "1e400"),
        ({}, "\u0663"),
        ({"thousands": ","}, "1,23"),
        ({"thousands": ","}, "0,123"),
        ({"decimal": ","}, "1.5"),
        ({"unit": "$"}, "€5"),
        ({"unit": "$"}, "$"),
        (DOLLARS, "--5"),
        (DOLLARS, "-$-5"),
    ],
)
def test_another_notation_is_refused(reading, text):
    with pytest.raises(ValueError, match=r"not a number|infinite"):
        Reading(**reading).number(text)


@pytest.mark.parametrize("text", ["", "  ", "?", " ? ", "-999", "-999.0", "nan", "NaN"])
def test_missing_texts_and_numbers_have_no_value(text):
    assert Reading(missing=("?", "-999")).number(text) is None


def test_booleans_have_the_spellings_of_the_reading():
    reading = Reading(missing=("?",), true=("yes",), false=("no",))
    assert [reading.boolean(text) for text in ("Yes", " no ", "?", "")] == [True, False, None, None]
    with pytest.raises(ValueError, match="not a boolean"):
        reading.boolean("true")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_plain_reading_agrees_with_python(value):
    assert Reading().number(repr(value)) == value


@given(st.integers(-(10**15), 10**15), st.integers(0, 99), st.sampled_from([".", ","]))
def test_grouped_digits_agree_with_python_s_format(whole, hundredths, thousands):
    decimal = "," if thousands == "." else "."
    text = f"{whole:,}".replace(",", thousands) + f"{decimal}{hundredths:02}"
    assert Reading(decimal=decimal, thousands=thousands).number(text) == float(f"{whole}.{hundredths:02}")
