"""Byte-pair encoding in C (kernels/tokens), over tables that lie in a converted tokenizer. Needs no numpy."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Collection, Sequence
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from coldstream.backends.cpu.compile import TOKENS
from coldstream.errors import ConvertedUnfit, UnsupportedConfig

_NONE = 0xFFFFFFFF
_WRONG = {
    -1: "there is no memory for its tables",
    -2: "its names do not fill their part, or one stands there twice",
    -3: "a merge does not join two names to a third, or stands there twice",
    -4: "its unknown token has no name",
    -5: "it has no token for each byte",
}
_RULES = ("ignore_merges", "byte_fallback", "fuse_unk")
_RECORD = 9


class Merges:
    """The words of texts as ids. Safe to call from any thread; calls let go of the interpreter's lock.

    `data` holds three parts, which are not copied, from their first byte to behind their last: `sizes`, 16 bits
    little-endian of each id's name, 65535 where it has none; `names`, UTF-8, one behind the other; `records`, the ids
    of left, right and what they make, 24 bits each, first what is to be merged first. `unknown` stands for letters
    without a name, which are left out where it is None; `rules` are those of "ignore_merges", "byte_fallback" and
    "fuse_unk" that hold, as the library means them. `seed` is 64 bits that the tables' author does not know. `source`
    is the checkpoint's URI.

    Raises:
        ConvertedUnfit: the parts contradict themselves.
    """

    def __init__(
        self,
        data: bytes,
        *,
        sizes: range,
        names: range,
        records: range,
        unknown: int | None,
        rules: Collection[str],
        seed: int,
        source: str,
    ) -> None:
        self._library = _library()
        self._data, self._names = data, names
        start = ctypes.cast(c_char_p(data), c_void_p).value or 0
        why = c_int32()
        self._tables = self._library.merges_new(
            start + sizes.start,
            len(sizes) // 2,
            start + names.start,
            len(names),
            start + records.start,
            len(records) // _RECORD,
            _NONE if unknown is None else unknown,
            sum(1 << bit for bit, name in enumerate(_RULES) if name in rules),
            seed,
            ctypes.byref(why),
        )
        if not self._tables:
            raise ConvertedUnfit(f"{source}: the converted tokenizer is damaged: {_WRONG[why.value]}; convert it again")

    def __del__(self) -> None:
        if tables := getattr(self, "_tables", None):
            self._library.merges_free(tables)

    def encode(self, words: Sequence[str]) -> list[int]:
        """The ids of the words, one after the other."""
        ids, _, count = self._encode(words)
        found: list[int] = ids[:count]
        return found

    def pieces(self, word: str) -> list[tuple[int, int]]:
        """The ids of one word, and how many bytes of its UTF-8 each of them covers."""
        ids, sizes, count = self._encode((word,))
        return list(zip(ids[:count], sizes[:count], strict=True))

    def find(self, name: str) -> int | None:
        """The id that has this name."""
        raw = name.encode()
        number: int = self._library.merges_find(self._tables, raw, len(raw))
        return None if number < 0 else number

    def name(self, id: int) -> str | None:
        """The name of an id."""
        size = c_int64()
        place: int = self._library.merges_name(self._tables, id, ctypes.byref(size))
        start = self._names.start + place
        return None if place < 0 else self._data[start : start + size.value].decode()

    def _encode(self, words: Sequence[str]) -> tuple[Any, Any, int]:
        raw = [word.encode() for word in words]
        text = b"".join(raw)
        lengths = array("I", map(len, raw))
        ids, sizes = ((c_uint32 * len(text))() for _ in range(2))
        count = self._library.merges_encode(
            self._tables, text, lengths.buffer_info()[0], len(raw), ctypes.addressof(ids), ctypes.addressof(sizes)
        )
        if count < 0:
            raise MemoryError(f"there is no memory to encode a text of {len(text)} bytes")
        return ids, sizes, count


@cache
def _library() -> ctypes.CDLL:
    path = Path(__file__).with_name(TOKENS)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UnsupportedConfig(
            f"coldstream's tokens cannot be loaded: {error}; reinstall coldstream where there is a C compiler"
        ) from error
    parts = (c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int64)
    _declare(library, "merges_new", c_void_p, *parts, c_uint32, c_uint32, c_uint64, POINTER(c_int32))
    _declare(library, "merges_free", None, c_void_p)
    _declare(library, "merges_find", c_int64, c_void_p, c_char_p, c_int64)
    _declare(library, "merges_name", c_int64, c_void_p, c_int64, POINTER(c_int64))
    _declare(library, "merges_encode", c_int64, c_void_p, c_char_p, c_void_p, c_int64, c_void_p, c_void_p)
    return library


def _declare(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> None:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
