"""Folding: a chain of Dense, batch norm and activations -> the same function with every affine step in a Dense.

Pure: the network that comes in is left as it was. It knows layers and arithmetic, no data and no file.

In eval mode a batch norm is an affine map of each column, BN(x) = s * x + t with

    s = gamma / sqrt(var + eps)        t = beta - mean * s          (Ioffe and Szegedy, 2015, arXiv:1502.03167)

and an affine map next to a Dense, y = W x + b with W [out, in], is part of it:

    backward   affine after the Dense     s * (W x + b) + t   = (diag(s) W) x + (s * b + t)
    forward    affine before the Dense    W (s * x + t) + b   = (W diag(s)) x + (b + W t)

Neither rule looks at what else stands in the chain, so a BN behind an activation folds exactly into the Dense
after it. Everything is computed in float64 and rounded to float32 once, at the end.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from foldserve.training.errors import FoldError
from foldserve.training.network.encode import Encode
from foldserve.training.network.layers import Affine, Shift
from foldserve.training.network.mlp import ACTIVATIONS

# |mean / spread| of an input column from which its offset is subtracted in the graph instead of being folded into
# the first bias. Folded, the column's part of the sum and the bias cancel with an error of 2^-24 * |mean / spread|
# relative to what is left: at 100 that is 6e-6, a tenth of what a certificate allows, and it grows without bound (a
# timestamp: 1e5).
MAX_FOLDED_OFFSET = 100.0

_FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Fold:
    """One line of the report: `layer` went `into` another one by `rule`."""

    layer: str
    rule: str
    into: str


@dataclass(frozen=True)
class Folded:
    """The folded chain (float32, eval mode, no tensor shared with the original) and what went where."""

    network: nn.Sequential
    report: tuple[Fold, ...]


@dataclass(frozen=True)
class _Dense:
    name: str
    weight: Tensor  # float64 [out, in]
    bias: Tensor  # float64 [out]


@dataclass(frozen=True)
class _Scale:
    """BNs and Affines in a row: x -> scale * (x - mean) + beta. far: |mean / spread| of the x they were made for.

    Kept apart, mean and beta lose nothing to each other: scale * mean may be 10^18 times beta (a constant column).
    """

    members: tuple[str, ...]
    scale: Tensor  # float64 [columns], as are the three below
    mean: Tensor
    beta: Tensor
    far: Tensor

    @property
    def shift(self) -> Tensor:
        """The t of scale * x + t."""
        return self.beta - self.scale * self.mean

    @property
    def name(self) -> str:
        return self.members[0]


@dataclass(frozen=True)
class _Opaque:
    """An activation, an Encode or a Shift: nothing is moved across it."""

    name: str
    module: nn.Module


_Step = _Dense | _Scale | _Opaque


def fold(network: nn.Sequential) -> Folded:
    """Fold every affine layer of `network`, a chain in eval mode, into the Dense layers around it.

    BNs and Affines in a row are composed. Directly after a Dense they go into it (backward), else into the Dense
    directly after them (forward), and with no Dense beside them they stay as a scale and a shift. An offset of the
    input that is too far from its spread is subtracted first. Dropout and Identity, which do nothing in eval mode,
    are dropped.

    Raises `FoldError`, naming the layer: training mode, a BN without running statistics, statistics that are not
    finite, var + eps that is not above 0, a layer that no rule covers, widths that don't fit, a result that
    overflows float32.
    """
    report: list[Fold] = []
    done: list[_Step] = []
    for step in _offset_first(_composed(_read(network, report)), network, report):
        last = done[-1] if done else None
        if isinstance(step, _Scale) and isinstance(last, _Dense):
            done[-1] = _backward(last, step)
            report += _lines(step, "backward: W' = diag(s) W, b' = s*b + t", last.name)
        elif isinstance(step, _Dense) and isinstance(last, _Scale):
            done[-1] = _forward(last, step)
            report += _lines(last, "forward: W' = W diag(s), b' = b + W t", step.name)
        else:
            done.append(step)
    for step in done:
        if isinstance(step, _Scale):
            report += _lines(step, "kept: no Dense beside it", step.name)
    return Folded(nn.Sequential(OrderedDict((step.name, _module(step)) for step in done)).eval(), tuple(report))


def _lines(step: _Scale, rule: str, into: str) -> list[Fold]:
    return [Fold(member, rule, into) for member in step.members]


def _read(network: nn.Sequential, report: list[Fold]) -> Iterator[_Step]:
    """Turn each layer into float64 arithmetic, checked."""
    width: int | None = None
    # One module may stand in the chain twice, an activation say; `named_children` would give it once.
    for name, module in network.named_modules(remove_duplicate=False):
        if module is network:
            continue
        if module.training:
            raise FoldError(name, "it is in training mode, where a BN depends on the batch: call eval() first")
        if isinstance(module, nn.Dropout | nn.Identity):
            report.append(Fold(name, "dropped: does nothing in eval mode", "-"))
            continue
        step = _step(name, module)
        width = _next_width(step, width)
        yield step


def _step(name: str, module: nn.Module) -> _Step:
    if module._forward_hooks or module._forward_pre_hooks:
        raise FoldError(name, "it has a forward hook, which could compute anything")
    # Exactly these types: a subclass may have a forward of its own.
    if type(module) is nn.Linear:
        weight = module.weight.detach().double().clone()
        bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double().clone()
        _require_finite(name, weight, bias)
        return _Dense(name, weight, bias)
    if type(module) is nn.BatchNorm1d:
        return _batch_norm(name, module)
    if type(module) is Affine:
        _require_finite(name, module.scale, module.shift)
        # It standardises: the spread of what it was made for is 1 / scale, and its mean -shift / scale.
        scale = module.scale.clone()
        mean = (-module.shift / scale).nan_to_num(0.0, 0.0, 0.0)  # a scale of 0 knows none
        return _Scale((name,), scale, mean, module.shift + scale * mean, module.shift.abs())
    if type(module) is Encode:
        return _Opaque(name, module)
    if any(True for _ in (*module.children(), *module.parameters(), *module.buffers())):
        raise FoldError(name, f"no rule covers {type(module).__name__}")
    return _Opaque(name, module)


def _batch_norm(name: str, bn: nn.BatchNorm1d) -> _Scale:
    if bn.running_mean is None or bn.running_var is None:
        raise FoldError(name, "it keeps no running statistics (track_running_stats=False)")
    mean, var = bn.running_mean.double(), bn.running_var.double()
    if not (mean.isfinite().all() and var.isfinite().all()):
        raise FoldError(name, "its running statistics are not finite")
    if not bool((var + bn.eps > 0).all()):
        raise FoldError(name, "var + eps is not above 0")
    scale = (var + bn.eps).rsqrt()
    far = mean.abs() * scale
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    beta = torch.zeros_like(mean) if bn.bias is None else bn.bias.detach().double()
    _require_finite(name, scale, beta)
    return _Scale((name,), scale, mean, beta, far)


def _require_finite(name: str, *tensors: Tensor) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise FoldError(name, "it holds a value that is not finite")


def _next_width(step: _Step, width: int | None) -> int | None:
    """Check that `step` takes `width` columns, and give how many it makes; None is unknown."""
    if isinstance(step, _Opaque):
        if isinstance(step.module, Encode):
            return step.module.columns
        return width if isinstance(step.module, tuple(ACTIVATIONS.values())) else None
    takes, makes = step.weight.shape[::-1] if isinstance(step, _Dense) else (len(step.scale),) * 2
    if width not in (None, takes):
        raise FoldError(step.name, f"it takes {takes} columns, the layer before it gives {width}")
    return makes


def _composed(steps: Iterator[_Step]) -> Iterator[_Step]:
    """Make one _Scale of those that stand in a row."""
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


def _compose(first: _Scale, second: _Scale) -> _Scale:
    # The mean is the first one's, unless the second was made for what lies further off: so much further.
    more = torch.where(second.far > first.far, (second.mean - first.beta) / first.scale, 0.0).nan_to_num(0.0, 0.0, 0.0)
    return _Scale(
        first.members + second.members,
        second.scale * first.scale,
        first.mean + more,
        second.scale * (first.scale * more + first.beta - second.mean) + second.beta,
        torch.maximum(first.far, second.far),
    )


def _offset_first(steps: Iterator[_Step], network: nn.Sequential, report: list[Fold]) -> Iterator[_Step]:
    """Take out of a _Scale on the input, raw or encoded, the offsets that are too far (see `MAX_FOLDED_OFFSET`).

    Only the input has any: what comes out of a Dense lies about 0 before its own BN has seen it.
    """
    on_input = True
    for step in steps:
        if on_input and isinstance(step, _Scale):
            # s * (x - m) + b = s * ((x - o) - (m - o)) + b with m in float32 as o, so that the graph's own subtraction
            # is what is compensated, rounding included.
            offset = step.mean.float()
            offset = torch.where((step.far > MAX_FOLDED_OFFSET) & offset.isfinite(), offset, 0.0)
            if offset.any():
                name = "offset"
                while hasattr(network, name):
                    name += "_"
                report += _lines(step, "offset subtracted first: x - mean", name)
                yield _Opaque(name, Shift(offset))
                step = replace(step, mean=step.mean - offset.double())
        on_input = on_input and isinstance(step, _Opaque) and isinstance(step.module, Encode)
        yield step


def _backward(dense: _Dense, after: _Scale) -> _Dense:
    weight = after.scale[:, None] * dense.weight
    return replace(dense, weight=weight, bias=after.scale * dense.bias + after.shift)


def _forward(before: _Scale, dense: _Dense) -> _Dense:
    return replace(dense, weight=dense.weight * before.scale, bias=dense.bias + dense.weight @ before.shift)


def _module(step: _Step) -> nn.Module:
    """Round to float32, once."""
    if isinstance(step, _Opaque):
        return copy.deepcopy(step.module)
    first, second = (step.weight, step.bias) if isinstance(step, _Dense) else (step.scale, step.shift)
    if not all(bool((tensor.abs() <= _FLOAT32_MAX).all()) for tensor in (first, second)):
        raise FoldError(step.name, "its folded weights overflow float32")
    if isinstance(step, _Scale):
        return Affine(first.float(), second.float())
    return dense_layer(first, second)


def dense_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Make a Dense of `weight` [out, in] and `bias` [out], rounded to float32, that no optimiser moves."""
    # On no device, it is not initialised: that would draw from the caller's random state.
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer
