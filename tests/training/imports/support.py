"""Builds small ONNX models, and imports them as the command does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from foldserve.training.imports.folding import fold
from foldserve.training.imports.imported import Imported, Options
from foldserve.training.imports.onnx_model import import_onnx
from foldserve.training.imports.write import to_onnx

FILES = Path(__file__).parent / "onnx_files"
ML = "ai.onnx.ml"


class Model:
    """Builds an ONNX graph node by node. The input `x` has `features` columns."""

    def __init__(self, features: int = 4, opset: int = 18) -> None:
        self.features, self.opset, self.value = features, opset, "x"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(
        self, kind: str, *constants: Any, source: Sequence[str] | None = None, domain: str = "", **given: Any
    ) -> str:
        """Add a node. The node's first inputs are `source` (by default, the current value), and its other inputs are
        the constants.
        """
        names = [self.value] if source is None else list(source)
        for constant in constants:
            names.append(f"c{len(self.constants)}")
            self.constants.append(numpy_helper.from_array(np.asarray(constant), names[-1]))
        self.value = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [self.value], name=self.value, domain=domain, **given))
        return self.value

    def dense(self, generator: np.random.Generator, inputs: int, outputs: int) -> str:
        """Add a Gemm with random weights."""
        weight = generator.normal(size=(inputs, outputs)).astype(np.float32) / np.float32(inputs**0.5)
        return self.add("Gemm", weight, generator.normal(size=outputs).astype(np.float32))

    def batch_norm(self, generator: np.random.Generator, columns: int) -> str:
        """Add a BatchNormalization with random statistics. The gammas may be negative."""
        gamma, beta, mean = (generator.normal(size=columns).astype(np.float32) for _ in range(3))
        return self.add("BatchNormalization", gamma, beta, mean, generator.uniform(0.3, 3, columns).astype(np.float32))

    def build(self, outputs: Sequence[str] = ()) -> onnx.ModelProto:
        """Return the model. outputs: the names of the model's outputs. By default, the only output is the current
        value.
        """
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", self.features])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "columns"])
                for name in outputs or [self.value]
            ],
            self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(ML, 3)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def read(model: onnx.ModelProto, **options: Any) -> Imported:
    """Import a model from memory."""
    return import_onnx(model, "test.onnx", "0" * 64, Options(**options))


def run_folded(imported: Imported, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Fold and export a model. Return the outputs of the exported model in ONNX Runtime, and the types of its nodes."""
    content = to_onnx(fold(imported.network).network, imported.task)
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    return session.run(None, {"input": rows})[0], kinds


def run_unoptimised(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    """Run the original in ONNX Runtime without any optimisation."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: rows})[0]
