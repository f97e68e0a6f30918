"""Tests the notes on columns that look like an identifier or a leak, and the notes on test rows that were seen in
training.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load, load_held_out
from foldserve.training.table.split import split_rows

ROWS = 200
RANDOM = np.random.default_rng(3)
LABELS = [str(label) for label in RANDOM.choice(["p", "q", "r"], ROWS)]
NUMBERS = RANDOM.normal(size=ROWS).round(6)
FREE = RANDOM.normal(size=ROWS).round(2)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (range(1000, 1000 + ROWS), "it rises or falls with every row"),
        (RANDOM.permutation(10 * ROWS)[:ROWS], "its whole numbers are all different"),
        (np.cumsum(RANDOM.random(ROWS)), "it rises or falls with every row"),
    ],
)
def test_a_column_that_numbers_the_rows_is_noted(load_columns, cells, said):
    notes = load_columns({"id": cells, "a": FREE, "y": LABELS}).notes
    assert notes == (f"column 'id' looks like an identifier: {said}; if a new row would not have it, use --drop id",)


@pytest.mark.parametrize(
    "cells", [FREE, RANDOM.normal(size=ROWS), RANDOM.integers(0, 500, ROWS), ["a", "b"] * (ROWS // 2)]
)
def test_an_ordinary_column_is_not_noted(load_columns, cells):
    assert load_columns({"a": cells, "y": LABELS}).notes == ()
    assert load_columns({"a": cells, "y": NUMBERS}).notes == ()


def test_the_column_of_times_is_not_an_identifier(load_columns):
    assert load_columns({"t": range(ROWS), "a": FREE, "y": LABELS}, time="t").notes == ()


@pytest.mark.parametrize(
    ("leak", "target", "said"),
    [
        (LABELS, LABELS, "column 'leak' is equal to the target, 'y'"),
        (NUMBERS, NUMBERS, "column 'leak' is equal to the target, 'y'"),
        ([*"01"] * (ROWS // 2), [*"01"] * (ROWS // 2), "column 'leak' is equal to the target, 'y'"),
        ([label.upper() for label in LABELS], LABELS, "column 'leak' alone predicts the target near perfectly"),
        (NUMBERS * 3 + 5 + RANDOM.normal(0, 0.01, ROWS), NUMBERS, "column 'leak' alone predicts the target near perf"),
        ([10 * ord(label) + RANDOM.random() for label in LABELS], LABELS, "alone predicts the target near perfectly"),
    ],
)
def test_a_leak_is_noted(load_columns, leak, target, said):
    notes = load_columns({"leak": leak, "a": FREE, "y": target}).notes
    assert len(notes) == 1
    assert said in notes[0]
    assert notes[0].endswith("if a new row would not have it, use --drop leak")


@pytest.mark.parametrize("source", ["digits", "iris", "breast_cancer", "diabetes", "wine"])
def test_no_column_of_a_well_known_table_is_a_suspect(source):
    assert not [note for note in load(DataOptions(source)).notes if "identifier" in note or "target" in note]


def test_a_named_index_of_pandas_is_left_out(tmp_path):
    table = pa.table({"a": range(10), "who": range(10), "y": [*"pq"] * 5})
    pandas = {"index_columns": ["who"], "columns": []}
    pa.parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), tmp_path / "t.parquet")
    read = load(DataOptions(str(tmp_path / "t.parquet")))
    assert read.features == ("a",)
    assert read.notes == ("the index that pandas stored, 'who', was left out",)


def held_out(write, train, test, **options):
    options = DataOptions(str(write(train, "train.csv")), test=write(test, "test.csv"), **options)
    table = load(options)
    return load_held_out(options, table, split_rows(table, test=0, validation=0.2, seed=0))


def test_test_rows_that_were_seen_in_training_are_left_out(write):
    train = {"a": range(10), "b": ["", *[0] * 9], "y": [*"pq"] * 5}
    test = {"a": [0, 1, 1, 20, 21, 22], "b": ["", "-0", 0, 0, 0, 0], "y": [*"pqpppp"]}
    left = held_out(write, train, test)
    assert left.x[:, 0].tolist() == [1, 20, 21, 22]  # one row with a = 1 stays, because its label differs
    assert left.notes == (
        "2 of 6 test rows are equal to a row that the model was trained with, and are left out of the test; use "
        "--keep-duplicates to keep them",
    )
    kept = held_out(write, train, test, keep_duplicates=True)
    assert len(kept.y) == 6
    assert kept.notes == (
        "2 of 6 test rows are equal to a row that the model was trained with; they are part of the test figures",
    )


def test_common_rows_stay_in_the_test(write):
    train = {"a": [0, 1] * 5, "y": [*"pq"] * 5}
    assert len(held_out(write, train, {"a": [0, 1, 5], "y": [*"pqp"]}).y) == 3


def test_duplicates_within_one_table_are_found(load_columns):
    numbers = [*NUMBERS[:80], *NUMBERS[:20]]
    table = load_columns({"a": [*range(80), *range(20)], "y": numbers})
    split = split_rows(table, test=0.2, validation=0.1, seed=0)
    seen = {tuple(row) for part in (split.train, split.validation) for row in np.c_[table.x, table.y][part]}
    expected = [row for row in split.test if tuple(np.c_[table.x, table.y][row]) not in seen]
    assert len(expected) < len(split.test)
    found = load_held_out(DataOptions("t.csv"), table, split)
    np.testing.assert_array_equal(found.x, table.x[expected])
