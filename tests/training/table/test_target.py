"""Tests the target: its task, its labels, and the labels of a test file."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load, load_test
from tests.training.table.support import Y


def test_class_names_become_the_labels():
    assert load(DataOptions("iris")).labels == ("setosa", "versicolor", "virginica")


def test_a_regression_has_no_labels():
    table = load(DataOptions("diabetes"))
    assert (table.task, table.labels, table.y.dtype) == ("regression", (), np.float64)


@pytest.mark.parametrize(
    ("target", "options", "task", "labels"),
    [
        ([*"0123401234"] * 2, {}, "classification", (0, 1, 2, 3, 4)),
        (["1.0", "2.0"] * 10, {}, "classification", (1, 2)),
        (["True", "false"] * 10, {}, "classification", (False, True)),
        (["NA", "nan"] * 10, {}, "classification", ("NA", "nan")),
        ([*map(str, range(30))], {}, "regression", ()),
        (["0.5", "1.5"] * 10, {}, "regression", ()),
        (["0.5", "1.5"] * 10, {"task": "classification"}, "classification", (0.5, 1.5)),
        ([*"0123401234"] * 2, {"task": "regression"}, "regression", ()),
        (["01", "2", "x"] * 10, {"task": "classification"}, "classification", ("01", "2", "x")),
    ],
)
def test_the_target_decides_the_task_and_the_labels(load_columns, target, options, task, labels):
    table = load_columns({"a": range(len(target)), "y": target}, **options)
    assert (table.task, table.labels) == (task, labels)
    assert [type(label) for label in table.labels] == [type(label) for label in labels]
    if labels:
        assert [str(table.labels[y]).lower() for y in table.y] == [
            text.lower().removesuffix(".0") for text in map(str, target)
        ]


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ([*"pqpqpqpqp", ""], {}, "column 'y', the target: row 10 has no value"),
        ([*"0101", "nan", *"01010"], {}, "the target: row 5 has no value"),
        ([*"0101", "inf", *"01010"], {"task": "classification"}, "the target: row 5 is infinite"),
        (["0.5", "1", "inf", *"0123456"], {}, "column 'y': row 3 is infinite"),
        (["0.5", "1", " ", *"0123456"], {}, "the target: row 3 has no value"),
        (["p"] * 10, {}, "has only one class, 'p'"),
        (["1"] * 10, {"task": "regression"}, "has only one value, 1"),
        ([*"ppppqqqqr", "r"], {}, "class 'r' has 2 rows: it needs 3"),
        ([*"ppppppppp", "r"], {}, "class 'r' has 1 row: it needs 3"),
        ([*"012345678", "x"], {}, "looks numeric, but 1 of 10 cells .* row 10: 'x'; correct them, or use --task"),
        (Y, {"task": "regression"}, "column 'y' must be numeric"),
        (Y, {"target": "z"}, "--target: table.csv has no column 'z'; it has a, y"),
        (Y, {"drop": ("y",)}, "--drop: column 'y' is the target"),
        (Y, {"categorical": ("b",)}, "--categorical: table.csv has no column 'b'"),
        (Y, {"drop": ("a",)}, "no feature besides the target, 'y'"),
    ],
)
def test_an_unusable_target_is_refused(load_columns, target, options, reason):
    with pytest.raises(DataError, match=reason):
        load_columns({"a": range(10), "y": target}, **options)


def test_numbers_as_labels_and_categories_are_found_in_a_test_file(write):
    train = write({"c": [3, 4] * 5, "y": [0, 1] * 5}, "train.csv")
    options = DataOptions(str(train), categorical=("c",), test=write({"c": [4, 5], "y": ["1", "0.0"]}, "test.csv"))
    table = load(options)
    held_out = load_test(options, table)
    assert held_out.x.ravel().tolist() == [1, 2]
    assert held_out.y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["007", "008"], ("007", "008")),
        (["01", "1"], ("01", "1")),
        ([f"{code:03}" for code in range(30)], tuple(f"{code:03}" for code in range(30))),
    ],
    ids=["two", "that differ by a zero alone", "many"],
)
def test_codes_with_leading_zeros_stay_texts(load_columns, cells, labels):
    table = load_columns({"a": range(10 * len(cells)), "y": cells * 10})
    assert (table.task, table.labels) == ("classification", labels)


@pytest.mark.parametrize("cells", [["01", "02"], ["1.0", "nan"], ["3", "4"]], ids=str)
def test_a_text_in_parquet_stays_a_text_label(tmp_path, cells):
    pa.parquet.write_table(pa.table({"a": range(10), "y": cells * 5}), tmp_path / "t.parquet")
    options = DataOptions(str(tmp_path / "t.parquet"), test=tmp_path / "t.parquet")
    table = load(options)
    assert table.labels == tuple(cells)
    assert load_test(options, table).y.tolist() == [0, 1] * 5


def test_a_test_file_may_write_a_numeric_label_in_another_form(write):
    train = write({"n": range(10), "y": ["0.5", "1"] * 5}, "train.csv")
    test = write({"n": [1, 2], "y": ["1", "1.0"]}, "test.csv")
    options = DataOptions(str(train), test=test, task="classification")
    assert load_test(options, load(options)).y.tolist() == [1, 1]
    truths = write({"n": [1, 2], "y": ["true", "true"]}, "truths.csv")
    with pytest.raises(DataError, match="its classes are 0"):
        load_test(replace(options, test=truths), load(options))
