"""How a peer's model was converted, by what its own file says."""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    30: "BF16",
}
"""ggml's numbers of tensor types, as the GGUF specification lists them."""
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a GGUF value, by its type."""
_STRING, _ARRAY = 8, 9
_RATHER = ("mode", "group_size", "ratio", "all_layers", "backup_mode", "awq", "scale_estimation")


def made_of(model: str) -> str:
    """A line: the types of a .gguf file's tensors, what compressed an OpenVINO folder's weights; else nothing.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        return _gguf(path)
    described = path / "openvino_model.xml"
    return _openvino(described) if described.exists() else ""


def _openvino(path: Path) -> str:
    info = ElementTree.parse(path).getroot().find("rt_info")  # noqa: S314  a model that its owner serves
    if info is None:
        return "OpenVINO"
    found = {item.tag: item.get("value") for item in info.iter() if item.tag in _RATHER}
    versions = {
        item.tag: item.get("value") for item in info.iter() if item.tag in ("nncf_version", "optimum_intel_version")
    }
    said = ", ".join(f"{name} {value}" for name, value in (found | versions).items() if value)
    return f"OpenVINO, {said or 'weights as they were'}"


def _gguf(path: Path) -> str:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            return "no GGUF file"
        return "GGUF, " + ", ".join(f"{count} tensors {name}" for name, count in _tensor_types(data).most_common())


def _tensor_types(data: mmap.mmap) -> Counter[str]:
    tensors, values = struct.unpack_from("<QQ", data, 8)
    at = 24
    for _ in range(values):
        at = _behind_string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        at = _behind(data, at + 4, kind)
    types: Counter[str] = Counter()
    for _ in range(tensors):
        at = _behind_string(data, at)
        (dimensions,) = struct.unpack_from("<I", data, at)
        (number,) = struct.unpack_from("<I", data, at + 4 + 8 * dimensions)
        types[_TYPES.get(number, f"type {number}")] += 1
        at += 4 + 8 * dimensions + 4 + 8
    return types


def _behind(data: mmap.mmap, at: int, kind: int) -> int:
    if kind == _STRING:
        return _behind_string(data, at)
    if kind != _ARRAY:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _SIZES:
        return at + int(count) * _SIZES[inner]
    for _ in range(count):
        at = _behind(data, at, inner)
    return at


def _behind_string(data: mmap.mmap, at: int) -> int:
    return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
