"""Compares recomputed batch-norm statistics with NumPy's."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.training.fit.statistics import recompute_statistics
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_recomputed_statistics_are_those_of_each_layer_s_input_over_all_rows(placement):
    torch.manual_seed(0)
    x = torch.randn(300, 8) * 3 + 1
    trained = build_mlp(8, 3, Architecture(hidden=(16,), placement=placement, input_norm=True, dropout=0.5))
    recompute_statistics(trained, x, chunk=64)
    assert not trained.training
    exact = copy.deepcopy(trained).double()
    x = x.double()
    for layer, float64 in zip(trained, exact, strict=True):
        if isinstance(layer, nn.BatchNorm1d):
            np.testing.assert_allclose(layer.running_mean, x.detach().numpy().mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(layer.running_var, x.detach().numpy().var(0), rtol=1e-4, atol=1e-5)
        x = float64(x)
