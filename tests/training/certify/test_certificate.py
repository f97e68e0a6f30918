"""The certificate holds for the certified model and for no other model."""

import copy

import numpy as np
import onnxruntime as ort
import pytest
import torch

from foldserve.service.bundle import Tolerance
from foldserve.training.certify import certificate
from foldserve.training.certify.manifest import describe_features
from foldserve.training.errors import ParityError
from foldserve.training.fold.export import to_onnx
from foldserve.training.fold.fold import fold
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture
from foldserve.training.table.schema import Column

TOLERANCE = Tolerance(absolute=1e-5, relative=1e-4)
COLUMNS = [Column(name, "numeric") for name in "abcdef"]
SEEN = np.array([[-3.0] * 6, [2.9] * 6], np.float32)


@pytest.fixture
def networks():
    torch.manual_seed(0)
    network = build_mlp(6, 4, Architecture(hidden=(16, 16), placement="post"))
    network(torch.randn(500, 6) * 2)  # give the running statistics other values than 0 and 1
    network.eval()
    return network, fold(network).network


def draw(columns, train, rows, seed):
    """Draw rows for `columns`. `train` has the training values of each column."""
    features = describe_features(columns, train)
    return certificate.draw(features, train, rows, seed)


def certify(network, folded, model):
    rows = draw(COLUMNS, SEEN, 300, seed=1)
    return certificate.certify(network, folded, model, "classification", TOLERANCE, held_out=rows[:100], drawn=rows)


def test_each_runtime_is_measured_on_both_sets_of_rows_in_batches_of_1_2_and_all(networks):
    measured = certify(*networks, to_onnx(networks[1], 6, 4, "classification")).measurements
    cases = {(m.runtime, m.rows, m.batch) for m in measured}
    expected = {
        (runtime, rows, batch)
        for runtime in ("torch float32", "onnxruntime CPU")
        for rows, whole in (("held-out", 100), ("random", 300))
        for batch in (1, 2, whole)
    }
    assert expected <= cases
    assert all(m.parity.holds for m in measured)


def test_the_figures_compare_onnx_runtime_with_the_float64_network(networks):
    network, folded = networks
    model = to_onnx(folded, 6, 4, "classification")
    rows = draw(COLUMNS, SEEN, 300, seed=1)
    out = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": rows})[0]
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(torch.from_numpy(rows).double()).softmax(1).numpy()
    found = next(
        m.parity
        for m in certify(network, folded, model).measurements
        if (m.runtime, m.rows, m.batch) == ("onnxruntime CPU", "random", 300)
    )
    assert found.rows == 300
    assert found.max_absolute == pytest.approx(np.abs(out - exact).max())
    assert found.worst == pytest.approx((np.abs(out - exact) / (1e-5 + 1e-4 * np.abs(exact))).max())


def test_an_export_of_another_network_is_refused(networks):
    network, folded = networks
    other = copy.deepcopy(folded)
    with torch.no_grad():
        other[0].weight[0, 0] += 1e-2
    with pytest.raises(ParityError, match="onnxruntime CPU differs"):
        certify(network, folded, to_onnx(other, 6, 4, "classification"))


def test_another_folded_network_is_refused(networks):
    network, folded = networks
    model = to_onnx(folded, 6, 4, "classification")
    with torch.no_grad():
        folded[0].bias += 1e-2
    with pytest.raises(ParityError, match="torch float32 differs"):
        certify(network, folded, model)


def test_an_output_that_is_not_finite_is_refused(networks):
    network, folded = networks
    model = to_onnx(folded, 6, 4, "classification")
    with torch.no_grad():
        folded[0].bias[0] = float("nan")
    with pytest.raises(ParityError, match="not finite"):
        certify(network, folded, model)


def test_drawn_rows_stay_in_their_ranges_and_whole_numbers_stay_whole():
    columns = [Column(name, "numeric") for name in ("whole", "fraction", "constant")]
    seen = np.array([[0, -0.5, 7], [16, 0.5, 7]], np.float32)
    rows = draw(columns, seen, 500, seed=0)
    assert rows.dtype == np.float32
    assert (rows >= seen[0]).all()
    assert (rows <= seen[1]).all()
    assert set(rows[:, 0]) == set(range(17))
    assert len(np.unique(rows[:, 1])) > 490
    assert (rows[:, 2] == 7).all()


def test_drawn_rows_have_every_category_an_unseen_one_and_missing_values_where_allowed():
    columns = [
        Column("town", "categorical", ("a", "b", "c")),
        Column("size", "categorical", (1, 2), missing=True),
        Column("member", "boolean"),
        Column("smokes", "boolean", missing=True),
        Column("income", "numeric", missing=True),
        Column("rare", "numeric", missing=True),
    ]
    nan = np.nan
    seen = np.array([[0, 1, 0, 0, -1.5, nan], [1, nan, 0, nan, nan, nan], [1, 0, 0, 1, 2.5, nan]], np.float32)
    town, size, member, smokes, income, rare = draw(columns, seen, 2000, seed=3).T
    assert set(town) == {0, 1, 2, 3}
    assert set(member) == {0, 1}
    for column, values in ((size, {0, 1, 2}), (smokes, {0, 1}), (rare, {0})):
        assert set(column[~np.isnan(column)]) == values
        assert 0.09 < np.isnan(column).mean() < 0.16
    assert -1.5 <= np.nanmin(income) < -1.4 < 2.4 < np.nanmax(income) <= 2.5
