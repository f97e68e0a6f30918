"""Runs the service on onnxruntime-gpu's own CUDA provider without a GPU: `make test-cuda-harness`.

The libraries of CUDA are stand-ins (cudart.cpp, cublas.cpp, others.cpp). The tests check the calls, their order and
their threads. The tests can show neither the results nor the speed of a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from foldserve.service import bundle
from tests.cuda_harness.build import build, missing_tools, site_packages
from tests.service.support import PATIENCE, environment

SHIPPED = Path(__file__).parents[2] / "models"

PROGRAM = """
import ctypes, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from foldserve.service import bundle
from foldserve.service.errors import DeviceError, DeviceLost, DeviceOutOfMemory
from foldserve.service.machine import nvidia
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.cuda_stream import CudaError, CudaStream
from foldserve.service.runtime.load import load
from foldserve.service.runtime.precision import convert
from foldserve.service.runtime.session import Options, open_cpu

cuda = nvidia.load("cudart")
cuda.harness_read_log.restype = cuda.harness_violations.restype = ctypes.c_char_p
cuda.harness_limit.argtypes = (ctypes.c_size_t,)
cuda.harness_used.restype = ctypes.c_size_t
digits = bundle.read(Path(sys.argv[1]))

def log():
    lines = cuda.harness_read_log().decode().splitlines()
    cuda.harness_clear_log()
    return lines

def violations():
    return cuda.harness_violations().decode().splitlines()

def on_another_thread(function, *arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()

def rows(count):
    return np.random.default_rng(count).integers(0, 17, (count, 64)).astype(np.float32)
"""


def _reason_to_skip() -> str | None:
    try:
        version("onnxruntime-gpu")
    except PackageNotFoundError:
        return "onnxruntime-gpu is not installed: make test-cuda-harness"
    if missing := missing_tools():
        return f"the stand-ins for CUDA need {' and '.join(missing)}: apt-get install g++ binutils"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _reason_to_skip()
    for item in items:
        if reason and item.path.parent.name == "cuda_harness":
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Build the stand-ins. Return the environment variables that let Python find the stand-ins."""
    return build(tmp_path_factory.mktemp("cuda"), site_packages())


@pytest.fixture(scope="session")
def digits() -> bundle.Bundle:
    return bundle.read(SHIPPED / "digits" / "1")


Run = Callable[..., list[str]]


@pytest.fixture
def run(stand_in: Mapping[str, str]) -> Run:
    """Run Python code after `PROGRAM`, in its own process. Return the lines that the process prints."""

    def run_code(code: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM + code, SHIPPED / "digits" / "1"],
            env=environment(stand_in),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr  # an abort in a destructor gives the status -6
        return done.stdout.splitlines()

    return run_code
