"""What is wrong with this machine or environment, before a server is started on it: one check a line, with its remedy.

It owns the checks and what each of them means for the device that is wanted. It knows no bundle and no server, and
prints nothing. Whatever is broken is what it is for: each check runs in a process of its own, since a library that is
cut short kills who loads it, and a driver may hang.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from foldserve.service.errors import DeviceError
from foldserve.service.machine import cgroup, wheels
from foldserve.service.machine import nvidia as cuda

Device = Literal["auto", "cpu", "cuda"]
Status = Literal["ok", "note", "wrong"]

_PATIENCE = 60  # seconds; a first context on a large machine takes some
_SCARCE_GPU_MEMORY = 2**30  # a context, cuBLAS's workspace and a model want about that much
_GIB = 2**30

_INSTALL_DRIVER = "install NVIDIA's driver 580 or newer; for a container: on its host, and `docker run --gpus all`"
_SHOW_GPU = "`nvidia-smi` must list a GPU here; for a container: `docker run --gpus all`"


@dataclass(frozen=True)
class Check:
    """What one check found. `remedy` is one line, a command where there is one; only what is wrong has it."""

    name: str
    status: Status
    found: str
    remedy: str | None = None


@dataclass(frozen=True)
class _Probe:
    name: str
    look: Callable[[], Check | str]  # a text is what is found where all is well
    remedy: str  # for whatever goes wrong in it unforeseen
    cuda: bool = False  # whether it matters only to who wants CUDA


class _WrongError(Exception):
    """Something is wrong. `remedy`, where it is not the check's own."""

    def __init__(self, found: str, remedy: str | None = None) -> None:
        super().__init__(found)
        self.remedy = remedy


def examine(device: Device) -> Iterator[Check]:
    """Check the machine and the environment for who serves with `device`, and give each check as it is done.

    What is wrong with CUDA is so only where CUDA is wanted, and a note elsewhere: `cuda` wants it, `cpu` doesn't, and
    `auto` does where onnxruntime-gpu is installed. Raises nothing, whatever is broken.
    """
    found = wheels.installed()
    wanted = device == "cuda" or (device == "auto" and "onnxruntime-gpu" in found)
    for probe in _probes(found, wanted):
        check = _apart(probe)
        if check.status == "wrong" and probe.cuda and not wanted:
            check = replace(check, status="note", remedy=None)
        yield check


def _probes(found: list[str], wanted: bool) -> list[_Probe]:
    extra = "pip install 'foldserve[gpu]'" if wanted else "pip install 'foldserve[cpu]'"
    # A second wheel beside the first is no remedy: the other one goes first.
    anew = f"pip uninstall --yes {' '.join(found)} && {extra}" if found else extra
    gpu = extra if found == ["onnxruntime-gpu"] else anew
    again = "pip install --force-reinstall foldserve"
    return [
        _Probe("foldserve", partial(metadata.version, "foldserve"), again),
        _Probe("python", lambda: f"{platform.python_version()}, {sys.executable}", again),
        _Probe("onnx", _onnx, "pip install --force-reinstall onnx"),
        _Probe("wheel", partial(_wheel, found), anew),
        _Probe("onnxruntime", partial(_build, found), anew),
        _Probe("cpu provider", partial(_provider, "CPUExecutionProvider"), anew),
        _Probe("driver", _driver, _INSTALL_DRIVER, cuda=True),
        _Probe("cudart", partial(_library, "cudart"), gpu, cuda=True),
        _Probe("cublasLt", partial(_library, "cublasLt"), gpu, cuda=True),
        _Probe("cublas", partial(_library, "cublas"), gpu, cuda=True),
        _Probe("curand", partial(_library, "curand"), gpu, cuda=True),
        _Probe("cudnn", _cudnn, "pip uninstall --yes nvidia-cudnn-cu13", cuda=True),
        _Probe("gpu", _gpus, _SHOW_GPU, cuda=True),
        _Probe("CUDA_VISIBLE_DEVICES", _visible, "unset CUDA_VISIBLE_DEVICES", cuda=True),
        _Probe("TF32", _tf32, "unset NVIDIA_TF32_OVERRIDE", cuda=True),
        _Probe("cuda provider", _cuda_provider, gpu, cuda=True),
        _Probe("processors", _processors, "give this process a processor: the container's CPU limit, or taskset"),
        _Probe("memory", _memory, "give this process more memory: the container's memory limit"),
    ]


# --- running a check -------------------------------------------------------------------------------------------------


def _apart(probe: _Probe) -> Check:
    """Run a check in a forked process, which may die or hang, and print what it likes."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report, args=(probe, sender), daemon=True)
    try:
        child.start()
        sender.close()  # the child has the only end: when it dies, waiting ends
        if not receiver.poll(_PATIENCE):
            child.kill()
            return Check(probe.name, "wrong", f"no answer within {_PATIENCE} s", probe.remedy)
        found: Check = receiver.recv()
    except EOFError:
        child.join()
        code = child.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return Check(probe.name, "wrong", f"looking killed the process that looked: {how}", probe.remedy)
    except OSError as error:
        return Check(probe.name, "wrong", f"can't look: {error}", probe.remedy)
    finally:
        receiver.close()
    child.join()
    return found


def _report(probe: _Probe, sender: Connection) -> None:
    """Look, in the child. What libraries print there would come between the lines, or into the JSON."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is a finding, and leaves no file behind
    try:
        found = probe.look()
        check = found if isinstance(found, Check) else Check(probe.name, "ok", found)
    except _WrongError as wrong:
        check = Check(probe.name, "wrong", str(wrong), wrong.remedy or probe.remedy)
    except DeviceError as error:
        check = Check(probe.name, "wrong", str(error), probe.remedy)
    except BaseException as error:  # noqa: BLE001 - a broken package may raise anything, and that is the finding
        check = Check(probe.name, "wrong", f"{type(error).__name__}: {_one_line(str(error))}", probe.remedy)
    sender.send(check)


# --- ONNX Runtime ----------------------------------------------------------------------------------------------------


def _onnx() -> str:
    import onnx

    return str(onnx.__version__)


def _wheel(names: list[str]) -> str:
    if not names:
        raise _WrongError("neither onnxruntime nor onnxruntime-gpu is installed")
    found = " and ".join(f"{name} {metadata.version(name)}" for name in names)
    if len(names) > 1:
        raise _WrongError(f"{found} are installed, over each other: both are the module onnxruntime")
    return found


def _build(names: list[str]) -> str:
    import onnxruntime as ort

    # Left behind where the other wheel was installed over this one, and then uninstalled.
    if len(names) == 1 and names != [ort.package_name]:
        raise _WrongError(f"{names[0]} is installed, but the module is of {ort.package_name}")
    built = f"built for CUDA {ort.cuda_version}" if ort.cuda_version else "built without CUDA"
    providers = (name.removesuffix("ExecutionProvider") for name in ort.get_available_providers())
    return f"{ort.__version__}, {built}; lists the providers {', '.join(providers)}"


def _cuda_provider() -> str:
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise _WrongError("this ONNX Runtime is built without CUDA")
    if ort.cuda_version.partition(".")[0] != str(cuda.MAJOR):
        raise _WrongError(f"this ONNX Runtime is built for CUDA {ort.cuda_version}, foldserve[gpu] for {cuda.MAJOR}")
    # What it can't load, it prints, and the session says it again.
    ort.preload_dlls(cudnn=False)
    return _provider("CUDAExecutionProvider", {"use_tf32": "0"})


def _provider(name: str, options: dict[str, str] | None = None) -> str:
    """Multiply two matrices on this provider and no other: one that is listed need not load."""
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper

    tensor = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    weights = helper.make_tensor("weights", TensorProto.FLOAT, (2, 2), (1, 2, 3, 4))
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["input", "weights"], ["output"])],
        "doctor",
        [tensor("input", shape=("batch", 2))],
        [tensor("output", shape=("batch", 2))],
        [weights],
    )
    # The certificate's opset and an old enough file format: any ONNX Runtime that foldserve runs on reads them.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    if name != "CPUExecutionProvider":
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with _standard_error() as said:
        try:
            session = ort.InferenceSession(
                model.SerializeToString(), settings, providers=[(name, options or {})], enable_fallback=False
            )
            (output,) = session.run(None, {"input": np.array([[5, 6]], np.float32)})
        except Exception as error:
            reason = _reason(str(error), said())
            raise _WrongError(reason, _INSTALL_DRIVER if "libcuda.so" in reason else None) from error
    if session.get_providers()[0] != name:
        raise _WrongError(f"the session came back on {session.get_providers()[0]}")
    if output.tolist() != [[23, 34]]:  # small whole numbers are exact at every precision
        raise _WrongError(f"a product of two matrices is wrong: {output.tolist()} where [[23, 34]] is right")
    return "loaded, and multiplies"


@contextmanager
def _standard_error() -> Iterator[Callable[[], str]]:
    """Keep what is written to standard error, by C++ too, and give a function that reads it."""
    kept = os.dup(2)
    with os.fdopen(os.memfd_create("standard error"), "r+b") as file:
        os.dup2(file.fileno(), 2)

        def read() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _reason(raised: str, logged: str) -> str:
    """Find ONNX Runtime's reason. Where a provider doesn't load, only its log has it: what it raises is that it would
    have to fall back to the CPU.
    """
    found = re.search(r"with error: (.+)", logged) or re.search(r"(CU\w+ failure \d+: .+?)(?: ; |$)", raised, re.M)
    # It opens with a code: "[ONNXRuntimeError] : 1 : FAIL : ".
    return found[1].strip() if found else re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", _one_line(raised))


# --- CUDA ------------------------------------------------------------------------------------------------------------


def _driver() -> str:
    found = cuda.driver()
    own = f"{found.version}, " if found.version else ""
    if found.cuda < (cuda.MAJOR,):
        raise _WrongError(f"{own}runs CUDA {_dotted(found.cuda)} at most; ONNX Runtime is built for {cuda.MAJOR}")
    return f"{own}runs CUDA {_dotted(found.cuda)}, {found.path}"


def _library(name: cuda.Name) -> str:
    found = cuda.library(name)
    return f"{_dotted(found.version)}, {found.path}"


def _cudnn() -> str:
    try:
        return f"not needed, and there: {_library('cudnn')}"
    except DeviceError:
        return "not needed, and not there"


def _gpus() -> Check | str:
    try:
        found = cuda.gpus()
    except DeviceError as error:
        raise _WrongError(f"none answers: {error}") from error
    text = "; ".join(
        f"{gpu.name}, compute capability {_dotted(gpu.capability)}, "
        f"{gpu.free / _GIB:.1f} of {gpu.total / _GIB:.1f} GiB free"
        for gpu in found
    )
    # The first is the one that serves.
    if found[0].capability < cuda.OLDEST_GPU:
        oldest = _dotted(cuda.OLDEST_GPU)
        raise _WrongError(f"{text}: CUDA {cuda.MAJOR} wants {oldest} or newer", "serve with --device cpu")
    if found[0].free < _SCARCE_GPU_MEMORY:
        return Check("gpu", "note", f"{text}: little, `nvidia-smi` shows who has the rest")
    return text


def _visible() -> Check | str:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return "not set: it hides no GPU"
    # Numbers or names; CUDA stops at the first that is neither, as people use -1 for.
    first = value.split(",")[0].strip()
    there = len([file for file in Path("/dev").glob("nvidia*") if file.name.removeprefix("nvidia").isdecimal()])
    number = first.isdecimal() and (there == 0 or int(first) < there)
    if not number and not first.startswith(("GPU-", "MIG-")):
        raise _WrongError(f"{value!r} hides every GPU")
    listed = len(value.split(","))
    if listed < there:
        return Check("CUDA_VISIBLE_DEVICES", "note", f"{value!r} lets {listed} of {there} GPUs be seen")
    return f"{value!r}"


def _tf32() -> Check | str:
    value = os.environ.get("NVIDIA_TF32_OVERRIDE", "")
    if value == "":
        return "NVIDIA_TF32_OVERRIDE is not set: --precision decides"
    if value == "0":
        return Check("TF32", "note", "NVIDIA_TF32_OVERRIDE=0 turns it off, for --precision tf32 too")
    raise _WrongError(f"NVIDIA_TF32_OVERRIDE={value} forces it where ONNX Runtime asks for float32")


# --- what the process may use ----------------------------------------------------------------------------------------


def _processors() -> Check | str:
    usable, host = cgroup.processors(), os.cpu_count() or 1
    text = f"{round(usable, 2):g} of the host's {host}, by affinity and cgroup quota"
    if usable < 1:
        return Check("processors", "note", f"{text}: with less than one, each answer may wait for the next period")
    return Check("processors", "note", text) if usable < host else text


def _memory() -> Check | str:
    found = cgroup.memory()
    if found is None:
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"no cgroup limit; the host has {host / _GIB:.1f} GiB"
    used = "an unknown part" if found.used is None else f"{found.used / _GIB:.1f}"
    text = f"{used} of the cgroup's {found.limit / _GIB:.1f} GiB in use"
    if found.used is not None and found.used > 0.9 * found.limit:
        return Check("memory", "note", f"{text}: little is left, unless it is cached files")
    return text


def _dotted(version: tuple[Any, ...]) -> str:
    return ".".join(map(str, version))


def _one_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
