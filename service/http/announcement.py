"""The lines that the server prints when it is ready: its address, and a command to try. It knows models, no sockets."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import version

from foldserve.service.engine.repository import Repository
from foldserve.service.protocols.friendly import example


def announcement(host: str, port: int, repository: Repository) -> str:
    """Return the lines to print. The command works without changes."""
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    names = repository.names()
    name = repository.default or names[0]
    path = "/predict" if repository.default else f"/v1/models/{name}:predict"
    manifest = repository.find(name).manifest
    values = ", ".join(
        f"{value:.6g}" if feature.kind == "numeric" and value is not None else json.dumps(value)
        for feature, value in zip(manifest.features, example(manifest), strict=True)
    )
    body = shlex.quote(f'{{"instances": [[{values}]]}}')
    return (
        f"foldserve {version('foldserve')} serves {', '.join(names)} on {url}, documentation on {url}/docs\n"
        "try:\n"
        f"  curl -s {url}{path} -H 'Content-Type: application/json' -d {body}"
    )
