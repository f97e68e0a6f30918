"""A model that keeps a tensor in another file is refused, because the bundle's hash does not cover that file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.service.runtime.handmade import GOLDEN, MATMUL, WEIGHTS, refusal
from tests.service.support import bundle_in_memory, constant, onnx_model, tensor


def external(name: str, location: str) -> TensorProto:
    found = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=WEIGHTS.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(WEIGHTS.nbytes))):
        found.external_data.add(key=key, value=value)
    return found


def in_an_initializer(location: str) -> bytes:
    return onnx_model([MATMUL], [external("w", location)])


def in_a_constant(location: str) -> bytes:
    return onnx_model([helper.make_node("Constant", [], ["w"], value=external("w", location)), MATMUL])


def in_a_subgraph(location: str) -> bytes:
    branches = [
        helper.make_graph(
            [helper.make_node("Identity", [f"{name}.w"], [name])],
            name,
            [],
            [tensor(name, 2, 1)],
            [external(f"{name}.w", location)],
        )
        for name in ("then", "else")
    ]
    choose = helper.make_node("If", ["yes"], ["w"], then_branch=branches[0], else_branch=branches[1])
    return onnx_model([choose, MATMUL], [constant("yes", True, np.bool_)])


def in_a_subgraph_without_nodes(location: str) -> bytes:
    branches = [
        helper.make_graph([], name, [], [tensor(name, 2, 1)], [external(name, location)]) for name in ("then", "else")
    ]
    choose = helper.make_node("If", ["yes"], ["w"], then_branch=branches[0], else_branch=branches[1])
    return onnx_model([choose, MATMUL], [constant("yes", True, np.bool_)])


def in_a_function(location: str) -> bytes:
    opset = [helper.make_opsetid("", 20)]
    nodes = [
        helper.make_node("Constant", [], ["w"], value=external("w", location)),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    function = helper.make_function("made", "Dense", ["x"], ["y"], nodes, opset)
    return onnx_model([helper.make_node("Dense", ["input"], ["value"], domain="made")], functions=[function])


def in_a_sparse_initializer(location: str) -> bytes:
    model = onnx.load_model_from_string(onnx_model([MATMUL]))
    sparse = model.graph.sparse_initializer.add(dims=WEIGHTS.shape)
    sparse.values.CopyFrom(external("w", location))
    sparse.indices.CopyFrom(constant("indices", [0, 1], np.int64))
    return model.SerializeToString()


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "ABSOLUTE"])
@pytest.mark.parametrize(
    "build",
    [
        in_an_initializer,
        in_a_constant,
        in_a_subgraph,
        in_a_subgraph_without_nodes,
        in_a_function,
        in_a_sparse_initializer,
    ],
)
def test_a_tensor_in_another_file_is_refused_in_every_part_of_a_graph(
    build: Callable[[str], bytes], location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file exists, and its weights are right. The model is refused because the bundle's hash does not cover the file
    # of weights.
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (tmp_path, folder):
        WEIGHTS.tofile(place / "weights.bin")
    monkeypatch.chdir(folder)
    if location == "ABSOLUTE":
        location = str(tmp_path / "weights.bin")
    reason = refusal(bundle_in_memory(build(location), GOLDEN))
    assert reason == "model.onnx keeps a tensor in another file (external data)"
