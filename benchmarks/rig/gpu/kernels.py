"""Counts the kernels and copies of a run on the GPU, and measures their time.

The figures come from CUPTI through torch's profiler. The profiler records all kernels of the process, including ONNX
Runtime's kernels and those inside a CUDA graph.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from rig.gpu.contender import Device
from rig.gpu.networks import Rows

RUNS = 10
_COPIES = ("gpu_memcpy", "gpu_memset")


@dataclass
class Profile:
    """The kernels and copies of one run, and the microseconds in which at least one of them ran."""

    network: str
    precision: str
    batch: int
    contender: str
    kernels: float
    kernel_us: float
    copies: float
    copy_us: float


def record(run: Callable[[Rows], Any], batches: Sequence[Rows], device: Device) -> list[dict[str, Any]]:
    """Run `RUNS` times. Return the profiler's events in Chrome's trace format."""
    run(batches[0])
    activities = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=activities) as profiler:
            for i in range(RUNS):
                run(batches[i % len(batches)])
            if device == "cuda":
                torch.cuda.synchronize()
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events: list[dict[str, Any]] = json.loads(trace.read_text())["traceEvents"]
        return events


def count(events: Sequence[dict[str, Any]], runs: int) -> tuple[float, float, float, float]:
    """Return four figures per run: the number of kernels, their microseconds, the number of copies, and their
    microseconds.
    """
    kernels = [x for x in events if x.get("cat") == "kernel"]
    copies = [x for x in events if x.get("cat") in _COPIES]
    return len(kernels) / runs, _busy_time(kernels) / runs, len(copies) / runs, _busy_time(copies) / runs


def _busy_time(events: Sequence[dict[str, Any]]) -> float:
    """Return the total time during which at least one event runs.

    Events on two streams may overlap. If events overlap, the function counts this time only once.
    """
    total, until = 0.0, float("-inf")
    for start, end in sorted((float(x["ts"]), float(x["ts"]) + float(x["dur"])) for x in events):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
