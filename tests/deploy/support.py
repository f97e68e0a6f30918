"""Helpers for the tests of the deployment: the parsed docker-compose.yml, the alerts, and a function that waits."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.service.support import PATIENCE

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"

VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def with_defaults(node: Any) -> Any:
    """Replace each variable by its default, as compose does in an environment without them."""
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

    Each call asks another process and waits for the answer, so the loop does not spin.
    """
    hung = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < hung, "it hangs"
