"""The sizes and durations of benchmarks/gpu.py: for a full run, a quick run, and a dry run on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from foldserve.service.runtime.session import Precision
from rig.gpu.service import LOADS, Load


@dataclass(frozen=True)
class Plan:
    """The sizes and the durations of all measurements.

    precisions: the precisions of the wide network; the small network is measured in float32 only. between: batch sizes
    between the buckets, for which outputs with and without graphs are compared bit by bit. seconds: how long one
    contender is measured in one round. copied: the sizes of copies, in bytes. served: the precisions in which the wide
    network is measured over HTTP. compiling: the seconds that each contender may spend on compiling.
    """

    small: tuple[int, ...]
    wide: tuple[int, ...]
    precisions: tuple[Precision, ...]
    batches: tuple[int, ...]
    buckets: tuple[int, ...]
    between: tuple[int, ...]
    rounds: int
    seconds: float
    square: int
    copied: int
    loads: tuple[Load, ...]
    served: tuple[Precision, ...]
    load_rounds: int
    load_seconds: float
    compiling: float


_SMALL, _WIDE = (64, 64, 64, 10), (512, 1024, 1024, 1024, 10)
_BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_BUCKETS = (1, 4, 16, 64, 256, 1024)
_ORDER: tuple[Precision, ...] = ("fp32", "bf16", "tf32", "fp16")
FULL = Plan(
    small=_SMALL,
    wide=_WIDE,
    precisions=_ORDER,
    batches=_BATCHES,
    buckets=_BUCKETS,
    between=(3, 37, 700),
    rounds=5,
    seconds=0.04,
    square=8192,
    copied=2**28,
    loads=LOADS,
    served=("fp32", "bf16"),
    load_rounds=3,
    load_seconds=0.7,
    compiling=40,
)
QUICK = replace(
    FULL,
    precisions=("fp32", "bf16"),
    batches=(1, 64, 1024, 65536),
    between=(37,),
    rounds=3,
    seconds=0.03,
    loads=LOADS[::2],
    served=(),
    load_rounds=2,
    load_seconds=0.4,
    compiling=20,
)
TINY = replace(
    FULL,
    small=(8, 16, 16, 10),
    wide=(12, 32, 32, 32, 10),
    batches=(1, 4, 24),
    buckets=(1, 4),
    between=(3,),
    rounds=2,
    seconds=0.002,
    square=64,
    copied=2**16,
    loads=(Load(1, 1), Load(4, 3), Load(24, 2)),
    served=("fp32",),
    load_rounds=2,
    load_seconds=0.1,
    compiling=0.1,
)
