"""Rare classes are refused with a remedy, dropped, or merged into one class."""

import pytest

from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load, load_test

RARE = {"a": range(14), "y": [*"ppppqqqq", "r", "s", "s", "p", "q", "t"]}


def test_a_rare_class_is_refused_with_the_flags_that_settle_it(load_columns):
    with pytest.raises(DataError, match=r"class 'r' has 1 row: it needs 3, .*; use --rare drop .* or --rare merge"):
        load_columns(RARE)


def test_the_rows_of_rare_classes_are_dropped(load_columns):
    table = load_columns(RARE, rare="drop")
    assert table.labels == ("p", "q")
    assert table.x[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 11, 12]
    assert table.y.tolist() == [0] * 4 + [1] * 4 + [0, 1]
    assert table.notes == ("3 classes with fewer than 3 rows, dropped with 4 rows: r, s, t",)


def test_groups_and_times_follow_the_rows_that_are_left(load_columns):
    table = load_columns({"g": range(14), **RARE}, rare="drop", group="g")
    assert len(table.group) == len(table.y) == 10


def test_rare_classes_are_merged(load_columns):
    table = load_columns(RARE, rare="merge")
    assert table.labels == ("other", "p", "q")
    assert [table.labels[y] for y in table.y] == [label if label in "pq" else "other" for label in map(str, RARE["y"])]
    assert table.notes == ("3 classes with fewer than 3 rows, merged into the class 'other': r, s, t",)


def test_merged_whole_numbers_become_texts(load_columns):
    table = load_columns({"a": range(12), "y": [*"111122223456"]}, rare="merge")
    assert table.labels == ("1", "2", "other")


@pytest.mark.parametrize(
    ("labels", "rare", "reason"),
    [
        ([*"ppppqqqqr"], "merge", "the rare classes have 1 row together: it needs 3.*use --rare drop"),
        ([*"ppppqrst"], "drop", "has too few classes of at least 3 rows"),
        ([*"qrst"], "merge", "has no class of at least 3 rows"),
        (["other"] * 4 + [*"ppppqrs"], "merge", "has a class 'other' already: use --rare drop"),
    ],
)
def test_rare_classes_that_neither_flag_can_settle_are_refused(load_columns, labels, rare, reason):
    with pytest.raises(DataError, match=reason):
        load_columns({"a": range(len(labels)), "y": labels}, rare=rare)


@pytest.mark.parametrize("labels", [[*"ppppqqqqrst"], [*"11112222345"]], ids=["texts", "numbers"])
def test_a_test_file_has_the_same_classes(write, labels):
    train = write({"a": range(11), "y": labels}, "train.csv")
    test = write({"a": [1, 2, 3], "y": [labels[0], labels[-1], labels[4]]}, "test.csv")
    options = DataOptions(str(train), test=test, rare="drop")
    dropped = load_test(options, load(options))
    assert (dropped.x[:, 0].tolist(), dropped.y.tolist()) == ([1, 3], [0, 1])
    options = DataOptions(str(train), test=test, rare="merge")
    merged = load_test(options, load(options))
    assert [str(merged.labels[y]) for y in merged.y] == [labels[0], "other", labels[4]]
