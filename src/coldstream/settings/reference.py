"""The schema in words: the tables of docs/configuration.md, and the commented keys of the starter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from coldstream.settings.key import Key, key_of
from coldstream.settings.parse import element
from coldstream.settings.schema import Settings

_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A key that holds a value: its type in words, its default as TOML ("" where it must be given, or is left out)."""

    name: str
    type: str
    default: str
    key: Key
    is_required: bool


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the file: `[tasks.NAME.inputs.NAME]`; keys in the order of the schema."""

    name: str
    summary: str
    entries: tuple[Entry, ...]


def sections() -> tuple[Section, ...]:
    """Every table of coldstream.toml, outermost first."""
    return tuple(_sections(Settings, ""))


def markdown() -> str:
    """All sections as Markdown, a table each."""
    return "\n".join(_markdown(section) for section in sections() if section.entries)


def commented(section: str, *, without: frozenset[str] = frozenset()) -> str:
    """The keys of a section as TOML comments with their defaults, a line each."""
    found = next(item for item in sections() if item.name == section)
    entries = [entry for entry in found.entries if entry.name not in without]
    lines = [f"# {entry.name} = {entry.key.example or entry.default}" for entry in entries]
    width = max(map(len, lines))
    return "\n".join(f"{line:<{width}}  # {entry.key.help}" for line, entry in zip(lines, entries, strict=True))


def _markdown(section: Section) -> str:
    rows = "\n".join(_row(entry) for entry in section.entries)
    heading = f"## `[{section.name}]`\n\n{section.summary}\n"
    return f"{heading}\n| key | type | default | |\n|---|---|---|---|\n{rows}\n"


def _row(entry: Entry) -> str:
    default = "required" if entry.is_required else f"`{entry.default}`" if entry.default else ""
    limits = f"; {entry.key.range}" if entry.key.range else ""
    return f"| `{entry.name}` | {entry.type} | {default} | {_escaped(entry.key.help + limits)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _sections(cls: type[Any], name: str) -> Iterator[Section]:
    hints = get_type_hints(cls)
    keyed = [(item, key) for item in fields(cls) if (key := key_of(item)) is not None]
    plain = [(item, key) for item, key in keyed if not _is_table(hints[item.name])]
    if name:
        summary = (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
        yield Section(name, summary, tuple(_entry(item, key, hints[item.name]) for item, key in plain))
    for item, _ in keyed:
        hint = hints[item.name]
        if _is_table(hint):
            below = f"{name}.{item.name}" if name else item.name
            yield from _sections(element(hint), below if is_dataclass(hint) else f"{below}.NAME")


def _entry(item: Field[Any], key: Key, hint: Any) -> Entry:
    required = item.default is MISSING and item.default_factory is MISSING
    default = "" if item.default is MISSING or item.default is None else _toml(item.default)
    return Entry(item.name, _type(hint), default, key, required)


def _is_table(hint: Any) -> bool:
    return is_dataclass(element(hint))


def _type(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        hint = next(item for item in get_args(hint) if item is not NoneType)
    if get_origin(hint) is Literal:
        return ", ".join(f"`{item}`" for item in get_args(hint))
    if get_origin(hint) is None:
        return _WORDS[hint]
    if get_origin(hint) is tuple:
        return "list of texts"
    return "table of texts" if get_origin(element(hint)) is None else "table of tables of texts"


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
