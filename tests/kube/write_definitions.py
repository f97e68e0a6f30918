"""Writes custom resource definitions from schemas/*.json.gz: `python tests/kube/write_definitions.py | kubectl apply
--server-side -f -`.

With these definitions, an API server can check the resources of KServe, KEDA and the Prometheus operator. KServe, KEDA
and the Prometheus operator need not be installed for these checks.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

SCHEMAS = Path(__file__).parent / "schemas"
CLUSTER_WIDE = ("ClusterServingRuntime",)


def structural(schema: Any) -> Any:
    """Return a schema in the structural form, which a custom resource definition needs.

    The result does not forbid unknown fields, because the API server itself reports or removes unknown fields.
    """
    if isinstance(schema, list):
        return [structural(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == ["integer", "string"]:
        return {"x-kubernetes-int-or-string": True}
    if schema.get("type") == "object" and not {"properties", "additionalProperties"} & schema.keys():
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        key: {name: structural(value) for name, value in content.items()}
        if key == "properties"
        else structural(content)
        for key, content in schema.items()
        if not (key == "additionalProperties" and content is False)
    }


def definition(file: Path) -> dict[str, Any]:
    """Return the custom resource definition for a file with a schema."""
    group, version, kind = file.name.removesuffix(".json.gz").split("_")
    plural = f"{kind.lower()}s"
    schema = structural(json.loads(gzip.decompress(file.read_bytes())))
    schema["properties"]["metadata"] = {"type": "object"}
    schema.pop("$schema", None)
    scope = "Cluster" if kind in CLUSTER_WIDE else "Namespaced"
    served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "scope": scope, "names": {"kind": kind, "plural": plural}, "versions": [served]},
    }


if __name__ == "__main__":
    yaml.safe_dump_all([definition(file) for file in sorted(SCHEMAS.glob("*.json.gz"))], sys.stdout)
