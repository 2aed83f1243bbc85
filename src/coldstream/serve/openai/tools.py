"""Tools: which functions a model is told about, and finding its calls in what it wrote. Pure.

Models write calls in the form that they were trained on. Three forms are read:

    <tool_call>{"name": "f", "arguments": {...}}</tool_call>     Hermes, Qwen, SmolLM: several, also amid text
    [{"name": "f", "arguments": {...}}]                          Mistral, behind its special token
    {"name": "f", "parameters": {...}}                           Llama 3: the whole answer is the call
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Call:
    """A function call; `arguments` is JSON text, as OpenAI sends it."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}", compare=False)

    def as_json(self) -> dict[str, Any]:
        """The object in `message.tool_calls`."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class CallReader:
    """Tells text from calls while an answer arrives: `push` gives the text that cannot be part of a call.

    What looks like a call but names no known function, or is no JSON, is text.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)
        self._held = ""
        self._is_text = False

    def push(self, text: str) -> str:
        """Take a piece; the text that is certain now. From the first sign of a call on, all waits for the end."""
        self._held += text
        start = self._held.lstrip()
        if not self._is_text and (not start or start[0] in "{["):
            return ""
        before, opened, _ = self._held.partition(OPEN)
        certain = len(before) if opened else len(self._held) - _overlap(self._held, OPEN)
        if not self._held[:certain].strip() and not self._is_text:
            return ""
        released, self._held = self._held[:certain], self._held[certain:]
        self._is_text = True
        return released

    def end(self) -> tuple[str, list[Call]]:
        """The answer is complete: the text that was held back, and all calls, in order."""
        whole = None if self._is_text else self._calls_in(self._held)
        if whole:
            return "", whole
        texts, calls = [], []
        for text, block, body in _blocks(self._held):
            found = self._calls_in(body)
            texts.append(text if found else text + block)
            calls += found or []
        rest = "".join(texts)
        return rest if rest.strip() or not calls else "", calls

    def _calls_in(self, text: str) -> list[Call] | None:
        """The calls, if the text is JSON and all of it are calls."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        calls = [self._call(item) for item in (value if isinstance(value, list) else [value])]
        known = [call for call in calls if call is not None]
        return known if known and len(known) == len(calls) else None

    def _call(self, item: Any) -> Call | None:
        if not isinstance(item, dict) or not isinstance(name := item.get("name"), str) or name not in self._names:
            return None
        arguments = item.get("arguments", item.get("parameters", {}))
        if isinstance(arguments, str):
            return Call(name, arguments)
        return Call(name, json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """(text before, the block, what stands in it); the last is only text. The end token may replace </tool_call>."""
    while True:
        before, opened, after = text.partition(OPEN)
        if not opened:
            yield before, "", ""
            return
        body, closed, text = after.partition(CLOSE)
        yield before, opened + body + closed, body


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of the text may be the beginning of the tag."""
    longest = min(len(text), len(tag) - 1)
    return next((size for size in range(longest, 0, -1) if tag.startswith(text[-size:])), 0)


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


def instruction(told: Sequence[Mapping[str, Any]], *, forced: bool) -> str:
    """What a model is told whose chat template does not know tools; Hermes' tags, around them words of ours."""
    described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in told)
    form = '{"name": ..., "arguments": {...}}'
    how = f"Answer with one call as JSON: {form}" if forced else f"To call one, write {OPEN}{form}{CLOSE}"
    return f"These functions can be called, each described as JSON:\n<tools>\n{described}\n</tools>\n{how}"
