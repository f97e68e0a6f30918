"""Tests that need a GPU, its driver and onnxruntime-gpu: `make test-gpu`.

If the GPU, the driver or the package is missing, all tests are skipped.
"""

from __future__ import annotations

import pytest

from foldserve.service.errors import DeviceError
from foldserve.service.machine import nvidia as cuda
from foldserve.service.runtime.session import CUDA, require_provider


def _reason_to_skip() -> str | None:
    try:
        require_provider(CUDA)
        cuda.gpus()
    except DeviceError as error:
        return f"no GPU: {error}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _reason_to_skip()
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
