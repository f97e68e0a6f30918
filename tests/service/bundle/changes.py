"""Changes to a manifest.

The changed manifest is still valid, but has a different meaning. Each change has a list of the fields that differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

# The bundle roots/1, written by the last version of foldserve that used schema 1.
OLD = Path(__file__).parent / "schema_1"

Content = dict[str, Any]
Change = Callable[[Content], object]


def swap(*path: Any, first: Any = 0, second: Any = 1) -> Change:
    """Return a change that swaps two members of the object or array at `path`."""

    def change(content: Any) -> None:
        for step in path:
            content = content[step]
        content[first], content[second] = content[second], content[first]

    return change


def put(*path: Any, value: Any) -> Change:
    """Return a change that replaces the value at `path`."""

    def change(content: Any) -> None:
        *way, last = path
        for step in way:
            content = content[step]
        assert content[last] != value
        content[last] = value

    return change


def swap_names(content: Content) -> None:
    one, other = content["features"][:2]
    one["name"], other["name"] = other["name"], one["name"]


def make_categorical(content: Content) -> None:
    feature = content["features"][0]
    feature.update(kind="categorical", categories=["a", "b"], range=None)
    feature["histogram"] = {"edges": [-0.5, 0.5, 1.5], "counts": [1, 1]}


CHANGES: dict[str, tuple[Change, str]] = {
    "two labels swapped": (swap("labels"), "labels"),
    "a label in another type": (put("labels", 3, value="3"), "labels"),
    "two feature names swapped": (swap_names, "features.0, features.1"),
    "two features swapped": (swap("features", first=4, second=5), "features.4, features.5"),
    "a feature renamed": (put("features", 63, "name", value="pixel"), "features.63"),
    "a feature without missing values": (put("features", 2, "missing", value=True), "features.2"),
    "a feature of another kind": (put("features", 2, "kind", value="boolean"), "features.2"),
    "categories instead of numbers": (make_categorical, "features.0"),
    "a forged histogram": (put("features", 1, "histogram", "counts", 0, value=0), "features.1"),
    "a forged range": (put("features", 1, "range", 1, value=1e6), "features.1"),
    "a golden input": (put("golden", "inputs", 0, 0, value=0.5), "golden.inputs"),
    "a golden output": (put("golden", "outputs", 0, 0, value=0.123), "golden.outputs"),
    "a golden row less": (
        lambda content: [content["golden"][part].pop() for part in ("inputs", "outputs")],
        "golden.inputs, golden.outputs",
    ),
    "one golden row left": (
        lambda content: content["golden"].update({part: content["golden"][part][:1] for part in ("inputs", "outputs")}),
        "golden.inputs, golden.outputs",
    ),
    "a wider tolerance": (put("certificate", "tolerance", "absolute", value=1e-3), "certificate.tolerance"),
    "a measurement": (put("certificate", "measurements", 0, "parity", "worst", value=0.0), "certificate.measurements"),
    "a measurement less": (lambda content: content["certificate"]["measurements"].pop(), "certificate.measurements"),
    "another reference": (put("certificate", "reference", value="by hand"), "certificate.reference"),
    "a better metric": (put("metrics", "test", "accuracy", value=1.0), "metrics.test"),
    "another seed": (put("provenance", "seed", value=1), "provenance.seed"),
    "another table": (put("provenance", "data_sha256", value="0" * 64), "provenance.data_sha256"),
    "another placement": (
        put("provenance", "hyperparameters", "placement", value="post"),
        "provenance.hyperparameters",
    ),
    "another version of a library": (put("provenance", "versions", "torch", value="1"), "provenance.versions"),
    "a folded layer less": (lambda content: content["folded"].pop(), "folded.5"),
    "another date": (put("created", value="2020-01-01T00:00:00Z"), "created"),
    "another name": (put("name", value="other"), "name"),
    "another version": (put("version", value=7), "version"),
    "a number as a float": (put("version", value=1.5), "version"),
    "the hash of another model": (put("model", "sha256", value="0" * 64), "model.sha256"),
    "another task": (put("task", value="regression"), "task"),
    "another output": (put("output", "name", value="value"), "output.name"),
    "a field more": (lambda content: content.update(extra=1), "extra"),
    "a field less": (lambda content: content.pop("folded"), "folded.0, folded.1, folded.2, folded.3 and 2 more"),
    "a regression's metric": (put("metrics", "validation", "rmse", value=0.1), "metrics.validation"),
}
DIABETES_CHANGES = {"a regression's metric"}
