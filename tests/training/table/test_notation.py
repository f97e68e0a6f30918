"""Tests tables with numbers in several notations.

A column is read if one notation fits all its cells. A column is refused if its cells can be read as two different sets
of numbers.
"""

import numpy as np
import pytest

from foldserve.service.bundle import Reading
from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions
from foldserve.training.summary import describe_table
from foldserve.training.table.load import load, load_test
from tests.training.table.support import Y

NOTATIONS = {
    "thousands": (["1,234.56", "12"], [1234.56, 12], {"thousands": ","}, "as 1,234.5"),
    "millions": (["1,234,567", "1,234"], [1234567, 1234], {"thousands": ","}, "as 1,234.5"),
    "decimal comma": (["99,2", "1"], [99.2, 1], {"decimal": ","}, "as 1234,5"),
    "German": (["1.234,5", "1.234"], [1234.5, 1234], {"decimal": ",", "thousands": "."}, "as 1.234,5"),
    "French": (["1\u202f234,5", "9"], [1234.5, 9], {"decimal": ",", "thousands": " "}, "as 1 234,5"),
    "Swiss": (["1'234.50", "9"], [1234.5, 9], {"thousands": "'"}, "as 1'234.5"),
    "dollars": (["$198.40", "-$2"], [198.4, -2], {"unit": "$"}, "as $1234.5"),
    "euros": (["1.234,50 €", "2 €"], [1234.5, 2], {"decimal": ",", "thousands": ".", "unit": "€"}, "as €1.234,5"),
    "a code": (["USD 5", "USD 7.5"], [5, 7.5], {"unit": "USD"}, "as 1234.5 USD"),
    "percent": (["45%", "0"], [45, 0], {"unit": "%"}, "as 12.5%"),
    "accounting": (["(1,234.5)", "12"], [-1234.5, 12], {"thousands": ",", "accounting": True}, "or (1,234.5)"),
    "a minus sign": (["\u22125", "5e2"], [-5, 500], {}, "1 numeric"),
}


@pytest.mark.parametrize("name", NOTATIONS)
def test_a_column_with_one_notation_is_read_and_the_notation_is_reported(load_columns, name):
    cells, values, reading, said = NOTATIONS[name]
    table = load_columns({"a": cells * 5, "y": Y})
    (column,) = table.columns
    assert (column.kind, column.reading) == ("numeric", Reading(**reading))
    np.testing.assert_array_equal(table.x[:, 0], np.array(values * 5, np.float32))
    assert said in describe_table(table)


@pytest.mark.parametrize("name", NOTATIONS)
def test_a_target_in_any_notation_is_a_regression(load_columns, name):
    cells, values, reading, _ = NOTATIONS[name]
    options = {} if reading else {"task": "regression"}  # a target of plain numbers could also be read as classes
    table = load_columns({"a": range(10), "y": cells * 5}, **options)
    assert (table.task, table.labels, table.target_reading) == ("regression", (), Reading(**reading))
    assert table.y.tolist() == values * 5


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (["1,234", "5"], "'1,234' is 1.234 with --decimal , or 1234 with --thousands ,; say which, or use --categ"),
        (["$1.234", "$5"], r"'\$1.234' is 1.234 with --decimal . or 1234 with --thousands \."),
        (["$5", "€5"], r"looks numeric, but its numbers have no notation in common, as '\$5' and '€5'; use --cat"),
        (["45%", "0.45"], "no notation in common, as '45%' and '0.45'"),
        (["1,5", "1.5"], "no notation in common, as '1,5' and '1.5'"),
        (["45%", "45%", "unknown"], r"2 of 10 cells are not numbers, .*'unknown'; use --missing unknown"),
    ],
)
@pytest.mark.parametrize("target", [False, True])
def test_a_column_with_two_readings_or_none_is_refused(load_columns, cells, reason, target):
    column = (cells * 5)[:10] if len(cells) == 2 else [*cells * 2, *["45%"] * 4]
    columns = {"a": range(10), "y": column} if target else {"a": column, "y": Y}
    with pytest.raises(DataError, match=reason.partition(";")[0]) as refused:
        load_columns(columns)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "cells", "values"),
    [
        ({"decimal": ","}, ["1,234", "5"], [1.234, 5]),
        ({"thousands": ","}, ["1,234", "5"], [1234, 5]),
        ({"decimal": "."}, ["1,234", "5"], [1234, 5]),
        ({"decimal": ","}, ["1.234", "5"], [1234, 5]),
        ({"thousands": "."}, ["1.234", "5"], [1234, 5]),
        ({"decimal": "."}, ["$1.234", "$5"], [1.234, 5]),
    ],
)
def test_the_flags_settle_an_ambiguous_column(load_columns, options, cells, values):
    table = load_columns({"a": cells * 5, "y": Y}, **options)
    np.testing.assert_array_equal(table.x[:, 0], np.array(values * 5, np.float32))


def test_a_column_that_contradicts_a_flag_is_refused(load_columns):
    with pytest.raises(DataError, match=r"'5\.1' has another notation than --decimal and --thousands demand"):
        load_columns({"a": ["5.1", "7.2"] * 5, "y": Y}, decimal=",")
    with pytest.raises(ValueError, match="--decimal and --thousands must differ"):
        DataOptions("t.csv", decimal=",", thousands=",")


def test_a_test_file_is_read_in_the_notation_of_the_training_table(write):
    train = write({"a": ["1.234,5", "7"] * 5, "y": ["9%", "8%"] * 5}, "train.csv")
    test = write({"a": ["1.234", "2,5"], "y": ["1%", "2.5%"]}, "test.csv")
    options = DataOptions(str(train), test=test)
    table = load(options)
    held_out = load_test(options, table)
    np.testing.assert_array_equal(held_out.x[:, 0], np.array([1234, 2.5], np.float32))
    assert held_out.y.tolist() == [1, 2.5]


def test_a_whole_number_past_float64_is_refused_in_every_notation(load_columns):
    with pytest.raises(DataError, match="row 1 is 9007199254740993, an integer past"):
        load_columns({"a": ["9,007,199,254,740,993", *["1,000,000"] * 9], "y": Y})


@pytest.mark.parametrize("cells", [["A12", "B7"], ["10-20", "20-30"], ["1.2.3", "1.2.4"], ["12 kg", "5 kg"]])
def test_texts_with_digits_stay_categories(load_columns, cells):
    assert load_columns({"a": cells * 5, "y": Y}).columns[0].categories == tuple(sorted(cells))


def test_missing_numbers_and_texts_with_blanks_have_no_value(load_columns):
    cells = ["-999", " -999.0", " ?", "?", "1", "2", "3", "4", "5", "6"]
    table = load_columns({"a": cells, "y": Y}, missing=("?", "-999"))
    assert np.isnan(table.x[:4, 0]).all()
    assert not np.isnan(table.x[4:, 0]).any()
