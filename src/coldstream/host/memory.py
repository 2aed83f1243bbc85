"""Memory as the system gives it: large buffers in huge pages, copied without the GIL, and given back by malloc."""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from pathlib import Path

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 1 << 20


def return_large_buffers() -> None:
    """Fix malloc's threshold at 1 MiB; does nothing where the C library has no mallopt (musl).

    A load allocates and frees buffers of many megabytes. By default the threshold above which malloc takes such a
    buffer from the kernel, and returns it when it is freed, rises to the largest buffer that was freed (mallopt(3),
    M_MMAP_THRESHOLD): from then on they come from the heap and stay there. Fixing the threshold keeps them out of it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def give_back() -> None:
    """Ask malloc to return what is free to the kernel (malloc_trim(3)); does nothing where it cannot (musl)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def allocate(nbytes: int) -> memoryview:
    """`nbytes` of zeroed memory from the start of a page on, in huge ones where the system has them.

    None of it is there before it is written; it is freed with its last view.
    """
    mapping = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapping)[:nbytes]


def prefer_huge_pages(address: int, nbytes: int) -> None:
    """Ask for huge pages within memory that is not written yet: fewer faults, fewer misses of the TLB.

    A wish (madvise(2), MADV_HUGEPAGE): where the system has none nothing changes.
    """
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        _libc().madvise(start, end - start, mmap.MADV_HUGEPAGE)


def drop_page_cache() -> None:
    """Make the system forget every file that it has in memory (proc(5), drop_caches).

    Raises:
        OSError: it is not root that asks.
    """
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
