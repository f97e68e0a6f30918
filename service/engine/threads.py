"""Chooses the number of threads for the runs of a model on the CPU.

This module knows sizes and settings, but no session.
"""

from __future__ import annotations

from foldserve.service.machine import cgroup
from foldserve.service.settings import Settings

# A second thread costs more than it gains for a model.onnx below this size, in bytes; measured.
_SMALL_MODEL = 4 * 2**20


def threads_per_run(settings: Settings, model_size: int) -> int:
    """Return the number of threads of one run. model_size: bytes of model.onnx.

    If the setting is given, its value is returned. Otherwise a small model gets one thread, and a large model gets the
    worker's share of the cores.
    """
    if settings.threads:
        return settings.threads
    return 1 if model_size < _SMALL_MODEL else max(1, cgroup.threads() // settings.workers)
