"""Bundles whose answers show their version: version n of a model gives sqrt(a + b) + 100 n."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from foldserve.service import bundle
from tests.service.support import constant, manifest, onnx_model

BODY = b'{"instances": [[1, 3]]}'


def answer_of(version: int) -> float:
    """Return the prediction that a version gives for BODY."""
    return 2.0 + 100 * version


@cache
def graph(added: float) -> bytes:
    nodes = [
        helper.make_node("ReduceSum", ["input", "axes"], ["sum"], keepdims=1),
        helper.make_node("Sqrt", ["sum"], ["root"]),
        helper.make_node("Add", ["root", "added"], ["value"]),
    ]
    return onnx_model(nodes, [constant("axes", [1], np.int64), constant("added", [added])])


def make(version: int, name: str = "roots", *, added: float | None = None, **changes: Any) -> Path:
    """Make a bundle in a new folder, and return the path <folder>/<name>/<version>."""
    added = 100.0 * version if added is None else added
    folder = Path(tempfile.mkdtemp(prefix="made-"))
    if version > 1:
        # Because of this folder, the writer chooses `version` as the next number.
        (folder / name / str(version - 1)).mkdir(parents=True)
    model = graph(added)
    golden = bundle.Golden(inputs=((1.0, 3.0), (4.0, 5.0)), outputs=((2.0 + added,), (3.0 + added,)))
    made = bundle.write(folder, name, model, lambda n: manifest(model, name=name, version=n, golden=golden, **changes))
    return made.path


def publish(models: Path, version: int, name: str = "roots", **changes: Any) -> Path:
    """Add a version to a folder of models by a rename. A training also publishes a version by a rename."""
    made = make(version, name, **changes)
    (models / name).mkdir(parents=True, exist_ok=True)
    target = models / name / str(version)
    partial = models / f".partial-{name}-{version}"
    shutil.move(made, partial)
    partial.rename(target)
    shutil.rmtree(made.parents[1])
    return target
