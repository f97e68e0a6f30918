"""Chooses the number of threads for the runs of a model on the CPU.

This module uses only sizes and settings, and no sessions.
"""

from __future__ import annotations

from foldserve.service.machine import cgroup
from foldserve.service.settings import Settings

# Measurements show that a second thread makes runs slower if model.onnx is smaller than this number of bytes.
_SMALL_MODEL = 4 * 2**20


def threads_per_run(settings: Settings, model_size: int) -> int:
    """Return the number of threads of one run. model_size: the size of model.onnx in bytes.

    If the setting `threads` is given, the function returns this setting. If `threads` is not set, a small model gets
    one thread, and a large model gets the worker's share of the processors.
    """
    if settings.threads:
        return settings.threads
    return 1 if model_size < _SMALL_MODEL else max(1, cgroup.threads() // settings.workers)
