"""Writes small GGUF files, straight from the specification and independently of the reader under test."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

F32, Q4_1, Q8_0 = 0, 3, 8


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if isinstance(item[0], str):
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(string, item))
    return struct.pack("<IIQ", 9, 5, len(item)) + struct.pack(f"<{len(item)}i", *item)


def quantise(values: np.ndarray, encoding: int) -> tuple[bytes, np.ndarray]:
    """The stored bytes, and the float32 values that they stand for, computed one by one."""
    if encoding == F32:
        return values.astype("<f4").tobytes(), values.astype(np.float32)
    raw, back = [], []
    for block in values.reshape(-1, 32):
        if encoding == Q8_0:
            scale = np.float16(np.abs(block).max() / 127 or 1)
            codes = np.clip(np.rint(block / np.float32(scale)), -127, 127).astype(np.int8)
            raw.append(scale.tobytes() + codes.tobytes())
            back += [np.float32(int(code)) * np.float32(scale) for code in codes]
        else:
            scale, low = np.float16((block.max() - block.min()) / 15 or 1), np.float16(block.min())
            codes = np.clip(np.rint((block - np.float32(low)) / np.float32(scale)), 0, 15).astype(np.uint8)
            packed = bytes(int(codes[i]) | int(codes[i + 16]) << 4 for i in range(16))
            raw.append(scale.tobytes() + low.tobytes() + packed)
            back += [np.float32(int(code)) * np.float32(scale) + np.float32(low) for code in codes]
    return b"".join(raw), np.array(back, np.float32).reshape(values.shape)


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[np.ndarray, int]]
) -> dict[str, np.ndarray]:
    """Writes the file; what a reader must find in it, as float32."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(string(key) + value(item) for key, item in metadata.items())
    body, expected = b"", {}
    for name, (values, encoding) in tensors.items():
        head += string(name) + struct.pack("<I", values.ndim) + struct.pack(f"<{values.ndim}Q", *values.shape[::-1])
        head += struct.pack("<IQ", encoding, len(body))
        raw, expected[name] = quantise(values, encoding)
        body += raw + b"\0" * (-len(raw) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)
    return expected
