"""Maps each step of a fitted scikit-learn pipeline to the intermediate form.

To add a step, add an entry to `STEPS`. The module accepts only classes of scikit-learn itself, because a subclass may
compute something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.form import INPUT, refuse
from foldserve.training.imports.layers import (
    Activation,
    Affine,
    Array,
    Concat,
    Dense,
    Impute,
    IsMissing,
    Normalize,
    OneHot,
    Select,
)
from foldserve.training.imports.scikit_learn.values import Context, Numbers, Raw, Value

Step = Callable[[Context, Any, Value, str], Value]


def map_step(context: Context, step: Any, value: Value, name: str) -> Value:
    """Add a step that transforms columns, and return its result. Raises `ModelImportError` for an unknown step."""
    if step is None or (isinstance(step, str) and step == "passthrough"):
        return value
    kind = type(step).__name__
    rule = STEPS.get(kind) if type(step).__module__.startswith("sklearn.") else None
    if rule is None:
        raise refuse(name, kind, "this step is not supported", f"supported are {', '.join(sorted(STEPS))}")
    return rule(context, step, value, name)


def _affine(context: Context, step: Any, value: Value, name: str, scale: Any, offset: Any, shift: Any) -> Value:
    kind = type(step).__name__
    source = context.numbers(value, name)
    layer = Affine.of(scale, offset, shift, context.builder.columns[source])
    return Numbers(context.builder.add(name, kind, layer, source))


def _standard(context: Context, step: Any, value: Value, name: str) -> Value:
    mean, scale = step.mean_ if step.with_mean else 0.0, step.scale_ if step.with_std else 1.0
    if step.mean_ is not None and step.var_ is not None:
        _note_ranges(context, value, step.mean_ - 3 * np.sqrt(step.var_), step.mean_ + 3 * np.sqrt(step.var_))
    return _affine(context, step, value, name, 1 / np.asarray(scale), mean, 0.0)


def _robust(context: Context, step: Any, value: Value, name: str) -> Value:
    center, scale = step.center_ if step.with_centering else 0.0, step.scale_ if step.with_scaling else 1.0
    if step.with_centering and step.with_scaling:
        _note_ranges(context, value, center - 3 * scale, center + 3 * scale)
    return _affine(context, step, value, name, 1 / np.asarray(scale), center, 0.0)


def _min_max(context: Context, step: Any, value: Value, name: str) -> Value:
    _note_ranges(context, value, step.data_min_, step.data_max_)
    low, high = step.feature_range
    scaled = _affine(context, step, value, name, step.scale_, step.data_min_, low)
    return _clip(context, step, scaled, name, low, high)


def _max_abs(context: Context, step: Any, value: Value, name: str) -> Value:
    _note_ranges(context, value, -step.max_abs_, step.max_abs_)
    return _clip(context, step, _affine(context, step, value, name, 1 / step.scale_, 0.0, 0.0), name, -1.0, 1.0)


def _clip(context: Context, step: Any, value: Value, name: str, low: float, high: float) -> Value:
    if not getattr(step, "clip", False):
        return value
    clip = Activation("clip", {"low": float(low), "high": float(high)})
    return Numbers(context.builder.add(name, "clip", clip, context.numbers(value, name)))


def _note_ranges(context: Context, value: Value, low: Any, high: Any) -> None:
    """If `value` consists of raw or imputed raw columns, store `low` and `high` as their typical ranges."""
    columns = value.columns if isinstance(value, Raw) else context.filled.get(value.name, ())
    if columns:
        context.ranges[list(columns)] = np.stack([low, high], 1)[: len(columns)]


def _normalizer(context: Context, step: Any, value: Value, name: str) -> Value:
    return Numbers(context.builder.add(name, "Normalizer", Normalize(step.norm), context.numbers(value, name)))


def _imputer(context: Context, step: Any, value: Value, name: str) -> Value:
    statistics = step.statistics_
    if not _is_missing(step.missing_values):
        raise refuse(name, "SimpleImputer", "missing_values is not NaN", "a bundle has NaN or null for a missing value")
    texts = any(isinstance(each, str) for each in statistics)
    if texts and isinstance(value, Raw):
        if step.add_indicator:
            raise refuse(name, "SimpleImputer", "add_indicator of categories is not supported")
        context.missing.update(value.columns)
        return Raw(value.columns, dict(zip(value.columns, statistics, strict=True)))
    fill = np.asarray(statistics, np.float64)
    if texts or (np.isnan(fill).any() and step.strategy != "constant"):
        raise refuse(name, "SimpleImputer", "a column has no value in the training data", "drop this column, and refit")
    if isinstance(value, Raw):
        context.missing.update(value.columns)
    source = context.numbers(value, name)
    filled = context.builder.add(name, "SimpleImputer", Impute(fill), source)
    if isinstance(value, Raw):
        context.filled[filled] = value.columns
    if not step.add_indicator or not len(step.indicator_.features_):
        return Numbers(filled)
    marks = context.builder.add(name, "MissingIndicator", IsMissing(step.indicator_.features_.astype(np.int64)), source)
    joined = context.builder.add(name, "Concat", Concat(), filled, marks)
    # The columns that mark missing values come after the imputed columns.
    context.filled[joined] = context.filled.get(filled, ())
    return Numbers(joined)


def _one_hot(context: Context, step: Any, value: Value, name: str) -> Value:
    if getattr(step, "_infrequent_enabled", False):
        raise refuse(
            name,
            "OneHotEncoder",
            "infrequent categories are not supported",
            "fit without min_frequency and max_categories",
        )
    parts = []
    dropped = step.drop_idx_ if step.drop_idx_ is not None else [None] * len(step.categories_)
    for i, (categories, drop) in enumerate(zip(step.categories_, dropped, strict=True)):
        encoded = _encode(context, value, i, categories, name, "OneHotEncoder", ignore=step.handle_unknown != "error")
        kept = [column for column in range(len(categories)) if column != drop]
        if not kept:
            continue
        if len(kept) < len(categories):
            encoded = context.builder.add(name, "drop", Select(np.array(kept)), encoded)
        parts.append(encoded)
    if step.handle_unknown == "error":
        context.notes.append(
            f"OneHotEncoder {name!r} refuses a category that it has not seen; the bundle encodes it as zeros"
        )
    return Numbers(context.builder.add(name, "OneHotEncoder", Concat(), *parts))


def _encode(context: Context, value: Value, i: int, categories: Any, name: str, kind: str, *, ignore: bool) -> str:
    """Add the one-hot columns of the categories of column `i`; one of the categories may be a missing value.

    ignore: whether the encoder accepts unknown categories. A missing value can be an unknown category, too.
    """
    is_missing = [_is_missing(each) for each in categories]
    known = tuple(plain(each) for each, missing in zip(categories, is_missing, strict=True) if not missing)
    if sum(is_missing) > 1 or (any(is_missing) and not is_missing[-1]):
        raise refuse(name, kind, "it has several kinds of missing values")
    if isinstance(value, Numbers):
        source, column, codes = value.name, i, np.array(known, np.float64)
        if (codes.astype(np.float32) != codes).any():
            raise refuse(name, kind, "a category is a number that float32 does not have", "encode it before scaling")
    else:
        raw = value.columns[i]
        context.set_categories(raw, known, missing=any(is_missing) or ignore)
        if any(is_missing):
            context.absent[raw] = categories[-1]
        source, column, codes = INPUT, raw, _codes(known)
        if raw in value.fills:
            fill = plain(value.fills[raw])
            code = codes[known.index(fill)] if fill in known else float(len(known))
            source, column = context.builder.add(name, "Select", Select(np.array([raw])), INPUT), 0
            source = context.builder.add(name, "SimpleImputer", Impute(np.array([code])), source)
    parts = []
    if known:
        parts.append(context.builder.add(name, kind, OneHot(np.full(len(known), column), codes), source))
    if any(is_missing):
        parts.append(context.builder.add(name, kind, IsMissing(np.array([column])), source))
    return parts[0] if len(parts) == 1 else context.builder.add(name, "Concat", Concat(), *parts)


def _codes(known: tuple[Any, ...]) -> Array:
    """Return the code of each category in a raw row: 0 or 1 for a boolean, and the index for other categories."""
    return np.array([float(each) if isinstance(each, bool) else float(i) for i, each in enumerate(known)])


def _ordinal(context: Context, step: Any, value: Value, name: str) -> Value:
    if getattr(step, "_infrequent_enabled", False) or step.handle_unknown != "use_encoded_value":
        raise refuse(
            name,
            "OrdinalEncoder",
            "it refuses a category that it has not seen, or it merges infrequent ones",
            "fit it with handle_unknown='use_encoded_value', unknown_value=-1, and without max_categories",
        )
    unknown, absent = float(step.unknown_value), float(step.encoded_missing_value)
    if not np.isfinite(unknown):
        raise refuse(
            name, "OrdinalEncoder", "it encodes an unknown category as NaN", "set unknown_value to a number, such as -1"
        )
    parts = []
    for i, categories in enumerate(step.categories_):
        numbers = np.array([absent if _is_missing(each) else float(j) for j, each in enumerate(categories)])
        if not np.isfinite(numbers).all():
            raise refuse(
                name, "OrdinalEncoder", "it encodes a missing value as NaN", "set encoded_missing_value to a number"
            )
        encoded = _encode(context, value, i, categories, name, "OrdinalEncoder", ignore=True)
        dense = Dense((numbers - unknown)[None], np.array([unknown]))
        parts.append(context.builder.add(name, "OrdinalEncoder", dense, encoded))
    return Numbers(context.builder.add(name, "OrdinalEncoder", Concat(), *parts))


def _columns(context: Context, step: Any, value: Value, name: str) -> Value:
    """Add a ColumnTransformer. Each transformer reads its own columns, and the results are put side by side."""
    parts = []
    for part, transformer, _ in step.transformers_:
        indices = list(step._transformer_to_input_indices[part])
        if indices and not (isinstance(transformer, str) and transformer == "drop"):
            selected = context.select(value, indices, f"{name}.{part}")
            parts.append(map_step(context, transformer, selected, f"{name}.{part}"))
    return _side_by_side(context, parts, name, "ColumnTransformer")


def _union(context: Context, step: Any, value: Value, name: str) -> Value:
    if step.transformer_weights:
        raise refuse(name, "FeatureUnion", "transformer_weights is not supported")
    used = [(part, each) for part, each in step.transformer_list if not (isinstance(each, str) and each == "drop")]
    parts = [map_step(context, each, value, f"{name}.{part}") for part, each in used]
    return _side_by_side(context, parts, name, "FeatureUnion")


def _side_by_side(context: Context, parts: Sequence[Value], name: str, kind: str) -> Value:
    if not parts:
        raise refuse(name, kind, "it has no columns")
    raw = [part for part in parts if isinstance(part, Raw)]
    if len(raw) == len(parts):
        fills = {column: fill for part in raw for column, fill in part.fills.items()}
        return Raw(tuple(column for part in raw for column in part.columns), fills)
    values = [context.numbers(part, name) for part in parts]
    return Numbers(context.builder.add(name, kind, Concat(), *values))


def _pipeline(context: Context, step: Any, value: Value, name: str) -> Value:
    for part, transformer in step.steps:
        value = map_step(context, transformer, value, f"{name}.{part}")
    return value


def _function(context: Context, step: Any, value: Value, name: str) -> Value:
    del context
    if step.func is not None:
        raise refuse(name, "FunctionTransformer", "it has code", "apply the function to the table before")
    return value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def plain(value: Any) -> Any:
    """Return a category or a label as a str, a number or a bool of Python."""
    found = value.item() if isinstance(value, np.generic) else value
    if not isinstance(found, str | int | float | bool):
        raise ModelImportError(f"a category or a label is a {type(found).__name__}; a bundle has texts and numbers")
    return found


STEPS: dict[str, Step] = {
    "ColumnTransformer": _columns,
    "FeatureUnion": _union,
    "FunctionTransformer": _function,
    "MaxAbsScaler": _max_abs,
    "MinMaxScaler": _min_max,
    "Normalizer": _normalizer,
    "OneHotEncoder": _one_hot,
    "OrdinalEncoder": _ordinal,
    "Pipeline": _pipeline,
    "RobustScaler": _robust,
    "SimpleImputer": _imputer,
    "StandardScaler": _standard,
}
