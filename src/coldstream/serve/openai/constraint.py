"""What a request wants its output to obey: one of a JSON Schema, a regular expression, a choice or a grammar. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from coldstream.errors import InvalidRequest
from coldstream.serve.openai.schema import (
    ChatRequest,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    StructuredOutputs,
)

Kind = Literal["json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """`value` is a schema as a JSON object, a list of choices, or text; `field` is what asked for it."""

    kind: Kind
    value: Any
    field: str

    def grammar(self) -> Any:
        """As the engine takes it."""
        raise InvalidRequest(f"{self.field}: this engine cannot constrain its output", field=self.field)


def constraint(body: ChatRequest | CompletionRequest) -> Constraint | None:
    """The one constraint of a request, tools apart.

    Raises:
        InvalidRequest: more than one, or a schema that is no JSON.
    """
    asked = [item for item in (_from_format(body), _from_structured(body.structured_outputs)) if item is not None]
    if len(asked) > 1:
        raise InvalidRequest("response_format and structured_outputs exclude each other", field="structured_outputs")
    return asked[0] if asked else None


def _from_format(body: ChatRequest | CompletionRequest) -> Constraint | None:
    wanted = body.response_format if isinstance(body, ChatRequest) else None
    if isinstance(wanted, JsonObjectFormat):
        return Constraint("json_schema", {"type": "object"}, "response_format")
    if isinstance(wanted, JsonSchemaFormat):
        return Constraint("json_schema", wanted.json_schema.schema_, "response_format")
    return None


def _from_structured(asked: StructuredOutputs | None) -> Constraint | None:
    if asked is None:
        return None
    field = "structured_outputs"
    found = [
        Constraint("json_schema", _schema(asked.json_), field) if asked.json_ is not None else None,
        Constraint("json_schema", {"type": "object"}, field) if asked.json_object else None,
        Constraint("regex", asked.regex, field) if asked.regex is not None else None,
        Constraint("choice", asked.choice, field) if asked.choice is not None else None,
        Constraint("lark", asked.grammar, field) if asked.grammar is not None else None,
    ]
    given = [item for item in found if item is not None]
    if len(given) != 1:
        allowed = ("json", "json_object", "regex", "choice", "grammar")
        raise InvalidRequest("structured_outputs wants exactly one of its fields", field=field, allowed=allowed)
    return given[0]


def _schema(value: dict[str, Any] | str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(
            f"structured_outputs.json is not valid JSON: {exc}", field="structured_outputs.json"
        ) from exc
