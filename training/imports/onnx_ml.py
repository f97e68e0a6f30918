"""Translates the operators of the domain ai.onnx.ml to layers of the intermediate form.

Converters for scikit-learn write operators of this domain.

The translations follow the definitions of https://onnx.ai/onnx/operators/index.html#ai-onnx-ml.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from foldserve.training.imports.encoding import add_lookup
from foldserve.training.imports.layers import (
    Activation,
    Affine,
    Array,
    Concat,
    Dense,
    Impute,
    Normalize,
    Softmax,
)
from foldserve.training.imports.onnx_operators import join_raw, operator, required
from foldserve.training.imports.onnx_values import Constant, Context, Numbers, Raw, Refused, Value, width
from foldserve.training.table.schema import Category

_ML = "ai.onnx.ml"
_UNKNOWN = "it refuses a category that it does not know; the folded model gives such a category 0 in every column"


@operator("Scaler", domain=_ML)
def _scaler(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = context.numbers(node, required(inputs, 0))
    scale, offset, columns = given.get("scale", [1.0]), given.get("offset", [0.0]), width(value.shape)
    layer = context.make(lambda: Affine.of(scale, offset, 0.0, columns))
    return [Numbers(context.add(node, layer, value.name), value.shape)]


@operator("Normalizer", domain=_ML)
def _normalizer(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = context.numbers(node, required(inputs, 0))
    norm = given.get("norm", "MAX").lower()
    if norm not in ("l1", "l2", "max"):
        raise Refused(f"its norm {norm!r} is unknown")
    return [Numbers(context.add(node, Normalize(norm), value.name), value.shape)]


@operator("Imputer", domain=_ML)
def _imputer(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = required(inputs, 0)
    rows = context.numbers(node, value)
    fill = given.get("imputed_value_floats") or given.get("imputed_value_int64s")
    replaced = given.get("replaced_value_float", 0.0) if given.get("imputed_value_floats") else 0
    if fill is None or not np.isnan(replaced):
        raise Refused("it replaces a number, and not NaN", "fit the imputer with missing_values=np.nan")
    if isinstance(value, Raw):
        for place in value.columns:
            context.columns[place].missing = True
    columns = width(rows.shape)
    if len(fill) not in (1, columns):
        raise Refused(f"it has {len(fill)} values for {columns} columns")
    layer = Impute(np.broadcast_to(np.array(fill, np.float64), columns).copy())
    return [Numbers(context.add(node, layer, rows.name), rows.shape)]


@operator("FeatureVectorizer", domain=_ML)
def _feature_vectorizer(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    del given
    values = [required(inputs, place) for place in range(len(inputs))]
    raws = [value for value in values if isinstance(value, Raw)]
    if len(raws) == len(values):
        return [join_raw(raws, (sum(len(raw.columns) for raw in raws),))]
    rows = [context.numbers(node, value) for value in values]
    name = context.add(node, Concat(), *(row.name for row in rows))
    return [Numbers(name, (sum(width(row.shape) for row in rows),))]


@operator("OneHotEncoder", domain=_ML)
def _one_hot(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = required(inputs, 0)
    categories: list[Category] = given.get("cats_strings") or given.get("cats_int64s") or []
    if not isinstance(value, Raw) or not categories:
        raise Refused("it encodes computed values; columns of the input are understood")
    if not given.get("zeros", 1):
        context.notes.append(f"{node.op_type} {node.name!r}: {_UNKNOWN}")
    names = [context.encode(node, column, categories) for column in value.columns]
    name = names[0] if len(names) == 1 else context.add(node, Concat(), *names)
    return [Numbers(name, (*value.shape, len(categories)))]


@operator("LabelEncoder", "CategoryMapper", domain=_ML)
def _label_encoder(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    """Translate an operator that maps categories to numbers."""
    value = required(inputs, 0)
    if not isinstance(value, Raw):
        raise Refused("it maps computed values; columns of the input are understood")
    keys, numbers, default = _mapping(node, given)
    if not np.isfinite([*numbers, default]).all() or any(key != key for key in keys):
        raise Refused("it maps a missing value, or gives one")
    names = []
    for place in value.columns:
        column = context.columns[place]
        by_code = dict(zip([column.code(key) for key in keys], numbers, strict=True))
        column.is_closed = True  # no category may be added after this line
        codes = np.array([by_code.get(code, default) for code in range(len(column.categories))])
        names.append(add_lookup(context.builder, node.name or node.output[0], node.op_type, place, codes, default))
    name = names[0] if len(names) == 1 else context.add(node, Concat(), *names)
    return [Numbers(name, value.shape)]


def _mapping(node: onnx.NodeProto, given: dict[str, Any]) -> tuple[list[Category], list[float], float]:
    """Return the keys of a LabelEncoder, the number for each key, and the number for any other category."""
    if node.op_type == "CategoryMapper":
        return given.get("cats_strings", []), given.get("cats_int64s", []), given.get("default_int64", -1)
    if "values_strings" in given or "classes_strings" in given:
        raise Refused("it gives texts, or it is of opset 1 of ai.onnx.ml")
    tensors = {
        name: numpy_helper.to_array(given[name]).reshape(-1).tolist()
        for name in ("keys_tensor", "values_tensor", "default_tensor")
        if name in given
    }
    keys = (
        given.get("keys_strings") or given.get("keys_int64s") or given.get("keys_floats") or tensors.get("keys_tensor")
    )
    if given.get("values_int64s"):
        numbers, default = given["values_int64s"], given.get("default_int64", -1)
    elif given.get("values_floats"):
        numbers, default = given["values_floats"], given.get("default_float", -0.0)
    else:
        numbers, default = tensors.get("values_tensor"), tensors.get("default_tensor", [-1])[0]
    if not keys or not numbers or len(keys) != len(numbers):
        raise Refused("its keys and its values don't fit")
    texts = [key.decode("utf-8", "replace") if isinstance(key, bytes) else key for key in keys]
    return texts, [float(number) for number in numbers], float(default)


def _columns_of(coefficients: int, outputs: int) -> str:
    """Return the remedy for a linear model that has too many or too few coefficients for its columns."""
    if outputs and coefficients and coefficients % outputs == 0:
        return f"an input of {coefficients // outputs} columns"
    return "as many coefficients as columns for each output"


def _linear(value: Numbers, given: dict[str, Any], outputs: int) -> Dense:
    columns = width(value.shape)
    coefficients: Array = np.array(given.get("coefficients", []), np.float64)
    if outputs < 1 or coefficients.size != outputs * columns:
        raise Refused(
            f"it has {coefficients.size} coefficients for {columns} columns and {outputs} outputs",
            f"the file contradicts itself: export the model with {_columns_of(coefficients.size, outputs)}",
        )
    intercepts = np.array(given.get("intercepts") or [0.0] * outputs, np.float64)
    return Dense(coefficients.reshape(outputs, columns), intercepts)


@operator("LinearRegressor", domain=_ML)
def _linear_regressor(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    value = context.numbers(node, required(inputs, 0))
    if given.get("post_transform", "NONE") != "NONE":
        raise Refused(f"its post_transform {given['post_transform']} is not understood")
    outputs = given.get("targets", 1)
    layer = context.make(lambda: _linear(value, given, outputs))
    return [Numbers(context.add(node, layer, value.name), (outputs,))]


@operator("LinearClassifier", domain=_ML)
def _linear_classifier(
    context: Context, node: onnx.NodeProto, inputs: Sequence[Value | None], given: dict[str, Any]
) -> Sequence[Value]:
    """Translate the scores.

    The label, which is the first output, is not translated, because it follows from the scores.
    """
    value = context.numbers(node, required(inputs, 0))
    labels = given.get("classlabels_strings") or given.get("classlabels_ints") or ()
    layer = context.make(lambda: _linear(value, given, len(labels)))
    transform = given.get("post_transform", "NONE")
    if transform not in ("NONE", "SOFTMAX", "LOGISTIC"):
        raise Refused(f"its post_transform {transform} is not understood")
    is_opposite = isinstance(layer, Dense) and len(labels) == 2 and not (layer.weight.sum(0).any() or layer.bias.sum())
    if transform == "LOGISTIC" and is_opposite and isinstance(layer, Dense):
        # The scores [sigmoid(-z), sigmoid(z)] are equal to softmax([-z / 2, z / 2]).
        layer, transform = Dense(layer.weight / 2, layer.bias / 2), "SOFTMAX"
    name = context.add(node, layer, value.name)
    if transform != "NONE":
        name = context.add(node, Softmax() if transform == "SOFTMAX" else Activation("sigmoid"), name)
    return [Constant(np.zeros(0)), Numbers(name, (len(labels),))]
