"""The one place that opens this project's runtime for the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from foldserve.service.bundle import Bundle
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.session import Options
from rig.gpu.networks import Precision


def open_runtime(whole: Bundle, device: Literal["cpu", "cuda"], precision: Precision, buckets: Sequence[int]) -> Any:
    """Give a proved runtime: `.run(float32 [n, features]) -> float32 [n, outputs]`, `.provider`, `.why`, `.close()`.

    buckets: batch sizes that are captured as CUDA graphs. Raises what `load` does: `DeviceError`, `BundleError`.
    """
    opened, _ = runtime.load(whole, Options(device=device, precision=precision, buckets=tuple(buckets)))
    return opened
