"""What a bundle says of the run that made it: its features, and what it takes to make `model.onnx` again."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from foldserve.service import bundle
from foldserve.service.machine import processor
from foldserve.training.fit.distributed import World
from foldserve.training.plan import DataOptions, Execution, Plan
from foldserve.training.table.schema import Column

_RECORDED = ("foldserve", "numpy", "onnx", "protobuf", "pyarrow", "scikit-learn", "scipy")
_HISTOGRAM_BINS = 10

Found = bool | int | float | str | tuple[int, ...] | tuple[str, ...]


def feature(column: Column, values: npt.NDArray[np.float32]) -> bundle.Feature:
    """Describe a column by its `values`, float32 [training rows]."""
    known = values[~np.isnan(values)].astype(np.float64)
    span = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    if column.kind == "categorical":
        # The reserved bucket, one past the last category, has no bin: an edge of its own would take it into the last.
        count = len(column.categories)
        edges = np.arange(count + 1) - 0.5
        counts = np.bincount(known.astype(np.int64), minlength=count)[:count]
    else:
        # Around a single value NumPy would take 0.5 to both sides, which is nothing to a value beyond 2^53.
        half = max(0.5, 1e-3 * abs(span[0])) if span[0] == span[1] else 0.0
        counts, edges = np.histogram(known, _HISTOGRAM_BINS, (span[0] - half, span[1] + half))
    return bundle.Feature(
        name=column.name,
        kind=column.kind,
        missing=column.missing,
        categories=column.categories,
        range=None if column.kind == "categorical" else span,
        histogram=bundle.Histogram(edges=edges.tolist(), counts=counts.tolist()),
        missing_share=1 - len(known) / len(values),
    )


def provenance(
    plan: Plan, source: str, data_sha256: str, rows: dict[Literal["train", "validation", "test"], int], **found: Found
) -> bundle.Provenance:
    """Record every choice of `plan`, beside it what the run itself has `found`, and what it was computed with."""
    return bundle.Provenance(
        source=source,
        data_sha256=data_sha256,
        rows=rows,
        seed=plan.seed,
        threads=plan.threads,
        cpu=_cpu(),
        hyperparameters={
            "preset": plan.preset,
            **asdict(plan.architecture),
            **asdict(plan.recipe.resolved(rows["train"])),
            **_chosen(plan.data),
            **found,
        },
        versions=_versions(),
    )


def identity(plan: Plan, data_sha256: str, world: World, execution: Execution) -> dict[str, str]:
    """Everything that decides the weights, by name: a checkpoint is gone on from where all of it is the same."""
    decides = {
        **asdict(plan.architecture),
        **asdict(plan.recipe),
        **_chosen(plan.data),
        "seed": plan.seed,
        "threads": plan.threads,
        "data sha256": data_sha256,
        "processes": world.size,
        "device": world.device.type,
        "compile": execution.compile,
        "cpu": _cpu(),
        **_versions(),
    }
    return {name: str(value) for name, value in decides.items()}


def _versions() -> dict[str, str]:
    return {
        "python": python_version(),
        **{name: version(name) for name in _RECORDED},
        "torch": torch.__version__,  # with its build, which the installed metadata may leave out: 2.13.0+cu130
        "onnxruntime": onnxruntime.__version__,
    }


def _chosen(options: DataOptions) -> dict[str, Found]:
    """What of the options was given: columns by name, files by their own name and no path."""
    chosen = {name: value for name, value in asdict(options).items() if value not in (None, ()) and name != "source"}
    return {name: value.name if isinstance(value, Path) else value for name, value in chosen.items()}


def _cpu() -> str:
    """Name the kind of CPU: matrix libraries choose their kernels, and so the last bits, by it."""
    return f"{processor.model_name()}, {torch.backends.cpu.get_cpu_capability()}"
