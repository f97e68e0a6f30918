"""Describes the loaded models in the OpenAPI document: their names, their rows, and an example for each model.

This module knows the paths of the prediction routes, but does not handle requests. The document is rebuilt when the
models change.
"""

from __future__ import annotations

from typing import Any

from foldserve.service.bundle import Feature, Manifest
from foldserve.service.engine.repository import Model, Repository
from foldserve.service.protocols.friendly import JSON_TYPE, example

_NAMED = "/v1/models/{model}:predict", "/v1/models/{model}/versions/{version}:predict"
_EXPLAIN = "/v1/models/{model}:explain", "/v1/models/{model}/versions/{version}:explain"
_INFER = "/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"
_JSON = JSON_TYPE.decode()
# The document has examples for at most this number of models.
_MAX_MODELS = 50
# If a model has more features than this number, the document does not describe each feature, and the examples contain
# no feature names.
_MAX_DESCRIBED = 256
# The largest float32, plus half the distance between neighbouring float32 numbers of this size. A number below
# _OVERFLOW is rounded to a finite float32.
_OVERFLOW = float(2**128 - 2**103)
_JSON_TYPES = {str: "string", bool: "boolean", int: "number", float: "number"}


def describe(document: dict[str, Any], repository: Repository) -> None:
    """Add descriptions of the models to an OpenAPI document. Each example is the body of a valid request."""
    shown = repository.shown
    if shown is None:
        return
    models = _current_models(repository, shown)
    names = sorted(repository.names(), key=lambda name: name != shown.manifest.name)
    _describe_parameters(document, names, shown.manifest.version)
    schema = _instances_schema(document, models)
    for path in ("/predict", *_NAMED, *_EXPLAIN):
        content = document["paths"][path]["post"]["requestBody"]["content"][_JSON]
        content["schema"] = schema
        if path != "/predict":
            content["examples"] = _examples(models[:_MAX_MODELS], _instances)
        elif repository.default == shown.manifest.name:
            content["example"] = _instances(shown.manifest)
    for path in _INFER:
        content = document["paths"][path]["post"]["requestBody"]["content"][_JSON]
        content["examples"] = _examples(models[:_MAX_MODELS], _tensors)


def _current_models(repository: Repository, shown: Model) -> list[Model]:
    """Return the active version of each model, starting with the model `shown`."""
    versions = map(repository.model, repository.names())
    current = (each.by_number[each.current] for each in versions if each.current is not None)
    return [shown, *(model for model in current if isinstance(model, Model) and model is not shown)]


def _describe_parameters(document: dict[str, Any], names: list[str], version: int) -> None:
    """List the names of the models at each path parameter that expects the name of a model.

    The page at /docs offers the listed names as choices, and preselects the first name.
    """
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                # The paths of /v2/repository also accept the names of models that are not loaded.
                if parameter["in"] != "path" or path.startswith("/v2/repository"):
                    continue
                if parameter["name"] == "model":
                    parameter["schema"]["enum"] = names
                elif parameter["name"] == "version":
                    parameter["example"] = str(version)


def _examples(models: list[Model], make: Any) -> dict[str, Any]:
    return {
        model.manifest.name: {
            "summary": f"{model.manifest.name}: choose it as the model too",
            "value": make(model.manifest),
        }
        for model in models
    }


def _instances(manifest: Manifest) -> dict[str, Any]:
    row = example(manifest)
    if len(row) > _MAX_DESCRIBED:
        return {"instances": [row]}
    return {"instances": [dict(zip((feature.name for feature in manifest.features), row, strict=True))]}


def _tensors(manifest: Manifest) -> dict[str, Any]:
    shape, data = [1, len(manifest.features)], manifest.golden.inputs[0]
    return {"inputs": [{"name": manifest.input.name, "shape": shape, "datatype": "FP32", "data": data}]}


def _instances_schema(document: dict[str, Any], models: list[Model]) -> dict[str, Any]:
    """Describe the body of /predict.

    If there is only one model, and it has at most `_MAX_DESCRIBED` features, describe each feature of a row by name.
    """
    schema: dict[str, Any] = document["paths"]["/predict"]["post"]["requestBody"]["content"][_JSON]["schema"]
    manifest = models[0].manifest
    features = manifest.features
    if len(models) == 1 and len(features) <= _MAX_DESCRIBED:
        values = [_value_schema(feature) for feature in features]
        same = {"items": values[0]} if all(value == values[0] for value in values) else {"prefixItems": values}
        names = [feature.name for feature in features]
        arrays = {"type": "array", "minItems": len(names), "maxItems": len(names), **same}
        objects = {
            "type": "object",
            "properties": dict(zip(names, values, strict=True)) | {name: {} for name in manifest.ignored},
            "required": [feature.name for feature in features if feature.constant is None],
            "additionalProperties": False,
        }
        bounds = {"type": "array", "minItems": 1, "maxItems": models[0].max_rows}
        schema["properties"]["instances"] = {"anyOf": [{**bounds, "items": arrays}, {**bounds, "items": objects}]}
    return schema


def _value_schema(feature: Feature) -> dict[str, Any]:
    """Describe the values of one feature."""
    if feature.reading is not None:  # a feature with a `Reading` also accepts texts
        return {"type": ["number", "string", "boolean", "null"]}
    kinds = (
        {"boolean"} if feature.kind == "boolean" else {_JSON_TYPES[type(value)] for value in feature.categories or (0,)}
    )
    bounds = {"exclusiveMinimum": -_OVERFLOW, "exclusiveMaximum": _OVERFLOW} if feature.kind == "numeric" else {}
    return {"type": sorted(kinds | {"null"} if feature.missing else kinds), **bounds}
