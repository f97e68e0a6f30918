"""Reads an untrusted ONNX file. A size in the file is checked before memory of that size is allocated.

In the model that `read_file` returns, every node has an operator set that the installed onnx knows. Each value is
computed only once, and before any node reads it. Every initialiser has as many numbers as its shape states. The module
does not depend on the layers of the intermediate form.
"""

from __future__ import annotations

import math
from hashlib import sha256
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from foldserve.service.bundle import MAX_MODEL
from foldserve.training.errors import ModelImportError

MAX_NODES = 20_000
# The largest allowed number of values in one constant: 2 GiB of float32.
MAX_NUMBERS = 2**29
_BITS = {TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16}
_NEWEST_ML = 5
_SINGLE_FILE = "save it as one file: onnx.save(onnx.load('model.onnx'), 'single.onnx')"


def read_file(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read and check an ONNX file.

    Return the model with all local functions inlined, and the sha256 of the file.

    Raises `ModelImportError` with a one-line message.
    """
    try:
        if not path.is_file():
            raise ModelImportError(f"{path}: no such file")
        if path.stat().st_size > MAX_MODEL:
            raise ModelImportError(f"{path.name} has more than {MAX_MODEL} bytes, the limit of ONNX")
        content = path.read_bytes()
    except OSError as error:
        raise ModelImportError(f"can't read {path.name}: {error.strerror}") from error
    return parse(content, path.name), sha256(content).hexdigest()


def parse(content: bytes, name: str) -> onnx.ModelProto:
    """Parse and check the bytes of an ONNX file.

    name: the name of the file, for error messages. Raises `ModelImportError`.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, RecursionError) as error:
        raise ModelImportError(f"{name} is not an ONNX model, or it is damaged") from error
    if not model.graph.node:
        raise ModelImportError(f"{name} is not an ONNX model: it has no nodes")
    _require_small(model, name)
    _require_opsets(model, name)
    for tensor in model.graph.initializer:
        _require_whole(tensor, name)
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _require_whole(attribute.t, name)
    try:
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelImportError(f"{name} is not a valid ONNX model: {first}") from error
    return model


def _require_small(model: onnx.ModelProto, name: str) -> None:
    """Refuse a graph with too many nodes, before or after its functions are inlined."""
    sizes: dict[tuple[str, str], int] = {}
    bodies = {(function.domain, function.name): function for function in model.functions}
    if len(bodies) < len(model.functions):
        raise ModelImportError(f"{name} has two functions of the same name")

    def size(key: tuple[str, str], depth: int) -> int:
        if depth > 64:
            raise ModelImportError(f"{name}: its functions call each other without an end, or too deep")
        if key not in sizes:
            calls = ((node.domain, node.op_type) for node in bodies[key].node)
            sizes[key] = sum(size(call, depth + 1) if call in bodies else 1 for call in calls)
        return sizes[key]

    calls = ((node.domain, node.op_type) for node in model.graph.node)
    nodes = sum(size(call, 1) if call in bodies else 1 for call in calls)
    if nodes > MAX_NODES:
        raise ModelImportError(f"{name} has {nodes:,} nodes; at most {MAX_NODES:,} are read")
    if model.graph.sparse_initializer:
        raise ModelImportError(f"{name} has sparse initialisers, which are not read: store them as dense ones")


def _require_opsets(model: onnx.ModelProto, name: str) -> None:
    """Refuse operator sets that the installed onnx does not know."""
    newest = {"": onnx.defs.onnx_opset_version(), "ai.onnx": onnx.defs.onnx_opset_version(), "ai.onnx.ml": _NEWEST_ML}
    for opset in model.opset_import:
        if not 1 <= opset.version <= newest.get(opset.domain, opset.version):
            raise ModelImportError(
                f"{name} has opset {opset.version} of {opset.domain or 'ai.onnx'}; this version of onnx reads up to "
                f"{newest[opset.domain]}"
            )


def _require_whole(tensor: TensorProto, name: str) -> None:
    """Refuse a tensor that is stored in another file, or whose number of values does not fit its shape."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise ModelImportError(f"{name}: tensor {tensor.name!r} is stored in another file; {_SINGLE_FILE}")
    if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > MAX_NUMBERS:
        raise ModelImportError(f"{name}: tensor {tensor.name!r} has a wrong shape, or too many numbers")
    if tensor.HasField("raw_data"):
        try:
            known = {int(kind): bits for kind, bits in _BITS.items()}
            bits = known.get(tensor.data_type) or helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
        except (KeyError, TypeError):
            raise ModelImportError(f"{name}: tensor {tensor.name!r} has an unknown type") from None
        if bits >= 8 and len(tensor.raw_data) != math.prod(tensor.dims) * bits // 8:
            raise ModelImportError(
                f"{name}: tensor {tensor.name!r} has {len(tensor.raw_data):,} bytes, and its shape needs "
                f"{math.prod(tensor.dims) * bits // 8:,}"
            )
