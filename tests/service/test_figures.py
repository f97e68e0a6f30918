"""Tests how numbers become text. The digits are compared with Python's decimal arithmetic."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.figures import (
    count_of,
    format_change,
    format_difference,
    format_duration,
    format_figure,
    format_percent,
    format_value,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.97214, "0.9721"),
        (1.0, "1.000"),
        (0.99996, "1.000"),
        (12.3, "12.30"),
        (1234.56, "1,235"),
        (1234567.8, "1,234,568"),
        (0.00012345, "0.0001234"),
        (3.2e-6, "3.200e-06"),
        (2e12, "2.000e+12"),
        (1e-15, "0"),
        (-0.5, "-0.5000"),
        (math.nan, "\N{EN DASH}"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
    ],
)
def test_a_figure_has_four_digits_and_groups_of_three(value, text):
    assert format_figure(value) == text


@given(st.floats(1e-4, 1e11))
def test_a_figure_is_off_by_half_of_its_fourth_digit_at_most(value):
    step = Decimal(10) ** (Decimal(value).adjusted() - 3)
    assert abs(Decimal(format_figure(value).replace(",", "")) - Decimal(value)) <= step / 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1500.0, "1,500"),
        (32.1, "32.1"),
        (-0.25, "-0.25"),
        (1e9, "1,000,000,000"),
        (1.5e-7, "1.5e-07"),
    ],
)
def test_a_value_of_a_table_has_no_zeros_at_its_end(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.9721, "97.2%"), (0, "0.0%"), (1, "100.0%"), (0.9998, "99.98%"), (0.00004, "0.004%"), (math.nan, "\N{EN DASH}")],
)
def test_a_share_is_0_or_100_percent_only_if_it_is_exactly_that(share, text):
    assert format_percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.211e-6, "4.21 µs"), (0.01371, "13.7 ms"), (0.15, "150 ms"), (1.5, "1.50 s"), (2000, "2,000 s")],
)
def test_a_duration_has_three_digits_and_a_fitting_unit(seconds, text):
    assert format_duration(seconds) == text


def test_changes_differences_and_counts():
    assert [format_change(20, after) for after in (10, 20, 20.1, 30)] == ["-50%", "no change", "+0.5%", "+50%"]
    assert [format_difference(value) for value in (3.21e-7, 0.0123)] == ["3.2e-07", "0.012"]
    assert [count_of(n, "row") for n in (0, 1, 1000)] == ["0 rows", "1 row", "1,000 rows"]
    assert count_of(2, "class") == "2 classes"
