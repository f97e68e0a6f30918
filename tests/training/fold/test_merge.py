"""Compares a merged ensemble with the mean of its unfolded members in float64."""

import copy
from collections import Counter, OrderedDict

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foldserve.training.errors import FoldError
from foldserve.training.fold.export import to_onnx
from foldserve.training.fold.fold import fold
from foldserve.training.fold.merge import fold_mean
from foldserve.training.network.encode import Encode
from foldserve.training.network.layers import ACTIVATIONS, Affine, Blocks, Shift
from foldserve.training.network.mlp import build_mlp
from foldserve.training.network.preprocessing import choose_layout
from foldserve.training.plan import Architecture
from foldserve.training.table.schema import Column
from tests.service.support import oracle

FEATURES = 4


def preprocessing(*, encoded, far):
    """Build rows, and the layers in front of each member of the ensemble. Column 1 is a category, and column 2 may be
    missing.
    """
    generator = np.random.default_rng(0)
    mean = np.array([1e6 if far else 0.5, 0, -1, 0])
    rows = (mean + generator.normal(0, 1, (60, FEATURES))).astype(np.float32)
    layers = OrderedDict[str, nn.Module]()
    if encoded:
        rows[:, 1] = generator.integers(0, 4, 60)
        rows[generator.random(60) < 0.2, 2] = np.nan
        columns = [Column(name, "numeric", missing=name == "c") for name in "abcd"]
        columns[1] = Column("b", "categorical", ("x", "y", "z"))
        layers["encode"] = Encode(choose_layout(columns, rows[:40], 4))
    x = nn.Sequential(layers)(torch.from_numpy(rows)).double()
    std = x.std(0).clamp(min=1e-3)
    layers["standardise"] = Affine(1 / std, -x.mean(0) / std)
    return layers, rows, x.shape[1]


def member(seed, layers, width, outputs, architecture):
    """Build one member of the ensemble: the common layers, then layers with random weights and statistics, then a
    scaled output.
    """
    torch.manual_seed(seed)
    network = build_mlp(width, outputs, architecture)
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.BatchNorm1d) and layer is not getattr(network, "norm0", None):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.3, 3)
                layer.weight.normal_()
                layer.bias.normal_()
    back = Affine(torch.full((outputs,), 0.8), torch.full((outputs,), 0.3))
    chain = OrderedDict([*layers.items(), *network.named_children(), ("back", back)])
    return nn.Sequential(copy.deepcopy(chain)).eval()


def ensemble(count, *, encoded=False, far=False, outputs=3, **architecture):
    layers, rows, width = preprocessing(encoded=encoded, far=far)
    members = [member(seed, layers, width, outputs, Architecture(**architecture)) for seed in range(count)]
    return members, rows


@torch.no_grad()
def mean_in_float64(members, rows):
    x = torch.from_numpy(rows).double()
    return np.mean([copy.deepcopy(network).double()(x).numpy() for network in members], axis=0)


@torch.no_grad()
def outputs_of(network, rows):
    return network(torch.from_numpy(rows)).numpy()


def assert_near(found, expected):
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


@settings(max_examples=50)
@given(
    count=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    placement=st.sampled_from(["pre", "post"]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    outputs=st.integers(1, 4),
    encoded=st.booleans(),
    far=st.booleans(),
    batch_norm=st.booleans(),
)
def test_the_merged_chain_is_the_mean_of_its_members(count, outputs, encoded, far, **architecture):
    members, rows = ensemble(count, encoded=encoded, far=far, outputs=outputs, **architecture)
    before = [copy.deepcopy(network.state_dict()) for network in members]
    merged = fold_mean(members).network
    expected = mean_in_float64(members, rows)
    assert_near(outputs_of(merged, rows), expected)
    task = "regression"
    assert_near(oracle(to_onnx(merged, FEATURES, outputs, task))(rows), expected)
    # `fold_mean` does not change the members of the ensemble. The merged network shares no tensor with the members.
    for network, state in zip(members, before, strict=True):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=0, atol=0, equal_nan=True)
    theirs = {p.data_ptr() for network in members for p in network.parameters()}
    assert not theirs & {p.data_ptr() for p in merged.parameters()}


def test_first_and_last_dense_are_merged_and_the_others_are_side_by_side():
    members, _ = ensemble(3, hidden=(5, 6, 7))
    folded = fold_mean(members)
    layers = dict(folded.network.named_children())
    assert layers["dense1"].weight.shape == (15, FEATURES)
    assert layers["dense4"].weight.shape == (3, 21)
    assert isinstance(layers["dense2"], Blocks)
    assert [block.weight.shape for block in layers["dense3"].members] == [(7, 6)] * 3
    assert [(line.layer, line.into) for line in folded.report if "members" in line.layer] == [
        (f"dense{i} of 3 members", f"dense{i}") for i in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        ((), {"Gemm": 1}),
        ((8,), {"Gemm": 2, "Relu": 1}),
        ((8, 8), {"Gemm": 1 + 3 + 1, "Relu": 2, "Split": 1, "Concat": 1}),
    ],
)
def test_an_ensemble_has_a_wider_gemm_and_only_the_nodes_that_its_hidden_layers_need(hidden, expected):
    members, _ = ensemble(3, hidden=hidden)
    graph = onnx.load_model_from_string(to_onnx(fold_mean(members).network, FEATURES, 3, "classification")).graph
    assert Counter(node.op_type for node in graph.node) == expected | {"Softmax": 1}


def test_a_single_member_is_only_folded():
    (network,), _ = ensemble(1)
    alone, merged = fold(network), fold_mean([network])
    assert merged.report == alone.report
    for name, value in alone.network.state_dict().items():
        assert torch.equal(merged.network.state_dict()[name], value)


def test_a_far_offset_is_subtracted_once_for_all_members():
    members, _ = ensemble(3, far=True)
    assert sum(isinstance(layer, Shift) for layer in fold_mean(members).network) == 1


def test_different_input_norms_keep_the_offset_that_all_members_share():
    members, rows = ensemble(3, far=True, input_norm=True)
    rows[:, 3] = 1e17  # a constant column: standardisation centres the column, and the next BN scales it up
    with torch.no_grad():
        for seed, network in enumerate(members):
            torch.manual_seed(seed)
            network.standardise.scale[3], network.standardise.shift[3] = 1, -float(rows[0, 3])
            network.norm0.running_var[3] = 0
            network.norm0.weight.normal_()
            network.norm0.bias.normal_()
    merged = fold_mean(members).network
    assert_near(outputs_of(merged, rows), mean_in_float64(members, rows))


def test_merging_leaves_the_random_state_unchanged():
    members, _ = ensemble(2)
    before = torch.get_rng_state()
    fold_mean(members)
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_that_can_t_be_merged_are_refused_by_name():
    (one, other), _ = ensemble(2)
    with pytest.raises(FoldError, match="training mode"):
        fold_mean([one, copy.deepcopy(other).train()])
    for architecture in ({"hidden": (64,)}, {"activation": "tanh"}, {"hidden": (32, 64)}):
        (different,), _ = ensemble(1, **architecture)
        with pytest.raises(FoldError, match="different layers"):
            fold_mean([one, different])


def test_members_that_see_different_columns_are_refused():
    (one, other), _ = ensemble(2, encoded=True)
    other.encode.low += 1
    with pytest.raises(FoldError, match="'encode' can't be folded: it differs"):
        fold_mean([one, other])
