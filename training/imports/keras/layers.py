"""Maps each layer of Keras to the intermediate form. The module does not depend on the graph or on HDF5.

To add a layer, add an entry to `LAYERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from foldserve.training.imports.form import Builder, refuse
from foldserve.training.imports.keras.activations import map_activation, map_layer
from foldserve.training.imports.keras.weights import Place, Store
from foldserve.training.imports.layers import Add, Affine, Array, Concat, Dense, Layer, Multiply, PRelu
from foldserve.training.imports.layers import batch_norm as batch_norm_layer

_EPSILON = 1e-7  # keras.config.epsilon()


@dataclass(frozen=True)
class Value:
    """A value of the graph. shape: the shape of one row. The numbers of a row are in row-major order."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call of a layer, with the config of the layer, its weights and its inputs."""

    name: str
    kind: str
    config: dict[str, Any]
    place: Place
    inputs: tuple[Value, ...]
    builder: Builder
    store: Store
    keras_2: bool

    def add(self, layer: Layer, *inputs: Value, shape: tuple[int, ...] | None = None) -> Value:
        """Add a layer. By default, each row of the result is one-dimensional."""
        name = self.builder.add(self.name, self.kind, layer, *(value.name for value in inputs))
        return Value(name, (self.builder.columns[name],) if shape is None else shape)

    def chain(self, layers: tuple[Layer, ...], value: Value) -> Value:
        """Add layers one after the other: each layer reads the value before it. The layers do not change the shape."""
        for layer in layers:
            value = self.add(layer, value, shape=value.shape)
        return value

    def single(self, *, flat: bool = False) -> Value:
        """Return the only input of the call. flat: whether to refuse an input whose rows have several axes."""
        if len(self.inputs) != 1:
            raise refuse(self.name, self.kind, f"it takes one input and gets {len(self.inputs)}")
        if flat and len(self.inputs[0].shape) != 1:
            shape = self.inputs[0].shape
            raise refuse(self.name, self.kind, f"its input has {len(shape)} axes", "put a Flatten in front of it")
        return self.inputs[0]

    def integer(self, key: str) -> int:
        """Return a positive integer from the config of the layer."""
        value = self.config[key]
        if type(value) is not int or value < 1:
            raise refuse(self.name, self.kind, f"{key} is not a positive integer")
        return value

    def require_none(self, *keys: str) -> None:
        """Refuse a layer that has one of the settings `keys`, because these settings change the arithmetic."""
        for key in keys:
            if self.config.get(key):
                raise refuse(self.name, self.kind, f"{key} is not supported", "save the model without it")


def map_call(call: Call) -> Value:
    """Add one call of a layer to the graph, and return its result. Raises `ModelImportError` for an unknown layer."""
    call.require_none("quantization_config", "lora_rank")
    rule = LAYERS.get(call.kind)
    if rule is None:
        known = ", ".join(sorted(LAYERS))
        raise refuse(
            call.name, call.kind, "this layer is not supported", f"export the model to ONNX; supported are {known}"
        )
    return rule(call)


def _dense(call: Call) -> Value:
    value, units = call.single(flat=True), call.integer("units")
    has_bias = call.config.get("use_bias", True)
    shapes: list[tuple[int, ...]] = [(value.shape[0], units), (units,)]
    arrays = call.store.read(call.place, ("kernel", "bias")[: 1 + has_bias], shapes[: 1 + has_bias])
    bias = arrays[1] if has_bias else np.zeros(units)
    result = call.add(Dense(np.ascontiguousarray(arrays[0].T), bias), value)
    return call.chain(map_activation(call.config.get("activation"), call.name, units, call.keras_2), result)


def _batch_norm(call: Call) -> Value:
    value = call.single(flat=True)
    columns, config = value.shape[0], call.config
    call.require_none("renorm", "virtual_batch_size")
    if config.get("axis", -1) not in (-1, 1, [-1], [1]):
        raise refuse(call.name, call.kind, "it does not normalise the last axis")
    roles = [*("gamma",) * config.get("scale", True), *("beta",) * config.get("center", True)]
    roles += ["moving_mean", "moving_variance"]
    arrays = dict(zip(roles, call.store.read(call.place, roles, [(columns,)] * len(roles)), strict=True))
    gamma, beta = arrays.get("gamma", np.ones(columns)), arrays.get("beta", np.zeros(columns))
    try:
        eps = float(config.get("epsilon", 0.001))
        layer = batch_norm_layer(gamma, beta, arrays["moving_mean"], arrays["moving_variance"], eps)
    except ValueError as error:
        raise refuse(call.name, call.kind, str(error)) from error
    return call.add(layer, value)


def _normalization(call: Call) -> Value:
    """Compute (x - mean) / max(sqrt(variance), epsilon), as in keras/src/layers/preprocessing/normalization.py."""
    value, config = call.single(), call.config
    axis = config.get("axis", -1)
    kept = [] if axis is None else axis if isinstance(axis, list) else [axis]
    if kept and (len(kept) > 1 or len(value.shape) != 1 or kept[0] not in (-1, 1)):
        raise refuse(
            call.name, call.kind, "it has another axis than the last one of a table", "put a Flatten before it"
        )
    if config.get("mean") is not None:
        mean, variance = _constant(config["mean"]), _constant(config["variance"])
    else:
        shape = value.shape if kept else ()
        mean, variance, _ = call.store.read(call.place, ("mean", "variance", "count"), (shape, shape, ()))
    deviation = np.maximum(np.sqrt(variance), _EPSILON)
    columns = prod(value.shape)
    if config.get("invert"):
        return call.add(Affine.of(deviation, 0, mean, columns), value, shape=value.shape)
    return call.add(Affine.of(1 / deviation, mean, 0, columns), value, shape=value.shape)


def _rescaling(call: Call) -> Value:
    value = call.single()
    scale, offset = _constant(call.config["scale"]), _constant(call.config.get("offset", 0.0))
    if max(scale.size, offset.size) > 1 and len(value.shape) > 1:
        raise refuse(call.name, call.kind, "it has several scales for rows of several axes")
    return call.add(Affine.of(scale, 0, offset, prod(value.shape)), value, shape=value.shape)


def _constant(value: Any) -> Array:
    """Return a number or an array from the config of a layer. Keras 3 writes a NumPy array as an object."""
    if isinstance(value, dict):
        value = value["config"]["value"]
    return np.asarray(value, np.float64)


def _activation(call: Call) -> Value:
    value = call.single()
    chain = map_activation(call.config["activation"], call.name, prod(value.shape), call.keras_2)
    return call.chain(chain, _flat_for_softmax(call, call.config["activation"], value))


def _activation_layer(call: Call) -> Value:
    return call.chain(
        map_layer(call.kind, call.config, call.name), _flat_for_softmax(call, call.kind.lower(), call.single())
    )


def _flat_for_softmax(call: Call, function: Any, value: Value) -> Value:
    return call.single(flat=True) if function in ("softmax", "log_softmax") else value


def _prelu(call: Call) -> Value:
    value = call.single(flat=True)
    columns = 1 if call.config.get("shared_axes") else value.shape[0]
    (slope,) = call.store.read(call.place, ("alpha",), [(columns,)])
    return call.add(PRelu(np.broadcast_to(slope, value.shape).copy()), value)


def _same(call: Call) -> Value:
    """Return the input unchanged, because the layer does nothing at inference."""
    return call.single()


def _flatten(call: Call) -> Value:
    value = call.single()
    if call.config.get("data_format") == "channels_first" and len(value.shape) > 1:
        raise refuse(call.name, call.kind, "channels_first moves the values of a row")
    return Value(value.name, (prod(value.shape),))


def _reshape(call: Call) -> Value:
    value, size = call.single(), prod(call.single().shape)
    target = [int(each) for each in call.config["target_shape"]]
    if target.count(-1) == 1 and (known := prod(each for each in target if each != -1)):
        target[target.index(-1)] = size // known
    if prod(target) != size or min(target, default=0) < 1:
        raise refuse(call.name, call.kind, f"its target shape does not have {size} values")
    return Value(value.name, tuple(target))


def _concatenate(call: Call) -> Value:
    _require_flat(call)
    if call.config.get("axis", -1) not in (-1, 1):
        raise refuse(call.name, call.kind, "it does not join the last axis")
    return call.add(Concat(), *call.inputs)


def _add(call: Call) -> Value:
    _require_flat(call)
    return call.add(Add(), *call.inputs)


def _multiply(call: Call) -> Value:
    _require_flat(call)
    return call.add(Multiply(), *call.inputs)


def _average(call: Call) -> Value:
    total = _add(call)
    return call.add(Affine.of(1 / len(call.inputs), 0, 0, total.shape[0]), total)


def _subtract(call: Call) -> Value:
    _require_flat(call)
    if len(call.inputs) != 2:
        raise refuse(call.name, call.kind, f"it takes two inputs and gets {len(call.inputs)}")
    first, second = call.inputs
    return call.add(Add(), first, call.add(Affine.of(-1, 0, 0, second.shape[0]), second))


def _require_flat(call: Call) -> None:
    if not call.inputs or any(len(value.shape) != 1 for value in call.inputs):
        raise refuse(call.name, call.kind, "an input has more than one axis", "put a Flatten in front of it")


LAYERS: dict[str, Callable[[Call], Value]] = {
    "Activation": _activation,
    "ActivityRegularization": _same,
    "Add": _add,
    "AlphaDropout": _same,
    "Average": _average,
    "BatchNormalization": _batch_norm,
    "Concatenate": _concatenate,
    "Dense": _dense,
    "Dropout": _same,
    "ELU": _activation_layer,
    "Flatten": _flatten,
    "GaussianDropout": _same,
    "GaussianNoise": _same,
    "Identity": _same,
    "LeakyReLU": _activation_layer,
    "Multiply": _multiply,
    "Normalization": _normalization,
    "PReLU": _prelu,
    "ReLU": _activation_layer,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "Softmax": _activation_layer,
    "Subtract": _subtract,
    "ThresholdedReLU": _activation_layer,
}
