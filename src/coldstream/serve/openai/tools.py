"""Tools: which functions a model is told about, and calls that a grammar forces. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from coldstream.serve.openai.calls import Call as Call
from coldstream.serve.openai.calls import CallReader as CallReader


def forced_schema(functions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A JSON Schema of one call to one of the functions, for `tool_choice` "required"."""
    options = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": parameters(function)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return options[0] if len(options) == 1 else {"anyOf": options}


def parameters(function: dict[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, which are always an object."""
    return {"type": "object", **(function.get("parameters") or {})}


def forced_call(text: str) -> Call | None:
    """The call in the output of `forced_schema`; one that was cut off keeps what there is of its arguments."""
    try:
        value = json.loads(text)
    except ValueError:
        return _cut_off(text)
    return Call(value["name"], json.dumps(value["arguments"], ensure_ascii=False))


def _cut_off(text: str) -> Call | None:
    head, found, rest = text.partition('"arguments"')
    try:
        name = json.loads(head.rstrip().removesuffix(",") + "}")["name"]
    except (ValueError, KeyError):
        return None
    return Call(name, rest.lstrip().removeprefix(":").lstrip() if found else "")


def instruction(functions: Sequence[dict[str, Any]]) -> str:
    """What a model is told whose chat template does not know tools."""
    described = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    return f'Answer with one function call as JSON, {{"name": ..., "arguments": {{...}}}}. The functions:\n{described}'
