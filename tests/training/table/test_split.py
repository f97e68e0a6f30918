"""Tests splits by class, by group and by time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions
from foldserve.training.table import schema
from foldserve.training.table.load import load
from foldserve.training.table.split import split_rows


def table(y, labels=(), group=None, time=None):
    y, group, time = (None if values is None else np.asarray(values) for values in (y, group, time))
    task = "classification" if labels else "regression"
    columns = (schema.Column("a", "numeric"),)
    return schema.Table("made", task, "y", columns, np.zeros((len(y), 1), "f4"), y, labels, group, time)


@pytest.mark.parametrize("source", ["digits", "diabetes"])
def test_the_three_parts_are_disjoint_and_cover_all_rows(source):
    loaded = load(DataOptions(source))
    split = split_rows(loaded, test=0.2, validation=0.1, seed=0)
    together = np.concatenate([split.train, split.validation, split.test])
    assert sorted(together) == list(range(len(loaded.x)))
    assert len(split.test) == round(0.2 * len(loaded.x))
    assert abs(len(split.validation) - 0.1 * len(loaded.x)) <= 1


def test_each_part_has_every_class_in_its_share():
    loaded = load(DataOptions("digits"))
    split = split_rows(loaded, test=0.2, validation=0.1, seed=3)
    whole = np.bincount(loaded.y) / len(loaded.y)
    for part in (split.train, split.validation, split.test):
        share = np.bincount(loaded.y[part], minlength=10) / len(part)
        np.testing.assert_allclose(share, whole, atol=0.01)


def test_the_seed_determines_the_split():
    made = table(np.arange(100.0))
    first, again, other = (split_rows(made, test=0.2, validation=0.1, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)


@pytest.mark.parametrize("counts", [(1000, 3), (1000, 4), (30, 3), (1000, 1000, 3)])
def test_a_rare_class_is_in_every_part(counts):
    made = table(np.repeat(np.arange(len(counts)), counts), tuple(range(len(counts))))
    for seed in range(20):
        split = split_rows(made, test=0.2, validation=0.1, seed=seed)
        for part in (split.train, split.validation, split.test):
            assert set(made.y[part]) == set(range(len(counts)))


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match="4 rows are too few"):
        split_rows(table(np.arange(4.0)), test=0.2, validation=0.1, seed=0)


def test_a_regression_has_two_rows_in_every_part_or_is_refused():
    with pytest.raises(DataError, match="5 rows are too few: at least 6"):
        split_rows(table(np.arange(5.0)), test=0.2, validation=0.1, seed=0)
    for count in (6, 14, 200):
        made = split_rows(table(np.arange(float(count))), test=0.001, validation=0.001, seed=0)
        assert min(len(made.train), len(made.validation), len(made.test)) == 2
    moments = np.array([0] * 8 + [1] + [2] * 3)
    with pytest.raises(DataError, match="leaves 1 row for validation: at least 2"):
        split_rows(table(np.arange(12.0), time=moments), test=0.2, validation=0.01, seed=0)


def test_with_a_test_file_the_table_has_no_test_rows():
    split = split_rows(table(np.arange(50.0)), test=0.0, validation=0.2, seed=0)
    assert (len(split.train), len(split.validation), len(split.test)) == (40, 10, 0)


@given(groups=st.lists(st.integers(0, 8), min_size=20, max_size=80), seed=st.integers(0, 5))
def test_no_group_is_in_two_parts(groups, seed):
    made = table(np.arange(float(len(groups))), group=groups)
    try:
        split = split_rows(made, test=0.2, validation=0.1, seed=seed)
    except DataError:
        # In a regression, each part of the split needs at least two rows, so the split is refused if there are fewer
        # than three groups, or if a group has only one row.
        assert len(set(groups)) < 3 or min(groups.count(group) for group in groups) < 2
        return
    sides = [{groups[row] for row in part} for part in (split.train, split.validation, split.test)]
    assert all(sides)
    assert sum(map(len, sides)) == len(set(groups))


def test_groups_are_split_close_to_the_shares_and_the_classes():
    generator = np.random.default_rng(0)
    group = generator.integers(0, 200, 2000)
    y = (generator.random(2000) < 0.2).astype(int)
    split = split_rows(table(y, (0, 1), group=group), test=0.2, validation=0.1, seed=0)
    assert abs(len(split.test) - 400) < 40
    assert abs(len(split.validation) - 200) < 40
    assert abs(y[split.test].mean() - 0.2) < 0.05


def test_the_latest_rows_are_the_test_set_and_the_rows_before_them_the_validation_set():
    time = np.random.default_rng(0).permutation(100)
    split = split_rows(table(np.arange(100.0), time=time), test=0.2, validation=0.1, seed=0)
    assert set(time[split.test]) == set(range(80, 100))
    assert set(time[split.validation]) == set(range(70, 80))


@given(time=st.lists(st.integers(0, 6), min_size=10, max_size=60))
def test_rows_of_equal_time_stay_together(time):
    try:
        split = split_rows(table(np.arange(float(len(time))), time=time), test=0.2, validation=0.1, seed=0)
    except DataError:
        return
    train, validation, test = ([time[row] for row in part] for part in (split.train, split.validation, split.test))
    assert max(train) < min(validation)
    assert max(validation) < min(test)


@pytest.mark.parametrize("kind", ["group", "time"])
def test_two_groups_or_times_are_too_few_for_three_parts(kind):
    with pytest.raises(DataError, match=f"the {kind} column has 2 different values"):
        split_rows(table(np.arange(20.0), **{kind: [0, 1] * 10}), test=0.2, validation=0.1, seed=0)


def test_a_class_with_only_late_rows_is_refused():
    y = np.repeat([0, 1, 2], [40, 40, 20])
    with pytest.raises(DataError, match="class 'c' without a training row"):
        split_rows(table(y, ("a", "b", "c"), time=np.arange(100)), test=0.2, validation=0.1, seed=0)
