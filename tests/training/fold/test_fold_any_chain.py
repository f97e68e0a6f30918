"""Random networks and chains with any statistics are folded, and compared with the unfolded chain in float64."""

from collections import OrderedDict
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foldserve.training.fold.fold import fold
from foldserve.training.network.layers import ACTIVATIONS, Affine, Shift
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture
from tests.training.fold.support import (
    ACTIVATION_TYPES,
    DECADES,
    GAMMAS,
    assert_same_function,
    chain,
    entries,
    normal,
    randomise,
    standardised,
)

derandomised = settings(max_examples=100, deadline=None, derandomize=True)
statistics = st.tuples(st.sampled_from(DECADES), st.sampled_from(sorted(GAMMAS)))
seeds = st.integers(0, 2**32 - 1)


@st.composite
def trained_mlps(draw):
    """Draw rows, and a network that `build_mlp` builds. Some BNs have no affine parameters. The first layer may be a
    standardisation.
    """
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
        std = torch.full((features,), draw(st.sampled_from([1e-3, 1.0, 1e3])))
        return standardised(network, mean * std, std), (mean + x) * std
    return network, x


@st.composite
def chains(draw):
    """Draw rows, and a chain of layers in any order. The widths of the layers match."""
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
def test_any_chain_loses_every_affine_layer_beside_a_dense_and_the_report_lists_each(drawn):
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
