"""Folding: moves the affine steps of a chain, such as batch norms, into the weights of its Dense layers.

The folded chain computes the same function as the original chain. Folding never changes the network that is passed to
it. The module does not depend on data or files.

In eval mode, a batch norm is an affine map of each column, BN(x) = s * x + t with

    s = gamma / sqrt(var + eps)        t = beta - mean * s          (Ioffe and Szegedy, 2015, arXiv:1502.03167)

If an affine map is next to a Dense, y = W x + b with W [out, in], the Dense can include the map:

    backward   affine after the Dense     s * (W x + b) + t   = (diag(s) W) x + (s * b + t)
    forward    affine before the Dense    W (s * x + t) + b   = (W diag(s)) x + (b + W t)

Each rule needs only the Dense and the affine map, so a BN that follows an activation can fold exactly into the next
Dense. All values are computed in float64, and the results are rounded to float32 once.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from foldserve.training.errors import FoldError
from foldserve.training.network.calendar import Calendar
from foldserve.training.network.encode import Encode
from foldserve.training.network.layers import Affine, Layer, Shift, is_activation

# If |mean / std| of an input column is at most this limit, its offset is folded into the first bias. If |mean / std| is
# larger, the graph subtracts the offset. A folded offset is a part of the bias, and the product of the column and its
# weight nearly cancels this part. The remaining difference has a relative error of 2^-24 * |mean / std|. At the limit,
# where |mean / std| is 100, the error is 6e-6, a tenth of the tolerance of a certificate. Without this limit, the error
# could be a thousand times larger, because |mean / std| of a timestamp can be 1e5.
MAX_FOLDED_OFFSET = 100.0

_FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Fold:
    """One line of the report. The layer `layer` was folded into the layer `into`, by the rule `rule`."""

    layer: str
    rule: str
    into: str


@dataclass(frozen=True)
class Folded:
    """The folded chain, and the report about its layers.

    The chain is float32, in eval mode, and shares no tensor with the original chain.
    """

    network: nn.Sequential
    report: tuple[Fold, ...]


@dataclass(frozen=True)
class _Dense:
    name: str
    weight: Tensor  # float64 [out, in]
    bias: Tensor  # float64 [out]


@dataclass(frozen=True)
class _Scale:
    """One or more consecutive BNs and Affines, composed into the map x -> scale * (x - mean) + beta.

    distance: |mean / std| of the data that these layers were fitted to. The class keeps mean and beta as two numbers,
    because the single number beta - scale * mean could lose the digits of beta. In a constant column, scale * mean can
    be 10^18 times as large as beta.
    """

    members: tuple[str, ...]
    scale: Tensor  # this and the next three fields are float64 [columns]
    mean: Tensor
    beta: Tensor
    distance: Tensor

    @property
    def shift(self) -> Tensor:
        """The constant t of the map, written as scale * x + t."""
        return self.beta - self.scale * self.mean

    @property
    def name(self) -> str:
        return self.members[0]


@dataclass(frozen=True)
class _Opaque:
    """An activation, or another layer that is not affine. No affine map is folded across an opaque layer."""

    name: str
    module: nn.Module


_Step = _Dense | _Scale | _Opaque


def fold(network: nn.Sequential) -> Folded:
    """Fold every affine layer of `network`, a chain in eval mode, into the Dense layers around it.

    Consecutive BNs and Affines are composed into one affine map. If the composed map directly follows a Dense, the map
    folds backward into that Dense. If only the layer after the map is a Dense, the map folds forward into this Dense.
    If no Dense is next to the map, the map stays in the chain as a scale and a shift. If an input column is many
    standard deviations away from zero, its offset is subtracted at the start of the chain. Dropout and Identity do
    nothing in eval mode, so they are dropped.

    Raises `FoldError` with the name of the layer in these cases: the network is in training mode, a BN has no running
    statistics, the statistics are not finite, var + eps is not above 0, no rule covers the layer, the widths don't
    match, or a result overflows float32.
    """
    report: list[Fold] = []
    done: list[_Step] = []
    for step in _subtract_offsets(_compose_neighbours(_read_steps(network, report)), network, report):
        last = done[-1] if done else None
        if isinstance(step, _Scale) and isinstance(last, _Dense):
            done[-1] = _fold_backward(last, step)
            report += _report(step, "backward: W' = diag(s) W, b' = s*b + t", last.name)
        elif isinstance(step, _Dense) and isinstance(last, _Scale):
            done[-1] = _fold_forward(last, step)
            report += _report(last, "forward: W' = W diag(s), b' = b + W t", step.name)
        else:
            done.append(step)
    for step in done:
        if isinstance(step, _Scale):
            report += _report(step, "kept: no Dense beside it", step.name)
    return Folded(nn.Sequential(OrderedDict((step.name, _to_module(step)) for step in done)).eval(), tuple(report))


def _report(step: _Scale, rule: str, into: str) -> list[Fold]:
    return [Fold(member, rule, into) for member in step.members]


# --- Reading: layers -> steps in float64


def _read_steps(network: nn.Sequential, report: list[Fold]) -> Iterator[_Step]:
    """Turn each layer into a step in float64, and check that the step fits the step before it."""
    columns: int | None = None
    # A chain may contain the same module twice, for example an activation. `named_children` would return a repeated
    # module only once.
    for name, module in network.named_modules(remove_duplicate=False):
        if module is network:
            continue
        if module.training:
            raise FoldError(name, "it is in training mode, where a BN depends on the batch: call eval() first")
        if isinstance(module, nn.Dropout | nn.Identity):
            report.append(Fold(name, "dropped: does nothing in eval mode", "-"))
            continue
        step = _read_step(name, module)
        columns = _output_columns(step, columns)
        yield step


def _read_step(name: str, module: nn.Module) -> _Step:
    if module._forward_hooks or module._forward_pre_hooks:
        raise FoldError(name, "it has a forward hook, which could compute anything")
    # The type must match exactly, because a subclass may override `forward`.
    if type(module) is nn.Linear:
        weight = module.weight.detach().double().clone()
        bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double().clone()
        _require_finite(name, weight, bias)
        return _Dense(name, weight, bias)
    if type(module) is nn.BatchNorm1d:
        return _read_batch_norm(name, module)
    if type(module) is Affine:
        return _read_affine(name, module)
    if not isinstance(module, Layer) and any(
        True for _ in (*module.children(), *module.parameters(), *module.buffers())
    ):
        raise FoldError(name, f"no rule covers {type(module).__name__}")
    return _Opaque(name, module)


def _read_affine(name: str, module: Affine) -> _Scale:
    _require_finite(name, module.scale, module.shift)
    # A standardisation was fitted to data with the mean -shift / scale and the std 1 / scale.
    scale = module.scale.clone()
    mean = (-module.shift / scale).nan_to_num(0.0, 0.0, 0.0)  # the mean is unknown where the scale is 0
    return _Scale((name,), scale, mean, module.shift + scale * mean, module.shift.abs())


def _read_batch_norm(name: str, bn: nn.BatchNorm1d) -> _Scale:
    if bn.running_mean is None or bn.running_var is None:
        raise FoldError(name, "it keeps no running statistics (track_running_stats=False)")
    mean, var = bn.running_mean.double(), bn.running_var.double()
    if not (mean.isfinite().all() and var.isfinite().all()):
        raise FoldError(name, "its running statistics are not finite")
    if not bool((var + bn.eps > 0).all()):
        raise FoldError(name, "var + eps is not above 0")
    scale = (var + bn.eps).rsqrt()
    distance = mean.abs() * scale
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    beta = torch.zeros_like(mean) if bn.bias is None else bn.bias.detach().double()
    _require_finite(name, scale, beta)
    return _Scale((name,), scale, mean, beta, distance)


def _require_finite(name: str, *tensors: Tensor) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise FoldError(name, "it holds a value that is not finite")


def _output_columns(step: _Step, columns: int | None) -> int | None:
    """Return the number of columns after `step`, or None if it is unknown.

    columns: the number of columns before `step`, or None if it is unknown.

    Raises `FoldError` if `step` needs a different number of columns.
    """
    if isinstance(step, _Opaque):
        if isinstance(step.module, Layer):
            return columns if step.module.columns is None else step.module.columns
        return columns if is_activation(step.module) else None
    inputs, outputs = step.weight.shape[::-1] if isinstance(step, _Dense) else (len(step.scale),) * 2
    if columns not in (None, inputs):
        raise FoldError(step.name, f"it takes {inputs} columns, the layer before it gives {columns}")
    return outputs


# --- Composing: affine maps in a row -> one


def _compose_neighbours(steps: Iterator[_Step]) -> Iterator[_Step]:
    """Replace each sequence of consecutive _Scales by a single _Scale."""
    waiting: _Scale | None = None
    for step in steps:
        if isinstance(step, _Scale):
            waiting = step if waiting is None else _compose(waiting, step)
            continue
        if waiting is not None:
            yield waiting
            waiting = None
        yield step
    if waiting is not None:
        yield waiting


# The function composes two affine maps of one column.
#
#     first      y = s1 * (x - m1) + b1
#     second     z = s2 * (y - m2) + b2
#
# Substitute y. Choose any number d, set m = m1 + d, and write x - m1 = (x - m) + d:
#
#     z = s2 * (s1 * (x - m1) + b1 - m2) + b2
#       = s2*s1 * (x - m)  +  s2 * (s1*d + b1 - m2) + b2
#         \_____/               \________________________/
#          scale                           beta
#
# The composed map is the same for every value of d. The choice of d affects only the rounding, because the graph may
# subtract `mean` from the input first (see `_subtract_offsets`). This function chooses between two values of d:
#
#     d = 0                   m = m1: the offset of the data that the first map was fitted to.
#     d = (m2 - b1) / s1      m is the x that the first map takes to m2: the offset of the data that the second map
#                             was fitted to. Then s1*d + b1 - m2 = 0, and beta = b2.
#
# Each map was fitted to data, and `distance` is the number of standard deviations between the mean of these data and
# zero. If the second map has the larger distance, the function takes d = (m2 - b1) / s1. For example, the second map
# has the larger distance if the first map only changes the unit and a BN then subtracts the mean. If s1 = 0, z is
# constant and the quotient is not finite, so the function takes d = 0.
def _compose(first: _Scale, second: _Scale) -> _Scale:
    d = torch.where(second.distance > first.distance, (second.mean - first.beta) / first.scale, 0.0)
    d = d.nan_to_num(0.0, 0.0, 0.0)
    return _Scale(
        first.members + second.members,
        second.scale * first.scale,
        first.mean + d,
        second.scale * (first.scale * d + first.beta - second.mean) + second.beta,
        torch.maximum(first.distance, second.distance),
    )


def _subtract_offsets(steps: Iterator[_Step], network: nn.Sequential, report: list[Fold]) -> Iterator[_Step]:
    """Put a Shift in front of a _Scale that reads the raw or the encoded input.

    The Shift subtracts the offsets above `MAX_FOLDED_OFFSET`.

    Only the input can have offsets above `MAX_FOLDED_OFFSET`. The mean of the outputs of a Dense is small in comparison
    with their standard deviation.
    """
    on_input = True
    for step in steps:
        if on_input and isinstance(step, _Scale):
            # The map s * (x - m) + b is written as s * ((x - o) - (m - o)) + b. The offset o is m rounded to float32,
            # because ONNX Runtime subtracts in float32. The term m - o corrects the rounding error of o.
            offset = step.mean.float()
            offset = torch.where((step.distance > MAX_FOLDED_OFFSET) & offset.isfinite(), offset, 0.0)
            if offset.any():
                name = "offset"
                while hasattr(network, name):
                    name += "_"
                report += _report(step, "offset subtracted first: x - mean", name)
                yield _Opaque(name, Shift(offset))
                step = replace(step, mean=step.mean - offset.double())
        on_input = on_input and isinstance(step, _Opaque) and isinstance(step.module, Encode | Calendar)
        yield step


# --- Folding: an affine map into its neighbour


def _fold_backward(dense: _Dense, after: _Scale) -> _Dense:
    weight = after.scale[:, None] * dense.weight
    return replace(dense, weight=weight, bias=after.scale * dense.bias + after.shift)


def _fold_forward(before: _Scale, dense: _Dense) -> _Dense:
    return replace(dense, weight=dense.weight * before.scale, bias=dense.bias + dense.weight @ before.shift)


def _to_module(step: _Step) -> nn.Module:
    """Return the layer of a step, with its numbers rounded to float32 once."""
    if isinstance(step, _Opaque):
        return copy.deepcopy(step.module)
    first, second = (step.weight, step.bias) if isinstance(step, _Dense) else (step.scale, step.shift)
    if not all(bool((tensor.abs() <= _FLOAT32_MAX).all()) for tensor in (first, second)):
        raise FoldError(step.name, "its folded weights overflow float32")
    if isinstance(step, _Scale):
        return Affine(first.float(), second.float())
    return make_dense(first, second)


def make_dense(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Make a Dense with `weight` [out, in] and `bias` [out], both rounded to float32 and without gradients."""
    # PyTorch does not initialise a layer on the meta device, so the random state of the caller does not change.
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer
