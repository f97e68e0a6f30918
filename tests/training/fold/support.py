"""The chains, oracles and tolerances that the tests of folding share.

Folding rounds each weight to float32 once, with a relative error of at most 2^-24. `run_with_bound` computes, in
float64, by how much the rounding of the weights can change each output. If an output has a larger error, the fold is
wrong, even for a badly conditioned network.

In float32, the tests use the certificate's tolerance, 1e-5 + 1e-4 |reference|, on networks whose outputs are near 1.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from foldserve.training.fold.fold import Fold
from foldserve.training.network.layers import ACTIVATIONS, Affine, Shift

CERTIFICATE = {"atol": 1e-5, "rtol": 1e-4}
HALF_ULP = 2.0**-24
ACTIVATION_TYPES = tuple(ACTIVATIONS.values())
# Of these activations, GELU has the steepest slope: 1.129.
STEEPEST_ACTIVATION = 1.13
GAMMAS: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": torch.abs,
    "negative": lambda gamma: -gamma.abs(),
    "zero": torch.zeros_like,
    "mixed": lambda gamma: torch.where(gamma.abs() < 0.2, 0.0, gamma),
}
# Each pair gives the decimal logarithms of the smallest and the largest variance that a BN may have.
ORDINARY = (-0.5, 0.5)
DECADES = [ORDINARY, (-12, -12), (12, 12), (-12, 12)]


def chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers)).eval()


def settle(bn: nn.BatchNorm1d, generator: torch.Generator, decades=ORDINARY, gamma="mixed") -> None:
    """Give a BN random statistics and parameters, as after a training."""
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
    """Draw every number in the network with `seed`.

    statistics: a function that is called for each BN. The function returns one of the pairs in DECADES, and a name in
    GAMMAS.
    """
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


def standardised(network: nn.Sequential, mean: Tensor, std: Tensor) -> nn.Sequential:
    """Put a standardisation of the raw columns before the network."""
    return chain(standardise=Affine(1 / std, -mean / std), **dict(network.named_children()))


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def in_float64(network: nn.Sequential, x: Tensor) -> Tensor:
    return copy.deepcopy(network).double()(x.double())


@torch.no_grad()
def run_with_bound(folded: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run in float64.

    Return the output, and an upper bound for its error if the weights are rounded once to float32.
    """
    value, bound = x.double(), torch.zeros(x.shape, dtype=torch.float64)
    for layer in copy.deepcopy(folded).double():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.abs()
            bound = bound @ weight.T + HALF_ULP * (value.abs() @ weight.T + layer.bias.abs())
        elif isinstance(layer, Affine):
            bound = bound * layer.scale.abs() + HALF_ULP * ((value * layer.scale).abs() + layer.shift.abs())
        elif not isinstance(layer, Shift):  # a Shift adds no error, because the next bias compensates for the rounding
            bound = bound * STEEPEST_ACTIVATION
        value = layer(value)
    # The added terms allow for the rounding of the reference, and for weights below the smallest float32 number.
    return value, 1.01 * bound + 1e-12 * value.abs() + 1e-15


def assert_same_function(network: nn.Sequential, folded: nn.Sequential, x: Tensor) -> None:
    expected = in_float64(network, x)
    value, bound = run_with_bound(folded, x)
    assert value.shape == expected.shape
    assert ((value - expected).abs() <= bound).all(), f"{value - expected}, where rounding allows {bound}"


@torch.no_grad()
def assert_certifiable(network: nn.Sequential, folded: nn.Sequential, x: Tensor) -> None:
    """Compare the folded network in float32 with the unfolded network in float64, on the same float32 rows."""
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
    """Return a sorted list with an entry for each fold: the folded layer, the name of the rule, and the layer that
    absorbs the folded layer.
    """
    return sorted((line.layer, line.rule.split(":")[0], line.into) for line in report)


def named(network: nn.Sequential) -> list[tuple[str, type[nn.Module]]]:
    return [(name, type(layer)) for name, layer in network.named_children()]


def tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
