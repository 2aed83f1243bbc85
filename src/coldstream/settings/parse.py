"""A table of TOML -> a frozen dataclass: unknown keys, missing keys, wrong types and ranges are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from coldstream.errors import SettingsError
from coldstream.settings.key import key_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Record = TypeVar("_Record", bound="DataclassInstance")
_TYPE_NAMES = {str: "string", int: "whole number", float: "number", bool: "true or false"}
NAME = "name"
"""The field of a record that holds its own key in the table above it."""


def record(cls: type[_Record], table: Mapping[str, Any], where: str, **given: Any) -> _Record:
    """The dataclass of a table; `given` are fields that are no keys of it.

    Raises:
        SettingsError: it names the key, from the top of the file.
    """
    hints = get_type_hints(cls)
    own = {item.name: item for item in fields(cls) if item.name not in given and item.name != NAME}
    _refuse_unknown(table, set(own), where)
    values = {name: _value(own[name], hints[name], value, _join(where, name)) for name, value in table.items()}
    for name, item in own.items():
        if name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise SettingsError(f"{_join(where, name)} is missing")
    return cls(**values, **given)


def changed(settings: _Record, options: Mapping[str, Any], where: str) -> _Record:
    """The record with options on top, each of which is read as if it stood in the record's table.

    Raises:
        SettingsError: as `record`.
    """
    hints = get_type_hints(type(settings))
    own = {item.name: item for item in fields(settings)}
    _refuse_unknown(options, set(own), where)
    values = {name: _value(own[name], hints[name], value, _join(where, name)) for name, value in options.items()}
    return replace(settings, **values)


def table_of(value: Any, where: str) -> Mapping[str, Any]:
    """The value, where it is a table.

    Raises:
        SettingsError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where} must be a table, not {value!r}")
    return value


def fit(value: Any, hint: Any, where: str) -> Any:
    """The value as the annotated type wants it: a list becomes a tuple, an int will do for a float.

    Raises:
        SettingsError: it is of another type.
    """
    hint = _without_none(hint)
    origin = get_origin(hint)
    if origin is Literal:
        if value not in get_args(hint):
            raise SettingsError(f"{where} = {value!r}; allowed: {', '.join(map(str, get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise SettingsError(f"{where} must be a list of strings, not {value!r}")
        return tuple(value)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(value, get_args(hint)[1], where)
    if isinstance(hint, type) and is_dataclass(hint):
        return record(hint, table_of(value, where), where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise SettingsError(f"{where} must be a {_TYPE_NAMES[hint]}, not {value!r}")
    return value


def element(hint: Any) -> Any:
    """What a key of this type holds: the type without None, or a table's own values' type."""
    hint = _without_none(hint)
    origin = get_origin(hint)
    return get_args(hint)[1] if isinstance(origin, type) and issubclass(origin, Mapping) else hint


def _value(item: Field[Any], hint: Any, value: Any, where: str) -> Any:
    fitted = fit(value, hint, where)
    key = key_of(item)
    if key is not None:
        key.check(fitted, where)
    return fitted


def _mapping(value: Any, hint: Any, where: str) -> Mapping[str, Any]:
    table = table_of(value, where)
    if not is_dataclass(hint):
        return {name: fit(item, hint, _join(where, name)) for name, item in table.items()}
    named = any(item.name == NAME for item in fields(hint))
    return {
        name: record(
            hint,  # type: ignore[arg-type]  # a class, by the annotation it came from
            table_of(item, _join(where, name)),
            _join(where, name),
            **({NAME: name} if named else {}),
        )
        for name, item in table.items()
    }


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        return next(item for item in get_args(hint) if item is not NoneType)
    return hint


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in table:
        if name not in known:
            raise SettingsError(f"{_join(where, name)} is unknown; known here: {', '.join(sorted(known))}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
