"""Tools: what a model is told of functions, and the call that a grammar forced. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.serve.openai.calls import Call as Call
from coldstream.serve.openai.calls import CallReader as CallReader

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def forced_call(text: str) -> Call | None:
    """The call in an output of `tool_grammar.one_call`; one that was cut off keeps what there is of its arguments."""
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


def instruction(told: Sequence[Mapping[str, Any]], *, forced: bool) -> str:
    """What a model is told whose chat template does not know tools; Hermes' tags, around them words of ours."""
    described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in told)
    form = '{"name": ..., "arguments": {...}}'
    how = f"Answer with one call as JSON: {form}" if forced else f"To call one, write {OPEN}{form}{CLOSE}"
    return f"These functions can be called, each described as JSON:\n<tools>\n{described}\n</tools>\n{how}"
