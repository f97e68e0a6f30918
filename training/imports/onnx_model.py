"""The front end for ONNX files, such as the files of sklearn-onnx, tf2onnx, PyTorch and Hummingbird.

    onnx_file.py (bytes -> checked model) -> onnx_inputs.py (inputs -> columns) -> onnx_operators.py, onnx_shapes.py,
        onnx_ml.py (nodes -> layers) -> onnx_outputs.py (output -> probabilities or a value)

The module walks over the nodes of the graph, and calls the function that translates each node.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from foldserve.training.errors import ModelImportError
from foldserve.training.imports import onnx_functions, onnx_ml, onnx_shapes  # noqa: F401 (they register their operators)
from foldserve.training.imports.form import refuse
from foldserve.training.imports.imported import Imported, Options
from foldserve.training.imports.layers import Kept
from foldserve.training.imports.onnx_constants import constant_node, evaluate, to_array
from foldserve.training.imports.onnx_file import read_file
from foldserve.training.imports.onnx_inputs import Inputs, read_inputs
from foldserve.training.imports.onnx_operators import OPERATORS
from foldserve.training.imports.onnx_outputs import finish
from foldserve.training.imports.onnx_values import Constant, Context, Numbers, Refused, Value, attributes

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CAN_NOT_KEEP = "--keep-unknown can't keep it either: export the model without it"
_KEEP = "keep it as it is with --keep-unknown, or export the model without it"

# The attributes that change the result, and that no translation reads: for each operator, the name of the attribute,
# and the only value that is understood.
_UNREAD: dict[str, dict[str, Any]] = {
    "BatchNormalization": {"spatial": 1},
    "Equal": {"axis": None},
    "Pow": {"axis": None},
    "Reshape": {"allowzero": 0},
}


def read(path: Path, options: Options) -> Imported:
    """Read an ONNX file. Raises `ModelImportError` with one line that names the node and the remedy."""
    model, sha256 = read_file(path)
    return import_onnx(model, path.name, sha256, options)


def import_onnx(model: onnx.ModelProto, file: str, sha256: str, options: Options) -> Imported:
    """Import an ONNX model that `read_file` has checked.

    file, sha256: the name and the hash of the original file, for the manifest.
    """
    inputs = read_inputs(model, options)
    context = translate(model, inputs, options)
    return finish(model, context, inputs, file, sha256, options)


def translate(model: onnx.ModelProto, inputs: Inputs, options: Options) -> Context:
    """Translate the nodes that the chosen output needs."""
    opsets = {
        "": 1,
        **{
            each.domain.replace("ai.onnx", "", 1) if each.domain == "ai.onnx" else each.domain: each.version
            for each in model.opset_import
        },
    }
    context = Context(inputs.columns, opsets)
    context.values.update(inputs.values)
    for tensor in model.graph.initializer:
        if tensor.name in inputs.needed:
            try:
                context.values[tensor.name] = Constant(to_array(tensor))
            except Refused as reason:
                raise ModelImportError(f"initialiser {tensor.name!r}: {reason}") from None
    keeper = _Keeper(model) if options.keep_unknown else None
    for node in model.graph.node:
        if not inputs.needed.intersection(node.output):
            continue
        values = [context.values[name] if name else None for name in node.input]
        for name, value in zip(node.output, _translate(context, node, values, keeper), strict=False):
            context.values[name] = value
        if lacking := [name for name in node.output if name in inputs.needed and name not in context.values]:
            raise refuse(node.name or node.output[0], node.op_type, f"its output {lacking[0]!r} is not understood")
    return context


def _translate(
    context: Context, node: onnx.NodeProto, values: Sequence[Value | None], keeper: _Keeper | None
) -> Sequence[Value]:
    domain = "" if node.domain == "ai.onnx" else node.domain
    name = node.name or node.output[0]
    try:
        if node.op_type == "Constant" and not domain:
            return [constant_node(node)]
        arrays: list[Any] = [value.array if isinstance(value, Constant) else None for value in values]
        known = all(value is None or isinstance(value, Constant) for value in values)
        if known and values and not domain:
            return evaluate(node, arrays, context.opsets[""])
        translation = OPERATORS.get((domain, node.op_type))
        if translation is None:
            raise Refused("no rule covers this operator" + (f" of the domain {domain}" if domain else ""))
        given = attributes(node)
        _refuse_attributes(node.op_type, given)
        return translation(context, node, values, given)
    except Refused as reason:
        if keeper is not None and not reason.remedy and (kept := keeper.keep(context, node, values)):
            context.notes.append(f"{node.op_type} {name!r} is kept as it is: {reason}")
            return kept
        raise refuse(
            name, node.op_type, str(reason), reason.remedy or (_KEEP if keeper is None else _CAN_NOT_KEEP)
        ) from None


def _refuse_attributes(kind: str, given: dict[str, Any]) -> None:
    """Raise `Refused` if an attribute that no translation reads changes the result of the operator."""
    for name, harmless in _UNREAD.get(kind, {}).items():
        if given.get(name, harmless) != harmless:
            raise Refused(f"its {name}={given[name]} is not understood")


class _Keeper:
    """Keeps an unknown node untranslated, if its result is floating-point numbers of the shape [rows, columns]."""

    def __init__(self, model: onnx.ModelProto) -> None:
        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except Exception as error:
            raise ModelImportError("the shapes of the graph can't be inferred, so no node can be kept") from error
        self._shapes = {
            info.name: info.type.tensor_type.shape
            for info in (*inferred.graph.value_info, *inferred.graph.output)
            if info.type.tensor_type.elem_type in _FLOATS
        }

    def keep(self, context: Context, node: onnx.NodeProto, values: Sequence[Value | None]) -> list[Value] | None:
        """Keep a node untranslated, and return its value. Return None if the node can't be kept."""
        data = [value for value in values if value is not None and not isinstance(value, Constant)]
        shape = self._shapes.get(node.output[0])
        has_graph = any(attribute.HasField("g") for attribute in node.attribute)
        is_flat = shape is not None and len(shape.dim) == 2 and shape.dim[1].dim_value > 0
        # In a `Kept` layer, the inputs that depend on the rows must come before all other inputs.
        first = all(value is not None and not isinstance(value, Constant) for value in values[: len(data)])
        if shape is None or has_graph or not is_flat or not first or not data or len(node.output) != 1:
            return None
        inputs = [context.numbers(node, value) for value in data]
        constants: dict[str, Any] = {
            str(name): value.array
            for name, value in zip(node.input, values, strict=True)
            if isinstance(value, Constant)
        }
        if any(len(each.shape) != 1 for each in inputs) or len(constants) + len(data) != len(values):
            return None
        opset = context.opsets.get("" if node.domain == "ai.onnx" else node.domain, 1)
        columns = int(shape.dim[1].dim_value)
        layer = Kept(node.SerializeToString(), columns, constants, opset, _evaluate_kept(node, constants, opset))
        return [Numbers(context.add(node, layer, *(each.name for each in inputs)), (columns,))]


def _evaluate_kept(node: onnx.NodeProto, constants: dict[str, Any], opset: int) -> Any:
    """Return a function that evaluates one node in float64, with onnx's `ReferenceEvaluator`."""
    names = [f"data.{place}" for place in range(len(node.input) - len(constants))]
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    del copy.input[:]
    copy.input.extend([*names, *constants])
    infos = [onnx.helper.make_tensor_value_info(name, 0, None) for name in copy.input]
    outputs = [onnx.helper.make_tensor_value_info(copy.output[0], 0, None)]
    opsets = [onnx.helper.make_opsetid(node.domain, opset)]
    model = onnx.helper.make_model(onnx.helper.make_graph([copy], "kept", infos, outputs), opset_imports=opsets)

    def run(*inputs: Any) -> Any:
        feeds = {**dict(zip(names, inputs, strict=True)), **constants}
        results = cast("list[Any]", ReferenceEvaluator(model).run(None, feeds))
        return np.asarray(results[0], np.float64)

    return run
