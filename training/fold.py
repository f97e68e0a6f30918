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
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from training.errors import FoldError
from training.network import Affine

# |mean / spread| of an input column from which its offset is subtracted in the graph instead of being folded into
# the first bias. Folded, x * s and its offset cancel with a relative error of 2^-24 * |mean / spread|: at 100 that
# is 6e-6, a tenth of what a certificate allows, and it grows without bound (a timestamp: 1e5).
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


class Shift(nn.Module):
    """x - offset, column by column; offset: float32 [columns], subtracted exactly as ONNX Runtime would."""

    offset: Tensor

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, columns] to the same shape."""
        return x - self.offset


@dataclass(frozen=True)
class _Dense:
    name: str
    weight: Tensor  # float64 [out, in]
    bias: Tensor  # float64 [out]


@dataclass(frozen=True)
class _Scale:
    """A BN or an Affine: x -> scale * x + shift, both float64 [columns]."""

    name: str
    scale: Tensor
    shift: Tensor
    members: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Opaque:
    """An activation: nothing is moved across it. Or a Shift, which stands first."""

    name: str
    module: nn.Module


_Step = _Dense | _Scale | _Opaque


def fold(network: nn.Sequential) -> Folded:
    """Fold every affine layer of `network`, a chain in eval mode, into the Dense layers around it.

    A BN or Affine directly after a Dense goes into it (backward), one with a Dense directly after it goes there
    (forward), neighbours are composed first, and one with no Dense beside it stays as a scale and a shift.
    Dropout and Identity, which do nothing in eval mode, are dropped.

    Raises `FoldError`, naming the layer: training mode, a BN without running statistics, statistics that are not
    finite, var + eps that is not above 0, a layer that no rule covers, widths that don't fit, a result that
    overflows float32.
    """
    done: list[_Step] = []
    report: list[Fold] = []
    for step in _read(network, report):
        last = done[-1] if done else None
        if isinstance(step, _Scale) and isinstance(last, _Dense):
            done[-1] = _backward(last, step)
            report.append(Fold(step.name, "backward: W' = diag(s) W, b' = s*b + t", last.name))
        elif isinstance(step, _Scale) and isinstance(last, _Scale):
            done[-1] = _compose(last, step)
        elif isinstance(step, _Dense) and isinstance(last, _Scale):
            done.pop()
            if not done:  # only the raw input has a mean far from its spread: a hidden column passed through a Dense
                last, shift = _split_offset(last)
                if shift is not None:
                    done.append(shift)
                    report.append(Fold(last.members[0], "offset subtracted first: x - mean", shift.name))
            done.append(_forward(last, step))
            report.extend(Fold(name, "forward: W' = W diag(s), b' = b + W t", step.name) for name in last.members)
        else:
            done.append(step)
    layers = OrderedDict((step.name, _module(step)) for step in done)
    report.extend(
        Fold(name, "kept: no Dense beside it", step.name)
        for step in done
        if isinstance(step, _Scale)
        for name in step.members
    )
    return Folded(nn.Sequential(layers).eval(), tuple(report))


def _read(network: nn.Sequential, report: list[Fold]) -> Iterator[_Step]:
    """Turn each layer into float64 arithmetic, checked."""
    for name, module in network.named_children():
        if module.training:
            raise FoldError(name, "it is in training mode, where a BN depends on the batch: call eval() first")
        if isinstance(module, nn.Dropout | nn.Identity):
            report.append(Fold(name, "dropped: does nothing in eval mode", "-"))
        elif isinstance(module, nn.Linear):
            weight = module.weight.detach().double().clone()
            bias = torch.zeros(len(weight), dtype=torch.float64) if module.bias is None else module.bias
            yield _checked(_Dense(name, weight, bias.detach().double().clone()))
        elif isinstance(module, nn.BatchNorm1d):
            yield _checked(_batch_norm(name, module))
        elif isinstance(module, Affine):
            yield _checked(_Scale(name, module.scale.clone(), module.shift.clone(), (name,)))
        elif any(True for _ in (*module.children(), *module.parameters(), *module.buffers())):
            raise FoldError(name, f"no rule covers {type(module).__name__}")
        else:
            yield _Opaque(name, module)


def _checked(step: _Dense | _Scale) -> _Dense | _Scale:
    first, second = (step.weight, step.bias) if isinstance(step, _Dense) else (step.scale, step.shift)
    if not (first.isfinite().all() and second.isfinite().all()):
        raise FoldError(step.name, "it holds a value that is not finite")
    return step


def _batch_norm(name: str, bn: nn.BatchNorm1d) -> _Scale:
    if bn.running_mean is None or bn.running_var is None:
        raise FoldError(name, "it keeps no running statistics (track_running_stats=False)")
    mean, var = bn.running_mean.double(), bn.running_var.double()
    if not (mean.isfinite().all() and var.isfinite().all()):
        raise FoldError(name, "its running statistics are not finite")
    if not bool((var + bn.eps > 0).all()):
        raise FoldError(name, "var + eps is not above 0")
    scale = (var + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    shift = -mean * scale
    if bn.bias is not None:
        shift = shift + bn.bias.detach().double()
    return _Scale(name, scale, shift, (name,))


def _backward(dense: _Dense, after: _Scale) -> _Dense:
    if len(after.scale) != len(dense.bias):
        raise FoldError(after.name, f"it has {len(after.scale)} columns, {dense.name!r} gives {len(dense.bias)}")
    return replace(dense, weight=after.scale[:, None] * dense.weight, bias=after.scale * dense.bias + after.shift)


def _forward(before: _Scale, dense: _Dense) -> _Dense:
    if len(before.scale) != dense.weight.shape[1]:
        width = dense.weight.shape[1]
        raise FoldError(before.name, f"it has {len(before.scale)} columns, {dense.name!r} takes {width}")
    return replace(dense, weight=dense.weight * before.scale, bias=dense.bias + dense.weight @ before.shift)


def _compose(first: _Scale, second: _Scale) -> _Scale:
    if len(first.scale) != len(second.scale):
        raise FoldError(second.name, f"it has {len(second.scale)} columns, {first.name!r} has {len(first.scale)}")
    return _Scale(
        first.name,
        second.scale * first.scale,
        second.scale * first.shift + second.shift,
        first.members + second.members,
    )


def _split_offset(step: _Scale) -> tuple[_Scale, _Opaque | None]:
    """Take out of the input's affine map the offsets too large to be folded (see `MAX_FOLDED_OFFSET`)."""
    large = step.shift.abs() > MAX_FOLDED_OFFSET
    if not large.any():
        return step, None
    # s * x + t = s * (x - o) + (t + s * o) with o = -t / s in float32, so that the graph's own subtraction is what
    # is compensated, rounding included.
    offset = torch.where(large & (step.scale != 0), -step.shift / step.scale, 0.0).float()
    rest = replace(step, shift=step.shift + step.scale * offset.double())
    return rest, _Opaque("offset", Shift(offset))


def _module(step: _Step) -> nn.Module:
    """Round to float32, once."""
    if isinstance(step, _Opaque):
        return copy.deepcopy(step.module)
    first, second = (step.weight, step.bias) if isinstance(step, _Dense) else (step.scale, step.shift)
    for tensor in (first, second):
        if not bool((tensor.abs() <= _FLOAT32_MAX).all()):
            raise FoldError(step.name, "its folded weights overflow float32")
    if isinstance(step, _Scale):
        return Affine(first.float(), second.float())
    dense = nn.Linear(first.shape[1], first.shape[0])
    with torch.no_grad():
        dense.weight.copy_(first)
        dense.bias.copy_(second)
    return dense.requires_grad_(requires_grad=False)
