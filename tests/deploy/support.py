"""Data and helpers for the tests of the deployment, such as the parsed docker-compose.yml and the alerts."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.service.support import PATIENCE

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"

# Paths that a proxy does not serve to the public. The server decodes /%6detrics to /metrics.
INTERNAL = (
    "/metrics",
    "/%6detrics",
    "/v2/repository/index",
    "/v1/models/roots/drift",
    "/v1/models/roots/versions/1/drift",
    "/v2/models/stats",
    "/v2/models/roots/stats",
)

VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def with_defaults(node: Any) -> Any:
    """Replace each variable by its default. Docker Compose does the same for each variable that the environment does
    not set.
    """
    if isinstance(node, dict):
        return {key: with_defaults(value) for key, value in node.items()}
    if isinstance(node, list):
        return [with_defaults(value) for value in node]
    return VARIABLE.sub(r"\2", node) if isinstance(node, str) else node


COMPOSE = with_defaults(yaml.safe_load(FILE.read_text()))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]


def until(condition: Callable[[], object]) -> None:
    """Call `condition` repeatedly until it returns true.

    `condition` asks another process and waits for its answer, so the loop does not spin.
    """
    hung = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < hung, "it hangs"


def listens(port: int) -> bool:
    """Return whether a program on this machine listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
