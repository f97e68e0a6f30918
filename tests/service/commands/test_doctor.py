"""Tests `foldserve doctor` as a person runs it, in environments that are broken on purpose."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from tests.service.support import foldserve

NAMES = [
    *("foldserve", "python", "onnx", "wheel", "onnxruntime", "cpu provider"),
    *("driver", "cudart", "cublasLt", "cublas", "curand", "cudnn", "gpu"),
    *("CUDA_VISIBLE_DEVICES", "TF32", "cuda provider", "processors", "memory"),
]


def is_installed(wheel: str) -> bool:
    try:
        version(wheel)
    except PackageNotFoundError:
        return False
    return True


cpu_wheel = pytest.mark.skipif(is_installed("onnxruntime-gpu"), reason="onnxruntime-gpu is installed")


def import_first(folder: Path) -> dict[str, str]:
    """Return the variables that make Python import from `folder` before the installed packages."""
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def write_package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


def run_doctor(*flags: str, env: Mapping[str, str] | None = None) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the doctor with --json; return the exit status and the checks by name.

    This function also checks the properties that every report of the doctor must have.
    """
    clean = {"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_TF32_OVERRIDE": ""} | dict(env or {})
    done = foldserve("doctor", "--json", *flags, env=clean)
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert list(answer) == ["ok", "checks"]
    assert [check["name"] for check in answer["checks"]] == NAMES
    for check in answer["checks"]:
        assert list(check) == ["name", "status", "found", "remedy"]
        assert check["status"] in ("ok", "note", "wrong")
        assert check["found"]
        assert "\n" not in check["found"]
        assert (check["remedy"] is not None) == (check["status"] == "wrong")
    assert answer["ok"] == all(check["status"] != "wrong" for check in answer["checks"])
    assert done.returncode == (0 if answer["ok"] else 1)
    return done.returncode, {check["name"]: check for check in answer["checks"]}


# --- an environment without problems ---------------------------------------------------------------------------------


def test_for_the_cpu_a_problem_with_cuda_is_not_an_error() -> None:
    status, checks = run_doctor("--device", "cpu", env={"CUDA_VISIBLE_DEVICES": "", "NVIDIA_TF32_OVERRIDE": "1"})
    assert status == 0
    assert checks["foldserve"]["found"] == version("foldserve")
    assert checks["onnx"]["found"] == version("onnx")
    assert checks["cpu provider"]["status"] == "ok"
    assert checks["CUDA_VISIBLE_DEVICES"]["status"] == checks["TF32"]["status"] == "note"


@cpu_wheel
def test_auto_does_not_want_cuda_if_its_wheel_is_not_installed() -> None:
    status, checks = run_doctor()
    assert status == 0
    assert checks["wheel"]["found"] == f"onnxruntime {version('onnxruntime')}"
    assert checks["onnxruntime"]["found"].startswith(f"{version('onnxruntime')}, built without CUDA; ")
    assert (checks["cuda provider"]["status"], checks["cuda provider"]["found"]) == (
        "note",
        "this ONNX Runtime is built without CUDA",
    )


@cpu_wheel
def test_requested_cuda_that_is_missing_is_wrong_with_a_remedy() -> None:
    status, checks = run_doctor("--device", "cuda")
    assert status == 1
    assert checks["cuda provider"]["status"] == "wrong"
    # Two installed wheels of ONNX Runtime would cause another problem, so the remedy removes the CPU wheel.
    assert checks["cuda provider"]["remedy"] == "pip uninstall --yes onnxruntime && pip install 'foldserve[gpu]'"


def test_each_check_has_a_line_and_each_problem_a_remedy_below_it() -> None:
    done = foldserve("doctor", "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    checks = [line for line in lines if not line.startswith(" ")]
    assert [line[6:26].rstrip() for line in checks] == NAMES
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        assert line.startswith(("ok    ", "note  ", "wrong ", " " * 27 + "remedy: "))
        assert line.startswith("wrong ") == following.startswith(" " * 27 + "remedy: ")
    hidden = lines.index("wrong CUDA_VISIBLE_DEVICES '' hides every GPU")
    assert lines[hidden + 1].split() == ["remedy:", "unset", "CUDA_VISIBLE_DEVICES"]


def test_an_unknown_device_is_a_usage_error() -> None:
    done = foldserve("doctor", "--device", "tpu")
    assert (done.returncode, done.stdout) == (2, "")


def test_the_granted_processors_and_memory_are_reported() -> None:
    _, checks = run_doctor("--device", "cpu")
    assert re.match(rf"[\d.]+ of the host's {os.cpu_count()}, ", checks["processors"]["found"])
    assert re.search(r"\d GiB", checks["memory"]["found"])


def test_the_page_on_the_doctor_explains_exactly_these_checks() -> None:
    page = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \|", page, re.M)
    assert [name for row in rows for name in re.findall(r"`(.+?)`", row)] == NAMES
    shown = re.findall(r"^(?:ok   |note |wrong) (.{20}) \S", page, re.M)
    assert [name.rstrip() for name in shown] == NAMES


# --- broken packages -------------------------------------------------------------------------------------------------


def test_two_wheels_at_once_are_wrong_for_every_device(tmp_path: Path) -> None:
    other = "onnxruntime" if is_installed("onnxruntime-gpu") else "onnxruntime-gpu"
    information = tmp_path / f"{other.replace('-', '_')}-1.31.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {other}\nVersion: 1.31.1\n")
    for device, extra in (("cpu", "cpu"), ("cuda", "gpu")):
        status, checks = run_doctor("--device", device, env=import_first(tmp_path))
        assert (status, checks["wheel"]["status"]) == (1, "wrong")
        assert "onnxruntime " in checks["wheel"]["found"]
        assert f"{other} 1.31.1" in checks["wheel"]["found"]
        remedy = f"pip uninstall --yes onnxruntime onnxruntime-gpu && pip install 'foldserve[{extra}]'"
        assert checks["wheel"]["remedy"] == remedy
    # With --device auto, the name of the installed wheel shows whether the user wants CUDA.
    _, checks = run_doctor(env=import_first(tmp_path) | {"NVIDIA_TF32_OVERRIDE": "1"})
    assert checks["TF32"]["status"] == "wrong"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise ModuleNotFoundError(\"No module named 'onnxruntime'\")", "ModuleNotFoundError: No module named"),
        ("raise ImportError('libonnxruntime.so.1:\\n file too short')", "ImportError: libonnxruntime.so.1:"),
        ("__version__ = '1.0'", "AttributeError: "),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("print('noise'); import os; os.write(2, b'noise'); os.abort()", "SIGABRT"),
        ("import os; os._exit(7)", "exit status 7"),
    ],
)
def test_a_broken_onnx_runtime_is_reported(code: str, expected: str, tmp_path: Path) -> None:
    write_package(tmp_path, "onnxruntime", code)
    status, checks = run_doctor("--device", "cpu", env=import_first(tmp_path))
    assert status == 1
    assert checks["onnxruntime"]["status"] == checks["cpu provider"]["status"] == "wrong"
    assert expected in checks["onnxruntime"]["found"]
    assert checks["onnxruntime"]["remedy"].endswith(" && pip install 'foldserve[cpu]'")


@cpu_wheel
def test_a_module_of_the_wheel_that_was_uninstalled_is_wrong(tmp_path: Path) -> None:
    write_package(tmp_path, "onnxruntime", "package_name, __version__ = 'onnxruntime-gpu', '1.31.1'")
    _, checks = run_doctor("--device", "cpu", env=import_first(tmp_path))
    assert checks["onnxruntime"]["found"] == "onnxruntime is installed, but the module comes from onnxruntime-gpu"
    assert checks["onnxruntime"]["status"] == "wrong"


@cpu_wheel
def test_a_build_for_another_cuda_is_wrong_if_cuda_is_wanted(tmp_path: Path) -> None:
    code = "cuda_version, get_available_providers = '12.8', lambda: ['CUDAExecutionProvider']"
    write_package(tmp_path, "onnxruntime", code)
    _, checks = run_doctor("--device", "cuda", env=import_first(tmp_path))
    assert checks["cuda provider"]["found"] == "this ONNX Runtime is built for CUDA 12.8; foldserve[gpu] needs CUDA 13"


def test_a_broken_onnx_is_reported(tmp_path: Path) -> None:
    write_package(tmp_path, "onnx", "raise ImportError('broken')")
    status, checks = run_doctor("--device", "cpu", env=import_first(tmp_path))
    assert (status, checks["onnx"]["status"], checks["onnx"]["found"]) == (1, "wrong", "ImportError: broken")
    assert checks["onnxruntime"]["status"] == "ok"


def test_neither_torch_nor_a_server_is_imported(tmp_path: Path) -> None:
    for name in ("torch", "fastapi", "uvicorn", "sklearn"):
        write_package(tmp_path, name, "import os; os.abort()")
    status, _ = run_doctor("--device", "cpu", env=import_first(tmp_path))
    assert status == 0


# --- variables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected", "found"),
    [
        ("1", "wrong", "NVIDIA_TF32_OVERRIDE=1 may turn TF32 on where ONNX Runtime asks for float32"),
        ("0", "note", "NVIDIA_TF32_OVERRIDE=0 turns TF32 off, even for --precision tf32"),
        ("", "ok", "NVIDIA_TF32_OVERRIDE is not set: --precision decides"),
    ],
)
def test_tf32_that_a_variable_turns_on_is_wrong(value: str, expected: str, found: str) -> None:
    _, checks = run_doctor("--device", "cuda", env={"NVIDIA_TF32_OVERRIDE": value})
    assert (checks["TF32"]["status"], checks["TF32"]["found"]) == (expected, found)
    assert checks["TF32"]["remedy"] == ("unset NVIDIA_TF32_OVERRIDE" if expected == "wrong" else None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", "wrong"), ("-1,0", "wrong"), ("none", "wrong"), ("GPU-8f6a0e4c", "ok")],
)
def test_a_variable_that_hides_every_gpu_is_wrong(value: str, expected: str) -> None:
    _, checks = run_doctor("--device", "cuda", env={"CUDA_VISIBLE_DEVICES": value})
    check = checks["CUDA_VISIBLE_DEVICES"]
    if expected == "wrong":
        assert (check["status"], check["found"]) == ("wrong", f"{value!r} hides every GPU")
    else:
        assert check["status"] != "wrong"


# --- drivers ---------------------------------------------------------------------------------------------------------

# The functions of NVIDIA's driver that the doctor calls. Macros set the return values of the driver's functions.
DRIVER = """
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { if (flags) return 1; CRASH; return INIT; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "no GPU is detected"; return error != 100; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 40; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, NAME, length); return device < 40; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? CAPABILITY / 10 : attribute == 76 ? CAPABILITY % 10 : -1;
    return device < 40;
}
static int context;
int cuDevicePrimaryCtxRetain(void **given, int device) { *given = &context; return device < 40; }
int cuCtxPushCurrent_v2(void *given) { return given != &context; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = FREE; *total = (size_t)139 << 30; return 0; }
int cuCtxPopCurrent_v2(void **given) { *given = &context; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device < 40; }
"""
ANSWERS = {
    "INIT": "0",
    "VERSION": "13000",
    "NAME": '"NVIDIA H200"',
    "CAPABILITY": "90",
    "FREE": "((size_t)138 << 30)",
    "CRASH": "",
}


@pytest.fixture
def check_with_driver(tmp_path: Path) -> Any:
    """Return a function that sets a driver's answers and runs the doctor with this driver."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed: apt-get install gcc")

    def check(**answers: str) -> dict[str, dict[str, Any]]:
        macros = [f"-D{name}={value}" for name, value in (ANSWERS | answers).items()]
        source = tmp_path / "driver.c"
        source.write_text(DRIVER)
        subprocess.run([compiler, "-shared", "-fPIC", *macros, "-o", tmp_path / "libcuda.so.1", source], check=True)
        _, checks = run_doctor("--device", "cuda", env={"LD_LIBRARY_PATH": str(tmp_path)})
        return checks

    return check


def test_the_gpus_of_a_driver_and_their_memory_are_reported(check_with_driver: Any, tmp_path: Path) -> None:
    checks = check_with_driver()
    assert checks["driver"]["status"] == checks["gpu"]["status"] == "ok"
    assert re.search(r"supports CUDA 13\.0, ", checks["driver"]["found"])
    assert checks["driver"]["found"].endswith(f", {tmp_path / 'libcuda.so.1'}")
    one = "NVIDIA H200, compute capability 9.0, 138.0 of 139.0 GiB free"
    assert checks["gpu"]["found"] == f"{one}; {one}"


def test_a_driver_that_is_too_old_is_wrong(check_with_driver: Any) -> None:
    check = check_with_driver(VERSION="12080")["driver"]
    assert check["status"] == "wrong"
    assert check["found"].endswith("supports CUDA up to 12.8; ONNX Runtime needs CUDA 13")
    assert check["remedy"].startswith("install NVIDIA's driver 580 or newer")


def test_a_newer_driver_is_ok(check_with_driver: Any) -> None:
    assert check_with_driver(VERSION="14010")["driver"]["status"] == "ok"


def test_a_gpu_that_is_too_old_is_wrong(check_with_driver: Any) -> None:
    check = check_with_driver(CAPABILITY="70", NAME='"Tesla V100"')["gpu"]
    assert (check["status"], check["remedy"]) == ("wrong", "serve with --device cpu")
    assert check["found"].endswith(": CUDA 13 needs 7.5 or newer")


def test_a_gpu_with_little_free_memory_is_a_note(check_with_driver: Any) -> None:
    check = check_with_driver(FREE="((size_t)1 << 28)")["gpu"]
    assert check["status"] == "note"
    assert "0.2 of 139.0 GiB free" in check["found"]


def test_a_driver_without_a_gpu_is_wrong_with_the_reason_of_the_driver(check_with_driver: Any) -> None:
    checks = check_with_driver(INIT="100")
    assert checks["driver"]["status"] == "ok"
    assert checks["gpu"]["found"] == "no GPU answers: cuInit: no GPU is detected"
    assert checks["gpu"]["status"] == "wrong"
    assert check_with_driver(INIT="999")["gpu"]["found"] == "no GPU answers: cuInit: error 999"


def test_a_driver_that_kills_its_process_is_reported(check_with_driver: Any) -> None:
    check = check_with_driver(CRASH="abort()")["gpu"]
    assert (check["status"], check["found"]) == ("wrong", "the process of this check died: SIGABRT")


@pytest.mark.parametrize("size", [0, 5_000])
def test_a_truncated_library_is_reported(size: int, tmp_path: Path) -> None:
    """Loading the library of 5,000 bytes causes a bus error, which Python can't catch."""
    maps = Path("/proc/self/maps").read_text()
    library = Path(re.search(r"/\S*/libc\.so\.6", maps)[0])  # type: ignore[index]
    (tmp_path / "libcuda.so.1").write_bytes(library.read_bytes()[:size])
    status, checks = run_doctor("--device", "cuda", env={"LD_LIBRARY_PATH": str(tmp_path)})
    assert (status, checks["driver"]["status"], checks["gpu"]["status"]) == (1, "wrong", "wrong")
