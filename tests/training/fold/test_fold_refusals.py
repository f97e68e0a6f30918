"""Chains that can't be folded exactly are refused, and the error names the layer."""

import pytest
import torch
from torch import nn

from foldserve.training.errors import FoldError
from foldserve.training.fold.fold import fold
from foldserve.training.network.layers import Affine
from tests.training.fold.support import (
    assert_same_function,
    chain,
    normal,
    randomise,
)

NAN, INF = float("nan"), float("inf")


def refusable(**replaced: nn.Module) -> nn.Sequential:
    """Build a chain that folds, and replace some of its layers."""
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
    """Overwrite one number of each named tensor of the layer."""
    for name, value in values.items():
        getattr(layer, name).view(-1)[-1] = value
    return layer


def test_the_chain_before_the_changes_folds():
    network = randomise(refusable(), seed=11)
    assert_same_function(network, fold(network).network, normal(5, 3))


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
def test_a_layer_that_has_no_exact_fold_is_refused_by_name(layer, module, reason):
    with pytest.raises(FoldError, match=reason) as refused:
        fold(refusable(**{layer: module}))
    assert refused.value.layer == layer


def test_neighbouring_bns_of_different_widths_are_refused_by_the_second_name():
    with pytest.raises(FoldError, match="5 columns") as refused:
        fold(chain(relu=nn.ReLU(), first=nn.BatchNorm1d(4), second=nn.BatchNorm1d(5)))
    assert refused.value.layer == "second"


def test_a_network_in_training_mode_is_refused_by_its_first_layer_s_name():
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
def test_folded_weights_that_overflow_float32_are_refused_by_the_name_of_their_layer(layer, replaced):
    with pytest.raises(FoldError, match="overflow float32") as refused:
        fold(refusable(**replaced))
    assert refused.value.layer == layer


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        (chain(a=nn.Linear(3, 4), relu=nn.ReLU(), b=nn.Linear(5, 2)), "b"),
        (chain(a=nn.Linear(3, 4), relu=nn.ReLU(), norm=nn.BatchNorm1d(5)), "norm"),
        (chain(a=nn.Linear(3, 4), relu=nn.ReLU(), norm=nn.BatchNorm1d(5), b=nn.Linear(5, 2)), "norm"),
    ],
)
def test_widths_that_do_not_match_across_an_activation_are_refused(network, layer):
    with pytest.raises(FoldError) as refused:
        fold(network)
    assert refused.value.layer == layer


class _Doubling(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_dense_that_overrides_forward_is_refused():
    with pytest.raises(FoldError, match="no rule covers _Doubling"):
        fold(chain(dense1=_Doubling(3, 2)))


def test_a_layer_with_a_forward_hook_is_refused():
    network = chain(dense1=nn.Linear(3, 2))
    network.dense1.register_forward_hook(lambda _, __, output: output * 2)
    with pytest.raises(FoldError, match="forward hook"):
        fold(network)
