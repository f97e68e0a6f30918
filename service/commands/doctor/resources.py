"""Checks of the processors and the memory that this process may use."""

from __future__ import annotations

import os

from foldserve.service.commands.doctor.check import Result
from foldserve.service.machine import cgroup

_GIB = 2**30


def check_processors() -> Result | str:
    """Compare the number of processors that this process may use with the number of processors of the host."""
    granted, host = cgroup.processors(), os.cpu_count() or 1
    text = f"{round(granted, 2):g} of the host's {host}, by affinity and cgroup quota"
    if granted < 1:
        return Result("processors", "note", f"{text}: below one, an answer may wait for the next quota period")
    return Result("processors", "note", text) if granted < host else text


def check_memory() -> Result | str:
    """Compare the memory in use with the cgroup's limit."""
    memory = cgroup.memory()
    if memory is None:
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"no cgroup limit; the host has {host / _GIB:.1f} GiB"
    used = "an unknown part" if memory.used is None else f"{memory.used / _GIB:.1f}"
    text = f"{used} of the cgroup's {memory.limit / _GIB:.1f} GiB in use"
    if memory.used is not None and memory.used > 0.9 * memory.limit:
        return Result("memory", "note", f"{text}: little is left, unless cached files use it")
    return text
