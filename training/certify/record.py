"""The record of a run: the choices, the versions and the machine, which together decide the result of the run.

The manifest stores this record as the provenance of the model. A checkpoint contains the identity of its run. A run may
continue from a checkpoint of another run only if both runs have the same identity.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Literal

import onnxruntime
import torch

from foldserve.service import bundle
from foldserve.service.machine import processor
from foldserve.training.fit.distributed import World
from foldserve.training.plan import DataOptions, DecisionOptions, Execution, Plan

_LIBRARIES = ("foldserve", "numpy", "onnx", "protobuf", "pyarrow", "scikit-learn", "scipy")

Setting = bool | int | float | str | tuple[int, ...] | tuple[str, ...]


def provenance(
    plan: Plan,
    source: str,
    data_sha256: str,
    rows: dict[Literal["train", "validation", "test"], int],
    **outcomes: Setting,
) -> bundle.Provenance:
    """Record every choice in `plan`, and the environment of the run.

    outcomes: the settings that the run chose itself.
    """
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
            **_given(plan.data),
            **_given(plan.decision),
            **outcomes,
        },
        versions=_versions(),
    )


def import_provenance(
    source: str, data_sha256: str | None, rows: dict[Literal["train", "validation", "test"], int], seed: int
) -> bundle.Provenance:
    """Record how an imported model was certified: the rows, the seed and the environment of the import.

    seed: the seed of the random rows. data_sha256: the hash of the table; None if the user gave no table.
    """
    return bundle.Provenance(
        source=source,
        data_sha256=data_sha256,
        rows=rows,
        seed=seed,
        threads=1,
        cpu=_cpu(),
        hyperparameters={},
        versions=_versions(),
    )


def run_identity(plan: Plan, data_sha256: str, world: World, execution: Execution) -> dict[str, str]:
    """Return the identity of a run: each setting that affects the weights, by its name.

    Two runs with equal identities give the same weights.
    """
    settings = {
        **asdict(plan.architecture),
        **asdict(plan.recipe),
        **_given(plan.data),
        "seed": plan.seed,
        "threads": plan.threads,
        "data sha256": data_sha256,
        "processes": world.size,
        "device": world.device.type,
        "compile": execution.compile,
        "cpu": _cpu(),
        **_versions(),
    }
    return {name: str(value) for name, value in settings.items()}


def _versions() -> dict[str, str]:
    return {
        "python": python_version(),
        **{name: version(name) for name in _LIBRARIES},
        "torch": torch.__version__,  # unlike the metadata, this string always names the build, such as +cu130
        "onnxruntime": onnxruntime.__version__,
    }


def _given(options: DataOptions | DecisionOptions) -> dict[str, Setting]:
    """Return the options that the user has set. A file is recorded by its name, without its folder."""
    given = {
        name: value
        for name, value in asdict(options).items()
        if value not in (None, ()) and name not in ("source", "more")
    }
    return {name: value.name if isinstance(value, Path) else value for name, value in given.items()}


def _cpu() -> str:
    """Return the model of the CPU and its instruction set.

    Matrix libraries choose a kernel for the CPU, and the last bits of a result depend on the kernel.
    """
    return f"{processor.model_name()}, {torch.backends.cpu.get_cpu_capability()}"
