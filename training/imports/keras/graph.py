"""Connects the layers of a Keras model. The model may be Sequential or Functional, and may contain other models.

The module reads descriptions of models, and does no arithmetic. The module refuses a file with cycles, unknown layers,
or models that call each other millions of times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.form import INPUT, MAX_COLUMNS, Builder, refuse
from foldserve.training.imports.keras.layers import Call, Value, map_call
from foldserve.training.imports.keras.weights import GroupNames, Place, Store
from foldserve.training.imports.layers import Select

MAX_CALLS = 2000
_MODELS = ("Sequential", "Functional", "Model")
_NO_CODE = "no code of a file is ever run; replace it by layers of Keras, and save the model again"

# Identifies a tensor by the name of its layer, the index of the call, and the index of the output.
Tensor = tuple[str, int, int]


@dataclass(frozen=True)
class Input:
    """One input of the model. whole: whether the values of this input are whole numbers."""

    name: str
    shape: tuple[int, ...]
    whole: bool


@dataclass
class ModelReader:
    """Builds the graph of a whole model.

    output: for a model with several outputs, the name of the layer that gives the chosen output. place: the index or
    the key of the chosen output.
    """

    store: Store
    keras_2: bool
    output: str = ""
    place: int | str = 0
    inputs: tuple[Input, ...] = ()
    notes: list[str] = field(default_factory=list)
    _calls: int = 0

    def read(self, description: dict[str, Any]) -> tuple[Builder, Value]:
        """Return the graph of a model, and its chosen output. Raises `ModelImportError`."""
        kind = _kind(description)
        if kind not in _MODELS:
            raise refuse(_name(description), kind, "it is not a Sequential or Functional model", "export it to ONNX")
        self.inputs = tuple(_find_inputs(description))
        sizes = [prod(each.shape) for each in self.inputs]
        if not sizes:
            raise ModelImportError("the model has no input")
        builder = Builder(sum(sizes))
        values, start = [], 0
        for each, size in zip(self.inputs, sizes, strict=True):
            name = INPUT
            if len(sizes) > 1:
                name = builder.add(each.name, "InputLayer", Select(np.arange(start, start + size)), INPUT)
            values.append(Value(name, each.shape))
            start += size
        outputs = self._model(builder, description, Place(), values)
        if len(outputs) > 1:
            described = description["config"]["output_layers"]
            names = [name for name, _, _ in _tensors(described)]
            if self.output not in names:
                raise ModelImportError(f"the model has several outputs: choose one of {', '.join(names)} with --output")
            chosen = names.index(self.output)
            self.place = list(described)[chosen] if isinstance(described, dict) else chosen
            outputs = [outputs[chosen]]
        return builder, outputs[0]

    def _model(self, builder: Builder, description: dict[str, Any], place: Place, values: list[Value]) -> list[Value]:
        if _kind(description) == "Sequential":
            return [self._sequential(builder, description, place, values)]
        return self._functional(builder, description["config"], place, values)

    def _sequential(self, builder: Builder, description: dict[str, Any], place: Place, values: list[Value]) -> Value:
        groups, value = GroupNames(), values[0]
        if len(values) != 1:
            raise refuse(_name(description), "Sequential", f"it takes one input and gets {len(values)}")
        for layer in _layers(description["config"]):
            if _kind(layer) == "InputLayer":
                continue
            inside = place.inside(groups.next(_kind(layer)), _name(layer))
            (value,) = self._layer(builder, layer, inside, (value,))
        return value

    def _functional(self, builder: Builder, config: dict[str, Any], place: Place, values: list[Value]) -> list[Value]:
        known: dict[Tensor, Value] = {}
        inputs = list(_tensors(config["input_layers"]))
        if len(inputs) != len(values):
            raise ModelImportError(f"a model takes {len(inputs)} inputs and gets {len(values)}")
        known.update(zip(inputs, values, strict=True))
        groups, waiting = GroupNames(), []
        for layer in _layers(config):
            if _kind(layer) == "InputLayer":
                continue
            inside = place.inside(groups.next(_kind(layer)), str(layer["name"]))
            for number, node in enumerate(layer["inbound_nodes"], _first_call(layer)):
                waiting.append((layer, inside, number, _node_inputs(node, str(layer["name"]), _kind(layer))))
        if len(waiting) > MAX_CALLS:
            raise ModelImportError(f"the model has more than {MAX_CALLS} calls of layers")
        while waiting:
            ready = [call for call in waiting if all(tensor in known for tensor in call[3])]
            if not ready:
                raise ModelImportError(
                    f"the layer {waiting[0][1].names[-1]!r} needs a value that no layer gives, or its own result"
                )
            for layer, inside, number, tensors in ready:
                results = self._layer(builder, layer, inside, tuple(known[tensor] for tensor in tensors))
                known.update({(inside.names[-1], number, i): result for i, result in enumerate(results)})
            waiting = [call for call in waiting if (call[1].names[-1], call[2], 0) not in known]
        outputs = list(_tensors(config["output_layers"]))
        if lacking := [tensor for tensor in outputs if tensor not in known]:
            raise ModelImportError(f"no layer {lacking[0][0]!r} gives the output of the model")
        return [known[tensor] for tensor in outputs]

    def _layer(
        self, builder: Builder, description: dict[str, Any], place: Place, inputs: Sequence[Value]
    ) -> list[Value]:
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise ModelImportError(f"the model has more than {MAX_CALLS} calls of layers")
        kind, name, config = _kind(description), place.names[-1], description["config"]
        _refuse_code(description, name, kind)
        self._note_policy(config.get("dtype"), name, kind)
        if kind in _MODELS:
            _require_shapes(description, name, inputs)
            return self._model(builder, description, place, list(inputs))
        call = Call(name, kind, config, place, tuple(inputs), builder, self.store, self.keras_2)
        return [map_call(call)]

    def _note_policy(self, policy: Any, name: str, kind: str) -> None:
        """Add a note for arithmetic that is less exact than float32, and refuse quantised layers."""
        if isinstance(policy, dict):
            if policy.get("class_name") not in ("DTypePolicy", "Policy"):
                raise refuse(name, kind, "its weights are quantised", "save the model before it is quantised")
            policy = policy["config"]["name"]
        if policy not in (None, "float32", "float64"):
            note = f"Keras computes the model in {policy}; the bundle computes it in float32, which is more exact"
            if note not in self.notes:
                self.notes.append(note)


def _find_inputs(description: dict[str, Any]) -> Iterator[Input]:
    """Yield the inputs of a model. Keras versions use different fields for the shape of a Sequential model."""
    config = description["config"]
    layers = list(_layers(config))
    if _kind(description) != "Sequential":
        by_name = {str(layer["name"]): layer for layer in layers if _kind(layer) == "InputLayer"}
        for name, _, _ in _tensors(config["input_layers"]):
            if name not in by_name:
                raise ModelImportError(f"the input {name!r} of the model has no InputLayer")
            yield _input(by_name[name]["config"], name)
        return
    first = layers[0] if layers else {}
    if _kind(first) in _MODELS:
        yield from _find_inputs(first)
        return
    described = first["config"]
    if isinstance(config, dict) and not _shape(described) and config.get("build_input_shape"):
        described = {**described, "batch_shape": config["build_input_shape"]}
    yield _input(described, _name(first))


def _require_shapes(description: dict[str, Any], name: str, values: Sequence[Value]) -> None:
    """Refuse a nested model if the input sizes in its description differ from the sizes of the values that it gets."""
    kind, config = _kind(description), description["config"]
    layers = list(_layers(config))
    if kind == "Sequential":
        declared = [_shape(layers[0]["config"]) if layers and _kind(layers[0]) not in _MODELS else None]
    else:
        by_name = {str(layer["name"]): _shape(layer["config"]) for layer in layers if _kind(layer) == "InputLayer"}
        declared = [by_name.get(name) for name, _, _ in _tensors(config["input_layers"])]
    for shape, value in zip(declared, values, strict=False):
        known = [size for size, own in zip(shape[1:], value.shape, strict=False) if size == own] if shape else []
        if shape and (len(shape) - 1, len(known)) != (len(value.shape), sum(size is not None for size in shape[1:])):
            raise refuse(name, kind, f"its description has the input shape {shape}, and it gets {list(value.shape)}")


def _shape(config: dict[str, Any]) -> Any:
    return config.get("batch_shape") or config.get("batch_input_shape")


def _input(config: dict[str, Any], name: str) -> Input:
    shape = _shape(config)
    if not isinstance(shape, list) or len(shape) < 2:
        raise ModelImportError("the model does not say how many features it has: call it once, and save it again")
    if not all(type(each) is int and 0 < each <= MAX_COLUMNS for each in shape[1:]):
        raise ModelImportError(f"the input {name!r} has a size that is not known: give each Input a shape")
    dtype = str(config.get("dtype", "float32"))
    if config.get("sparse") or config.get("ragged") or dtype == "string":
        raise ModelImportError(f"the input {name!r} is text, sparse or ragged; a bundle takes numbers")
    return Input(name, tuple(shape[1:]), dtype.startswith(("int", "uint")))


def _first_call(layer: dict[str, Any]) -> int:
    """Return the index of the first call of a layer. In Keras 2, building a nested model also counts as a call."""
    nodes = layer["inbound_nodes"]
    if _kind(layer) not in _MODELS or not nodes or isinstance(nodes[0], dict):
        return 0
    return int(any(_kind(each) == "InputLayer" for each in _layers(layer["config"])[:1]))


def _node_inputs(node: Any, name: str, kind: str) -> list[Tensor]:
    """Return the tensors that a call reads. Keras 3 writes a call as an object, and Keras 2 as a list."""
    if isinstance(node, dict):
        _check_arguments(node.get("kwargs") or {}, name, kind)
        arguments = [
            each["config"]["keras_history"]
            for each in _flatten(node["args"])
            if isinstance(each, dict) and each.get("class_name") == "__keras_tensor__"
        ]
        if len(arguments) != len(list(_flatten(node["args"]))):
            raise refuse(name, kind, "an argument of its call is no value of a layer", "use a layer of Keras for it")
        return [_tensor(each) for each in arguments]
    calls = [node] if node and isinstance(node[0], str) else node
    for call in calls:
        _check_arguments(call[3] if len(call) > 3 else {}, name, kind)
    return [_tensor(call[:3]) for call in calls]


def _check_arguments(arguments: dict[str, Any], name: str, kind: str) -> None:
    for key, value in arguments.items():
        if key == "training" and value:
            raise refuse(name, kind, "it is called with training=True", "call it without training, and save it again")
        if value not in (None, False):
            raise refuse(name, kind, "its call has a further argument", "use a layer of Keras for it")


def _flatten(arguments: Any) -> Iterator[Any]:
    for each in arguments:
        if isinstance(each, list):
            yield from _flatten(each)
        else:
            yield each


def _tensors(described: Any) -> Iterator[Tensor]:
    """Yield the tensors of `input_layers` or `output_layers`: one tensor, or a list or a dict of them."""
    if isinstance(described, list) and described and isinstance(described[0], str):
        yield _tensor(described)
    else:
        for each in described.values() if isinstance(described, dict) else described:
            yield from _tensors(each)


def _tensor(described: Any) -> Tensor:
    name, node, index = described
    return str(name), int(node), int(index)


def _layers(config: Any) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = config if isinstance(config, list) else config["layers"]
    if len(layers) > MAX_CALLS:
        raise ModelImportError(f"the model has more than {MAX_CALLS} layers")
    return layers


def _kind(description: dict[str, Any]) -> str:
    return str(description.get("class_name", ""))


def _name(description: dict[str, Any]) -> str:
    config = description.get("config")
    return str(config.get("name", "") if isinstance(config, dict) else "")


def _refuse_code(description: dict[str, Any], name: str, kind: str) -> None:
    """Refuse a layer whose code is in the file or in a package of the user."""
    module = description.get("module")
    if kind == "Lambda":
        raise refuse(name, kind, "it has code", _NO_CODE)
    foreign = module is not None and not str(module).startswith(("keras.", "keras_")) and module != "keras"
    if foreign or description.get("registered_name") not in (None, "", kind):
        raise refuse(name, kind, "it is a class of the author of the model", _NO_CODE)
