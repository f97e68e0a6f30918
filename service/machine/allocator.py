"""The allocator of the C library: large blocks go back to the operating system when they are freed.

This module does not depend on Python objects. https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
# A block of at least this number of bytes is large. Only a large body or its rows need a large block.
_LARGE = 4 * 2**20


def return_large_blocks() -> bool:
    """From now on, map each large block separately. Returns whether the C library has this option; glibc has it.

    By default, glibc raises the threshold for large blocks to the size of the largest block that was freed, up to 32
    MiB. Blocks below the raised threshold come from heaps. Many threads fragment these heaps, and the heaps never
    shrink.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE))
