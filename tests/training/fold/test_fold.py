"""Folding is compared with oracles that share no code with it: torch's fusion, float64 and ONNX Runtime."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from foldserve.training.fold.export import to_onnx
from foldserve.training.fold.fold import fold
from foldserve.training.network.layers import ACTIVATIONS, Affine, Shift
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture, Placement
from tests.training.fold.support import (
    CERTIFICATE,
    HALF_ULP,
    assert_certifiable,
    assert_same_function,
    chain,
    entries,
    in_float64,
    named,
    normal,
    randomise,
    run_onnx,
    standardised,
    tensors,
)

placements = pytest.mark.parametrize("placement", ["pre", "post"])


@pytest.mark.parametrize("bias", [False, True])
def test_a_bn_after_a_dense_folds_as_by_torch_s_fusion_and_is_rounded_once(bias):
    network = randomise(
        chain(
            dense1=nn.Linear(17, 40, bias=bias),
            norm1=nn.BatchNorm1d(40),
            relu1=nn.ReLU(),
            dense2=nn.Linear(40, 30, bias=bias),
            norm2=nn.BatchNorm1d(30, eps=1e-3),
            relu2=nn.ReLU(),
            dense3=nn.Linear(30, 5),
        ),
        seed=1,
    )
    folded = fold(network).network
    double = copy.deepcopy(network).double()
    for i in (1, 2):
        dense, fused = folded[2 * (i - 1)], fuse_linear_bn_eval(double[3 * (i - 1)], double[3 * (i - 1) + 1])
        # The tolerance is half a unit in the last place. If one step of the folding used float32, some of these 1,950
        # numbers would differ by more than the tolerance.
        for ours, theirs in ((dense.weight, fused.weight), (dense.bias, fused.bias)):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.double(), theirs.detach(), rtol=1.001 * HALF_ULP, atol=0)
    assert torch.equal(folded.dense3.weight, network.dense3.weight)
    assert torch.equal(folded.dense3.bias, network.dense3.bias)


@placements
@pytest.mark.parametrize("input_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_folded_network_in_float32_is_the_unfolded_one_in_float64(placement, input_norm, activation):
    architecture = Architecture(
        hidden=(32, 32), placement=placement, activation=activation, input_norm=input_norm, dropout=0.5
    )
    network = randomise(build_mlp(8, 3, architecture), seed=2)
    x = normal(200, 8)
    folded = fold(network).network
    assert_certifiable(network, folded, x)
    assert_same_function(network, folded, x)


# The exporter of torch 2.13 uses the deprecated torch.utils._pytree, and no argument prevents this.
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("placement", "activation", "input_norm"), [("pre", "relu", False), ("post", "relu", False), ("post", "gelu", True)]
)
def test_the_folded_onnx_graph_matches_the_exporter_s_graph_with_batch_normalisation(placement, activation, input_norm):
    hidden = (24, 24)
    network = randomise(
        build_mlp(8, 3, Architecture(hidden, placement, activation, dropout=0.5, input_norm=input_norm)), seed=3
    )
    x = normal(50, 8)
    program = torch.onnx.export(network, (x,), dynamo=True, optimize=False, verbose=False)
    unfolded = program.model_proto
    operators = Counter(node.op_type for node in unfolded.graph.node)
    assert operators["BatchNormalization"] == len(hidden) + input_norm
    (expected,) = run_onnx(unfolded.SerializeToString(), x, optimised=False).values()

    outputs = run_onnx(to_onnx(fold(network).network, 8, 3, "regression"), x)

    assert outputs.keys() == {"value"}
    np.testing.assert_allclose(outputs["value"], expected, **CERTIFICATE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_kept_scale_and_every_activation_are_the_same_in_onnx(activation):
    network = randomise(
        chain(
            dense1=nn.Linear(5, 16),
            first=ACTIVATIONS[activation](),
            norm=nn.BatchNorm1d(16),
            second=ACTIVATIONS[activation](),
            dense2=nn.Linear(16, 2),
            third=ACTIVATIONS[activation](),
            last=nn.BatchNorm1d(2),
        ),
        seed=4,
    )
    x = normal(50, 5)
    outputs = run_onnx(to_onnx(fold(network).network, 5, 2, "regression"), x)
    np.testing.assert_allclose(outputs["value"], in_float64(network, x).numpy(), **CERTIFICATE)


def test_the_oracle_detects_a_bn_after_a_relu_that_is_folded_backwards():
    network = randomise(build_mlp(6, 3, Architecture(hidden=(16,), placement="post", dropout=0)), seed=5)
    with torch.no_grad():
        network.norm1.weight.abs_()  # folding backwards is wrong even if every gamma is positive
    double = copy.deepcopy(network).double()
    fused = fuse_linear_bn_eval(double.dense1, double.norm1).float().requires_grad_(requires_grad=False)
    wrong = chain(dense1=fused, relu1=nn.ReLU(), dense2=network.dense2)
    x = normal(50, 6)
    assert_same_function(network, fold(network).network, x)
    assert_certifiable(network, fold(network).network, x)
    with pytest.raises(AssertionError, match="where rounding allows"):
        assert_same_function(network, wrong, x)
    with pytest.raises(AssertionError, match="not close"):
        assert_certifiable(network, wrong, x)


@pytest.mark.parametrize(
    ("placement", "report"),
    [
        (
            "pre",
            [
                ("dropout1", "dropped", "-"),
                ("dropout2", "dropped", "-"),
                ("norm0", "forward", "dense1"),
                ("norm1", "backward", "dense1"),
                ("norm2", "backward", "dense2"),
                ("standardise", "forward", "dense1"),
            ],
        ),
        (
            "post",
            [
                ("dropout1", "dropped", "-"),
                ("dropout2", "dropped", "-"),
                ("norm0", "forward", "dense1"),
                ("norm1", "forward", "dense2"),
                ("norm2", "forward", "dense3"),
                ("standardise", "forward", "dense1"),
            ],
        ),
    ],
)
def test_a_folded_mlp_has_only_dense_and_activations_and_the_report_lists_every_other_layer(
    placement: Placement, report
):
    architecture = Architecture(hidden=(4, 4), placement=placement, input_norm=True)
    network = standardised(randomise(build_mlp(3, 2, architecture), seed=6), torch.ones(3), torch.full((3,), 2.0))
    folded = fold(network)
    assert named(folded.network) == [
        ("dense1", nn.Linear),
        ("relu1", nn.ReLU),
        ("dense2", nn.Linear),
        ("relu2", nn.ReLU),
        ("dense3", nn.Linear),
    ]
    assert entries(folded.report) == report
    assert not any(module.training for module in folded.network.modules())
    assert not any(parameter.requires_grad for parameter in folded.network.parameters())
    assert {tensor.dtype for tensor in tensors(folded.network)} == {torch.float32}


def test_neighbouring_bns_fold_as_one_and_each_is_reported():
    network = randomise(
        chain(
            norm1=nn.BatchNorm1d(3),
            norm2=nn.BatchNorm1d(3, affine=False),
            dense1=nn.Linear(3, 4),
            norm3=nn.BatchNorm1d(4),
            dropout=nn.Dropout(),
            norm4=nn.BatchNorm1d(4),
        ),
        seed=7,
    )
    folded = fold(network)
    assert named(folded.network) == [("dense1", nn.Linear)]
    assert entries(folded.report) == [
        ("dropout", "dropped", "-"),
        ("norm1", "forward", "dense1"),
        ("norm2", "forward", "dense1"),
        ("norm3", "backward", "dense1"),
        ("norm4", "backward", "dense1"),
    ]
    assert_same_function(network, folded.network, normal(20, 3))


def test_a_bn_without_a_dense_beside_it_stays_as_a_scale_and_a_shift():
    network = randomise(
        chain(
            dense=nn.Linear(3, 4),
            relu=nn.ReLU(),
            between1=nn.BatchNorm1d(4),
            between2=nn.BatchNorm1d(4),
            tanh=nn.Tanh(),
            trailing=nn.BatchNorm1d(4),
        ),
        seed=8,
    )
    folded = fold(network)
    assert named(folded.network) == [
        ("dense", nn.Linear),
        ("relu", nn.ReLU),
        ("between1", Affine),
        ("tanh", nn.Tanh),
        ("trailing", Affine),
    ]
    assert entries(folded.report) == [
        ("between1", "kept", "between1"),
        ("between2", "kept", "between1"),
        ("trailing", "kept", "trailing"),
    ]
    x = normal(20, 3)
    assert_same_function(network, folded.network, x)
    assert_certifiable(network, folded.network, x)


@torch.no_grad()
def chain_with_every_survivor() -> nn.Sequential:
    """Build a chain that folds to a Shift, Dense layers, activations and scales."""
    network = randomise(
        chain(
            norm0=nn.BatchNorm1d(3),
            dense1=nn.Linear(3, 4),
            relu=nn.ReLU(),
            norm1=nn.BatchNorm1d(4),
            tanh=nn.Tanh(),
            affine=Affine(torch.ones(4), torch.ones(4)),
            dropout=nn.Dropout(),
            sigmoid=nn.Sigmoid(),
            dense2=nn.Linear(4, 2),
        ),
        seed=10,
    )
    network.norm0.running_mean.fill_(1e4)
    network.norm0.weight.fill_(1)
    return network


def bits(network: nn.Module) -> dict[str, tuple[torch.dtype, bytes]]:
    return {name: (value.dtype, value.numpy().tobytes()) for name, value in network.state_dict().items()}


def test_the_given_network_keeps_every_bit():
    network = chain_with_every_survivor()
    before = bits(network)
    layers = list(network.named_children())
    fold(network)
    assert bits(network) == before
    assert list(network.named_children()) == layers
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_networks_share_no_tensor_and_no_layer(dtype):
    network = chain_with_every_survivor().to(dtype)
    folded = fold(network).network
    survivors = [Shift, nn.Linear, nn.ReLU, Affine, nn.Tanh, Affine, nn.Sigmoid, nn.Linear]
    assert [type(layer) for layer in folded] == survivors
    addresses = [{tensor.untyped_storage().data_ptr() for tensor in tensors(each)} for each in (network, folded)]
    assert addresses[0].isdisjoint(addresses[1])
    assert {*network.modules()}.isdisjoint(folded.modules())

    original, result = bits(network), bits(folded)
    with torch.no_grad():
        for tensor in tensors(folded):
            tensor.fill_(7)
    assert bits(network) == original
    folded = fold(network).network
    assert bits(folded) == result
    with torch.no_grad():
        for tensor in tensors(network):
            tensor.fill_(7)
    assert bits(folded) == result


def test_a_layer_that_occurs_twice_is_folded_twice():
    torch.manual_seed(0)
    relu = nn.ReLU()
    network = chain(a=nn.Linear(4, 8), r1=relu, b=nn.Linear(8, 8), r2=relu, c=nn.Linear(8, 2))
    assert [name for name, _ in fold(network).network.named_children()] == ["a", "r1", "b", "r2", "c"]
    assert_certifiable(network, fold(network).network, torch.randn(20, 4))


def test_folding_leaves_torch_s_random_state_unchanged():
    network = chain(dense=nn.Linear(3, 2))
    before = torch.get_rng_state()
    fold(network)
    assert torch.equal(torch.get_rng_state(), before)
