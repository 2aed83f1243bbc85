"""Finding the function calls in what a model wrote. Pure.

Models write calls in the form that they were trained on, one or several, amid text or alone:

    <tool_call>{"name": "f", "arguments": {...}}</tool_call>          Hermes, Qwen, SmolLM
    <tool_call><function=f><parameter=a>1</parameter></function>...   Qwen3-Coder, also without <tool_call>
    [TOOL_CALLS][{"name": "f", "arguments": {...}}]                   Mistral; later f[ARGS]{...} or f{...}
    <|python_tag|>{"name": "f", "parameters": {...}}; {...}           Llama 3, also without the tag
    ```json ... ```                                                   any of them, fenced

What looks like a call but names no known function, or cannot be read, is text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TAGS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>")
"""What stands around calls. In some vocabularies these are control tokens, whose names are no text unless asked for."""

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MISTRAL, _LLAMA, _XML, _FENCE = "[TOOL_CALLS]", "<|python_tag|>", "<function=", "```"
_OPENINGS = (_OPEN, _MISTRAL, _LLAMA, _XML, _FENCE)
_SIGN = re.compile("|".join(map(re.escape, _OPENINGS)) + r"|(?<=\n)[ \t]*[\[{]")
_INDENT = re.compile(r"(?<=\n)[ \t]+\Z")
_BETWEEN = re.compile(r"[\s;,]*")
_FENCED = re.compile(r"```[ \t]*\w*[ \t]*\n?(.*?)\n?[ \t]*```", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*(?=\{)")
_KEYS = ("name", "type", "function", "id", "arguments", "parameters")
_BEGINNINGS = tuple(f'{bracket}{{"{key}"' for bracket in ("", "[") for key in _KEYS)
# How much of a text says whether it can be a call in JSON.
_LOOK = 64
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Call:
    """A function call; `arguments` is JSON text, as OpenAI sends it."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}", compare=False)

    def as_json(self) -> dict[str, Any]:
        """The object in `message.tool_calls`."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class _Found:
    """How far a block that looked like calls goes, and the calls in it; none where it was text after all."""

    end: int
    calls: Sequence[Call] = ()


class CallReader:
    """Tells text from calls while an answer arrives: `push` gives the text that cannot be part of a call.

    `names` are the known functions, `schemas` those of their arguments, which say whether a parameter in XML is text.
    """

    def __init__(self, names: Sequence[str], schemas: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._names = frozenset(names)
        self._schemas = schemas or {}
        # The last character that was taken stands before what is held: a sign in JSON begins a line.
        self._held = "\n"
        self._looked = 0
        self._is_text = False
        self._follows_call = False
        self._calls: list[Call] = []

    def push(self, text: str) -> str:
        """Take a piece; the text that is certain now. From a sign of a call on, all waits for the call's end."""
        self._held += text
        said = self._read(final=False)
        if not self._is_text and not said.strip():  # it may stand before a call
            self._held = f"\n{said}{self._held[1:]}"
            return ""
        self._is_text = True
        return said

    def end(self) -> tuple[str, list[Call]]:
        """The answer is complete: the text that was held back, and all calls, in order."""
        rest = self._read(final=True)
        return rest if rest.strip() or not self._calls else "", self._calls

    def _read(self, *, final: bool) -> str:
        said = []
        while len(self._held) > 1:
            if self._follows_call and not self._left_gap(final):
                break
            sign = _SIGN.search(self._held, 1)
            if sign is None:
                said.append(self._take(len(self._held) - 1 - (0 if final else _beginning(self._held))))
                break
            said.append(self._take(sign.start() - 1))
            found = self._block(self._held, len(sign[0]), final)
            if found is None:
                break
            block = self._take(found.end - 1)
            self._calls += found.calls
            self._follows_call = bool(found.calls)
            if found.calls:
                self._held = f"\n{self._held[1:]}"
            else:
                said.append(block)
        return "".join(said)

    def _take(self, count: int) -> str:
        taken, self._held = self._held[1 : count + 1], self._held[count:]
        self._looked = 0
        return taken

    def _left_gap(self, final: bool) -> bool:
        """Leave out what stands between two calls, blanks or a semicolon; False while more of it may come."""
        end = _blank_end(self._held, 1)
        rest = self._held[end:]
        if not final and (not rest or any(opening.startswith(rest) for opening in _OPENINGS)):
            return False
        if not rest or rest.startswith((*_OPENINGS, "{", "[")):
            self._held = f"\n{rest}"
        self._follows_call = False
        return True

    def _block(self, text: str, size: int, final: bool) -> _Found | None:
        """The block that a sign of this size begins at 1; None while it may go on."""
        for opening, read in self._readers.items():
            if text.startswith(opening, 1):
                return read(text, 1, final)
        return self._bare(text, size, final)

    @property
    def _readers(self) -> Mapping[str, Callable[[str, int, bool], _Found | None]]:
        return {
            _OPEN: self._tagged,
            _MISTRAL: self._mistral,
            _LLAMA: self._python_tag,
            _XML: self._xml_alone,
            _FENCE: self._fenced,
        }

    def _tagged(self, text: str, start: int, final: bool) -> _Found | None:
        """`<tool_call>` to the first `</tool_call>` before which all are calls; the answer's end may replace that."""
        body = start + len(_OPEN)
        close = text.find(_CLOSE, max(body, self._looked))
        while close >= 0:
            calls = self._calls_in(text[body:close])
            if calls:
                return _Found(close + len(_CLOSE), calls)
            self._looked = close + 1
            close = text.find(_CLOSE, self._looked)
        if not final:
            return None
        again = text.find(_OPEN, body)
        calls = self._calls_in(text[body : again if again >= 0 else len(text)])
        if calls:
            return _Found(again if again >= 0 else len(text), calls)
        first = text.find(_CLOSE, body)
        return _Found(first + len(_CLOSE) if first >= 0 else body)

    def _mistral(self, text: str, start: int, final: bool) -> _Found | None:
        body = start + len(_MISTRAL)
        again = text.find(_MISTRAL, body)
        if again < 0 and not final:
            return None
        part = text[body : again if again >= 0 else len(text)]
        end, calls = self._leading(part)
        return _Found(body + end, calls) if calls else _Found(body)

    def _python_tag(self, text: str, start: int, final: bool) -> _Found | None:
        if not final:
            return None
        body = start + len(_LLAMA)
        end, calls = self._leading(text[body:])
        return _Found(body + end, calls) if calls else _Found(body)

    def _xml_alone(self, text: str, start: int, final: bool) -> _Found | None:
        found = _FUNCTION.match(text, start)
        if found is None:
            return _Found(start + len(_XML)) if final else None
        calls = self._calls_in(found[0])
        return _Found(found.end(), calls) if calls else _Found(start + len(_XML))

    def _fenced(self, text: str, start: int, final: bool) -> _Found | None:
        found = _FENCED.match(text, start)
        if found is not None:
            return _Found(found.end(), self._calls_in(found[1]) or ())
        if not final and _may_be_calls(text[start:].partition("\n")[2]):
            return None
        return _Found(start + len(_FENCE))

    def _bare(self, text: str, start: int, final: bool) -> _Found | None:
        """JSON at the beginning of a line, with nothing but further calls behind it on its own. Waits for the end."""
        is_tag = any(opening.startswith(text[start:]) for opening in _OPENINGS)
        if not is_tag and not _may_be_calls(text[start : start + _LOOK]):
            return _Found(start + 1)
        if not final:
            return None
        end, calls = self._leading(text[start:])
        follows = text[start + end :].partition("\n")[0].lstrip(" \t;,")
        return _Found(start + end, calls) if calls and follows[:1] in ("", "<", "`") else _Found(start + 1)

    def _leading(self, text: str) -> tuple[int, list[Call]]:
        """The calls at the beginning of a text, in JSON, and where they end."""
        end, calls = 0, list[Call]()
        while True:
            place = _blank_end(text, end)
            named = _NAMED.match(text, place)
            try:
                value, stop = _DECODER.raw_decode(text, named.end() if named else place)
            except (ValueError, RecursionError):
                return end, calls
            if named is not None:
                value = {"name": named[1], "arguments": value}
            found = self._calls_of(value)
            if found is None:
                return end, calls
            end, calls = stop, [*calls, *found]

    def _calls_in(self, text: str) -> list[Call] | None:
        """The calls, if all of the text are calls."""
        text = text.strip()
        fenced = _FENCED.fullmatch(text)
        if fenced is not None:
            text = fenced[1].strip()
        if text.startswith(_XML):
            return self._calls_in_xml(text)
        end, calls = self._leading(text)
        return calls if calls and not text[_blank_end(text, end) :] else None

    def _calls_in_xml(self, text: str) -> list[Call] | None:
        calls = []
        place = 0
        for found in _FUNCTION.finditer(text):
            name = found[1].strip()
            if text[place : found.start()].strip() or name not in self._names:
                return None
            calls.append(Call(name, self._arguments_in_xml(name, found[2])))
            place = found.end()
        return calls if calls and not text[place:].strip() else None

    def _arguments_in_xml(self, name: str, body: str) -> str:
        given = dict(_PARAMETER.findall(body))
        if not given and body.strip().startswith("{"):
            return body.strip()
        properties = self._schemas.get(name, {}).get("properties")
        known = properties if isinstance(properties, dict) else {}
        values = {key.strip(): _value(text, known.get(key.strip())) for key, text in given.items()}
        return json.dumps(values, ensure_ascii=False)

    def _calls_of(self, value: Any) -> list[Call] | None:
        calls = [self._call(item) for item in (value if isinstance(value, list) else [value])]
        known = [call for call in calls if call is not None]
        return known if known and len(known) == len(calls) else None

    def _call(self, item: Any) -> Call | None:
        if isinstance(item, dict) and isinstance(item.get("function"), dict):
            item = item["function"]
        if not isinstance(item, dict) or not isinstance(name := item.get("name"), str) or name not in self._names:
            return None
        arguments = item.get("arguments", item.get("parameters"))
        if isinstance(arguments, str):
            return Call(name, arguments)
        if arguments is None or isinstance(arguments, dict):
            return Call(name, json.dumps(arguments or {}, ensure_ascii=False))
        return None


def _value(text: str, schema: Any) -> Any:
    """A parameter in XML: as its schema's type has it, text where that is text or where it is no JSON."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _may_be_calls(text: str) -> bool:
    """Whether JSON that begins so can be a call or a list of them."""
    compact = "".join(text[:_LOOK].split())
    return any(compact.startswith(beginning) or beginning.startswith(compact) for beginning in _BEGINNINGS)


def _blank_end(text: str, place: int) -> int:
    found = _BETWEEN.match(text, place)
    return found.end() if found else place


def _beginning(text: str) -> int:
    """How many characters at the end of the text may be the beginning of a sign."""
    indent = _INDENT.search(text)
    return max(*_overlaps(text[1:]), len(indent[0]) if indent else 0)


def _overlaps(text: str) -> Iterator[int]:
    for opening in _OPENINGS:
        longest = min(len(text), len(opening) - 1)
        yield next((size for size in range(longest, 0, -1) if opening.startswith(text[-size:])), 0)
