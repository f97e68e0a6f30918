"""The server that the clients use.

A Python with foldserve must run this program, because the clients' environment has no foldserve.

`python -m tests.clients.served FOLDER` writes models to FOLDER/models, serves them, and prints the URL and the port of
gRPC. With the argument `--keys`, clients need an API key that has every scope. The program prints the API key after the
URL. The program exits when its standard input closes.
"""

import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from foldserve.service import bundle
from foldserve.service.access.keys import Scope, create_key
from tests.service.support import constant, manifest, onnx_model, serving, tensor, write_square_root

ROOT = Path(__file__).parents[2]
WIDE = 300


def write_models(models: Path) -> None:
    """Write the models of the tests.

    digits/1: the shipped model. roots/1: sqrt(a + b). roots/2: sqrt(a + b) + 100. gaps: a + b, where `a` may be
    missing. wide: the sum of the columns. There are so many columns that a row of random bytes contains a NaN. table:
    the value of `size`, plus 1 if `colour` is blue. mixed: the probability of `yes` is the sigmoid of the sum of
    `size`, `colour` and `open`. `size` may be missing, and a missing value counts as 0.
    """
    shutil.copytree(ROOT / "models" / "digits", models / "digits")
    write_square_root(models)
    axes = constant("axes", [1], np.int64)
    add = [helper.make_node("ReduceSum", ["input", "axes"], ["sum"], keepdims=1)]
    more = [helper.make_node("Sqrt", ["sum"], ["root"]), helper.make_node("Add", ["root", "hundred"], ["value"])]
    write(models, "roots", onnx_model([*add, *more], [axes, constant("hundred", [100])]), (1.0, 3.0), 102.0)
    nodes = [
        helper.make_node("IsNaN", ["input"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "input"], ["filled"]),
        helper.make_node("ReduceSum", ["filled", "axes"], ["value"], keepdims=1),
    ]
    write(models, "gaps", onnx_model(nodes, [axes, constant("zero", [0])]), (1.0, 3.0), 4.0, missing=("a",))
    total = [helper.make_node("ReduceSum", ["input", "axes"], ["value"], keepdims=1)]
    model = onnx_model(total, [axes], inputs=[tensor("input", "batch", WIDE)])
    write(models, "wide", model, (1.0,) * WIDE, float(WIDE), features=[f"c{i}" for i in range(WIDE)])
    features = ["size", {"name": "colour", "kind": "categorical", "categories": ("red", "blue")}]
    model = onnx_model([helper.make_node("ReduceSum", ["input", "axes"], ["value"], keepdims=1)], [axes])
    write(models, "table", model, (1.0, 1.0), 2.0, features=features)
    write_mixed(models, axes)


def write_mixed(models: Path, axes: TensorProto) -> None:
    features = [
        {"name": "size", "missing": True},
        {"name": "colour", "kind": "categorical", "categories": ("red", "blue")},
        {"name": "open", "kind": "boolean"},
    ]
    nodes = [
        helper.make_node("IsNaN", ["input"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "input"], ["filled"]),
        helper.make_node("ReduceSum", ["filled", "axes"], ["sum"], keepdims=1),
        helper.make_node("Sigmoid", ["sum"], ["yes"]),
        helper.make_node("Sub", ["one", "yes"], ["no"]),
        helper.make_node("Concat", ["no", "yes"], ["probabilities"], axis=1),
    ]
    constants = [axes, constant("zero", [0]), constant("one", [1])]
    shapes = {"inputs": [tensor("input", "batch", 3)], "outputs": [tensor("probabilities", "batch", 2)]}
    model = onnx_model(nodes, constants, **shapes)
    yes = 1 / (1 + math.exp(-3))
    write(models, "mixed", model, (1.0, 1.0, 1.0), 1 - yes, yes, features=features, labels=("no", "yes"))


def write(models: Path, name: str, model: bytes, row: tuple[float, ...], *outputs: float, **changes: object) -> None:
    golden = bundle.Golden(inputs=(row, row), outputs=(outputs, outputs))
    bundle.write(models, name, model, lambda n: manifest(model, name=name, version=n, golden=golden, **changes))


def main(folder: Path, *, keys: bool) -> None:
    models = folder / "models"
    models.mkdir()
    write_models(models)
    key, line = create_key("client", tuple(Scope)[1:], None)
    (folder / "keys").write_text(line)
    flags: tuple[object, ...] = ("--keys", folder / "keys") if keys else ("--grpc-port", 0)
    with serving(models, folder / "log", "--default-model", "digits", *flags) as server:
        more = key if keys else re.findall(r"gRPC is on \S+ port (\d+)", server.log.read_text())[0]
        print(server.url, more, flush=True)  # noqa: T201
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), keys="--keys" in sys.argv)
