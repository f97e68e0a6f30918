"""The layout and the standardisation are fitted to training rows, and compared with NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foldserve.training.network.encode import Encode
from foldserve.training.network.preprocessing import choose_layout
from foldserve.training.table.schema import Column
from tests.training.network.support import NAN, mixed, standardised, tables


@given(tables(), st.sampled_from([0, 8]))
def test_a_layout_is_needed_exactly_when_it_changes_a_value(table, bins):
    columns, seen, _ = table
    made = choose_layout(columns, seen, bins)
    plain = all(column.kind != "categorical" and not column.missing for column in columns)
    if made.is_needed:
        assert not plain or len(made.binned)
    else:
        assert plain
        assert torch.equal(Encode(made)(torch.from_numpy(seen)), torch.from_numpy(seen))


def test_a_categorical_column_without_training_values_needs_encoding_too():
    columns = [Column("a", "numeric"), Column("b", "categorical", ("x",), missing=True)]
    made = choose_layout(columns, np.array([[1, NAN], [2, NAN]], np.float32), 0)
    assert made.is_needed
    assert Encode(made)(torch.tensor([[3.0, NAN], [4.0, 0.0]])).tolist() == [[3.0, 1.0], [4.0, 0.0]]


@pytest.mark.parametrize(
    ("values", "bins", "expected"),
    [
        ([5, 5, 5, 5], 8, 0),  # constant
        ([0, 1, 0, 1], 8, 0),  # a bin would add nothing to the two values of this column
        ([0, 0, 0, 0, 0, 0, 0, 1, 2], 2, 0),  # the median equals the minimum
        ([0, 1, 2], 2, 2),
        ([0, 1, 2], 0, 0),
        ([0, 1e-38, 1e-37, 1], 4, 0),  # the bin is too narrow: float32 can't hold 1 / width
        ([NAN, 0, 1, 2], 2, 2),
        (range(1000), 256, 256),
    ],
)
def test_the_number_of_bins_of_a_column(values, bins, expected):
    seen = np.array(values, np.float32)[:, None]
    made = choose_layout([Column("a", "numeric", missing=True)], seen, bins)
    assert len(made.binned) == len(made.low) == len(made.rate) == expected
    assert np.isfinite(made.rate).all()


def test_each_bin_holds_about_the_same_number_of_rows():
    seen = np.random.default_rng(0).lognormal(0, 2, (4000, 1)).astype(np.float32)
    made = choose_layout([Column("a", "numeric")], seen, 16)
    counts, _ = np.histogram(seen, [*made.low, np.inf])
    np.testing.assert_allclose(counts, 250, atol=2)


GENERATOR = np.random.default_rng(7)
NORMAL, LOGNORMAL = GENERATOR.normal(5, 3, 5000), GENERATOR.lognormal(0, 1.5, 5000)
SHARES = GENERATOR.random(5000)


@pytest.mark.parametrize(
    ("kind", "values", "has_bins"),
    [
        ("numeric", NORMAL, False),
        ("numeric", GENERATOR.uniform(-1, 1, 5000), False),
        ("numeric", GENERATOR.exponential(1, 200), False),
        ("numeric", LOGNORMAL, True),
        ("numeric", -LOGNORMAL, True),
        ("numeric", 1e9 * LOGNORMAL, True),
        ("numeric", np.where(np.arange(5000) % 3, LOGNORMAL, NAN), True),
        ("numeric", np.where(SHARES < 0.3, LOGNORMAL, 0), True),
        ("numeric", np.where(SHARES < 0.03, LOGNORMAL, 0), False),  # all bin edges except one are 0
        ("numeric", LOGNORMAL // 5, False),  # the column has long tails, but few different values
        ("numeric", np.append(NORMAL, 1e6), True),  # one row is far from the others
        ("numeric", np.full(5000, NAN), False),
        ("numeric", np.full(5000, 3.0), False),
        ("boolean", np.arange(5000) % 100 == 0, False),
        ("categorical", np.minimum(LOGNORMAL, 3) // 1, False),
    ],
)
def test_tails_gives_bins_to_columns_whose_range_is_far_wider_than_most_of_their_values(kind, values, has_bins):
    names = ("a", "b", "c", "d") if kind == "categorical" else ()
    columns = [Column("plain", "numeric"), Column("it", kind, names, missing=True)]
    seen = np.stack([np.linspace(0, 1, len(values)), values], 1).astype(np.float32)
    made = choose_layout(columns, seen, 16, "tails")
    assert set(made.binned.tolist()) == ({1} if has_bins else set())
    if has_bins:
        np.testing.assert_array_equal(made.low, choose_layout(columns[1:], seen[:, 1:], 16, "all").low)
    assert not len(choose_layout(columns, seen, 0, "tails").binned)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_the_standardisation_matches_numpy_in_chunks_of_any_size(chunk):
    columns, seen, _ = mixed()
    made, encode, affine = standardised(columns, seen, 8, chunk)
    x = encode(torch.from_numpy(seen)).double().numpy()
    numbers, binned = len(made.numeric), len(made.binned)
    expected = x - x.mean(0)
    std = np.maximum(x.std(0), np.ptp(x, axis=0) / 6)[:numbers]
    expected[:, :numbers] /= np.where(std > 0, std, 1)
    expected[:, np.ptp(x, axis=0) == 0] = 0
    expected[:, numbers : numbers + binned] /= np.sqrt(np.square(x.std(0)[numbers : numbers + binned]).mean())
    np.testing.assert_allclose(affine(torch.from_numpy(x)), expected, rtol=1e-9, atol=1e-9)


def test_a_value_that_is_rare_in_training_is_at_most_six_standard_deviations_from_the_mean():
    seen = np.zeros((1000, 1), np.float32)
    seen[0] = 16
    _, _, affine = standardised([Column("pixel", "numeric")], seen, 0)
    assert float(affine(torch.tensor([[16.0]]))) == pytest.approx(6, abs=0.01)


@pytest.mark.parametrize(
    ("column", "usual", "later"),
    [
        (Column("year", "numeric"), 2024.0, 2030.0),
        (Column("large", "numeric"), 1e9, -1e9),
        (Column("eu", "boolean"), 1.0, 0.0),
        (Column("town", "categorical", ("Oslo", "Rome")), 1.0, 0.0),
        (Column("income", "numeric", missing=True), np.nan, 5.0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_column_that_is_constant_in_training_changes_no_output_later(column, usual, later):
    _, encode, affine = standardised([column], np.full((50, 1), usual, np.float32), 8)
    usual, later = (affine(encode(torch.tensor([[value]]))) for value in (usual, later))
    assert usual.tolist() == later.tolist()
    assert not usual.any()
