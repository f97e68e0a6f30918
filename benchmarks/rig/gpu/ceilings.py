"""Measures the limits of the hardware: a matrix product in each precision, and copies between host and device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from foldserve.service.runtime.session import Precision
from rig.gpu.contender import Device
from rig.gpu.timing import time_on_device
from rig.gpu.torch_contenders import DTYPES

_SETS = 2  # the number of operand sets, which the products use in turn


@dataclass
class Peak:
    """The product of [m, k] and [k, n] by torch.matmul. rates: floating-point operations per second in each round."""

    precision: Precision
    shape: tuple[int, int, int]
    rates: list[float]


@dataclass
class Copies:
    """The measured rates of copies that have `size` bytes. rates: the bytes per second in each round."""

    size: int
    what: str
    rates: list[float]


def set_precision(precision: Precision) -> None:
    """Allow or forbid TF32 in float32 products.

    PyTorch reads the setting of TF32 when it queues, captures or compiles a kernel.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def matmul_shapes(square: int, batch: int, widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the shapes [m, k, n] of the measured products.

    One product multiplies large square matrices. Each of the other products multiplies a batch by the weights of one
    hidden layer.
    """
    layers = itertools.pairwise(widths[:-1])
    return [(square, square, square), *dict.fromkeys((batch, k, n) for k, n in layers)]


def peak(precision: Precision, shape: tuple[int, int, int], device: Device, rounds: int, seconds: float) -> Peak:
    """Measure products of random numbers, because products of zeros run faster."""
    set_precision(precision)
    m, k, n = shape
    dtype = DTYPES[precision]
    sets = [
        (torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)) for _ in range(_SETS)
    ]
    out = torch.empty(m, n, device=device, dtype=dtype)
    laps = time_on_device(_alternate([partial(torch.matmul, a, b, out=out) for a, b in sets]), device, rounds, seconds)
    return Peak(precision, shape, [2 * m * k * n / lap for lap in laps])


def copies(size: int, device: Device, rounds: int, seconds: float) -> list[Copies]:
    """Measure copies of `size` bytes between the device and pinned memory, and copies from ordinary memory."""
    pin = device == "cuda"
    pinned = [torch.randn(size // 4, pin_memory=pin) for _ in range(_SETS)]
    plain = [x.clone() for x in pinned]
    on_device = [torch.empty(size // 4, device=device) for _ in range(_SETS)]
    found = []
    for what, pairs in (
        ("host to device, pinned", zip(on_device, pinned, strict=True)),
        ("device to host, pinned", zip(pinned, on_device, strict=True)),
        ("host to device, ordinary memory", zip(on_device, plain, strict=True)),
        ("ordinary to pinned memory, on the host", zip(pinned, plain, strict=True)),
    ):
        work = _alternate([partial(target.copy_, source, non_blocking=True) for target, source in pairs])
        where: Device = "cpu" if what.endswith("on the host") else device
        found.append(Copies(size, what, [size / lap for lap in time_on_device(work, where, rounds, seconds)]))
    return found


def _alternate(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    turn = 0

    def work() -> None:
        nonlocal turn
        turn += 1
        calls[turn % len(calls)]()

    return work


def highest(peaks: Sequence[Peak], precision: str) -> float | None:
    """Return the highest rate of a matrix product in a precision, in operations per second.

    The rate of a product is the median of its rounds.
    """
    return max((median(x.rates) for x in peaks if x.precision == precision), default=None)
