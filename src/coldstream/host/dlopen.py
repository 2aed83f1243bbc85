"""Shared libraries, mapped without holding the GIL.

Python's own loader holds the GIL while a library is mapped and relocated, so that no other thread runs; a call of
dlopen(3) through ctypes releases it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def map_library(path: Path, flags: int) -> bool:
    """dlopen(3) with `flags` (`os.RTLD_...`); the library stays mapped. False where it cannot be opened."""
    libc = ctypes.CDLL(None)
    libc.dlopen.restype = ctypes.c_void_p
    libc.dlopen.argtypes = [ctypes.c_char_p, ctypes.c_int]
    return bool(libc.dlopen(os.fsencode(path), flags))
