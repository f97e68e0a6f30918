"""Tests the loading of a table and its test file: column names, notes, progress, and the hash."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import datasets

from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load, load_held_out, load_test
from foldserve.training.table.split import split_rows
from tests.training.table.support import Y


def test_digits_has_scikit_learn_s_values_and_integer_labels():
    table = load(DataOptions("digits"))
    raw = datasets.load_digits()
    np.testing.assert_array_equal(table.x, raw.data)
    np.testing.assert_array_equal(table.y, raw.target)
    assert table.labels == tuple(range(10))
    assert all(type(label) is int for label in table.labels)
    assert table.features == tuple(raw.feature_names)
    assert table.notes == ("constant, and so useless: pixel_0_0, pixel_4_0, pixel_4_7",)


def test_an_unknown_source_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"unknown source 'mnist': expected .*digits"):
        load(DataOptions("mnist"))


def test_a_test_file_is_encoded_by_the_table_s_schema(write):
    train = write({"n": range(10), "c": [*"aabbaabba", ""], "y": Y}, "train.csv")
    test = write({"y": ["q", "p", "q"], "extra": [1, 2, 3], "c": ["zebra", "", "b"], "n": [1.5, 2, 3.5]}, "test.csv")
    options = DataOptions(str(train), test=test)
    table = load(options)
    assert table.notes == ("columns of test.csv that are not in the table: extra",)
    parts = split_rows(table, test=0, validation=0.2, seed=0)
    held_out = load_held_out(options, table, parts)
    assert (held_out.columns, held_out.labels) == (table.columns, table.labels)
    np.testing.assert_array_equal(held_out.y, [1, 0, 1])
    np.testing.assert_array_equal(held_out.x, np.array([[1.5, 2], [2, np.nan], [3.5, 1]], "f4"))


def test_the_columns_that_are_no_features_are_kept_by_name(write):
    columns = {"n": range(30), "id": [f"key {i}" for i in range(30)], "empty": [""] * 30, "g": [*"abc"] * 10}
    columns |= {"when": [f"2024-01-{day:02}" for day in range(1, 31)], "c": [*"ab"] * 15, "y": [*"pq"] * 15}
    options = DataOptions(str(write(columns)), drop=("when",), group="g")
    table = load(options)
    assert (table.features, table.left_out) == (("n", "c"), ("id", "empty", "g", "when"))


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ({"n": ["", 1], "c": "ab", "y": "pq"}, "test.csv: column 'n': row 1 has no value, but every row"),
        ({"n": [0, 1], "c": "ab", "y": "pr"}, "test.csv: column 'y', the target: row 2 is 'r', which is not a class"),
        ({"n": [0, 1], "c": "ab", "y": ["p", ""]}, "the target: row 2 has no value"),
        ({"n": [0, "x"], "c": "ab", "y": "pq"}, "column 'n' must be numeric"),
        ({"n": [0], "c": "a", "y": "p"}, "has 1 row"),
    ],
)
def test_a_test_file_that_does_not_fit_is_refused(write, test, reason):
    options = DataOptions(
        str(write({"n": range(10), "c": [*"aabbaabbab"], "y": Y}, "train.csv")), test=write(test, "test.csv")
    )
    table = load(options)
    with pytest.raises(DataError, match=reason):
        load_test(options, table)


def test_a_test_file_that_lacks_a_column_is_refused_before_the_training(write):
    train = str(write({"n": range(10), "c": [*"aabbaabbab"], "y": Y}, "train.csv"))
    with pytest.raises(DataError, match=r"test.csv has no column 'c', a column of the training table; it has n, y"):
        load(DataOptions(train, test=write({"n": [1], "y": ["p"]}, "test.csv")))
    with pytest.raises(DataError, match="no such file"):
        load(DataOptions(train, test=write({"n": [1], "y": ["p"]}).with_name("none.csv")))


def test_the_hash_covers_schema_and_values():
    table = load(DataOptions("iris"))
    assert table.sha256() == load(DataOptions("iris")).sha256()
    changed = table.x.copy()
    changed[0, 0] += 1
    assert replace(table, x=changed).sha256() != table.sha256()
    assert replace(table, columns=table.columns[::-1]).sha256() != table.sha256()


def test_progress_rises_to_one(write):
    seen = []
    load(DataOptions(str(write({"a": range(10), "b": range(10), "y": Y}))), seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_european_file_is_a_table_without_a_flag(tmp_path):
    rows = "".join(f"{i % 7},{i:02};1.{i:03},50 €;{'Küche' if i % 2 else 'Bad'}\n" for i in range(40))
    path = tmp_path / "t.csv"
    path.write_text(f"größe;preis;raum\n{rows}", encoding="cp1252")
    table = load(DataOptions(str(path)))
    assert table.labels == ("Bad", "Küche")
    assert table.features == ("größe", "preis")
    np.testing.assert_array_equal(table.x[9], np.array([2.09, 1009.5], np.float32))
