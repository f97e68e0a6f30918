"""For inputs far from zero, folding changes the outputs by less than the tolerance of the certificate."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foldserve.training.fold.export import to_onnx
from foldserve.training.fold.fold import fold
from foldserve.training.network.layers import Affine, Shift
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture
from tests.training.fold.support import (
    CERTIFICATE,
    assert_certifiable,
    assert_same_function,
    chain,
    entries,
    in_float64,
    normal,
    randomise,
    run_onnx,
    standardised,
)


def assert_folds_within_the_certificate(network: nn.Sequential, x: Tensor) -> None:
    assert_certifiable(network, fold(network).network, x)


def far_from_zero(first: str, ratio: float) -> tuple[nn.Sequential, Tensor]:
    """Build float32 rows and a network.

    The mean of column 0 is `ratio` times its standard deviation. The mean of column 2 is -`ratio` times its standard
    deviation.
    """
    std = torch.tensor([7.0, 1.0, 0.02])
    mean = ratio * std * torch.tensor([1.0, 0.0, -1.0])
    network = randomise(build_mlp(3, 2, Architecture(hidden=(16,), input_norm=True)), seed=9)
    x = mean + std * normal(200, 3)
    if first == "standardise":
        return standardised(network, mean, std), x
    with torch.no_grad():
        network.norm0.running_mean.copy_(mean)
        network.norm0.running_var.copy_(std.square())
        network.norm0.weight.copy_(torch.tensor([1.0, 1.0, -1.0]))
    return network, x


@pytest.mark.parametrize("first", ["standardise", "norm0"])
@pytest.mark.parametrize("ratio", [1e3, 1e5, 1e6])
def test_an_offset_far_from_zero_is_subtracted_first_and_float32_stays_within_tolerance(first, ratio):
    network, x = far_from_zero(first, ratio)
    folded = fold(network)
    assert [type(layer) for layer in folded.network] == [Shift, nn.Linear, nn.ReLU, nn.Linear]
    shift = next(iter(dict(folded.network.named_children())))
    assert (first, "offset subtracted first", shift) in entries(folded.report)
    assert (first, "forward", "dense1") in entries(folded.report)
    # Nothing is subtracted from the column without an offset, so its values are not rounded.
    assert folded.network[0].offset.nonzero().flatten().tolist() == [0, 2]
    assert_certifiable(network, folded.network, x)
    assert_same_function(network, folded.network, x)
    outputs = run_onnx(to_onnx(folded.network, 3, 2, "regression"), x)
    np.testing.assert_allclose(outputs["value"], in_float64(network, x).numpy(), **CERTIFICATE)


def test_an_offset_that_is_folded_into_the_bias_breaks_the_tolerance():
    network, x = far_from_zero("standardise", 1e5)
    subtracting, dense, *rest = fold(network).network
    plain = copy.deepcopy(dense)
    with torch.no_grad():
        plain.bias.copy_(dense.bias.double() - dense.weight.double() @ subtracting.offset.double())
    with pytest.raises(AssertionError, match="not close"):
        assert_certifiable(network, nn.Sequential(plain, *rest), x)


@pytest.mark.parametrize("first", ["standardise", "norm0"])
def test_an_input_close_to_zero_needs_no_subtraction(first):
    network, x = far_from_zero(first, 20)
    folded = fold(network).network
    assert [type(layer) for layer in folded] == [nn.Linear, nn.ReLU, nn.Linear]
    assert_certifiable(network, folded, x)


def test_a_layer_named_offset_does_not_replace_the_shift():
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


def test_a_negligible_scale_does_not_turn_the_offset_into_infinity():
    torch.manual_seed(0)
    scale, shift = torch.tensor([1e-40, 1.0], dtype=torch.float64), torch.tensor([200.0, 0.0])
    assert_folds_within_the_certificate(
        chain(standardise=Affine(scale, shift), dense1=nn.Linear(2, 1)), torch.randn(20, 2)
    )
