"""glibc's malloc, told to give large buffers back.

A load allocates and frees buffers of many megabytes. By default the threshold above which malloc takes such a buffer
from the kernel, and returns it when it is freed, rises to the largest buffer that was freed (mallopt(3),
M_MMAP_THRESHOLD): from then on they come from the heap and stay there. Fixing the threshold keeps them out of it: for
gemma-3-270m 0.2 GB less at the peak.
"""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 1 << 20


def return_large_buffers() -> None:
    """Fix the threshold at 1 MiB; does nothing where the C library has no mallopt (musl)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
