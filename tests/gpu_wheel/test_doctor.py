"""Tests `foldserve doctor` on a machine with onnxruntime-gpu and CUDA's libraries, but without a GPU.

To run only these tests in an environment without a GPU: python -m pytest --confcutdir=tests/gpu_wheel tests/gpu_wheel
"""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from tests.service.support import foldserve


def _why_not() -> str | None:
    try:
        version("onnxruntime-gpu")
    except PackageNotFoundError:
        return "onnxruntime-gpu is not installed"
    return "there is a GPU here" if any(Path("/dev").glob("nvidia[0-9]*")) else None


pytestmark = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))


def examined(device: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = foldserve("doctor", "--json", "--device", device)
    assert done.stderr == ""
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_the_doctor_finds_the_cuda_libraries_and_reports_the_missing_driver(device: str) -> None:
    status, checks = examined(device)
    assert status == 1
    for name, installed in (
        ("cudart", "nvidia-cuda-runtime"),
        ("cublasLt", "nvidia-cublas"),
        ("cublas", "nvidia-cublas"),
        ("curand", "nvidia-curand"),
    ):
        assert checks[name]["status"] == "ok"
        number, path = checks[name]["found"].split(", ", 1)
        # Compare the library's own version with the wheel's version. The version of the wheel has one part more than
        # the library's own version.
        assert version(installed).startswith(number)
        assert Path(path).is_file()
    assert checks["cudnn"]["status"] == "ok"
    assert checks["cudnn"]["found"].startswith("not needed; ")
    for name in ("driver", "gpu", "cuda provider"):
        assert checks[name]["status"] == "wrong"
        assert "libcuda.so.1: cannot open shared object file" in checks[name]["found"]
    assert checks["driver"]["remedy"].startswith("install NVIDIA's driver ")
    assert checks["cuda provider"]["remedy"] == checks["driver"]["remedy"]


def test_the_build_is_for_cuda_and_lists_a_provider_that_does_not_load() -> None:
    _, checks = examined("cuda")
    assert checks["wheel"]["found"] == f"onnxruntime-gpu {version('onnxruntime-gpu')}"
    assert re.search(r"built for CUDA 13\.\d+; lists the providers (?:\w+, )*CUDA,", checks["onnxruntime"]["found"])
    assert checks["cpu provider"]["status"] == "ok"


def test_the_doctor_finds_nothing_wrong_for_the_cpu() -> None:
    status, checks = examined("cpu")
    assert status == 0
    assert checks["driver"]["status"] == checks["cuda provider"]["status"] == "note"
