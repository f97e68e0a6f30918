"""Tests the layers of the batch-norm MLP, and their order."""

import pytest
import torch
from torch import nn

from foldserve.training.network.layers import ACTIVATIONS, Affine
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture


def kinds(network):
    return [type(layer) for layer in network]


def test_pre_places_the_norm_between_dense_and_activation():
    network = build_mlp(64, 10, Architecture(hidden=(64, 64), placement="pre", dropout=0))
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds(network) == [*block, *block, nn.Linear]


def test_post_is_the_reference_topology():
    network = build_mlp(64, 10, Architecture(hidden=(64, 64), placement="post", dropout=0))
    block = [nn.Linear, nn.ReLU, nn.BatchNorm1d]
    assert kinds(network) == [*block, *block, nn.Linear]
    assert [layer.out_features for layer in network if isinstance(layer, nn.Linear)] == [64, 64, 10]


@pytest.mark.parametrize("hidden", [(), (3,), (7, 5, 3, 2)])
def test_any_number_of_hidden_widths_maps_features_to_outputs(hidden):
    network = build_mlp(6, 4, Architecture(hidden=hidden)).eval()
    assert network(torch.zeros(2, 6)).shape == (2, 4)
    assert [layer.out_features for layer in network if isinstance(layer, nn.Linear)] == [*hidden, 4]


def test_a_dense_directly_before_a_norm_has_no_bias():
    for placement, without in (("pre", [True, True, False]), ("post", [False, False, False])):
        network = build_mlp(4, 2, Architecture(hidden=(3, 3), placement=placement))
        assert [layer.bias is None for layer in network if isinstance(layer, nn.Linear)] == without


def test_without_batch_norm_every_dense_has_a_bias():
    network = build_mlp(4, 2, Architecture(batch_norm=False, input_norm=True))
    assert nn.BatchNorm1d not in kinds(network)
    assert all(layer.bias is not None for layer in network if isinstance(layer, nn.Linear))


def test_input_norm_is_first_and_eps_and_momentum_apply_to_every_norm():
    network = build_mlp(4, 2, Architecture(input_norm=True, eps=1e-3, momentum=0.01))
    norms = [layer for layer in network if isinstance(layer, nn.BatchNorm1d)]
    assert network[0] is norms[0]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_follows_each_hidden_dense(name):
    network = build_mlp(4, 2, Architecture(activation=name))
    assert sum(isinstance(layer, ACTIVATIONS[name]) for layer in network) == 2


def test_dropout_follows_each_hidden_block():
    network = build_mlp(4, 2, Architecture(hidden=(3, 3), dropout=0.25))
    assert [layer.p for layer in network if isinstance(layer, nn.Dropout)] == [0.25, 0.25]


def test_affine_computes_in_float64_and_keeps_the_dtype_of_its_input():
    affine = Affine(torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0]))
    out = affine(torch.tensor([[1.0, 1.0]]))
    assert out.dtype == torch.float32
    assert out.tolist() == [[3.0, 2.0]]


@pytest.mark.parametrize("wrong", [{"hidden": (0,)}, {"dropout": 1.0}, {"eps": 0.0}, {"momentum": 0.0}])
def test_an_architecture_that_can_t_be_built_is_refused(wrong):
    with pytest.raises(ValueError, match=r"above|at least"):
        Architecture(**wrong)
