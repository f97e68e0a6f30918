"""Encoding and standardisation, compared with NumPy; the ONNX nodes, compared with the layers in float64."""

from collections import OrderedDict
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from foldserve.training.fold.export import to_onnx
from foldserve.training.fold.fold import fold
from foldserve.training.network.encode import Encode
from foldserve.training.network.layers import Affine
from foldserve.training.network.preprocessing import choose_layout, fit_standardisation
from foldserve.training.table.schema import Column
from tests.service.support import oracle

NAN = np.nan
# Operators that ONNX Runtime's docs/OperatorKernels.md lists for its CUDA provider at this opset. Any other node would
# run on the CPU, with a copy from and to the GPU in every request.
ON_CUDA = {"Cast", "Clip", "Concat", "Equal", "Gather", "Gemm", "IsNaN", "Mul", "Relu", "Softmax", "Sub", "Where"}

VALUES = {
    "numbers": st.floats(-1e3, 1e3).map(lambda value: round(value, 3)),
    "few": st.sampled_from([-1.0, 0.0, 2.5]),
    "constant": st.just(7.0),
    "moments": st.integers(1_700_000_000, 1_800_000_000).map(float),
    "huge": st.floats(-1e30, 1e30).map(lambda value: round(value, -20)),
    "boolean": st.sampled_from([0.0, 1.0]),
    "categorical": st.integers(0, 4).map(float),
}
CATEGORIES = ("a", "b", "c", "d")  # index 4 is a category that is not in the table


@st.composite
def tables(draw):
    """Draw columns, training rows, and other rows with outliers, unseen categories and missing values."""
    styles = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=5))
    rows = draw(st.integers(2, 25))
    columns, seen, others = [], [], []
    for place, style in enumerate(styles):
        missing = draw(st.booleans())
        kind = style if style in ("boolean", "categorical") else "numeric"
        columns.append(Column(str(place), kind, CATEGORIES if kind == "categorical" else (), missing))
        cell = VALUES[style] | st.just(NAN) if missing else VALUES[style]
        seen.append(draw(st.lists(cell, min_size=rows, max_size=rows)))
        other = cell | st.sampled_from([-1e9, 1e9, -0.0]) if kind == "numeric" else cell
        others.append(draw(st.lists(other, min_size=6, max_size=6)))
    return columns, np.array(seen, np.float32).T.copy(), np.array(others, np.float32).T.copy()


def known(column):
    return column[~np.isnan(column)].astype(np.float64)


def edges_of(column, bins):
    values = known(column)
    if not bins or not len(values):
        return np.empty(0)
    # The smallest value with the share k / bins of the values at or below it.
    ranked = list(enumerate(np.sort(values), start=1))
    return np.unique([next(v for i, v in ranked if i * bins >= k * len(ranked)) for k in range(bins + 1)])


def by_numpy(columns, seen, rows, bins):
    """Encode the rows in float64; return them and the error that a bin's width in float32 may cause in each column."""
    numbers, binned, categories, missing, off = [], [], [], [], []
    for column, before, values in zip(columns, seen.T, rows.T.astype(np.float64), strict=True):
        if column.kind == "categorical":
            categories += [values == index for index in np.unique(known(before))]
        else:
            fill = np.float32(known(before).mean()) if len(known(before)) else 0.0
            filled = np.where(np.isnan(values), fill, values)
            numbers.append(filled)
            edges = edges_of(before, bins if column.kind == "numeric" else 0)
            for low, high in pairwise(edges) if len(edges) > 2 else ():
                binned.append(np.interp(filled, [low, high], [0.0, 1.0]))
                off.append(2.0**-23)
        if np.isnan(before).any():
            missing.append(np.isnan(values))
    encoded = np.stack([*numbers, *binned, *categories, *missing], 1, dtype=np.float64)
    tolerance = np.zeros(encoded.shape[1])
    tolerance[len(numbers) : len(numbers) + len(binned)] = off
    return encoded, tolerance


@given(tables(), st.sampled_from([0, 1, 2, 5, 16]))
def test_any_table_is_encoded_as_by_numpy(table, bins):
    columns, seen, rows = table
    encode = Encode(choose_layout(columns, seen, bins))
    for x in (seen, rows):
        expected, tolerance = by_numpy(columns, seen, x, bins)
        found = encode(torch.from_numpy(x).double()).numpy()
        assert found.shape == expected.shape == (len(x), encode.columns)
        assert (np.abs(found - expected) <= tolerance).all()
        single = encode(torch.from_numpy(x))
        assert single.dtype == torch.float32
        assert single.isfinite().all()


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


def test_a_bin_is_flat_outside_its_edges_and_neighbours_share_an_edge():
    seen = np.array([[0], [1], [3]], np.float32)
    encode = Encode(choose_layout([Column("a", "numeric")], seen, 2))
    rows = torch.tensor([[-1e30], [0.0], [0.5], [1.0], [2.0], [3.0], [1e30]])
    expected = [[0, 0], [0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [1, 1]]
    assert encode(rows)[:, 1:].tolist() == expected


@pytest.mark.parametrize(
    ("values", "bins", "expected"),
    [
        ([5, 5, 5, 5], 8, 0),  # constant
        ([0, 1, 0, 1], 8, 0),  # two values: a single bin would repeat the column
        ([0, 0, 0, 0, 0, 0, 0, 1, 2], 2, 0),  # the median is the minimum
        ([0, 1, 2], 2, 2),
        ([0, 1, 2], 0, 0),
        ([0, 1e-38, 1e-37, 1], 4, 0),  # too narrow: float32 can't hold the reciprocal of the width
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
        ("numeric", np.where(SHARES < 0.03, LOGNORMAL, 0), False),  # all edges but one are 0
        ("numeric", LOGNORMAL // 5, False),  # tails, but few values
        ("numeric", np.append(NORMAL, 1e6), True),  # one row far out
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


def mixed():
    """Return columns of every kind, 500 training rows, and rows with unusual values."""
    generator = np.random.default_rng(1)
    columns = [
        Column("town", "categorical", ("a", "b", "c", "d"), missing=True),
        Column("income", "numeric", missing=True),
        Column("moment", "numeric"),
        Column("member", "boolean", missing=True),
        Column("size", "categorical", (1, 2)),
        Column("constant", "numeric"),
    ]
    seen = np.stack(
        [
            generator.integers(0, 3, 500),  # the last town is not among the training rows
            generator.normal(0, 3, 500),
            1.7e9 + generator.uniform(0, 1e6, 500),
            generator.integers(0, 2, 500),
            generator.integers(0, 2, 500),
            np.full(500, 0.1),
        ],
        1,
    ).astype(np.float32)
    for place in (0, 1, 3):
        seen[generator.random(500) < 0.2, place] = NAN
    rows = seen[:200].copy()
    rows[0] = NAN, NAN, 1.7e9, NAN, 2, 0.1  # every optional value missing, and an unseen size
    rows[1] = 3, -0.0, 1.7e9, -0.0, -0.0, 0.1
    rows[2] = 4, 1e6, 1.8e9, 1, 1, 0.1
    rows[3] = -0.0, -1e6, 0, 0, 0, -5
    return columns, seen, rows


def standardised(columns, seen, bins, chunk=10_000):
    made = choose_layout(columns, seen, bins)
    encode = Encode(made)
    chunks = [encode(part) for part in torch.split(torch.from_numpy(seen), chunk)]
    return made, encode, fit_standardisation(made, lambda: chunks)


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


def test_a_value_that_is_rare_in_training_is_at_most_six_standard_deviations_out():
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


# --- ONNX


def chain_of(columns, seen, bins, outputs=3):
    _, encode, affine = standardised(columns, seen, bins)
    torch.manual_seed(0)
    network = nn.Sequential(
        OrderedDict[str, nn.Module](
            encode=encode,
            standardise=affine,
            dense1=nn.Linear(encode.columns, 16),
            relu1=nn.ReLU(),
            norm1=nn.BatchNorm1d(16),
            dense2=nn.Linear(16, outputs),
        )
    )
    with torch.no_grad():
        network(torch.from_numpy(seen))  # running statistics other than 0 and 1
    return network.eval()


def kinds(columns, seen, rows, *wanted):
    places = [place for place, column in enumerate(columns) if column.name in wanted]
    return [columns[place] for place in places], seen[:, places].copy(), rows[:, places].copy()


@pytest.mark.parametrize("bins", [0, 8])
@pytest.mark.parametrize(
    "wanted",
    [
        ("town", "income", "moment", "member", "size", "constant"),
        ("town", "size"),
        ("town",),
        ("size",),
        ("income", "member"),
        ("moment", "constant"),
        ("moment", "size"),
    ],
)
def test_the_onnx_graph_matches_the_unfolded_network_in_float64(wanted, bins):
    columns, seen, rows = kinds(*mixed(), *wanted)
    network = chain_of(columns, seen, bins)
    model = to_onnx(fold(network).network, len(columns), 3, "regression")
    with torch.no_grad():
        expected = network.double()(torch.from_numpy(rows).double()).numpy()
    found = oracle(model)(rows)
    # A row with an outlier has large values; the rounding error is relative to the largest.
    scale = np.maximum(np.abs(expected).max(1, keepdims=True), 1)
    assert (np.abs(found - expected) <= (1e-5 + 1e-4 * np.abs(expected)) * scale).all()
    assert {node.op_type for node in onnx.load_model_from_string(model).graph.node} <= ON_CUDA


def test_a_row_has_the_same_output_alone_as_in_a_batch():
    columns, seen, rows = mixed()
    run = oracle(to_onnx(fold(chain_of(columns, seen, 4)).network, 6, 3, "classification"))
    together = run(rows)
    alone = np.concatenate([run(rows[place : place + 1]) for place in range(20)])
    np.testing.assert_allclose(alone, together[:20], rtol=1e-4, atol=1e-5)
    assert np.isfinite(together).all()


def test_a_number_that_is_not_an_index_matches_no_category():
    columns, seen, _ = kinds(*mixed(), "size")
    run = oracle(to_onnx(fold(chain_of(columns, seen, 0)).network, 1, 3, "regression"))
    rows = np.array([[2], [-1], [0.5], [1e9]], np.float32)
    assert len(np.unique(run(rows), axis=0)) == 1


def test_a_table_of_plain_numbers_needs_no_extra_node():
    columns, seen, _ = kinds(*mixed(), "constant")
    assert not choose_layout(columns, seen, 0).is_needed
    dense = nn.Linear(1, 2)
    affine = Affine(torch.ones(1), torch.zeros(1))
    model = to_onnx(fold(nn.Sequential(affine, dense).eval()).network, 1, 2, "classification")
    assert [node.op_type for node in onnx.load_model_from_string(model).graph.node] == ["Gemm", "Softmax"]
