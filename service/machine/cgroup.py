"""How much of the machine this process may use: processors and memory, by its control groups and the scheduler.

It reads what the kernel writes under /proc and /sys, and knows nothing of models, thread pools or CUDA. What can't
be read or makes no sense limits nothing. Both versions of control groups count, also side by side; their files are
described in the kernel's Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst and scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# The kernel's own "no limit" of version 1 is the largest whole number of pages; nothing this large limits anybody.
_UNLIMITED = 2**60


@dataclass(frozen=True)
class Memory:
    """The least memory limit of the groups that this process is in, and what that group uses; in bytes.

    `used` counts the files that the kernel keeps in memory too, which it lets go of when memory is short; None where
    it can't be read.
    """

    limit: int
    used: int | None


def processors(root: Path = Path("/")) -> float:
    """Give how many processors this process may keep busy: the least of its affinity and its groups' quotas.

    A quota is processor time by period, so the number need not be whole, and may be less than 1. root: where /proc
    and /sys are.
    """
    return min([float(len(os.sched_getaffinity(0))), *_quotas(root)])


def threads(root: Path = Path("/")) -> int:
    """Give how many threads of this process can compute at the same time: the whole `processors`, at least 1."""
    return max(1, int(processors(root)))


def memory(root: Path = Path("/")) -> Memory | None:
    """Give the memory limit that is the least, or None when there is none. root: where /proc and /sys are."""
    limits = [
        Memory(limit, _number(_text(folder / used)))
        for folder, (file, used) in _groups(
            root, "memory", ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        if (limit := _number(_text(folder / file))) is not None and limit < _UNLIMITED
    ]
    return min(limits, key=lambda found: found.limit, default=None)


def _quotas(root: Path) -> Iterator[float]:
    for folder, files in _groups(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        # Version 2 has both numbers in one file: "150000 100000", or "max 100000".
        words = " ".join(_text(folder / file) for file in files).split()
        if len(words) == 2:
            quota, period = map(_number, words)
            if quota and period:
                yield quota / period


def _groups(
    root: Path, controller: str, version2: tuple[str, ...], version1: tuple[str, ...]
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Give the folder of each group that this process is in, from its own up to the root, and the files to read there.

    A limit of any of them holds. In a container the path may be the host's, of which only the root is there.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
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


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _number(text: str) -> int | None:
    """Read a number of version 1 or 2; "max", -1 and whatever is none are None."""
    text = text.strip()
    return int(text) if text.isdecimal() else None
