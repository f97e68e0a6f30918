"""A table with every kind of column: its manifest, a handmade graph, and the same model in NumPy.

The NumPy model takes values as a person writes them. The NumPy model uses neither codes nor tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto, helper

from foldserve.service import bundle
from tests.service.support import constant, manifest, onnx_model, tensor

TOWNS = ("Paris", "é", "", "1", "[18-25)", "l'eau")
SIZES = (1, 2.5, 40)
BOTH = ("many", 0, -7)

FEATURES: tuple[dict[str, Any], ...] = (
    {"name": "age"},
    {"name": "town", "kind": "categorical", "categories": TOWNS},
    {"name": "member", "kind": "boolean"},
    {"name": "income", "missing": True, "missing_share": 0.25},
    {"name": "size", "kind": "categorical", "categories": SIZES, "missing": True, "missing_share": 0.125},
    {"name": "smokes", "kind": "boolean", "missing": True},
    {"name": "children", "kind": "categorical", "categories": BOTH},
)
NAMES = tuple(feature["name"] for feature in FEATURES)
LABELS = ("no", "maybe", "yes")

# The number of encoded columns of each feature. A categorical feature has a column for each category and one for unseen
# categories. Any other feature has one column for the value, and one column that marks a missing value.
WIDTHS = [len(feature.get("categories", " ")) + 1 for feature in FEATURES]
WEIGHTS = np.random.default_rng(5).normal(size=(sum(WIDTHS), len(LABELS))).astype(np.float32)
FILLED = -1.5


def probabilities(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Compute the model's probabilities for rows of plain values, float64 [rows, labels]."""
    inputs = []
    for row in rows:
        values: list[float] = []
        for feature, value in zip(FEATURES, row, strict=True):
            if "categories" in feature:
                known = [value is not None and value == category for category in feature["categories"]]
                values += [*map(float, known), float(value is not None and not any(known))]
            else:
                values += [FILLED if value is None else float(value), float(value is None)]
        inputs.append(values)
    logits = np.array(inputs) @ WEIGHTS.astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def codes(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Encode rows of plain values as the model's input, float32 [rows, features]."""

    def code(feature: dict[str, Any], value: Any) -> float:
        if value is None:
            return math.nan
        categories = feature.get("categories", ())
        if not categories:
            return float(value)
        return float(categories.index(value) if value in categories else len(categories))

    return np.array([[code(*pair) for pair in zip(FEATURES, row, strict=True)] for row in rows], np.float32)


def graph() -> bytes:
    """Write the model as an ONNX graph. The function `probabilities` computes the same model. In the input, a missing
    value is NaN, and a category is its index.
    """
    nodes, constants = [], [constant("weights", WEIGHTS), constant("filled", [FILLED])]
    parts = []
    for place, feature in enumerate(FEATURES):
        constants.append(constant(f"{place}", [place], np.int64))
        nodes.append(helper.make_node("Gather", ["input", f"{place}"], [f"{place}.raw"], axis=1))
        if "categories" in feature:
            constants.append(constant(f"{place}.codes", [range(len(feature["categories"]) + 1)]))
            nodes.append(helper.make_node("Equal", [f"{place}.raw", f"{place}.codes"], [f"{place}.is"]))
        else:
            nodes.append(helper.make_node("IsNaN", [f"{place}.raw"], [f"{place}.is"]))
            nodes.append(helper.make_node("Where", [f"{place}.is", "filled", f"{place}.raw"], [f"{place}.value"]))
            parts.append(f"{place}.value")
        nodes.append(helper.make_node("Cast", [f"{place}.is"], [f"{place}.flag"], to=TensorProto.FLOAT))
        parts.append(f"{place}.flag")
    nodes += [
        helper.make_node("Concat", parts, ["inputs"], axis=1),
        helper.make_node("Gemm", ["inputs", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    inputs, outputs = tensor("input", "batch", len(FEATURES)), tensor("probabilities", "batch", len(LABELS))
    return onnx_model(nodes, constants, inputs=[inputs], outputs=[outputs])


# The first row has an unseen town. In example requests, the last town replaces the unseen town. The name of the last
# town has a quote, which is special to a shell.
GOLDEN = (
    (0.5, "Oslo", True, 2.5, 3, False, -7),
    (1.0, "l'eau", False, None, 2.5, True, "many"),
    (-3.25, "é", True, -1.0, None, None, 0),
)


def golden() -> bundle.Golden:
    inputs = [[None if math.isnan(value) else value for value in row] for row in codes(GOLDEN).tolist()]
    return bundle.Golden.model_validate({"inputs": inputs, "outputs": probabilities(GOLDEN).tolist()})


def mixed_manifest(model: bytes = b"", version: int = 1) -> bundle.Manifest:
    return manifest(model, name="mixed", version=version, features=FEATURES, labels=LABELS, golden=golden())


def mixed_bundle() -> bundle.Bundle:
    model = graph()
    return bundle.Bundle(Path("mixed/1"), mixed_manifest(model), model)


def write_mixed(models: Path) -> bundle.Bundle:
    model = graph()
    return bundle.write(models, "mixed", model, lambda version: mixed_manifest(model, version))


# --- rows of people's values ------------------------------------------------------------------------------------------

_numbers = st.floats(-8, 8, width=32)
_cells = {
    "age": _numbers | st.integers(-8, 8),
    "town": st.sampled_from(TOWNS) | st.text(max_size=3),
    "member": st.booleans(),
    "income": st.none() | _numbers,
    "size": st.none() | st.sampled_from((*SIZES, 1.0, 40.0)) | st.integers(-(2**70), 2**70) | st.floats(-50, 50),
    "smokes": st.none() | st.booleans(),
    "children": st.sampled_from((*BOTH, 0.0, -7.0)) | st.text(max_size=5) | st.integers(-9, 9),
}
mixed_rows = st.lists(st.tuples(*(_cells[name] for name in NAMES)), min_size=1, max_size=4)
