"""Runs the checks in order and prints their results. This module defines the list of checks, and decides which problems
change the exit status.

A problem with CUDA has the status `wrong` only if CUDA is wanted; otherwise it is a note.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

from foldserve.service.commands.doctor import cuda, onnx_runtime, resources
from foldserve.service.commands.doctor.check import Check, Result
from foldserve.service.commands.doctor.isolate import run_isolated
from foldserve.service.machine import wheels

if TYPE_CHECKING:  # the imported module imports ONNX Runtime, which may be broken on this machine
    from foldserve.service.runtime.session import Device

_SHOW_GPU = "`nvidia-smi` must list a GPU here; for a container: `docker run --gpus all`"
_MORE_PROCESSORS = "grant this process a processor: the container's CPU limit, or taskset"
_MORE_MEMORY = "grant this process more memory: the container's memory limit"


def run(device: Device, as_json: bool) -> int:
    """Check this machine for a service on `device`, and print each result.

    Return the exit status, which is 1 if a check found a problem.
    """
    results = []
    for result in examine(device):
        results.append(result)
        if not as_json:
            print(f"{result.status:<5} {result.name:<20} {result.found}", flush=True)
            if result.remedy:
                print(f"{'':<5} {'':<20} remedy: {result.remedy}", flush=True)
    ok = all(result.status != "wrong" for result in results)
    if as_json:
        print(json.dumps({"ok": ok, "checks": [asdict(result) for result in results]}, indent=2))
    return 0 if ok else 1


def examine(device: Device) -> Iterator[Result]:
    """Run every check for a service on `device`, and yield each result when it is known.

    CUDA is wanted if `device` is `cuda`, or if it is `auto` and onnxruntime-gpu is installed. Raises no exception.
    """
    installed = wheels.installed()
    wants_cuda = device == "cuda" or (device == "auto" and "onnxruntime-gpu" in installed)
    for check in _checks(installed, wants_cuda):
        result = run_isolated(check)
        if result.status == "wrong" and check.cuda and not wants_cuda:
            result = replace(result, status="note", remedy=None)
        yield result


def _checks(installed: list[str], wants_cuda: bool) -> list[Check]:
    """List the checks in order. installed: the installed wheels of ONNX Runtime."""
    extra = "pip install 'foldserve[gpu]'" if wants_cuda else "pip install 'foldserve[cpu]'"
    # Only one of the two wheels may be installed, so the installed wheels are removed first.
    replace_wheel = f"pip uninstall --yes {' '.join(installed)} && {extra}" if installed else extra
    gpu_extra = extra if installed == ["onnxruntime-gpu"] else replace_wheel
    reinstall = "pip install --force-reinstall foldserve"
    cpu_provider = partial(onnx_runtime.check_provider, "CPUExecutionProvider")
    return [
        Check("foldserve", partial(metadata.version, "foldserve"), reinstall),
        Check("python", lambda: f"{platform.python_version()}, {sys.executable}", reinstall),
        Check("onnx", onnx_runtime.check_onnx, "pip install --force-reinstall onnx"),
        Check("wheel", partial(onnx_runtime.check_wheel, installed), replace_wheel),
        Check("onnxruntime", partial(onnx_runtime.check_build, installed), replace_wheel),
        Check("cpu provider", cpu_provider, replace_wheel),
        Check("driver", cuda.check_driver, onnx_runtime.INSTALL_DRIVER, cuda=True),
        Check("cudart", partial(cuda.check_library, "cudart"), gpu_extra, cuda=True),
        Check("cublasLt", partial(cuda.check_library, "cublasLt"), gpu_extra, cuda=True),
        Check("cublas", partial(cuda.check_library, "cublas"), gpu_extra, cuda=True),
        Check("curand", partial(cuda.check_library, "curand"), gpu_extra, cuda=True),
        Check("cudnn", cuda.check_cudnn, "pip uninstall --yes nvidia-cudnn-cu13", cuda=True),
        Check("gpu", cuda.check_gpus, _SHOW_GPU, cuda=True),
        Check("CUDA_VISIBLE_DEVICES", cuda.check_visible_devices, "unset CUDA_VISIBLE_DEVICES", cuda=True),
        Check("TF32", cuda.check_tf32, "unset NVIDIA_TF32_OVERRIDE", cuda=True),
        Check("cuda provider", onnx_runtime.check_cuda_provider, gpu_extra, cuda=True),
        Check("processors", resources.check_processors, _MORE_PROCESSORS),
        Check("memory", resources.check_memory, _MORE_MEMORY),
    ]
