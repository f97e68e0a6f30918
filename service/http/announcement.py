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
    names = [name for name in repository.names() if repository.is_ready(name)]
    not_ready = [name for name in repository.names() if name not in names]
    manifest = repository.shown.manifest
    path = "/predict" if manifest.name == repository.default else f"/v1/models/{manifest.name}:predict"
    values = ", ".join(
        f"{value:.6g}" if feature.kind == "numeric" and value is not None else json.dumps(value)
        for feature, value in zip(manifest.features, example(manifest), strict=True)
    )
    unready = f"not ready: {', '.join(not_ready)}; the log has the reasons\n" if not_ready else ""
    body = shlex.quote(f'{{"instances": [[{values}]]}}')
    return (
        f"foldserve {version('foldserve')} serves {', '.join(names)} on {url}, documentation on {url}/docs\n"
        f"{unready}try:\n"
        f"  curl -s {url}{path} -H 'Content-Type: application/json' -d {body}"
    )
