"""Memory of a tensor that was taken in and will not be read again goes back to the kernel, before its owner lets go."""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor

_MADV_DONTNEED = 4  # asm-generic/mman-common.h


def let_go(tensor: Tensor) -> None:
    """Give the whole pages of a contiguous CPU tensor back; it reads as zeros from now on (madvise(2), MADV_DONTNEED).

    Only for anonymous memory whose bytes nobody needs any more; what shares a page with it is left alone.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if tensor.is_contiguous() and tensor.device.type == "cpu" and start < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
