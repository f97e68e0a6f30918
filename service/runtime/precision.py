"""Converts a graph to matrix products in fp16 or bf16, and widens the tolerance of the golden outputs.

This module opens no sessions. TF32 needs no conversion, because it is an option of the CUDA provider. This module does
not use the converter of ONNX Runtime, for three reasons: that converter does not support bf16, it clips weights that
overflow instead of refusing them, and it does not sort its graph topologically, so `onnx.checker` refuses the graph.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from foldserve.service.bundle import Tolerance
from foldserve.service.errors import BundleError
from foldserve.service.runtime.session import Precision

_TYPES: dict[Precision, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# The output of each of these operators has the same type as its inputs. After a matrix product in the narrow type,
# these operators need no conversion.
_SAME_TYPE = {"Relu", "Gelu", "Sigmoid", "Tanh", "Mul", "Concat", "Split"}
# The factors in this table follow from measurements on the golden rows of 13 models, with rounded operands and float32
# sums. With the 11 significant bits of TF32 and fp16, the outputs differ from the golden outputs by up to 118 times the
# certificate's tolerance. With the 8 significant bits of bf16, the outputs differ from the golden outputs by up to 953
# times the certificate's tolerance.
_FACTORS = {"fp32": 1.0, "tf32": 200.0, "fp16": 200.0, "bf16": 1600.0}


def widen(tolerance: Tolerance, precision: Precision) -> Tolerance:
    """Widen a certificate's float32 tolerance.

    For example, a relative tolerance of 1e-4 becomes 0.02 for fp16 and 0.16 for bf16.
    """
    factor = _FACTORS[precision]
    return Tolerance(absolute=tolerance.absolute * factor, relative=tolerance.relative * factor)


def convert(graph: onnx.ModelProto, precision: Precision) -> bytes:
    """Serialise the model with its matrix products in `precision`. The model's inputs and outputs stay float32.

    Each weight is rounded only once, to the nearest number; a tie is rounded to even. The conversion covers each Gemm
    and the elementwise operators that follow it. All other operators stay float32. Raises `BundleError` for a weight
    beyond fp16's largest number, 65,504.
    """
    if precision not in _TYPES:
        return bytes(graph.SerializeToString(deterministic=True))
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    _Converter(model.graph, precision).convert()
    return bytes(model.SerializeToString(deterministic=True))


class _Converter:
    """Converts a graph in one pass over its nodes. The new graph has each tensor in float32, in the narrow type, or in
    both.
    """

    def __init__(self, graph: onnx.GraphProto, precision: Precision) -> None:
        self._graph = graph
        self._precision = precision
        self._type = _TYPES[precision]
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._narrow: dict[str, str] = {}  # maps the name of a float32 tensor to its name in the narrow type
        self._wide = {graph.input[0].name}  # the tensors that exist in float32
        self._outputs = {output.name for output in graph.output}
        self._nodes: list[onnx.NodeProto] = []

    def convert(self) -> None:
        for node in list(self._graph.node):
            inputs = [name for name in node.input if name]
            follows_product = (
                node.op_type in _SAME_TYPE
                and all(name in self._narrow or name in self._constants for name in inputs)
                and any(name in self._narrow for name in inputs)
            )
            if node.op_type == "Gemm" or follows_product:
                self._add_narrow(node)
            else:
                self._add_float32(node)
        for name in self._outputs - self._wide:
            self._widen(name)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _add_narrow(self, node: onnx.NodeProto) -> None:
        narrow = onnx.NodeProto()
        narrow.CopyFrom(node)
        narrow.input[:] = [self._narrowed(name) for name in node.input]
        narrow.output[:] = [f"{name}.narrow" for name in node.output]
        self._narrow.update(zip(node.output, narrow.output, strict=True))
        self._nodes.append(narrow)

    def _add_float32(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in self._narrow:
                self._widen(name)
        self._wide.update(node.output)
        self._nodes.append(node)

    def _widen(self, name: str) -> None:
        """Cast a tensor of the narrow type to float32, unless the tensor already exists in float32."""
        if name not in self._wide:
            self._add_cast(self._narrow[name], name, TensorProto.FLOAT)
            self._wide.add(name)

    def _narrowed(self, name: str) -> str:
        """Return the name of a tensor in the narrow type. A constant is rounded; any other tensor is cast."""
        if name in self._constants and name not in self._narrow:
            self._narrow[name] = self._rounded(self._constants[name])
        elif name not in self._narrow:
            self._narrow[name] = f"{name}.narrow"
            self._add_cast(name, self._narrow[name], self._type)
        return self._narrow[name]

    def _rounded(self, tensor: onnx.TensorProto) -> str:
        if tensor.data_type != TensorProto.FLOAT:  # an integer constant, such as the sizes of a Split
            return tensor.name
        with np.errstate(over="ignore"):
            values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(self._type))
        if not np.isfinite(values.astype(np.float32)).all():
            raise BundleError(f"{tensor.name} holds a number that is too large for {self._precision}")
        self._graph.initializer.append(numpy_helper.from_array(values, f"{tensor.name}.narrow"))
        return f"{tensor.name}.narrow"

    def _add_cast(self, source: str, target: str, to: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=to))
