"""What a run does on the GPU: kernels and copies, and their time, as CUPTI records them through torch's profiler.

The profiler sees the whole process, so ONNX Runtime's kernels too, and those inside a CUDA graph one by one.
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

from rig.gpu.contenders import Device
from rig.gpu.networks import Rows

RUNS = 10
_COPIES = ("gpu_memcpy", "gpu_memset")


@dataclass
class Work:
    """Of one run: kernels and copies, and the microseconds in which at least one of them ran."""

    network: str
    precision: str
    batch: int
    contender: str
    kernels: float
    kernel_us: float
    copies: float
    copy_us: float


def record(run: Callable[[Rows], Any], sent: Sequence[Rows], device: Device) -> list[dict[str, Any]]:
    """Run `RUNS` times; gives what the profiler says of them, as events of Chrome's trace format."""
    run(sent[0])
    activities = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=activities) as found:
            for i in range(RUNS):
                run(sent[i % len(sent)])
            if device == "cuda":
                torch.cuda.synchronize()
        trace = Path(folder) / "trace.json"
        found.export_chrome_trace(str(trace))
        events: list[dict[str, Any]] = json.loads(trace.read_text())["traceEvents"]
        return events


def count(events: Sequence[dict[str, Any]], runs: int) -> tuple[float, float, float, float]:
    """Give kernels, their microseconds, copies and their microseconds, of one of `runs` runs."""
    kernels = [x for x in events if x.get("cat") == "kernel"]
    moved = [x for x in events if x.get("cat") in _COPIES]
    return len(kernels) / runs, _busy(kernels) / runs, len(moved) / runs, _busy(moved) / runs


def _busy(events: Sequence[dict[str, Any]]) -> float:
    """Add up the time in which at least one is running: they may overlap on two streams."""
    total, until = 0.0, float("-inf")
    for start, end in sorted((float(x["ts"]), float(x["ts"]) + float(x["dur"])) for x in events):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
