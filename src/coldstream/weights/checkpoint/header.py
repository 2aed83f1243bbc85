"""The bytes of a safetensors header -> TensorInfo. Pure; every check is here.

Format (https://github.com/huggingface/safetensors#format): u64 little-endian N, N bytes of JSON, the tensors' bytes.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from types import MappingProxyType
from typing import Any

from coldstream.errors import HeaderError

PREFIX = 8
# The reference implementation's cap (MAX_HEADER_SIZE in tensor.rs).
MAX_HEADER = 100_000_000
# In one file. Models have far fewer (DeepSeek-V3: 92,000 in 163 files); 100 MB of JSON can announce ten million:
# eight million took the parser 16 s and 2 GB.
MAX_TENSORS = 1 << 17
# numpy's limit; no model has more than six.
MAX_DIMENSIONS = 64
# Commas, colons and opening brackets that the JSON of a tensor takes: 14 in four dimensions. They are counted before
# anything is parsed, because each of them may become a Python object.
MARKS = b",:[{"
MARKS_A_TENSOR = 16

DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in a file. `start` and `end` (exclusive) are bytes from the beginning of the file, header included.

    `dtype` is safetensors' name ("BF16"), `file` the shard's name in the checkpoint's folder.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def rows(self, start: int, stop: int) -> TensorInfo:
        """Rows `start` to `stop` (exclusive) of the first dimension, which lie side by side: one rank's share, say.

        Raises:
            ValueError: there are no such rows, or a row is not a whole number of bytes.
        """
        if not self.shape or not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"{self.name!r} of shape {list(self.shape)} has no rows {start} to {stop}")
        row, rest = divmod(self.nbytes, self.shape[0] or 1)
        if rest:
            raise ValueError(f"{self.name!r}: rows of {self.dtype} {list(self.shape)} do not begin at whole bytes")
        return replace(
            self, shape=(stop - start, *self.shape[1:]), start=self.start + start * row, end=self.start + stop * row
        )


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: its tensors by position, and where the data begin (bytes from the start of the file)."""

    tensors: tuple[TensorInfo, ...]
    data_start: int
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def header_end(prefix: bytes, *, size: int, uri: str) -> int:
    """Where the header ends, in bytes from the start of the file, from the file's first eight bytes.

    Raises:
        HeaderError: the file is too short, or the length is beyond the file or the cap.
    """
    if len(prefix) < PREFIX:
        raise HeaderError(f"{uri}: {size} bytes is too short for a safetensors file; upload it again")
    length = int.from_bytes(prefix[:PREFIX], "little")
    if length > MAX_HEADER:
        raise HeaderError(
            f"{uri}: byte 0: a header of {length} bytes is over the limit of {MAX_HEADER}; not safetensors?"
        )
    if PREFIX + length > size:
        raise HeaderError(f"{uri}: byte 0: a header of {length} bytes in a file of {size}; truncated, upload it again")
    return PREFIX + length


def parse_header(raw: bytes, *, file: str, size: int, uri: str) -> Header:
    """Check and parse a header.

    Args:
        raw: the file's bytes from 0 to at least the header's end.
        file: the shard's name, for `TensorInfo.file`.
        size: the whole file's size in bytes.
        uri: for messages.

    Raises:
        HeaderError: anything that the format forbids, with the tensor and the byte.
    """
    end = header_end(raw[:PREFIX], size=size, uri=uri)
    if len(raw) < end:
        raise HeaderError(f"{uri}: byte {len(raw)}: the header ends early, {end} bytes were announced")
    table = _json_object(bytes(raw[PREFIX:end]), uri)
    metadata = _metadata(table.pop("__metadata__", None), uri)
    if len(table) > MAX_TENSORS:
        raise HeaderError(f"{uri}: announces {len(table)} tensors, over the limit of {MAX_TENSORS}; split the file")
    tensors = [_tensor(name, entry, file, end, uri) for name, entry in table.items()]
    tensors.sort(key=lambda info: (info.start, info.end))
    _check_layout(tensors, end, size, uri)
    return Header(tuple(tensors), end, metadata)


def _json_object(text: bytes, uri: str) -> dict[str, Any]:
    # json.loads would take the last of two equal keys; the reference parser refuses them as well.
    if not text.startswith(b"{"):
        raise HeaderError(f"{uri}: byte {PREFIX}: the header does not begin with '{{'; not a safetensors file?")
    if marks(text) > MAX_TENSORS * MARKS_A_TENSOR:
        raise HeaderError(f"{uri}: {len(text)} bytes of JSON announce more than {MAX_TENSORS} tensors, over the limit")
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as exc:
        raise HeaderError(
            f"{uri}: byte {PREFIX + exc.start}: the header is not UTF-8; corrupt, upload it again"
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise HeaderError(f"{uri}: the header is not valid JSON ({exc}); corrupt, upload it again") from exc
    if not isinstance(table, dict):
        raise HeaderError(f"{uri}: the header is not a JSON object")
    return table


def quoted(value: Any) -> str:
    """The repr of what a stranger wrote, cut where it is long: a name may have a hundred megabytes."""
    short = reprlib.Repr()
    short.maxstring, short.maxlist, short.maxlong = 200, 8, 40
    return short.repr(value)


def marks(text: bytes) -> int:
    """How many values JSON may have at most, without parsing it; those in strings count as well."""
    return sum(text.count(mark) for mark in MARKS)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(twice)} occurs twice")
    return table


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _metadata(value: Any, uri: str) -> Mapping[str, str]:
    if value is None:
        return MappingProxyType({})
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise HeaderError(f"{uri}: __metadata__ must map strings to strings")
    return MappingProxyType(value)


def _tensor(name: str, entry: Any, file: str, base: int, uri: str) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = _checked(entry, base)
    except ValueError as exc:
        raise HeaderError(f"{uri}: tensor {quoted(name)}: {exc}") from exc
    return TensorInfo(name, dtype, tuple(shape), file, base + begin, base + end)


def _checked(entry: Any, base: int) -> tuple[str, list[int], list[int]]:
    """Dtype, shape and offsets of a tensor that can be; ValueError says why it cannot."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise ValueError(f"unknown dtype {quoted(dtype)}; known: {', '.join(DTYPE_BITS)}")
    if not _sizes(shape):
        raise ValueError(f"shape {quoted(shape)} is not a list of whole numbers from 0 to 2^63-1")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"data_offsets {quoted(offsets)} are not a begin and an end")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"shape {quoted(shape)} has {len(shape)} dimensions, over the limit of {MAX_DIMENSIONS}")
    need, rest = divmod(_elements(shape) * bits, 8)
    span = offsets[1] - offsets[0]
    if rest or need != span:
        place = f"byte {base + offsets[0]} of the file"
        raise ValueError(f"{dtype} {quoted(shape)} takes {need} bytes, but its offsets span {span} ({place})")
    return dtype, shape, offsets


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _elements(shape: list[int]) -> int:
    if 0 in shape:
        return 0
    count = 1
    for size in shape:
        count *= size
        if count >= 2**63:
            raise ValueError("its shape overflows: 2^63 elements or more")
    return count


def _check_layout(tensors: list[TensorInfo], base: int, size: int, uri: str) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    position = base
    for info in tensors:
        if info.start != position:
            kind = "a gap" if info.start > position else "an overlap"
            raise HeaderError(f"{uri}: tensor {quoted(info.name)}: {kind} at byte {min(info.start, position)}")
        position = info.end
    if position != size:
        raise HeaderError(f"{uri}: byte {position}: the tensors end here, but the file has {size} bytes; truncated?")
