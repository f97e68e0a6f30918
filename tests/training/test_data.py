"""Sources and splits."""

import numpy as np
import pytest
from sklearn import datasets

from training import data
from training.errors import DataError


def test_digits_is_scikit_learn_s_with_its_labels_as_numbers():
    table = data.load("digits")
    raw = datasets.load_digits()
    np.testing.assert_array_equal(table.x, raw.data)
    np.testing.assert_array_equal(table.y, raw.target)
    assert table.labels == tuple(range(10))
    assert all(type(label) is int for label in table.labels)
    assert len(table.features) == 64


def test_names_stay_names():
    assert data.load("iris").labels == ("setosa", "versicolor", "virginica")


def test_a_regression_has_no_labels():
    table = data.load("diabetes")
    assert table.task == "regression"
    assert table.labels == ()


def test_an_unknown_source_is_refused_and_the_known_ones_named():
    with pytest.raises(DataError, match=r"unknown source 'mnist': expected one of .*digits"):
        data.load("mnist")


@pytest.mark.parametrize("source", ["digits", "diabetes"])
def test_the_three_parts_are_disjoint_and_hold_every_row(source):
    table = data.load(source)
    split = data.split(table, test=0.2, validation=0.1, seed=0)
    together = np.concatenate([split.train, split.validation, split.test])
    assert sorted(together) == list(range(len(table.x)))
    assert len(split.test) == round(0.2 * len(table.x))
    assert abs(len(split.validation) - 0.1 * len(table.x)) <= 1


def test_each_part_holds_every_class_in_its_share():
    table = data.load("digits")
    split = data.split(table, test=0.2, validation=0.1, seed=3)
    whole = np.bincount(table.y) / len(table.y)
    for part in (split.train, split.validation, split.test):
        share = np.bincount(table.y[part], minlength=10) / len(part)
        np.testing.assert_allclose(share, whole, atol=0.01)


def test_the_seed_decides_the_split():
    table = data.load("digits")
    first, again, other = (data.split(table, test=0.2, validation=0.1, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)


def test_the_hash_is_of_the_values():
    table = data.load("iris")
    assert table.sha256() == data.load("iris").sha256()
    changed = table.x.copy()
    changed[0, 0] += 1
    other = data.Table(table.source, table.task, table.features, changed, table.y, table.labels)
    assert other.sha256() != table.sha256()


@pytest.mark.parametrize("counts", [(1000, 3), (1000, 4), (30, 3), (1000, 1000, 3)])
def test_a_rare_class_is_in_every_part(counts):
    y = np.repeat(np.arange(len(counts)), counts)
    table = data.Table("made", "classification", ("a",), np.zeros((len(y), 1), "f4"), y, tuple(range(len(counts))))
    for seed in range(20):
        split = data.split(table, test=0.2, validation=0.1, seed=seed)
        for part in (split.train, split.validation, split.test):
            assert set(y[part]) == set(range(len(counts)))


def test_too_few_rows_are_refused():
    table = data.Table("made", "regression", ("a",), np.zeros((4, 1), "f4"), np.arange(4.0), ())
    with pytest.raises(DataError, match="4 rows are too few"):
        data.split(table, test=0.2, validation=0.1, seed=0)
