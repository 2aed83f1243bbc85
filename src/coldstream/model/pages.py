"""What the system is told of a tensor's memory: that it will not be read again, or that it is read from end to end."""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor

_MADV_DONTNEED, _MADV_HUGEPAGE = 4, 14  # asm-generic/mman-common.h


def let_go(tensor: Tensor) -> None:
    """Give the whole pages of a contiguous CPU tensor back; it reads as zeros from now on (madvise(2), MADV_DONTNEED).

    Only for anonymous memory whose bytes nobody needs any more; what shares a page with it is left alone.
    """
    _advise(tensor, _MADV_DONTNEED)


def in_large_pages(tensor: Tensor) -> Tensor:
    """Ask for huge pages below a contiguous CPU tensor that is not written yet: fewer faults, fewer misses of the TLB.

    A wish (madvise(2), MADV_HUGEPAGE): where the system has none nothing changes. Returns the tensor.
    """
    _advise(tensor, _MADV_HUGEPAGE)
    return tensor


def _advise(tensor: Tensor, advice: int) -> None:
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if tensor.is_contiguous() and tensor.device.type == "cpu" and start < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
