"""The two ceilings: a bare matrix product in each precision, and a copy between host and device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from rig.gpu.contenders import DTYPES, Device
from rig.gpu.networks import Precision
from rig.gpu.timing import stopwatch

_SETS = 2  # operands that take turns


@dataclass
class Peak:
    """torch.matmul of [m, k] and [k, n]. rates: floating-point operations a second, by round."""

    precision: Precision
    shape: tuple[int, int, int]
    rates: list[float]


@dataclass
class Copies:
    """Bytes a second of a copy of so many bytes, by round."""

    size: int
    what: str
    rates: list[float]


def set_precision(precision: Precision) -> None:
    """Let float32 products use TF32 or not. It is read when a kernel is queued, captured or compiled."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def matmul_shapes(square: int, batch: int, widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Give a large square, and a batch times each hidden layer's weights."""
    layers = itertools.pairwise(widths[:-1])
    return [(square, square, square), *dict.fromkeys((batch, k, n) for k, n in layers)]


def peak(precision: Precision, shape: tuple[int, int, int], device: Device, rounds: int, seconds: float) -> Peak:
    """Measure on random numbers: zeros run faster than data does."""
    set_precision(precision)
    m, k, n = shape
    dtype = DTYPES[precision]
    sets = [
        (torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)) for _ in range(_SETS)
    ]
    out = torch.empty(m, n, device=device, dtype=dtype)
    laps = stopwatch(_in_turn([partial(torch.matmul, a, b, out=out) for a, b in sets]), device, rounds, seconds)
    return Peak(precision, shape, [2 * m * k * n / lap for lap in laps])


def copies(size: int, device: Device, rounds: int, seconds: float) -> list[Copies]:
    """Measure copies from and to pinned memory, and from ordinary memory, of so many bytes."""
    pin = device == "cuda"
    pinned = [torch.randn(size // 4, pin_memory=pin) for _ in range(_SETS)]
    plain = [x.clone() for x in pinned]
    there = [torch.empty(size // 4, device=device) for _ in range(_SETS)]
    found = []
    for what, pairs in (
        ("host to device, pinned", zip(there, pinned, strict=True)),
        ("device to host, pinned", zip(pinned, there, strict=True)),
        ("host to device, ordinary memory", zip(there, plain, strict=True)),
        ("ordinary to pinned memory, on the host", zip(pinned, plain, strict=True)),
    ):
        work = _in_turn([partial(to.copy_, of, non_blocking=True) for to, of in pairs])
        where: Device = "cpu" if what.endswith("on the host") else device
        found.append(Copies(size, what, [size / lap for lap in stopwatch(work, where, rounds, seconds)]))
    return found


def _in_turn(works: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    turn = 0

    def work() -> None:
        nonlocal turn
        turn += 1
        works[turn % len(works)]()

    return work


def highest(peaks: Sequence[Peak], precision: str) -> float | None:
    """Give the operations a second of the fastest shape in a precision, a median over the rounds."""
    return max((median(x.rates) for x in peaks if x.precision == precision), default=None)
