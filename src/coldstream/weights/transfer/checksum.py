"""CRC32C of buffers, and of two neighbours from the CRCs of each (GF(2)); so ranges may land in any order.

The polynomial is Castagnoli's (RFC 3720, appendix B.4), bits reflected, as cloud storage publishes it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module
from typing import cast

import google_crc32c

_POLYNOMIAL = 0x82F63B78
_ONE = 0x80000000
# Bytes that are copied, and then checked while they are still in the second-level cache.
_STEP = 256 * 1024


class _PyBuffer(ctypes.Structure):
    # https://docs.python.org/3/c-api/buffer.html#c.Py_buffer, in the stable ABI since 3.11
    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


@contextmanager
def pinned(buffer: memoryview) -> Iterator[int]:
    """The address of the buffer's own bytes, also when it is read-only; valid within the block only."""
    view = _PyBuffer()
    api = ctypes.pythonapi
    api.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(view), 0)
    try:
        yield view.buf or 0
    finally:
        api.PyBuffer_Release(ctypes.byref(view))


def crc32c(buffer: memoryview, crc: int = 0) -> int:
    """CRC32C of a buffer behind bytes that have `crc`, without a copy and without the GIL."""
    if not buffer.nbytes:
        return crc
    extend = _extend()
    if extend is None:
        return int(google_crc32c.extend(crc, bytes(buffer)))
    with pinned(buffer) as address:
        return int(extend(crc, address, buffer.nbytes))


def copy(source: memoryview, target: memoryview, crc: int = 0, *, checked: bool) -> int:
    """Copy into as many bytes, without the GIL; the CRC32C of what lies there then, behind bytes that have `crc`.

    Not `checked` it is 0, and costs nothing.
    """
    with pinned(source) as origin, pinned(target) as place:
        for at in range(0, source.nbytes, _STEP):
            ctypes.memmove(place + at, origin + at, min(_STEP, source.nbytes - at))
            crc = crc32c(target[at : at + _STEP], crc) if checked else 0
    return crc


@cache
def _extend() -> Callable[[int, int, int], int] | None:
    """The library that google_crc32c is built on (crc32c/crc32c.h): the package keeps the GIL for all but `bytes`.

    None where the package has no compiled part.
    """
    try:
        compiled = import_module("google_crc32c._crc32c")
        function = ctypes.CDLL(compiled.__file__ or "").crc32c_extend
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
    function.restype = ctypes.c_uint32
    return cast("Callable[[int, int, int], int]", function)


def combine(first: int, second: int, second_length: int) -> int:
    """CRC32C of two neighbours, from the CRC of each and the second one's length in bytes.

    Method of zlib's crc32_combine (Mark Adler): the first CRC is multiplied by x^(8 * length) modulo the polynomial.
    """
    return _multiply(_power(second_length), first) ^ second


def _multiply(a: int, b: int) -> int:
    """a * b modulo the polynomial, over GF(2), bits reflected."""
    product = 0
    bit = _ONE
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


@lru_cache(maxsize=1024)
def _power(length: int) -> int:
    """x^(8 * length) modulo the polynomial."""
    result = _ONE
    exponent = 3
    while length:
        if length & 1:
            result = _multiply(_square(exponent), result)
        length >>= 1
        exponent += 1
    return result


@cache
def _square(exponent: int) -> int:
    """x^(2^exponent) modulo the polynomial."""
    if exponent == 0:
        return _ONE >> 1
    half = _square(exponent - 1)
    return _multiply(half, half)


class Fold:
    """The CRC32C of bytes 0 to `size`, from pieces that come in any order; each byte exactly once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pieces: dict[int, tuple[int, int]] = {}

    def add(self, start: int, end: int, crc: int) -> None:
        """The CRC of bytes `start` to `end` (exclusive).

        Raises:
            ValueError: the piece begins where another one does, or lies outside.
        """
        if not 0 <= start <= end <= self.size:
            raise ValueError(f"piece {start}-{end} lies outside of 0-{self.size}")
        if start == end:
            return
        if start in self._pieces:
            raise ValueError(f"two pieces begin at {start}")
        self._pieces[start] = (end, crc)

    @property
    def value(self) -> int | None:
        """The CRC of the whole; None while bytes are missing.

        Raises:
            ValueError: pieces overlap.
        """
        position = 0
        crc = 0
        for start, (end, piece) in sorted(self._pieces.items()):
            if start < position:
                raise ValueError(f"pieces overlap at {start}")
            if start > position:
                return None
            crc = combine(crc, piece, end - start)
            position = end
        return crc if position == self.size else None
