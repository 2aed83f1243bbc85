"""Memory that is read from end to end: in huge pages, where the system has them."""

from __future__ import annotations

import mmap

import numpy as np

from coldstream.backends.cpu.address import Floats


def empty_in_large_pages(shape: tuple[int, ...]) -> Floats:
    """float32 of such a shape, all 0, on huge pages if they can be had: fewer faults, fewer misses of the TLB."""
    size = int(np.prod(shape)) * 4
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.float32, count=size // 4).reshape(shape)
