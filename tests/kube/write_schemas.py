"""Writes schemas/*.json.gz from custom resource definitions: `python tests/kube/write_schemas.py CRD.yaml...`.

The script writes one schema for each version that a definition serves. The schemas have no descriptions.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

SCHEMAS = Path(__file__).parent / "schemas"


def strict(schema: Any) -> Any:
    """Convert an OpenAPI schema to a JSON Schema that refuses unknown fields, as the API server does on request."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {
        key: {name: strict(value) for name, value in content.items()} if key == "properties" else strict(content)
        for key, content in schema.items()
        if key not in ("description", "default", "format") and not key.startswith("x-kubernetes-")
    }
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def write(definition: Path) -> None:
    """Write the schemas of one custom resource definition."""
    content = yaml.safe_load(definition.read_text(encoding="utf-8"))["spec"]
    for version in content["versions"]:
        if version["served"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            schema["properties"].pop("status", None)
            name = f"{content['group']}_{version['name']}_{content['names']['kind']}.json.gz"
            text = json.dumps(schema, separators=(",", ":"), sort_keys=True)
            (SCHEMAS / name).write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    for path in sys.argv[1:]:
        write(Path(path))
