"""Opens foldserve's runtime for the benchmark. No other module of the benchmark imports the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from foldserve.service.bundle import Bundle
from foldserve.service.runtime.load import load
from foldserve.service.runtime.session import Options, Precision


def open_runtime(bundle: Bundle, device: Literal["cpu", "cuda"], precision: Precision, buckets: Sequence[int]) -> Any:
    """Open a runtime that reproduces the golden outputs: `.run(float32 [rows, features]) -> float32 [rows, outputs]`.

    buckets: batch sizes to capture as CUDA graphs. Raises `DeviceError` or `BundleError`, as `load` does.
    """
    opened, _ = load(bundle, Options(device=device, precision=precision, buckets=tuple(buckets), max_batch=65_536))
    return opened
