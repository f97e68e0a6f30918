"""Matrix products of fewer bits than float32 has: the graph for them, and what the golden rows may then be off by.

It knows a parsed graph and a tolerance. TF32 needs no other graph: it is an option of the CUDA provider.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from foldserve.service.bundle import Tolerance
from foldserve.service.errors import BundleError
from foldserve.service.runtime.session import Precision

_TYPES: dict[Precision, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# What keeps its type from input to output, and so stands between two products without a conversion.
_POINTWISE = {"Relu", "Gelu", "Sigmoid", "Tanh", "Mul", "Concat", "Split"}
# Measured with each operand rounded and sums in float32, over golden rows of 13 models: TF32 and fp16, of 11 bits, are
# off by up to 118 times the certificate's tolerance, bf16, of 8, by up to 953.
_WIDER = {"fp32": 1.0, "tf32": 200.0, "fp16": 200.0, "bf16": 1600.0}


def tolerance(certified: Tolerance, precision: Precision) -> Tolerance:
    """Widen a certificate's tolerance, which is for float32: the relative part to 0.02 and 0.16 where it was 1e-4."""
    wider = _WIDER[precision]
    return Tolerance(absolute=certified.absolute * wider, relative=certified.relative * wider)


def converted(graph: onnx.ModelProto, precision: Precision) -> bytes:
    """Write the model for CUDA with its matrix products in `precision`; inputs and outputs of the model stay float32.

    Weights are rounded once, to nearest even. Whatever is not a Gemm, or pointwise right after one, stays float32.
    Raises `BundleError` for a weight past fp16's 65,504.
    """
    if precision not in _TYPES:
        return bytes(graph.SerializeToString(deterministic=True))
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    _Narrowed(made.graph, precision).rewrite()
    return bytes(made.SerializeToString(deterministic=True))


class _Narrowed:
    """One walk through a graph, in order; each tensor is there as float32, in the narrow type, or both."""

    def __init__(self, graph: onnx.GraphProto, precision: Precision) -> None:
        self._graph = graph
        self._name = precision
        self._type = _TYPES[precision]
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._narrow: dict[str, str] = {}  # the names of what is there in the narrow type, by its float32 name
        self._wide = {graph.input[0].name}  # what is there as float32
        self._outputs = {output.name for output in graph.output}
        self._nodes: list[onnx.NodeProto] = []

    def rewrite(self) -> None:
        for node in list(self._graph.node):
            taken = [name for name in node.input if name]
            pointwise = (
                node.op_type in _POINTWISE
                and all(name in self._narrow or name in self._constants for name in taken)
                and any(name in self._narrow for name in taken)
            )
            if node.op_type == "Gemm" or pointwise:
                self._in_narrow(node)
            else:
                self._in_float32(node)
        for name in self._outputs - self._wide:
            self._widen(name)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _in_narrow(self, node: onnx.NodeProto) -> None:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.input[:] = [self._narrowed(name) for name in node.input]
        made.output[:] = [f"{name}.narrow" for name in node.output]
        self._narrow.update(zip(node.output, made.output, strict=True))
        self._nodes.append(made)

    def _in_float32(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in self._narrow:
                self._widen(name)
        self._wide.update(node.output)
        self._nodes.append(node)

    def _widen(self, name: str) -> None:
        if name not in self._wide:
            self._cast(self._narrow[name], name, TensorProto.FLOAT)
            self._wide.add(name)

    def _narrowed(self, name: str) -> str:
        if name in self._constants and name not in self._narrow:
            self._narrow[name] = self._constant(self._constants[name])
        elif name not in self._narrow:
            self._narrow[name] = f"{name}.narrow"
            self._cast(name, self._narrow[name], self._type)
        return self._narrow[name]

    def _constant(self, tensor: onnx.TensorProto) -> str:
        if tensor.data_type != TensorProto.FLOAT:  # the sizes of a Split
            return tensor.name
        with np.errstate(over="ignore"):
            values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(self._type))
        if not np.isfinite(values.astype(np.float32)).all():
            raise BundleError(f"{tensor.name} holds a number that is too large for {self._name}")
        self._graph.initializer.append(numpy_helper.from_array(values, f"{tensor.name}.narrow"))
        return f"{tensor.name}.narrow"

    def _cast(self, source: str, target: str, to: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=to))
