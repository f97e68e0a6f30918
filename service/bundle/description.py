"""The description in the ONNX file of a model: the meaning of the inputs and the outputs, as JSON.

The description is stored in `model.onnx` as the metadata entry `foldserve`, so that this file alone is enough to use
the model. The description depends only on the schema of the table, and contains no name, version, time or path. This
module does not depend on ONNX.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from foldserve.service.bundle.manifest import Feature, Label, Manifest, Target, Task
from foldserve.service.bundle.reading import Reading

DESCRIPTION_KEY = "foldserve"


def describe(task: Task, features: Sequence[Feature], labels: Sequence[Label], target: Target | None) -> str:
    """Return the description as canonical JSON: sorted names, no spaces, only ASCII.

    `features` has the columns of the input, in order. Each column has `name`, `kind` and `missing` (whether a value may
    be missing). A feature with categories adds the field `categories`, and a feature with a reading adds the field
    `reading`. A reading always has `missing`, the texts that mean a missing value. The other fields of a reading are
    present only if they differ from their default values. `labels` has the classes in the order of the output.
    """
    content = {
        "task": task,
        "target": None if target is None else _fields(target.name, target.reading),
        "labels": list(labels),
        "features": [_feature(feature) for feature in features],
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def describe_manifest(manifest: Manifest) -> str:
    """Return the description for the model of a manifest."""
    return describe(manifest.task, manifest.features, manifest.labels, manifest.target)


def _feature(feature: Feature) -> dict[str, Any]:
    fields = _fields(feature.name, feature.reading)
    fields |= {"kind": feature.kind, "missing": feature.missing}
    return fields | ({"categories": list(feature.categories)} if feature.categories else {})


def _fields(name: str, reading: Reading | None) -> dict[str, Any]:
    # A later version may add a field to a reading. Fields with default values are left out, so that the description of
    # an older model stays the same.
    if reading is None:
        return {"name": name}
    return {"name": name, "reading": reading.model_dump(mode="json", exclude_defaults=True)}
