"""Checks of CUDA that need no ONNX Runtime: the driver, the libraries, the GPUs, and NVIDIA's environment variables."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from foldserve.service.commands.doctor.check import ProblemError, Result, dotted
from foldserve.service.errors import DeviceError
from foldserve.service.machine import nvidia

_GIB = 2**30
# If a GPU has fewer free bytes than this number, the doctor prints a note. CUDA's context, cuBLAS's workspace and a
# model need about this much memory.
_LITTLE_GPU_MEMORY = 2**30
# The compute capabilities for which each release of onnxruntime-gpu contains code. These capabilities were read from
# the library of the CUDA provider. The driver can't translate the library's code for other GPUs, because the library
# contains no PTX code.
_BUILT_FOR: dict[str, tuple[nvidia.Version, ...]] = {
    "1.31": ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)),
}


def check_driver() -> str:
    """Find NVIDIA's driver. Raises `ProblemError` if the driver is too old, and `DeviceError` if the driver does not
    load.
    """
    driver = nvidia.driver()
    version = f"{driver.version}, " if driver.version else ""
    if driver.cuda < (nvidia.MAJOR,):
        raise ProblemError(
            f"{version}supports CUDA up to {dotted(driver.cuda)}; ONNX Runtime needs CUDA {nvidia.MAJOR}"
        )
    return f"{version}supports CUDA {dotted(driver.cuda)}, {driver.path}"


def check_library(name: nvidia.Name) -> str:
    """Load one of CUDA's libraries. Raises `DeviceError` if the library does not load."""
    library = nvidia.library(name)
    return f"{dotted(library.version)}, {library.path}"


def check_cudnn() -> str:
    """Look for cuDNN, which no folded model needs."""
    try:
        return f"not needed; installed: {check_library('cudnn')}"
    except DeviceError:
        return "not needed; not installed"


def check_gpus() -> Result | str:
    """List the GPUs. Raises `ProblemError` if there is no GPU, or if ONNX Runtime can't run on the first GPU."""
    try:
        gpus = nvidia.gpus()
    except DeviceError as error:
        raise ProblemError(f"no GPU answers: {error}") from error
    text = "; ".join(
        f"{gpu.name}, compute capability {dotted(gpu.capability)}, "
        f"{gpu.free / _GIB:.1f} of {gpu.total / _GIB:.1f} GiB free"
        for gpu in gpus
    )
    first = gpus[0]  # ONNX Runtime serves on the first GPU
    if first.capability < nvidia.OLDEST_GPU:
        oldest = dotted(nvidia.OLDEST_GPU)
        raise ProblemError(f"{text}: CUDA {nvidia.MAJOR} needs {oldest} or newer", "serve with --device cpu")
    release, built_for = _built_for()
    if built_for and not any(_runs(first.capability, code) for code in built_for):
        known = ", ".join(map(dotted, built_for))
        raise ProblemError(
            f"{text}: onnxruntime-gpu {release} has no code for it, only for {known}", "serve with --device cpu"
        )
    if first.free < _LITTLE_GPU_MEMORY:
        return Result("gpu", "note", f"{text}: little is free; `nvidia-smi` lists the processes that use the rest")
    return text


def _built_for() -> tuple[str, tuple[nvidia.Version, ...]]:
    """Return the installed release of onnxruntime-gpu, and the compute capabilities that this release supports.

    If the release is not in `_BUILT_FOR`, the compute capabilities are empty.
    """
    try:
        release = ".".join(version("onnxruntime-gpu").split(".")[:2])
    except PackageNotFoundError:
        return "", ()
    return release, _BUILT_FOR.get(release, ())


def _runs(capability: nvidia.Version, code: nvidia.Version) -> bool:
    """Return whether a GPU can run code that is built for a compute capability.

    The code and the GPU must have the same major number, and the minor number of the code must not be above that of the
    GPU.

    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#binary-compatibility
    """
    return capability[0] == code[0] and capability >= code


def check_visible_devices() -> Result | str:
    """Read CUDA_VISIBLE_DEVICES. Raises `ProblemError` if CUDA_VISIBLE_DEVICES hides every GPU."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return "not set: every GPU is visible"
    # CUDA_VISIBLE_DEVICES is a list of numbers or names of GPUs. CUDA stops at the first invalid entry, so -1 hides
    # every GPU.
    first = value.split(",")[0].strip()
    present = len([file for file in Path("/dev").glob("nvidia*") if file.name.removeprefix("nvidia").isdecimal()])
    is_number = first.isdecimal() and (present == 0 or int(first) < present)
    if not is_number and not first.startswith(("GPU-", "MIG-")):
        raise ProblemError(f"{value!r} hides every GPU")
    listed = len(value.split(","))
    if listed < present:
        return Result("CUDA_VISIBLE_DEVICES", "note", f"{value!r} shows {listed} of {present} GPUs")
    return f"{value!r}"


def check_tf32() -> Result | str:
    """Read NVIDIA_TF32_OVERRIDE. Raises `ProblemError` if NVIDIA_TF32_OVERRIDE may turn TF32 on for every program."""
    value = os.environ.get("NVIDIA_TF32_OVERRIDE", "")
    if value == "":
        return "NVIDIA_TF32_OVERRIDE is not set: --precision decides"
    if value == "0":
        return Result("TF32", "note", "NVIDIA_TF32_OVERRIDE=0 turns TF32 off, even for --precision tf32")
    raise ProblemError(f"NVIDIA_TF32_OVERRIDE={value} may turn TF32 on where ONNX Runtime asks for float32")
