"""`foldserve doctor`, run as a person runs it, in environments that are broken on purpose."""

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


def has(wheel: str) -> bool:
    try:
        version(wheel)
    except PackageNotFoundError:
        return False
    return True


cpu_wheel = pytest.mark.skipif(has("onnxruntime-gpu"), reason="of an environment with onnxruntime, not onnxruntime-gpu")


def first(folder: Path) -> dict[str, str]:
    """Let Python find what lies in `folder` before what is installed."""
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


def examined(*flags: str, env: Mapping[str, str] | None = None) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status and the checks by name, of --json; what must hold of every answer is checked here."""
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


# --- an environment that is in order ---------------------------------------------------------------------------------


def test_where_the_cpu_is_to_serve_nothing_about_cuda_is_wrong() -> None:
    status, checks = examined("--device", "cpu", env={"CUDA_VISIBLE_DEVICES": "", "NVIDIA_TF32_OVERRIDE": "1"})
    assert status == 0
    assert checks["foldserve"]["found"] == version("foldserve")
    assert checks["onnx"]["found"] == version("onnx")
    assert checks["cpu provider"]["status"] == "ok"
    assert checks["CUDA_VISIBLE_DEVICES"]["status"] == checks["TF32"]["status"] == "note"


@cpu_wheel
def test_auto_wants_no_cuda_where_its_wheel_is_not_installed() -> None:
    status, checks = examined()
    assert status == 0
    assert checks["wheel"]["found"] == f"onnxruntime {version('onnxruntime')}"
    assert checks["onnxruntime"]["found"].startswith(f"{version('onnxruntime')}, built without CUDA; ")
    assert (checks["cuda provider"]["status"], checks["cuda provider"]["found"]) == (
        "note",
        "this ONNX Runtime is built without CUDA",
    )


@cpu_wheel
def test_cuda_that_was_asked_for_and_is_not_there_is_wrong_with_a_remedy() -> None:
    status, checks = examined("--device", "cuda")
    assert status == 1
    assert checks["cuda provider"]["status"] == "wrong"
    # Beside the wheel that is there, the other one would be the next thing that is wrong.
    assert checks["cuda provider"]["remedy"] == "pip uninstall --yes onnxruntime && pip install 'foldserve[gpu]'"


def test_for_people_there_is_a_line_for_each_check_and_a_remedy_under_what_is_wrong() -> None:
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


def test_a_device_that_is_none_is_a_usage_error() -> None:
    done = foldserve("doctor", "--device", "tpu")
    assert (done.returncode, done.stdout) == (2, "")


def test_it_says_what_the_process_may_use() -> None:
    _, checks = examined("--device", "cpu")
    assert re.match(rf"[\d.]+ of the host's {os.cpu_count()}, ", checks["processors"]["found"])
    assert re.search(r"\d GiB", checks["memory"]["found"])


def test_the_page_on_the_doctor_explains_every_check_and_no_other() -> None:
    page = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \|", page, re.M)
    assert [name for row in rows for name in re.findall(r"`(.+?)`", row)] == NAMES
    shown = re.findall(r"^(?:ok   |note |wrong) (.{20}) \S", page, re.M)
    assert [name.rstrip() for name in shown] == NAMES


# --- broken packages -------------------------------------------------------------------------------------------------


def test_two_wheels_at_once_are_wrong_whatever_the_device(tmp_path: Path) -> None:
    other = "onnxruntime" if has("onnxruntime-gpu") else "onnxruntime-gpu"
    information = tmp_path / f"{other.replace('-', '_')}-1.31.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {other}\nVersion: 1.31.1\n")
    for device, extra in (("cpu", "cpu"), ("cuda", "gpu")):
        status, checks = examined("--device", device, env=first(tmp_path))
        assert (status, checks["wheel"]["status"]) == (1, "wrong")
        assert "onnxruntime " in checks["wheel"]["found"]
        assert f"{other} 1.31.1" in checks["wheel"]["found"]
        remedy = f"pip uninstall --yes onnxruntime onnxruntime-gpu && pip install 'foldserve[{extra}]'"
        assert checks["wheel"]["remedy"] == remedy
    # auto wants CUDA where its wheel is installed, though only by its name.
    _, checks = examined(env=first(tmp_path) | {"NVIDIA_TF32_OVERRIDE": "1"})
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
def test_a_broken_onnx_runtime_is_a_finding(code: str, expected: str, tmp_path: Path) -> None:
    package(tmp_path, "onnxruntime", code)
    status, checks = examined("--device", "cpu", env=first(tmp_path))
    assert status == 1
    assert checks["onnxruntime"]["status"] == checks["cpu provider"]["status"] == "wrong"
    assert expected in checks["onnxruntime"]["found"]
    assert checks["onnxruntime"]["remedy"].endswith(" && pip install 'foldserve[cpu]'")


@cpu_wheel
def test_a_module_that_is_left_of_the_other_wheel_is_wrong(tmp_path: Path) -> None:
    package(tmp_path, "onnxruntime", "package_name, __version__ = 'onnxruntime-gpu', '1.31.1'")
    _, checks = examined("--device", "cpu", env=first(tmp_path))
    assert checks["onnxruntime"]["found"] == "onnxruntime is installed, but the module is of onnxruntime-gpu"
    assert checks["onnxruntime"]["status"] == "wrong"


@cpu_wheel
def test_a_build_for_another_cuda_is_wrong_where_cuda_is_wanted(tmp_path: Path) -> None:
    code = "cuda_version, get_available_providers = '12.8', lambda: ['CUDAExecutionProvider']"
    package(tmp_path, "onnxruntime", code)
    _, checks = examined("--device", "cuda", env=first(tmp_path))
    assert checks["cuda provider"]["found"] == "this ONNX Runtime is built for CUDA 12.8, foldserve[gpu] for 13"


def test_a_broken_onnx_is_a_finding(tmp_path: Path) -> None:
    package(tmp_path, "onnx", "raise ImportError('broken')")
    status, checks = examined("--device", "cpu", env=first(tmp_path))
    assert (status, checks["onnx"]["status"], checks["onnx"]["found"]) == (1, "wrong", "ImportError: broken")
    assert checks["onnxruntime"]["status"] == "ok"


def test_it_needs_neither_torch_nor_a_server(tmp_path: Path) -> None:
    for name in ("torch", "fastapi", "uvicorn", "sklearn"):
        package(tmp_path, name, "import os; os.abort()")
    status, _ = examined("--device", "cpu", env=first(tmp_path))
    assert status == 0


# --- variables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected", "found"),
    [
        ("1", "wrong", "NVIDIA_TF32_OVERRIDE=1 forces it where ONNX Runtime asks for float32"),
        ("0", "note", "NVIDIA_TF32_OVERRIDE=0 turns it off, for --precision tf32 too"),
        ("", "ok", "NVIDIA_TF32_OVERRIDE is not set: --precision decides"),
    ],
)
def test_tf32_that_is_forced_from_outside_is_wrong(value: str, expected: str, found: str) -> None:
    _, checks = examined("--device", "cuda", env={"NVIDIA_TF32_OVERRIDE": value})
    assert (checks["TF32"]["status"], checks["TF32"]["found"]) == (expected, found)
    assert checks["TF32"]["remedy"] == ("unset NVIDIA_TF32_OVERRIDE" if expected == "wrong" else None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", "wrong"), ("-1,0", "wrong"), ("none", "wrong"), ("GPU-8f6a0e4c", "ok")],
)
def test_gpus_that_are_all_hidden_are_wrong(value: str, expected: str) -> None:
    _, checks = examined("--device", "cuda", env={"CUDA_VISIBLE_DEVICES": value})
    check = checks["CUDA_VISIBLE_DEVICES"]
    if expected == "wrong":
        assert (check["status"], check["found"]) == ("wrong", f"{value!r} hides every GPU")
    else:
        assert check["status"] != "wrong"


# --- drivers ---------------------------------------------------------------------------------------------------------

# The part of NVIDIA's driver that the doctor asks, with the answers as macros.
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
def with_driver(tmp_path: Path) -> Any:
    """Check for CUDA with a driver that gives these answers."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here to make a driver with")

    def check(**answers: str) -> dict[str, dict[str, Any]]:
        macros = [f"-D{name}={value}" for name, value in (ANSWERS | answers).items()]
        source = tmp_path / "driver.c"
        source.write_text(DRIVER)
        subprocess.run([compiler, "-shared", "-fPIC", *macros, "-o", tmp_path / "libcuda.so.1", source], check=True)
        _, checks = examined("--device", "cuda", env={"LD_LIBRARY_PATH": str(tmp_path)})
        return checks

    return check


def test_a_driver_is_asked_for_its_gpus_and_their_memory(with_driver: Any, tmp_path: Path) -> None:
    checks = with_driver()
    assert checks["driver"]["status"] == checks["gpu"]["status"] == "ok"
    assert re.search(r"runs CUDA 13\.0, ", checks["driver"]["found"])
    assert checks["driver"]["found"].endswith(f", {tmp_path / 'libcuda.so.1'}")
    one = "NVIDIA H200, compute capability 9.0, 138.0 of 139.0 GiB free"
    assert checks["gpu"]["found"] == f"{one}; {one}"


def test_a_driver_that_is_too_old_is_wrong(with_driver: Any) -> None:
    check = with_driver(VERSION="12080")["driver"]
    assert check["status"] == "wrong"
    assert check["found"].endswith("runs CUDA 12.8 at most; ONNX Runtime is built for 13")
    assert check["remedy"].startswith("install NVIDIA's driver 580 or newer")


def test_a_newer_driver_runs_older_cuda(with_driver: Any) -> None:
    assert with_driver(VERSION="14010")["driver"]["status"] == "ok"


def test_a_gpu_that_is_too_old_is_wrong(with_driver: Any) -> None:
    check = with_driver(CAPABILITY="70", NAME='"Tesla V100"')["gpu"]
    assert (check["status"], check["remedy"]) == ("wrong", "serve with --device cpu")
    assert check["found"].endswith(": CUDA 13 wants 7.5 or newer")


def test_a_gpu_whose_memory_others_hold_is_a_note(with_driver: Any) -> None:
    check = with_driver(FREE="((size_t)1 << 28)")["gpu"]
    assert check["status"] == "note"
    assert "0.2 of 139.0 GiB free" in check["found"]


def test_a_driver_without_a_gpu_is_wrong_in_its_own_words(with_driver: Any) -> None:
    checks = with_driver(INIT="100")
    assert checks["driver"]["status"] == "ok"
    assert checks["gpu"]["found"] == "none answers: cuInit: no GPU is detected"
    assert checks["gpu"]["status"] == "wrong"
    assert with_driver(INIT="999")["gpu"]["found"] == "none answers: cuInit: error 999"


def test_a_driver_that_kills_its_process_is_a_finding(with_driver: Any) -> None:
    check = with_driver(CRASH="abort()")["gpu"]
    assert (check["status"], check["found"]) == ("wrong", "looking killed the process that looked: SIGABRT")


@pytest.mark.parametrize("size", [0, 5_000])
def test_a_library_that_is_cut_short_is_a_finding(size: int, tmp_path: Path) -> None:
    """Loading the longer one is a bus error, which no exception tells of."""
    maps = Path("/proc/self/maps").read_text()
    library = Path(re.search(r"/\S*/libc\.so\.6", maps)[0])  # type: ignore[index]
    (tmp_path / "libcuda.so.1").write_bytes(library.read_bytes()[:size])
    status, checks = examined("--device", "cuda", env={"LD_LIBRARY_PATH": str(tmp_path)})
    assert (status, checks["driver"]["status"], checks["gpu"]["status"]) == (1, "wrong", "wrong")
