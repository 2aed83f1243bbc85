"""Reads a GGUF file: its metadata, and its tensors as bfloat16. NumPy only.

Written from the format's specification (ggml, docs/gguf.md) and the block layouts in ggml-common.h. The `gguf` package
does the same in three seconds for 50,000 tokens, most of them spent on one NumPy array a string.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coldstream.errors import CheckpointError

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.uint16]

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_CHUNK_VALUES = 1 << 17  # float32 scratch of a chunk stays in the second-level cache


@dataclass(frozen=True, slots=True)
class Encoding:
    """How `values` numbers lie in `size` bytes; `decode` takes uint8 [blocks, size] to float32 [blocks, values]."""

    name: str
    values: int
    size: int
    decode: Callable[[Bytes], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor as it is stored. `shape` has the slowest dimension first; `rows` is uint8 [shape[0], bytes of a row]."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    rows: Bytes


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The metadata, and the tensors by name; their rows are views of the mapped file."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Map a GGUF file, version 3, little endian.

    Raises:
        CheckpointError: it is not such a file, is cut short, or holds an encoding that is not read here.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(data)
    try:
        magic, version = cursor.take("4sI")
        if magic != b"GGUF" or version != 3:
            raise CheckpointError(f"{path}: not a GGUF file of version 3")
        tensors, entries = cursor.take("QQ")
        metadata = {cursor.string(): cursor.value(cursor.take("I")[0]) for _ in range(entries)}
        infos = [_info(cursor) for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        start = -(-cursor.at // alignment) * alignment
        return GgufFile(metadata, {info[0]: _tensor(data, start, *info) for info in infos})
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as exc:
        raise CheckpointError(f"{path}: corrupt or of an unknown kind near byte {cursor.at}: {exc}") from exc


def to_bfloat16(tensor: GgufTensor) -> Bits:
    """The tensor's values as the bits of bfloat16, rounded to nearest even: uint16 [*shape]."""
    encoding = tensor.encoding
    blocks = tensor.rows.reshape(-1, encoding.size)
    out = np.empty(blocks.shape[0] * encoding.values, np.uint16)
    step = max(1, _CHUNK_VALUES // encoding.values)
    for first in range(0, len(blocks), step):
        values = encoding.decode(blocks[first : first + step])
        _round(values.reshape(-1).view(np.uint32), out[first * encoding.values :][: values.size])
    return out.reshape(tensor.shape)


class _Cursor:
    """A place in the mapped file; everything there is little endian."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def take(self, layout: str) -> tuple[Any, ...]:
        layout = "<" + layout
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        text = self.data[self.at : self.at + length]
        if len(text) != length:
            raise ValueError("the file ends within a string")
        self.at += length
        return text.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.take(_SCALARS[kind])[0]
        kind, count = self.take("IQ")
        if kind in _SCALARS:
            return list(self.take(f"{count}{_SCALARS[kind]}"))
        return [self.value(kind) for _ in range(count)]


def _info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    (rank,) = cursor.take("I")
    fastest_first = cursor.take(f"{rank}Q")
    encoding, offset = cursor.take("IQ")
    return name, fastest_first[::-1], encoding, offset


def _tensor(data: mmap.mmap, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    if kind not in _ENCODINGS:
        known = ", ".join(item.name for item in _ENCODINGS.values())
        raise ValueError(f"{name} is in encoding {kind}; read here are {known}")
    encoding = _ENCODINGS[kind]
    if shape[-1] % encoding.values:
        raise ValueError(f"{name}: rows of {shape[-1]} are not whole blocks of {encoding.values}")
    size = math.prod(shape) // encoding.values * encoding.size
    raw = np.frombuffer(data, np.uint8, size, start + offset)
    return GgufTensor(name, shape, encoding, raw.reshape(shape[0], -1))


def _round(bits: npt.NDArray[np.uint32], out: Bits) -> None:
    """The upper halves of float32 bits, rounded to nearest even; the bits are scratch afterwards. No NaN comes here."""
    odd = bits >> 16
    odd &= 1
    odd += 0x7FFF
    bits += odd
    out[:] = bits.view(np.uint16)[1::2]


def _half(blocks: Bytes, at: int) -> npt.NDArray[np.float32]:
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _float32(blocks: Bytes) -> npt.NDArray[np.float32]:
    return blocks.copy().view(np.float32)


def _q8_0(blocks: Bytes) -> npt.NDArray[np.float32]:
    values = blocks[:, 2:].view(np.int8).astype(np.float32)
    values *= _half(blocks, 0)
    return values


def _q4_1(blocks: Bytes) -> npt.NDArray[np.float32]:
    """Low nibbles are the first sixteen values, high nibbles the others; value = scale * nibble + minimum."""
    nibbles = blocks[:, 4:]
    values = np.empty((len(blocks), 32), np.float32)
    values[:, :16] = nibbles & 15
    values[:, 16:] = nibbles >> 4
    values *= _half(blocks, 0)
    values += _half(blocks, 2)
    return values


_ENCODINGS = {
    0: Encoding("F32", 1, 4, _float32),
    3: Encoding("Q4_1", 32, 20, _q4_1),
    8: Encoding("Q8_0", 32, 34, _q8_0),
}
