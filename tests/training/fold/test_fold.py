"""Folding, held against oracles that share no code with it.

Torch's own fusion, the unfolded network in float64, and ONNX Runtime running the unfolded graph. Two tolerances:

float64   The folded weights are rounded to float32 once, each by a relative 2^-24 at most. `run_with_bound` carries
          that through the layers, so that what is left over is a wrong fold, however badly conditioned the network.
float32   The certificate's: 1e-5 + 1e-4 |reference|, on networks whose outputs are of order 1.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from foldserve.training.errors import FoldError
from foldserve.training.fold.export import to_onnx
from foldserve.training.fold.fold import Fold, fold
from foldserve.training.network.layers import ACTIVATIONS, Affine, Shift
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture, Placement

CERTIFICATE = {"atol": 1e-5, "rtol": 1e-4}
HALF_ULP = 2.0**-24
ACTIVATION_TYPES = tuple(ACTIVATIONS.values())
# The steepest of them is GELU: 1.129.
STEEPEST_ACTIVATION = 1.13

GAMMAS: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": torch.abs,
    "negative": lambda gamma: -gamma.abs(),
    "zero": torch.zeros_like,
    "mixed": lambda gamma: torch.where(gamma.abs() < 0.2, 0.0, gamma),
}
# Powers of ten that a BN's variances are drawn between.
ORDINARY = (-0.5, 0.5)
DECADES = [ORDINARY, (-12, -12), (12, 12), (-12, 12)]

placements = pytest.mark.parametrize("placement", ["pre", "post"])


def chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers)).eval()


def settle(bn: nn.BatchNorm1d, generator: torch.Generator, decades=ORDINARY, gamma="mixed") -> None:
    """Give a BN the statistics and parameters of a training that never took place."""
    low, high = decades
    columns = torch.rand(3, bn.num_features, generator=generator) * 4 - 2
    exponents = low + (high - low) * torch.rand(bn.num_features, generator=generator)
    bn.running_mean.copy_(columns[0])
    bn.running_var.copy_(10**exponents)
    if bn.affine:
        bn.weight.copy_(GAMMAS[gamma](columns[1]))
        bn.bias.copy_(columns[2])


@torch.no_grad()
def randomise(network: nn.Sequential, seed: int, statistics=lambda: (ORDINARY, "mixed")) -> nn.Sequential:
    """Draw every number in the network from `seed` alone; `statistics` gives each BN its decades and its gamma."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network:
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * layer.in_features**-0.5)
            if layer.bias is not None:
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
        elif isinstance(layer, nn.BatchNorm1d):
            settle(layer, generator, *statistics())
        elif isinstance(layer, Affine):
            layer.scale.copy_(torch.randn(layer.scale.shape, generator=generator))
            layer.shift.copy_(torch.randn(layer.shift.shape, generator=generator))
    return network.eval()


def standardised(network: nn.Sequential, mean: Tensor, spread: Tensor) -> nn.Sequential:
    """Put a standardisation of the raw columns first."""
    return chain(standardise=Affine(1 / spread, -mean / spread), **dict(network.named_children()))


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def in_float64(network: nn.Sequential, x: Tensor) -> Tensor:
    return copy.deepcopy(network).double()(x.double())


@torch.no_grad()
def run_with_bound(folded: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run in float64; give the output, and how far from it rounding the weights to float32 once can have led."""
    value, bound = x.double(), torch.zeros(x.shape, dtype=torch.float64)
    for layer in copy.deepcopy(folded).double():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.abs()
            bound = bound @ weight.T + HALF_ULP * (value.abs() @ weight.T + layer.bias.abs())
        elif isinstance(layer, Affine):
            bound = bound * layer.scale.abs() + HALF_ULP * ((value * layer.scale).abs() + layer.shift.abs())
        elif not isinstance(layer, Shift):  # a Shift's own rounding is made up for in the bias after it
            bound = bound * STEEPEST_ACTIVATION
        value = layer(value)
    # The rest is the reference's own rounding, and weights below float32's smallest.
    return value, 1.01 * bound + 1e-12 * value.abs() + 1e-15


def assert_same_function(network: nn.Sequential, folded: nn.Sequential, x: Tensor) -> None:
    expected = in_float64(network, x)
    value, bound = run_with_bound(folded, x)
    assert value.shape == expected.shape
    assert ((value - expected).abs() <= bound).all(), f"{value - expected}, where rounding allows {bound}"


@torch.no_grad()
def assert_certifiable(network: nn.Sequential, folded: nn.Sequential, x: Tensor) -> None:
    """Hold the folded network in float32 against the unfolded one in float64, on the same float32 rows."""
    torch.testing.assert_close(folded(x).double(), in_float64(network, x), **CERTIFICATE)


def run_onnx(model: bytes, x: Tensor, *, optimised: bool = True) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    values = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return dict(zip((output.name for output in session.get_outputs()), values, strict=True))


def entries(report: tuple[Fold, ...]) -> list[tuple[str, str, str]]:
    """List (layer, the rule's name, into), in an order that does not depend on when a line was written."""
    return sorted((line.layer, line.rule.split(":")[0], line.into) for line in report)


def named(network: nn.Sequential) -> list[tuple[str, type[nn.Module]]]:
    return [(name, type(layer)) for name, layer in network.named_children()]


def tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


# --- Independent oracles


@pytest.mark.parametrize("bias", [False, True])
def test_a_bn_behind_a_dense_folds_as_torchs_own_fusion_does_and_is_rounded_once(bias):
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
        # Half a unit in the last place: any step taken in float32 would cost some of these 1,950 numbers more.
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


# The exporter's own use of torch.utils._pytree; nothing that a caller passes avoids it (torch 2.13).
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("placement", "activation", "input_norm"), [("pre", "relu", False), ("post", "relu", False), ("post", "gelu", True)]
)
def test_the_folded_onnx_graph_is_the_exporters_graph_with_batch_normalisation_in_it(placement, activation, input_norm):
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
def test_a_kept_scale_and_every_activation_mean_the_same_in_onnx(activation):
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


def test_a_bn_behind_a_relu_folded_backwards_is_another_function_and_the_oracle_says_so():
    network = randomise(build_mlp(6, 3, Architecture(hidden=(16,), placement="post", dropout=0)), seed=5)
    with torch.no_grad():
        network.norm1.weight.abs_()  # not even a gamma that keeps every sign saves it
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


# --- Properties

derandomised = settings(max_examples=100, deadline=None, derandomize=True)
statistics = st.tuples(st.sampled_from(DECADES), st.sampled_from(sorted(GAMMAS)))
seeds = st.integers(0, 2**32 - 1)


@st.composite
def trained_mlps(draw):
    """Draw what `build_mlp` can build, some BNs without affine parameters, maybe a standardisation first; with rows."""
    features = draw(st.integers(1, 5))
    architecture = draw(
        st.builds(
            Architecture,
            hidden=st.lists(st.integers(1, 6), max_size=4).map(tuple),
            placement=st.sampled_from(["pre", "post"]),
            activation=st.sampled_from(sorted(ACTIVATIONS)),
            dropout=st.sampled_from([0.0, 0.5]),
            input_norm=st.booleans(),
            eps=st.sampled_from([1e-5, 1e-3, 1e-12]),
        )
    )
    layers = OrderedDict(build_mlp(features, draw(st.integers(1, 4)), architecture).named_children())
    for name, layer in layers.items():
        if isinstance(layer, nn.BatchNorm1d) and draw(st.booleans()):
            layers[name] = nn.BatchNorm1d(layer.num_features, layer.eps, affine=False)
    network = randomise(chain(**layers), draw(seeds), lambda: draw(statistics))
    x = normal(9, features, draw(seeds))
    if draw(st.booleans()):
        mean = torch.tensor(draw(st.lists(st.sampled_from([0.0, 3.0, -1e5]), min_size=features, max_size=features)))
        spread = torch.full((features,), draw(st.sampled_from([1e-3, 1.0, 1e3])))
        return standardised(network, mean * spread, spread), (mean + x) * spread
    return network, x


@st.composite
def chains(draw):
    """Draw layers in any order that fits; with rows."""
    features = width = draw(st.integers(1, 5))
    layers = OrderedDict()
    kinds = st.sampled_from(["dense", "dense", "norm", "norm", "affine", "activation", "dropout", "identity"])
    for i in range(draw(st.integers(3, 12))):
        match draw(kinds):
            case "dense":
                units = draw(st.integers(1, 5))
                layer, width = nn.Linear(width, units, bias=draw(st.booleans())), units
            case "norm":
                layer = nn.BatchNorm1d(width, draw(st.sampled_from([1e-5, 1e-3])), affine=draw(st.booleans()))
            case "affine":
                layer = Affine(torch.ones(width), torch.zeros(width))
            case "activation":
                layer = draw(st.sampled_from(ACTIVATION_TYPES))()
            case "dropout":
                layer = nn.Dropout()
            case "identity":
                layer = nn.Identity()
        layers[f"layer{i}"] = layer
    network = randomise(chain(**layers), draw(seeds), lambda: draw(statistics))
    return network, normal(9, features, draw(seeds))


@given(trained_mlps())
@derandomised
def test_any_mlp_with_any_statistics_keeps_its_function(drawn):
    network, x = drawn
    folded = fold(network).network
    assert_same_function(network, folded, x)
    assert {type(layer) for layer in folded} <= {nn.Linear, Shift, *ACTIVATION_TYPES}


@given(chains())
@derandomised
def test_any_chain_of_layers_keeps_its_function(drawn):
    network, x = drawn
    assert_same_function(network, fold(network).network, x)


@given(chains())
@derandomised
def test_any_chain_loses_every_affine_layer_that_has_a_dense_beside_it_and_the_report_accounts_for_each(drawn):
    network, _ = drawn
    folded = fold(network)
    left = [type(layer) for layer in folded.network if not isinstance(layer, Shift)]
    assert set(left) <= {nn.Linear, Affine, *ACTIVATION_TYPES}
    assert not any({*pair} <= {nn.Linear, Affine} and Affine in pair for pair in pairwise(left))

    lines = [line for line in folded.report if "offset" not in line.rule]
    foldable = nn.BatchNorm1d | Affine | nn.Dropout | nn.Identity
    accountable = [name for name, layer in network.named_children() if isinstance(layer, foldable)]
    assert sorted(line.layer for line in lines) == sorted(accountable)
    kept = {name for name, layer in folded.network.named_children() if isinstance(layer, Affine)}
    assert kept == {into for _, rule, into in entries(folded.report) if rule == "kept"}
    assert {line.into for line in folded.report} <= {*dict(folded.network.named_children()), "-"}


# --- Structure and report


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
def test_a_folded_mlp_is_dense_and_activation_alone_and_the_report_says_where_each_layer_went(
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


def test_a_bn_with_no_dense_beside_it_stays_as_a_scale_and_a_shift():
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


def far_from_zero(first: str, ratio: float) -> tuple[nn.Sequential, Tensor]:
    """Build a network whose columns 0 and 2 have a mean of +-`ratio` spreads; with float32 rows of it."""
    spread = torch.tensor([7.0, 1.0, 0.02])
    mean = ratio * spread * torch.tensor([1.0, 0.0, -1.0])
    network = randomise(build_mlp(3, 2, Architecture(hidden=(16,), input_norm=True)), seed=9)
    x = mean + spread * normal(200, 3)
    if first == "standardise":
        return standardised(network, mean, spread), x
    with torch.no_grad():
        network.norm0.running_mean.copy_(mean)
        network.norm0.running_var.copy_(spread.square())
        network.norm0.weight.copy_(torch.tensor([1.0, 1.0, -1.0]))
    return network, x


@pytest.mark.parametrize("first", ["standardise", "norm0"])
@pytest.mark.parametrize("ratio", [1e3, 1e5, 1e6])
def test_an_input_far_from_zero_is_subtracted_first_and_stays_within_tolerance_in_float32(first, ratio):
    network, x = far_from_zero(first, ratio)
    folded = fold(network)
    assert [type(layer) for layer in folded.network] == [Shift, nn.Linear, nn.ReLU, nn.Linear]
    shift = next(iter(dict(folded.network.named_children())))
    assert (first, "offset subtracted first", shift) in entries(folded.report)
    assert (first, "forward", "dense1") in entries(folded.report)
    # The column that has no offset is left alone; so it loses nothing to a subtraction.
    assert folded.network[0].offset.nonzero().flatten().tolist() == [0, 2]
    assert_certifiable(network, folded.network, x)
    assert_same_function(network, folded.network, x)
    outputs = run_onnx(to_onnx(folded.network, 3, 2, "regression"), x)
    np.testing.assert_allclose(outputs["value"], in_float64(network, x).numpy(), **CERTIFICATE)


def test_an_offset_folded_into_the_bias_instead_would_break_the_tolerance():
    network, x = far_from_zero("standardise", 1e5)
    subtracting, dense, *rest = fold(network).network
    plain = copy.deepcopy(dense)
    with torch.no_grad():
        plain.bias.copy_(dense.bias.double() - dense.weight.double() @ subtracting.offset.double())
    with pytest.raises(AssertionError, match="not close"):
        assert_certifiable(network, nn.Sequential(plain, *rest), x)


@pytest.mark.parametrize("first", ["standardise", "norm0"])
def test_an_input_close_to_zero_costs_no_subtraction(first):
    network, x = far_from_zero(first, 20)
    folded = fold(network).network
    assert [type(layer) for layer in folded] == [nn.Linear, nn.ReLU, nn.Linear]
    assert_certifiable(network, folded, x)


# --- Purity


@torch.no_grad()
def with_every_survivor() -> nn.Sequential:
    """Build a chain of which a Shift, Dense layers, activations and scales are left."""
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


def test_the_network_that_comes_in_is_left_bit_for_bit_as_it_was():
    network = with_every_survivor()
    before = bits(network)
    layers = list(network.named_children())
    fold(network)
    assert bits(network) == before
    assert list(network.named_children()) == layers
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_tensor_and_no_layer_is_shared_so_that_neither_network_can_change_the_other(dtype):
    network = with_every_survivor().to(dtype)
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


# --- Refusals


def refusable(**replaced: nn.Module) -> nn.Sequential:
    """Build a chain that folds, but for the layers given."""
    layers = {
        "norm0": nn.BatchNorm1d(3),
        "dense1": nn.Linear(3, 4),
        "norm1": nn.BatchNorm1d(4),
        "relu1": nn.ReLU(),
        "dropout1": nn.Dropout(),
        "dense2": nn.Linear(4, 2),
    }
    return chain(**layers | replaced)


@torch.no_grad()
def holding(layer: nn.Module, **values: float) -> nn.Module:
    """Write each value over one number of the layer's tensor of that name."""
    for name, value in values.items():
        getattr(layer, name).view(-1)[-1] = value
    return layer


def test_the_chain_that_the_refusals_start_from_folds():
    network = randomise(refusable(), seed=11)
    assert_same_function(network, fold(network).network, normal(5, 3))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("layer", "module", "reason"),
    [
        ("norm1", nn.BatchNorm1d(4, track_running_stats=False), "no running statistics"),
        ("norm1", nn.BatchNorm1d(4, affine=False, track_running_stats=False), "no running statistics"),
        ("norm1", holding(nn.BatchNorm1d(4), running_mean=NAN), "not finite"),
        ("norm0", holding(nn.BatchNorm1d(3), running_mean=-INF), "not finite"),
        ("norm1", holding(nn.BatchNorm1d(4), running_var=NAN), "not finite"),
        ("norm0", holding(nn.BatchNorm1d(3), running_var=INF), "not finite"),
        ("norm1", holding(nn.BatchNorm1d(4), running_var=-1), "not above 0"),
        ("norm0", holding(nn.BatchNorm1d(3, eps=0), running_var=0), "not above 0"),
        ("norm1", holding(nn.BatchNorm1d(4), weight=NAN), "not finite"),
        ("norm1", holding(nn.BatchNorm1d(4), bias=INF), "not finite"),
        ("dense1", holding(nn.Linear(3, 4), weight=NAN), "not finite"),
        ("dense2", holding(nn.Linear(4, 2), weight=INF), "not finite"),
        ("dense2", holding(nn.Linear(4, 2), bias=NAN), "not finite"),
        ("norm0", Affine(torch.tensor([1, 1, INF]), torch.zeros(3)), "not finite"),
        ("norm0", Affine(torch.ones(3), torch.tensor([0, 0, NAN])), "not finite"),
        ("norm1", nn.LayerNorm(4), "no rule covers LayerNorm"),
        ("relu1", nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "no rule covers Sequential"),
        ("relu1", nn.PReLU(), "no rule covers PReLU"),
        ("norm1", nn.BatchNorm1d(5), "5 columns"),
        ("dense1", nn.Linear(5, 4), "it takes 5 columns, the layer before it gives 3"),
    ],
)
def test_what_has_no_exact_fold_is_refused_by_name(layer, module, reason):
    with pytest.raises(FoldError, match=reason) as refused:
        fold(refusable(**{layer: module}))
    assert refused.value.layer == layer


def test_neighbouring_bns_of_different_widths_are_refused_by_the_second_ones_name():
    with pytest.raises(FoldError, match="5 columns") as refused:
        fold(chain(relu=nn.ReLU(), first=nn.BatchNorm1d(4), second=nn.BatchNorm1d(5)))
    assert refused.value.layer == "second"


def test_a_network_in_training_mode_is_refused_by_its_first_layers_name():
    with pytest.raises(FoldError, match="training mode") as refused:
        fold(refusable().train())
    assert refused.value.layer == "norm0"


@pytest.mark.parametrize("layer", ["dense1", "norm1", "dropout1"])
def test_a_single_layer_in_training_mode_is_refused_by_its_name(layer):
    network = refusable()
    network.get_submodule(layer).train()
    with pytest.raises(FoldError, match="training mode") as refused:
        fold(network)
    assert refused.value.layer == layer


@pytest.mark.parametrize(
    ("layer", "replaced"),
    [
        ("dense1", {"dense1": holding(nn.Linear(3, 4), weight=1e30), "norm1": holding(nn.BatchNorm1d(4), weight=1e30)}),
        ("dense1", {"dense1": holding(nn.Linear(3, 4), bias=1e30), "norm1": holding(nn.BatchNorm1d(4), weight=-1e30)}),
        ("dense1", {"dense1": holding(nn.Linear(3, 4), weight=1e30), "norm0": holding(nn.BatchNorm1d(3), weight=1e30)}),
        (
            "relu1",
            {"norm1": nn.ReLU(), "relu1": holding(nn.BatchNorm1d(4), weight=3e38, running_var=0), "dense2": nn.Tanh()},
        ),
    ],
)
def test_folded_weights_that_overflow_float32_are_refused_by_the_name_of_the_layer_that_would_hold_them(
    layer, replaced
):
    with pytest.raises(FoldError, match="overflow float32") as refused:
        fold(refusable(**replaced))
    assert refused.value.layer == layer


def assert_folds_within_the_certificate(network: nn.Sequential, x: Tensor) -> None:
    assert_certifiable(network, fold(network).network, x)


def test_a_layer_that_stands_in_the_chain_twice_is_folded_twice():
    torch.manual_seed(0)
    relu = nn.ReLU()
    network = chain(a=nn.Linear(4, 8), r1=relu, b=nn.Linear(8, 8), r2=relu, c=nn.Linear(8, 2))
    assert [name for name, _ in fold(network).network.named_children()] == ["a", "r1", "b", "r2", "c"]
    assert_folds_within_the_certificate(network, torch.randn(20, 4))


def test_a_layer_that_is_called_offset_does_not_lose_the_shift():
    torch.manual_seed(0)
    network = chain(standardise=Affine(torch.ones(2), torch.full((2,), -1e3)), offset=nn.Linear(2, 3))
    assert_folds_within_the_certificate(network, torch.randn(20, 2) + 1e3)


@torch.no_grad()
def test_a_small_gamma_does_not_hide_an_input_far_from_zero():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(1e5)
    norm.weight.fill_(5e-4)
    network = chain(norm0=norm, dense1=nn.Linear(1, 1))
    network.dense1.weight.fill_(2000)
    assert_folds_within_the_certificate(network, torch.randn(20, 1) + 1e5)


@torch.no_grad()
def test_an_input_far_from_zero_before_an_activation_stays_within_tolerance():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(123456.7)
    norm.running_var.fill_(1.3)
    network = chain(norm0=norm, tanh=nn.Tanh(), dense1=nn.Linear(1, 1))
    network.dense1.weight.fill_(1)
    assert_folds_within_the_certificate(network, torch.randn(20, 1) + 123456.7)


def test_folding_leaves_torchs_random_state_alone():
    network = chain(dense=nn.Linear(3, 2))
    before = torch.get_rng_state()
    fold(network)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        (chain(a=nn.Linear(3, 4), relu=nn.ReLU(), b=nn.Linear(5, 2)), "b"),
        (chain(a=nn.Linear(3, 4), relu=nn.ReLU(), norm=nn.BatchNorm1d(5)), "norm"),
        (chain(a=nn.Linear(3, 4), relu=nn.ReLU(), norm=nn.BatchNorm1d(5), b=nn.Linear(5, 2)), "norm"),
    ],
)
def test_widths_that_do_not_fit_across_an_activation_are_refused(network, layer):
    with pytest.raises(FoldError) as refused:
        fold(network)
    assert refused.value.layer == layer


def test_a_negligible_scale_does_not_turn_the_offset_into_infinity():
    torch.manual_seed(0)
    scale, shift = torch.tensor([1e-40, 1.0], dtype=torch.float64), torch.tensor([200.0, 0.0])
    assert_folds_within_the_certificate(
        chain(standardise=Affine(scale, shift), dense1=nn.Linear(2, 1)), torch.randn(20, 2)
    )


class _Doubling(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_dense_with_a_forward_of_its_own_is_refused():
    with pytest.raises(FoldError, match="no rule covers _Doubling"):
        fold(chain(dense1=_Doubling(3, 2)))


def test_a_layer_with_a_forward_hook_is_refused():
    network = chain(dense1=nn.Linear(3, 2))
    network.dense1.register_forward_hook(lambda _, __, output: output * 2)
    with pytest.raises(FoldError, match="forward hook"):
        fold(network)
