"""A converted tokenizer as bytes: what a start reads in place of tokenizer.json.

    8 bytes    "CSTOKENS"
    4          version, of this layout and of what is in the description
    4          CRC-32 of everything behind it
    5 times 4  bytes of each part
    ...        the parts: a description (JSON), the finder of added tokens (a tokenizer.json without a vocabulary), and
               sizes, names and records, as `Merges` reads them

Numbers are little-endian. Nothing in it is trusted: sizes are bounded before anything is made of them, the merges'
tables are checked as they are read, and nothing of it is executed.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coldstream.errors import ConvertedUnfit

VERSION = 1
MAGIC = b"CSTOKENS"
MOST_NAMES = 1 << 22
"""Ids of a vocabulary; the largest known has 2^18."""
MOST_MERGES = 1 << 22
LONGEST_NAME = 0xFFFE
ABSENT = 0xFFFF
"""The size of a name that an id does not have."""
RECORD = 9
"""Bytes of a merge: three ids."""
_MOST_BYTES = 256 << 20
_HEAD = struct.Struct("<8sII5I")


@dataclass(frozen=True, slots=True)
class ConvertedForm:
    """`data` is all of it; the ranges say where its parts lie."""

    data: bytes
    description: Mapping[str, Any]
    finder: bytes
    sizes: range
    names: range
    records: range


def write(
    description: Mapping[str, Any],
    finder: bytes,
    names: Sequence[bytes | None],
    records: Sequence[tuple[int, int, int]],
) -> bytes:
    """The bytes of a tokenizer: names by their ids, and merges (left, right, made), first what is merged first."""
    about = json.dumps(description, ensure_ascii=False, separators=(",", ":")).encode()
    sizes = struct.pack(f"<{len(names)}H", *(ABSENT if name is None else len(name) for name in names))
    parts = (
        about,
        finder,
        sizes,
        b"".join(name for name in names if name is not None),
        b"".join(number.to_bytes(3, "little") for record in records for number in record),
    )
    body = struct.pack("<5I", *map(len, parts)) + b"".join(parts)
    return MAGIC + struct.pack("<II", VERSION, zlib.crc32(body)) + body


def read(data: bytes, *, source: str) -> ConvertedForm:
    """Take it apart.

    Raises:
        ConvertedUnfit: it is none, of another version, or damaged.
    """
    where = f"{source}: the converted tokenizer"
    if len(data) < _HEAD.size or len(data) > _MOST_BYTES or not data.startswith(MAGIC):
        raise ConvertedUnfit(f"{where} is none; convert it again")
    _, version, checksum, *lengths = _HEAD.unpack_from(data)
    if version != VERSION:
        raise ConvertedUnfit(f"{where} has version {version}, this Coldstream reads {VERSION}; convert it again")
    if sum(lengths) != len(data) - _HEAD.size or zlib.crc32(memoryview(data)[16:]) != checksum:
        raise ConvertedUnfit(f"{where} is damaged or truncated; convert it again")
    place, parts = _HEAD.size, []
    for length in lengths:
        parts.append(range(place, place + length))
        place += length
    about, finder, sizes, names, records = parts
    if len(sizes) % 2 or len(sizes) > 2 * MOST_NAMES or len(records) % RECORD or len(records) > RECORD * MOST_MERGES:
        raise ConvertedUnfit(f"{where} has parts of impossible sizes; convert it again")
    try:
        data[names.start : names.stop].decode()
    except UnicodeDecodeError as exc:
        raise ConvertedUnfit(f"{where} has a name that is no UTF-8; convert it again") from exc
    description = _description(data[about.start : about.stop], where)
    return ConvertedForm(data, description, data[finder.start : finder.stop], sizes, names, records)


def _description(raw: bytes, where: str) -> Mapping[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise ConvertedUnfit(f"{where} has a description that is no JSON ({exc}); convert it again") from exc
    if not isinstance(found, dict):
        raise ConvertedUnfit(f"{where} has a description that is no object; convert it again")
    return found
