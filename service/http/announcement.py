"""Makes the lines that the server prints when it is ready: its address, and an example command.

This module does not use sockets.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from importlib.metadata import version

from foldserve.service.compose import Service
from foldserve.service.protocols.friendly import example


def announcement(urls: Sequence[str], service: Service, socket_path: str | None = None) -> str:
    """Return the lines to print, with a command that the user can copy.

    If the server needs API keys, the command reads the key from the environment variable KEY. urls: the URL for
    predictions, followed by the URL for metrics and administration if the two URLs differ. socket_path: the path of the
    Unix socket that serves the first URL; None if a port serves this URL.
    """
    url = urls[0]
    repository = service.repository
    names = [name for name in repository.names() if repository.is_ready(name)]
    not_ready = [name for name in repository.names() if name not in names]
    version_text = f"foldserve {version('foldserve')}"
    elsewhere = "".join(f"metrics and administration are on {other}\n" for other in urls[1:])
    page = f"a page on {url}/, " if service.page else ""
    where = f"{url}, {page}documentation on {url}/docs" if socket_path is None else f"the Unix socket {socket_path}"
    if repository.shown is None:
        return (
            f"{version_text} serves no model yet on {where}\n"
            f"{elsewhere}waiting for a bundle in the folder of the models, as <name>/<version>/"
        )
    manifest = repository.shown.manifest
    path = "/predict" if manifest.name == repository.default else f"/v1/models/{manifest.name}:predict"
    values = ", ".join(
        f"{value:.6g}" if feature.kind == "numeric" and value is not None else json.dumps(value)
        for feature, value in zip(manifest.features, example(manifest), strict=True)
    )
    unready = f"not ready: {', '.join(not_ready)}; the log has the reasons\n" if not_ready else ""
    through = "" if socket_path is None else f"--unix-socket {shlex.quote(socket_path)} "
    insecure = "k" if url.startswith("https:") else ""  # curl -k, because the certificate may be for another host name
    key = "" if service.guard is None else '-H "X-API-Key: $KEY" '
    body = shlex.quote(f'{{"instances": [[{values}]]}}')
    return (
        f"{version_text} serves {', '.join(names)} on {where}\n"
        f"{elsewhere}{unready}try:\n"
        f"  curl -s{insecure} {through}{url}{path} {key}-H 'Content-Type: application/json' -d {body}"
    )
