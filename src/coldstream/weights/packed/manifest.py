"""The manifest of a packed copy: what it was made from, its files and their headers. Pure; every check is here.

It is JSON, written behind the files that it names; docs/packed.md describes its fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coldstream.errors import CopyRefused, HeaderError
from coldstream.weights.checkpoint.header import (
    MARKS_A_TENSOR,
    MAX_TENSORS,
    PREFIX,
    Header,
    marks,
    parse_header,
    quoted,
)
from coldstream.weights.stores.pinning import strong
from coldstream.weights.stores.store import Pin

FORMAT = 1
"""Of the manifest; what its files hold is said by `form`, which has a version of its own."""
MAX_MANIFEST = 64 * 1024 * 1024
MAX_FILES = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}", re.ASCII)
_FORM = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Version:
    """Which version of an object it was, as far as its store tells: enough to know it again."""

    size: int
    crc32c: int | None = None
    generation: str | None = None
    etag: str | None = None

    @classmethod
    def of(cls, pin: Pin) -> Version:
        """The pinned one."""
        return cls(pin.size, pin.crc32c, pin.generation, pin.etag if strong(pin.etag) else None)

    def is_of(self, pin: Pin) -> bool:
        """Whether the pinned object has these bytes: by CRC32C where both have one, which a copied object keeps."""
        if self.size != pin.size:
            return False
        now = Version.of(pin)
        pairs = ((self.crc32c, now.crc32c), (self.generation, now.generation), (self.etag, now.etag))
        return next((then == told for then, told in pairs if then is not None and told is not None), False)


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A safetensors file of the copy: its bytes, their CRC32C, and the header that it begins with, length included."""

    size: int
    crc32c: int
    header: bytes


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file of the copy that is read whole."""

    size: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """`source`: the checkpoint's objects by name, of revision `revision`.

    `weights` is what was taken where an index lay beside a whole file. `small` are the copy's files without tensors.
    """

    form: str
    made_by: str
    revision: str
    weights: str
    source: Mapping[str, Version]
    files: Mapping[str, CopiedFile]
    small: Mapping[str, SmallFile] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files.values()) + sum(file.size for file in self.small.values())

    def text(self) -> bytes:
        """As it is stored."""
        value = {
            "coldstream_packed": FORMAT,
            "form": self.form,
            "made_by": self.made_by,
            "source": {
                "revision": self.revision,
                "weights": self.weights,
                "objects": {name: _version_json(version) for name, version in sorted(self.source.items())},
            },
            "files": {
                name: {"size": file.size, "crc32c": f"{file.crc32c:08x}", "header": file.header[PREFIX:].decode()}
                for name, file in self.files.items()
            },
            "small": {name: {"size": file.size, "crc32c": f"{file.crc32c:08x}"} for name, file in self.small.items()},
        }
        return json.dumps(value, separators=(",", ":")).encode()

    def header_of(self, name: str, uri: str) -> Header:
        """The header of a file, parsed.

        Raises:
            CopyRefused: it is none.
        """
        file = self.files[name]
        try:
            return parse_header(file.header, file=name, size=file.size, uri=uri)
        except HeaderError as exc:
            raise CopyRefused(str(exc)) from exc


def parse_manifest(text: bytes, *, uri: str) -> Manifest:
    """Check and parse a manifest.

    Raises:
        CopyRefused: it is none, is of another version, or says what cannot be.
    """
    try:
        return _manifest(_object(_json(text), "the manifest"))
    except ValueError as exc:
        raise CopyRefused(f"{uri}: {exc}") from exc


def manifest_name(form: str) -> str:
    """The object's name in the copy's folder."""
    return f"{form}.json"


def _json(text: bytes) -> Any:
    if len(text) > MAX_MANIFEST or marks(text) > 2 * MAX_TENSORS * MARKS_A_TENSOR:
        raise ValueError("a manifest beyond every size that one has")
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except RecursionError as exc:
        raise ValueError("nested beyond every depth that a manifest has") from exc


def _manifest(value: Mapping[str, Any]) -> Manifest:
    if value.get("coldstream_packed") != FORMAT:
        raise ValueError(f"is of format {quoted(value.get('coldstream_packed'))}, this version reads {FORMAT}")
    source = _object(value.get("source"), "source")
    objects = _object(source.get("objects"), "source.objects")
    files = _object(value.get("files"), "files")
    small = _object(value.get("small"), "small")
    if not files or len(files) + len(small) > MAX_FILES:
        raise ValueError(f"names {len(files)} files with tensors and {len(small)} others; a copy has 1 to {MAX_FILES}")
    form = _text(value.get("form"), "form")
    if not _FORM.fullmatch(form):
        raise ValueError(f"form {quoted(form)} is no name of one")
    return Manifest(
        form,
        _text(value.get("made_by"), "made_by"),
        _text(source.get("revision"), "source.revision"),
        _text(source.get("weights"), "source.weights"),
        {name: _version(entry) for name, entry in objects.items()},
        {name: _file(name, entry) for name, entry in files.items()},
        {name: _small(name, entry) for name, entry in small.items()},
    )


def _small(name: str, entry: Any) -> SmallFile:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{quoted(name)} is not the name of a file of this folder")
    fields = _object(entry, name)
    crc = _crc32c(fields.get("crc32c"))
    if crc is None:
        raise ValueError(f"{name} has no crc32c")
    return SmallFile(_size(fields.get("size")), crc)


def _file(name: str, entry: Any) -> CopiedFile:
    if not name.endswith(".safetensors"):
        raise ValueError(f"{quoted(name)} is not the name of a file of tensors")
    whole, fields = _small(name, entry), _object(entry, name)
    header = _text(fields.get("header"), f"{name}.header").encode()
    return CopiedFile(whole.size, whole.crc32c, len(header).to_bytes(PREFIX, "little") + header)


def _version(entry: Any) -> Version:
    fields = _object(entry, "an object")
    generation, etag = fields.get("generation"), fields.get("etag")
    return Version(
        _size(fields.get("size")),
        _crc32c(fields.get("crc32c")),
        None if generation is None else _text(generation, "generation"),
        None if etag is None else _text(etag, "etag"),
    )


def _version_json(version: Version) -> dict[str, Any]:
    crc = None if version.crc32c is None else f"{version.crc32c:08x}"
    told = {"crc32c": crc, "generation": version.generation, "etag": version.etag}
    return {"size": version.size} | {name: value for name, value in told.items() if value is not None}


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a text")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{quoted(value)} is not a whole number from 0 to 2^63-1")
    return value


def _crc32c(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{8}", value):
        raise ValueError(f"{quoted(value)} is not a CRC32C of eight hex digits")
    return int(value, 16)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
