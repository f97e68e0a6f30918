"""Finds the name of the processor's model. `cgroup.py` counts the processors."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path


def model_name(root: Path = Path("/")) -> str:
    """Return the name of the processor's model, or its architecture if the kernel names no model. root: holds /proc."""
    with suppress(OSError), (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return "".join(filter(str.isprintable, value.strip()))
    return platform.processor() or platform.machine()
