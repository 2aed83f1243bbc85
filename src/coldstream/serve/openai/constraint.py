"""What a request wants its output to obey: one of a JSON Schema, a regular expression, a choice or a grammar. Pure."""

from __future__ import annotations

import json
from typing import Any

from coldstream.engine.request import Grammar
from coldstream.errors import InvalidRequest
from coldstream.serve.api.schema import small
from coldstream.serve.openai.schema import (
    ChatRequest,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    StructuredOutputs,
)

_ANY_OBJECT: dict[str, Any] = {"type": "object"}


def constraint(body: ChatRequest | CompletionRequest) -> Grammar | None:
    """The one constraint of a request, tools apart.

    Raises:
        InvalidRequest: more than one, or a schema that is no JSON.
    """
    found = [_from_format(body), _from_structured(body.structured_outputs), *_from_guided(body)]
    asked = [item for item in found if item is not None]
    if len(asked) > 1:
        first, second = (item.field for item in asked[:2])
        raise InvalidRequest(f"{first} and {second} exclude each other", field=second)
    return asked[0] if asked else None


def from_schema(schema: Any, field: str) -> Grammar:
    """JSON that the schema accepts; `field` is what asked for it."""
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False), field)


def _from_format(body: ChatRequest | CompletionRequest) -> Grammar | None:
    wanted = body.response_format if isinstance(body, ChatRequest) else None
    if isinstance(wanted, JsonObjectFormat):
        return from_schema(_ANY_OBJECT, "response_format")
    if isinstance(wanted, JsonSchemaFormat):
        return from_schema(wanted.json_schema.schema_, "response_format")
    return None


def _from_structured(asked: StructuredOutputs | None) -> Grammar | None:
    if asked is None:
        return None
    field = "structured_outputs"
    found = [
        from_schema(_schema(asked.json_, "structured_outputs.json"), field) if asked.json_ is not None else None,
        from_schema(_ANY_OBJECT, field) if asked.json_object else None,
        Grammar("regex", asked.regex, field) if asked.regex is not None else None,
        Grammar("choice", tuple(asked.choice), field) if asked.choice is not None else None,
        Grammar("lark", asked.grammar, field) if asked.grammar is not None else None,
    ]
    given = [item for item in found if item is not None]
    if len(given) != 1:
        allowed = ("json", "json_object", "regex", "choice", "grammar")
        raise InvalidRequest("structured_outputs wants exactly one of its fields", field=field, allowed=allowed)
    return given[0]


def _from_guided(body: ChatRequest | CompletionRequest) -> list[Grammar | None]:
    """The same in vLLM's older fields."""
    schema, choice = body.guided_json, body.guided_choice
    return [
        from_schema(_schema(schema, "guided_json"), "guided_json") if schema is not None else None,
        Grammar("regex", body.guided_regex, "guided_regex") if body.guided_regex is not None else None,
        Grammar("choice", tuple(choice), "guided_choice") if choice is not None else None,
        Grammar("lark", body.guided_grammar, "guided_grammar") if body.guided_grammar is not None else None,
    ]


def _schema(value: dict[str, Any] | str, field: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        schema = small(json.loads(value))
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"{field} is not JSON that can be read: {exc}", field=field) from exc
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{field} is a JSON Schema, which is an object here, not {value[:20]!r}", field=field)
    return schema
