"""Finds the processors and the memory that this process may use, from its control groups and the scheduler.

This module reads the kernel's files under /proc and /sys, and does not depend on models, thread pools or CUDA. A file
sets no limit if it can't be read or has no valid number. If a machine uses both versions of control groups, the limits
of both apply. The kernel's documentation describes the files of control groups: admin-guide/cgroup-v2.rst,
admin-guide/cgroup-v1/memory.rst and scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# In version 1, the kernel writes "no limit" as the largest whole number of pages. No real memory limit is this large.
_UNLIMITED = 2**60


@dataclass(frozen=True)
class Memory:
    """The smallest memory limit of this process's groups, and the memory that this group uses, both in bytes.

    used: the memory in use, including the page cache, which the kernel frees when memory is short; None if this number
    can't be read.
    """

    limit: int
    used: int | None


def processors(root: Path = Path("/")) -> float:
    """Count the processors that this process may keep busy.

    The result is the minimum of the CPU affinity and the quotas of the control groups.

    A quota is processor time per period, so the result may be a fraction, or less than 1. root: the folder that holds
    /proc and /sys.
    """
    return min([float(len(os.sched_getaffinity(0))), *_quotas(root)])


def threads(root: Path = Path("/")) -> int:
    """Count the threads that can compute at the same time: the result of `processors` rounded down, but at least 1."""
    return max(1, int(processors(root)))


def memory(root: Path = Path("/")) -> Memory | None:
    """Return the smallest memory limit; None if there is no limit. root: the folder that holds /proc and /sys."""
    limits = [
        Memory(limit, _parse(_read(folder / used)))
        for folder, (file, used) in _groups(
            root, "memory", ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        if (limit := _parse(_read(folder / file))) is not None and limit < _UNLIMITED
    ]
    return min(limits, key=lambda found: found.limit, default=None)


def _quotas(root: Path) -> Iterator[float]:
    for folder, files in _groups(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        # Version 2 has the quota and the period in one file: "150000 100000", or "max 100000".
        words = " ".join(_read(folder / file) for file in files).split()
        if len(words) == 2:
            quota, period = map(_parse, words)
            if quota and period:
                yield quota / period


def _groups(
    root: Path, controller: str, version2: tuple[str, ...], version1: tuple[str, ...]
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the folder and the file names of each group of this process, from the innermost group to the root.

    The limits of all groups of this process apply. In a container, the kernel may report the group's path on the host.
    No group inside the container has this path, so only the root group is found there.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        _, controllers, path = parts
        mounts: tuple[str, ...]
        if not controllers:
            mounts, files = ("", "unified"), version2
        elif controller in controllers.split(","):
            mounts, files = tuple(dict.fromkeys((controllers, controller))), version1
        else:
            continue
        own = PurePosixPath("/", *(part for part in path.split("/") if part not in ("", "..")))
        for mount in mounts:
            for group in (own, *own.parents):
                yield root / "sys/fs/cgroup" / mount / group.relative_to("/"), files


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _parse(text: str) -> int | None:
    """Read a number from a file of the control groups, version 1 or 2.

    Return None for "max", for -1 and for a text that is not a number.
    """
    text = text.strip()
    return int(text) if text.isdecimal() else None
