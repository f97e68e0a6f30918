"""The encoding is compared with NumPy. The ONNX nodes of the encoding are compared with the layers in float64."""

from collections import OrderedDict

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
from foldserve.training.network.preprocessing import choose_layout
from foldserve.training.table.schema import Column
from tests.service.support import oracle
from tests.training.network.support import by_numpy, mixed, standardised, tables

# ONNX Runtime's docs/OperatorKernels.md lists the operators below for the CUDA provider at this opset. A node with any
# other operator would run on the CPU. For a node on the CPU, every request would copy data from the GPU and back.
ON_CUDA = {"Cast", "Clip", "Concat", "Equal", "Gather", "Gemm", "IsNaN", "Mul", "Relu", "Softmax", "Sub", "Where"}


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
        network(torch.from_numpy(seen))  # give the running statistics other values than 0 and 1
    return network.eval()


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


def test_a_bin_is_flat_outside_its_edges_and_neighbours_share_an_edge():
    seen = np.array([[0], [1], [3]], np.float32)
    encode = Encode(choose_layout([Column("a", "numeric")], seen, 2))
    rows = torch.tensor([[-1e30], [0.0], [0.5], [1.0], [2.0], [3.0], [1e30]])
    expected = [[0, 0], [0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [1, 1]]
    assert encode(rows)[:, 1:].tolist() == expected


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
    # A row with an outlier has large values. The rounding error is relative to the row's largest value.
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
