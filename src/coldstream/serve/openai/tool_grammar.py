"""What an output may be where tools are offered, as a grammar in llguidance's dialect of Lark. Pure.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md: `%json` is a rule made of a JSON Schema, whose
references stay within it, and `[lazy]` a rule that ends with its first match.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.engine.request import JSON_BLANKS, Grammar
from coldstream.errors import InvalidRequest
from coldstream.serve.openai.json_schema import closed, moved
from coldstream.serve.openai.tools import CLOSE, OPEN

Function = Mapping[str, Any]

_HEAD = "%llguidance {}\n"
_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Calls are written as Python's `json.dumps` writes, which is how models learn them; blanks would only cost tokens."""
_BLANKS = {"whitespace_pattern": JSON_BLANKS}
_TEXT = r"TEXT: /(.|\n)*/"
_BLANK = r"BLANK: /[ \n]{0,4}/"


def parameters(function: Function) -> dict[str, Any]:
    """The schema of a function's arguments: always an object, and, unless it says otherwise, without properties that it
    does not name. All that this admits the function's own schema admits too; left open, small models fill the rest.
    """
    schema = {"type": "object", **(function.get("parameters") or {"properties": {}})}
    return closed(schema)


def only_arguments(function: Function) -> Grammar:
    """The whole output is the arguments of this function: `tool_choice` names it."""
    return Grammar(
        "lark", f"{_HEAD}start: arguments\narguments: {_json(parameters(function), _WRITTEN)}", "tool_choice"
    )


def one_call(functions: Sequence[Function]) -> Grammar:
    """The whole output is one call to one of the functions, as JSON: `tool_choice` "required"."""
    return Grammar("lark", f"{_HEAD}start: call\n{_calls(functions, strict_only=False)}", "tool_choice")


def answer_or_calls(functions: Sequence[Function], answer: Grammar, *, tagged: str | None, parallel: bool) -> Grammar:
    """The output is what `answer` wants, or calls. `tagged`: how the grammar spells the tag before a call (see
    `opening`); None: a call is bare JSON, and alone.

    Raises:
        InvalidRequest: an answer of this kind cannot be joined with calls.
    """
    if tagged is None and answer.kind == "json_schema":
        return _one_schema(functions, answer)
    called = "call" if tagged is None else "tagged (BLANK tagged)*" if parallel else "tagged"
    rules = [
        f"start: answer | {called}",
        f"answer: {_answer(answer)}",
        *([] if tagged is None else [f'tagged: {tagged} BLANK call BLANK "{CLOSE}"', _BLANK]),
        _calls(functions, strict_only=False),
    ]
    return Grammar("lark", _HEAD + "\n".join(rules), answer.field)


def _one_schema(functions: Sequence[Function], answer: Grammar) -> Grammar:
    """An answer or a bare call: two rules that begin with a brace would be two lexemes, of which one wins."""
    options = [moved(_schema(answer), "#/anyOf/0")]
    for place, function in enumerate(functions, 1):
        arguments = moved(parameters(function), f"#/anyOf/{place}/properties/arguments")
        called = {"name": {"const": function["name"]}, "arguments": arguments}
        options.append(
            {"type": "object", "properties": called, "required": list(called), "additionalProperties": False}
        )
    return Grammar("json_schema", json.dumps({"anyOf": options}, ensure_ascii=False), answer.field)


def text_with_calls(functions: Sequence[Function], *, tagged: str) -> Grammar:
    """Any text, in which what follows the tag of a call is a call, with arguments that its strict function accepts."""
    begin = f"begin[lazy]: TEXT {tagged}" if tagged.startswith('"') else f"begin: TEXT {tagged}"
    rules = [
        "start: (begin rest)* TEXT",
        begin,
        f'rest: BLANK call BLANK "{CLOSE}"',
        _TEXT,
        _BLANK,
        _calls(functions, strict_only=True),
    ]
    return Grammar("lark", _HEAD + "\n".join(rules), "tools")


def opening(*, is_special: bool) -> str:
    """How a grammar spells the tag before a call: a special token is not the text of its name."""
    return OPEN if is_special else json.dumps(OPEN)


def _calls(functions: Sequence[Function], *, strict_only: bool) -> str:
    """The rules of a call as JSON. `strict_only`: arguments of functions that are not strict are any object."""
    rules = ["call: " + " | ".join(f"call_{place}" for place in range(len(functions)))]
    for place, function in enumerate(functions):
        schema = parameters(function) if not strict_only or function.get("strict") else {"type": "object"}
        begin = json.dumps(f'{{"name": {json.dumps(function["name"])}, "arguments": ')
        rules += [f'call_{place}: {begin} arguments_{place} "}}"', f"arguments_{place}: {_json(schema, _WRITTEN)}"]
    return "\n".join(rules)


def _answer(answer: Grammar) -> str:
    if answer.kind == "choice":
        return " | ".join(json.dumps(choice) for choice in answer.value)
    return _json(_schema(answer), _BLANKS)


def _schema(answer: Grammar) -> Any:
    if answer.kind == "json_schema" and isinstance(answer.value, str):
        return json.loads(answer.value)
    message = f"{answer.field}: a {answer.kind} cannot be joined with tools; leave one of them out, or set tool_choice"
    raise InvalidRequest(message, field=answer.field, allowed=("json", "choice"))


def _json(schema: Any, options: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({'x-guidance': options, **schema} if isinstance(schema, dict) else schema)}"
