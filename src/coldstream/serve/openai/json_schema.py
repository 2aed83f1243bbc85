"""JSON Schemas, rewritten for the grammars that they become part of. Pure."""

from __future__ import annotations

from typing import Any

_NO_SCHEMAS = ("const", "enum", "default", "examples")
"""Keywords whose values are data."""
_MAPS = ("properties", "$defs", "definitions")
"""Keywords whose values are schemas by their names."""
_OTHERS = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties"})
_PARTS = frozenset({"allOf", "anyOf", "oneOf", "if", "$ref", "$dynamicRef", "dependentSchemas"})


def moved(schema: Any, to: str) -> Any:
    """The schema with its references to itself as they must be where it stands at the JSON pointer `to`."""
    if isinstance(schema, list):
        return [moved(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: value if key in _NO_SCHEMAS else moved(value, to) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        made["$ref"] = to + reference[1:]
    return made


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without further properties in objects that name some and say nothing of others.

    Where one object is put together from several schemas, each speaks for a part only, and all stay as they are.
    """
    return schema if _combines(schema) else _closed(schema)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    made = {key: _closed_part(key, value) for key, value in schema.items()}
    names_some = isinstance(schema.get("properties"), dict) and _OTHERS.isdisjoint(schema)
    return made | {"additionalProperties": False} if names_some else made


def _closed_part(key: str, value: Any) -> Any:
    if key in _NO_SCHEMAS:
        return value
    if key in _MAPS and isinstance(value, dict):
        return {name: _closed_part("", item) for name, item in value.items()}
    if isinstance(value, list):
        return [_closed_part("", item) for item in value]
    return _closed(value) if isinstance(value, dict) else value


def _combines(value: Any) -> bool:
    """Whether some object is put together from several schemas."""
    if isinstance(value, list):
        return any(map(_combines, value))
    if not isinstance(value, dict):
        return False
    parts = _PARTS if "properties" in value else frozenset({"allOf"})
    return not parts.isdisjoint(value) or any(map(_combines, value.values()))
