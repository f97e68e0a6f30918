"""Deterministic arithmetic: the same number of threads and the same kernels give the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Run PyTorch on `threads` CPU threads with deterministic kernels, and restore the caller's settings.

    The number of threads affects the result, because a sum that is split between two threads is rounded differently
    from a sum in one thread. The caller's random state does not change.
    """
    threads_before = torch.get_num_threads()
    mode_before = torch.get_deterministic_debug_mode()
    fill_before = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property
    torch.set_num_threads(threads)
    # `torch.use_deterministic_algorithms` has the same effect, but imports PyTorch's compiler first, which takes
    # seconds.
    torch.set_deterministic_debug_mode("error")
    # By default, deterministic mode fills every new tensor with a fixed value, which would take a quarter of the time
    # of a small training step. The trainer does not need the fixed values, because it writes every tensor before it
    # reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.utils.deterministic.fill_uninitialized_memory = fill_before  # type: ignore[attr-defined]
        torch.set_deterministic_debug_mode(mode_before)
