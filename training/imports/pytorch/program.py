"""Reads the graph and the weights of a `.pt2` archive without PyTorch, because PyTorch could run code of the file.

`torch.export.load` unpickles objects, so it is never called. Only the JSON description and raw tensors are read. The
module does not depend on the operators.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.archives import check_entries

MAX_CALLS = 5000
_MAX_TEXT = 2**26
_MAX_ENTRIES = 10_000
# The NumPy type for each number in torch._export.serde.schema.ScalarType.
_DTYPES: dict[int, Any] = {5: np.int64, 6: np.float16, 7: np.float32, 8: np.float64, 13: ml_dtypes.bfloat16}
# Operators that only check the metadata of a tensor, and give no result.
_CHECKS = ("_assert_tensor_metadata.default",)


@dataclass(frozen=True)
class Ref:
    """A reference to a tensor of the graph, by its name."""

    name: str


@dataclass(frozen=True)
class Call:
    """One operator.

    operator: the name of the operator, for example `linear.default`. output: the name of the first result of the
    operator.
    """

    operator: str
    arguments: dict[str, Any]
    output: str


@dataclass(frozen=True)
class Program:
    """A graph with one input and one output.

    shapes: the shape of each tensor, without the axis of the rows. weights: the arrays of the weights, by name.
    """

    calls: tuple[Call, ...]
    input: str
    output: str
    shapes: dict[str, tuple[int, ...]]
    weights: dict[str, npt.NDArray[np.float64]]
    version: str


def read_program(content: bytes) -> Program:
    """Read the content of a `.pt2` file. Raises `ModelImportError` with a one-line message."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _read(archive)
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelImportError(f"the .pt2 file is damaged, or of another version of PyTorch: {reason}") from error
    except RuntimeError as error:
        raise ModelImportError("the .pt2 file is encrypted or nested too deeply") from error


def _read(archive: zipfile.ZipFile) -> Program:
    check_entries(archive.infolist(), _MAX_ENTRIES)
    # The name of each entry begins with the name of the archive.
    entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    if "models/model.json" not in entries:
        raise ModelImportError("the .pt2 file has no models/model.json: save it again with a newer PyTorch")
    if entries["models/model.json"].file_size > _MAX_TEXT:
        raise ModelImportError(f"models/model.json has more than {_MAX_TEXT >> 20} MiB, the limit of an import")

    def extract(name: str) -> bytes:
        return archive.read(entries[name])

    described = json.loads(extract("models/model.json"))
    graph, signature = described["graph_module"]["graph"], described["graph_module"]["signature"]
    if len(graph["nodes"]) > MAX_CALLS:
        raise ModelImportError(f"the model has more than {MAX_CALLS} operators")
    inputs, sources = _inputs(signature["input_specs"])
    outputs = [spec["user_output"]["arg"]["as_tensor"]["name"] for spec in signature["output_specs"]]
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelImportError(f"the model has {len(inputs)} inputs and {len(outputs)} outputs, not one")
    return Program(
        calls=tuple(call for call in map(_call, graph["nodes"]) if call.operator not in _CHECKS),
        input=inputs[0],
        output=outputs[0],
        shapes={
            name: tuple(int(size["as_int"]) for size in meta["sizes"][1:])
            for name, meta in graph["tensor_values"].items()
            if name not in sources and all("as_int" in size for size in meta["sizes"][1:])
        },
        weights=_weights(extract, sources),
        version=str(described.get("torch_version", "")).partition("+")[0],
    )


def _inputs(specs: list[dict[str, Any]]) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """Return the names of the inputs, and the place of each weight in the archive.

    The place of a weight consists of the folder and the name of the weight.
    """
    inputs, sources = [], {}
    for spec in specs:
        ((kind, content),) = spec.items()
        if kind == "user_input":
            inputs.append(content["arg"]["as_tensor"]["name"])
        else:
            folder = "constants" if kind == "tensor_constant" else "weights"
            sources[content["arg"]["name"]] = (folder, content[f"{kind}_name"])
    return inputs, sources


def _weights(
    extract: Callable[[str], bytes], sources: dict[str, tuple[str, str]]
) -> dict[str, npt.NDArray[np.float64]]:
    configs = {
        folder: json.loads(extract(f"data/{folder}/model_{folder}_config.json"))["config"]
        for folder in ("weights", "constants")
    }
    weights = {}
    for name, (folder, saved) in sources.items():
        meta = configs[folder][saved]
        if meta["use_pickle"]:
            raise ModelImportError(f"the tensor {saved!r} is a pickle, and loading it could run its code")
        weights[name] = _tensor(extract(f"data/{folder}/{meta['path_name']}"), meta["tensor_meta"], saved)
    return weights


def _call(node: dict[str, Any]) -> Call:
    arguments = {each["name"]: _argument(each["arg"]) for each in node["inputs"]}
    operator = str(node["target"]).removeprefix("torch.ops.aten.")
    if not node["outputs"]:
        return Call(operator, arguments, "")
    ((kind, output),) = node["outputs"][0].items()
    if kind == "as_tensors":
        output = output[0]
    name = output.get("name") or output.get("as_name") or ""
    return Call(operator, arguments, str(name))


def _argument(argument: dict[str, Any]) -> Any:
    ((kind, value),) = argument.items()
    if kind == "as_tensor":
        return Ref(str(value["name"]))
    if kind == "as_tensors":
        return [Ref(str(each["name"])) for each in value]
    return None if kind == "as_none" else value


def _tensor(content: bytes, meta: dict[str, Any], name: str) -> npt.NDArray[np.float64]:
    dtype = _DTYPES.get(meta["dtype"])
    if dtype is None:
        raise ModelImportError(f"the tensor {name!r} has a type that is no number")
    flat = np.frombuffer(content, dtype)
    shape = tuple(int(size["as_int"]) for size in meta["sizes"])
    strides = tuple(int(stride["as_int"]) for stride in meta["strides"])
    start = int(meta["storage_offset"]["as_int"])
    end = start + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((*shape, *strides, start), default=0) < 0 or end >= len(flat) or prod(shape) > len(flat):
        raise ModelImportError(f"the tensor {name!r} claims to have more numbers than the file holds")
    view = np.lib.stride_tricks.as_strided(flat[start:], shape, [stride * flat.itemsize for stride in strides])
    return view.astype(np.float64)
