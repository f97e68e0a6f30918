"""The server that the browser uses.

A Python with foldserve must run this program, because the browser's environment has no foldserve.

`python -m tests.page.served FOLDER` writes models to FOLDER/models, serves them, and prints the URL. With the argument
`--keys`, the server requires an API key that has every scope. The program prints the API key after the URL. Each line
of the standard input names a model. When a line arrives, the program copies the newest version of the named model and
adds the copy as the next version. The program exits when its standard input closes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from foldserve.service import bundle
from foldserve.service.access.keys import Scope, create_key
from tests.service.mixed import write_mixed
from tests.service.support import constant, manifest, onnx_model, serving, tensor

ROOT = Path(__file__).parents[2]
WIDE, CLASSES = 500, 1000


def write_models(models: Path) -> None:
    """Write the models: digits, mixed with features of every kind, and wide with 500 features and 1,000 classes.

    when: a regression on a date.
    """
    shutil.copytree(ROOT / "models" / "digits", models / "digits")
    write_mixed(models)
    weights = np.random.default_rng(0).normal(0, 0.1, (WIDE, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["input", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    model = onnx_model(
        nodes,
        [constant("weights", weights)],
        inputs=[tensor("input", "batch", WIDE)],
        outputs=[tensor("probabilities", "batch", CLASSES)],
    )
    golden = bundle.Golden(inputs=((0.0,) * WIDE,), outputs=((1 / CLASSES,) * CLASSES,))
    names, labels = [f"column {i}" for i in range(WIDE)], [f"class {i}" for i in range(CLASSES)]
    bundle.write(
        models,
        "wide",
        model,
        lambda n: manifest(model, name="wide", version=n, golden=golden, features=names, labels=labels),
    )
    write_dates(models)


def write_dates(models: Path) -> None:
    """Write the model `when`, which returns half the number of days since 2020-01-01.

    A missing day counts as 10 days.
    """
    nodes = [
        helper.make_node("IsNaN", ["input"], ["missing"]),
        helper.make_node("Where", ["missing", "ten", "input"], ["filled"]),
        helper.make_node("Gemm", ["filled", "half"], ["value"]),
    ]
    model = onnx_model(
        nodes,
        [constant("ten", [10]), constant("half", [[0.5]])],
        inputs=[helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1])],
    )
    day = {
        **{"name": "day", "kind": "time", "missing": True, "range": (0.0, 100.0)},
        "histogram": {"edges": (0.0, 50.0, 100.0), "counts": (1, 2)},
        "reading": {"step": "day", "origin": "2020-01-01"},
    }
    golden = bundle.Golden(inputs=((20.0,), (None,)), outputs=((10.0,), (5.0,)))
    bundle.write(
        models, "when", model, lambda n: manifest(model, name="when", version=n, golden=golden, features=[day])
    )


def write_next(models: Path, name: str) -> None:
    """Write the next version of a model."""
    newest = bundle.read(models / name / str(max(bundle.versions(models / name))))
    bundle.write(models, name, newest.model, lambda n: newest.manifest.model_copy(update={"version": n}))


def main(folder: Path, *, keys: bool) -> None:
    models = folder / "models"
    models.mkdir()
    write_models(models)
    key, line = create_key("operator", tuple(Scope)[1:], None)
    (folder / "keys").write_text(line)
    flags = ("--keys", folder / "keys") if keys else ()
    with serving(models, folder / "log", "--default-model", "digits", *flags) as server:
        print(json.dumps({"url": server.url, "key": key}), flush=True)  # noqa: T201 (the tests read it)
        for name in sys.stdin:
            write_next(models, name.strip())
            print("written", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), keys="--keys" in sys.argv)
