"""Describes the measured machine as text: its name, its load, and the installed versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from foldserve.service.errors import DeviceError
from foldserve.service.figures import count_of
from foldserve.service.machine import cgroup, nvidia, processor, wheels

# If the load is above this share of the host's processors, other programs distort the measurements.
_BUSY = 0.2


def describe(with_gpu: bool) -> str:
    """Name the processor, the number of processors that this process may use, and the GPU if it was measured."""
    return ", ".join([processor.model_name(), granted_processors(), _gpu() if with_gpu else "CPU only"])


def granted_processors() -> str:
    """Return a text with the number of processors that this process may use."""
    return count_of(cgroup.threads(), "processor")


def versions() -> str:
    """Name the versions of foldserve, ONNX Runtime and Python."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("foldserve", *wheels.installed()))
    return f"{packages}, Python {platform.python_version()}"


def busy() -> str | None:
    """Return a warning if other programs use the machine.

    Call this function before the measurements, because the measurements also cause load.
    """
    try:
        load, _, _ = os.getloadavg()  # the load of the whole host over the last minute
    except OSError:
        return None
    host = os.cpu_count() or 1
    if load <= _BUSY * host:
        return None
    return f"the machine was busy: a load of {load:.1f} on {count_of(host, 'processor')} at the start; measure again"


def _gpu() -> str:
    try:
        return nvidia.gpus()[0].name  # ONNX Runtime serves on the first GPU
    except DeviceError:
        return "a GPU"
