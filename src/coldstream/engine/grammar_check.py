"""What a grammar says as llguidance takes it, and what it costs to compile, found out in a worker.

llguidance counts what it does, and stops beyond its limits; what it does not count, it does without end (the remainders
of `multipleOf`). So a grammar is compiled in a worker first, whose time and memory are bounded, and in our process only
when that went well. What compiling costs does not depend on the vocabulary, so that the worker has one of bytes, and
the control tokens that the grammar names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from coldstream.engine.request import JSON_BLANKS
from coldstream.errors import InvalidRequest
from coldstream.host.process import resident
from coldstream.workers.limits import Limits

if TYPE_CHECKING:
    import llguidance

    from coldstream.engine.request import Grammar
    from coldstream.workers.workers import Workers

LIMITS = Limits(seconds=3.0, memory=128 * 1024 * 1024, output=4 * 1024 * 1024)
MAX_GRAMMAR_CHARACTERS = 256 * 1024
_WORK = "coldstream.engine.grammar_check:GrammarCheck"
_SHOWN = 1000
_QUOTED = re.compile(r"\s*(\d+ \||\^+\s*$)")
_SPOKEN = {"json_schema": "JSON Schema", "regex": "regular expression", "choice": "choice", "lark": "grammar"}
_END = 256


def checked(grammar: Grammar, workers: Workers, control_tokens: Iterable[str] = ()) -> tuple[str, int]:
    """The grammar for `compiled`, and the bytes of memory that this will take.

    `control_tokens` are the vocabulary's, by their names, which a Lark grammar may stand on.

    Raises:
        InvalidRequest: it is broken, or not supported; names its field.
        TooCostly: it takes more than the limits.
    """
    _check_size(grammar)
    text = grammar.value if grammar.kind == "lark" and isinstance(grammar.value, str) else ""
    named = sorted(name for name in control_tokens if name in text)
    what = {"kind": grammar.kind, "value": grammar.value, "field": grammar.field, "control_tokens": named}
    subject = f"{grammar.field}: compiling this {_SPOKEN[grammar.kind]}"
    source, cost = workers.call(_WORK, what, limits=LIMITS, subject=subject, field=grammar.field)
    return source, cost


def compiled(vocabulary: llguidance.LLTokenizer, source: str, kind: str, field: str) -> llguidance.LLMatcher:
    """A matcher at the grammar's beginning.

    Raises:
        InvalidRequest: it cannot be followed; names its field.
    """
    from llguidance import LLMatcher, LLParserLimits

    # Verbose errors hold the grammar and what was written so far, which are the caller's, and not for a log.
    limits = LLParserLimits(max_lexer_states=100_000, verbose_errors=False)
    matcher = LLMatcher(vocabulary, source, log_level=0, limits=limits)
    if matcher.is_error():
        message = f"{field}: this {_SPOKEN[kind]} cannot be followed: {reason(matcher.get_error())}"
        raise InvalidRequest(message, field=field)
    return matcher


def reason(text: str) -> str:
    """The library's own words on one line, without the grammar that it quotes and the arrows under it.

    What is wrong often stands behind its first line, which only announces it.
    """
    lines = [line for line in text.splitlines() if not _QUOTED.match(line)]
    words = " ".join(" ".join(lines).split()) or "unknown error"
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."


class GrammarCheck:
    """The worker's side."""

    def __init__(self) -> None:
        self._bytes = _vocabulary(())

    def __call__(self, argument: Any, data: bytes) -> tuple[str, int]:
        """The grammar as llguidance takes it, and the bytes of memory that compiling it and its first mask took."""
        kind, field, value = argument["kind"], argument["field"], argument["value"]
        before = resident()
        try:
            source = _source(kind, tuple(value) if isinstance(value, list) else value, field)
        except UnicodeError as exc:
            raise InvalidRequest(f"{field} holds half a surrogate pair, which is no character", field=field) from exc
        named = argument["control_tokens"]
        matcher = compiled(_vocabulary(named) if named else self._bytes, source, kind, field)
        matcher.compute_bitmask()
        if matcher.is_error():
            message = f"{field}: this {_SPOKEN[kind]} cannot be followed: {reason(matcher.get_error())}"
            raise InvalidRequest(message, field=field)
        return source, max(resident() - before, 0)


def _vocabulary(control_tokens: Iterable[str]) -> llguidance.LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes(control_tokens)), eos_token=[_END], slices=[])


class _Bytes:
    """A vocabulary of bytes, and of some control tokens."""

    def __init__(self, control_tokens: Iterable[str]) -> None:
        special = (b"<end>", *(name.encode() for name in control_tokens))
        self.tokens: Sequence[bytes] = (*(bytes([value]) for value in range(_END)), *special)
        self.special_token_ids: Sequence[int] = list(range(_END, len(self.tokens)))
        self.eos_token_id = _END
        self.bos_token_id = None

    def __call__(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))


def _check_size(grammar: Grammar) -> None:
    value, field = grammar.value, grammar.field
    size = len(value) if isinstance(value, str) else sum(map(len, value))
    if size > MAX_GRAMMAR_CHARACTERS:
        raise InvalidRequest(f"{field} has {size} characters; at most {MAX_GRAMMAR_CHARACTERS} are taken", field=field)


def _source(kind: str, value: str | tuple[str, ...], field: str) -> str:
    from llguidance import LLMatcher

    if kind == "choice":
        return str(LLMatcher.grammar_from_lark(_choice(value, field)))
    if not isinstance(value, str):
        raise InvalidRequest(f"{field}: a {kind} is given as text", field=field)
    if kind == "json_schema":
        return _of_schema(_json_schema(value, field), field)
    make = LLMatcher.grammar_from_regex if kind == "regex" else LLMatcher.grammar_from_lark
    return str(make(value))


def _of_schema(schema: dict[str, Any], field: str) -> str:
    from llguidance import LLMatcher

    try:
        return str(LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": JSON_BLANKS}))
    except UnicodeError:
        raise
    except (ValueError, OverflowError) as exc:  # its words repeat the schema
        message = f"{field}: the JSON Schema holds what cannot be followed, as a number beyond 64 bits"
        raise InvalidRequest(message, field=field) from exc


def _choice(choices: str | tuple[str, ...], field: str) -> str:
    """A Lark grammar of the alternatives."""
    if isinstance(choices, str) or not choices or not all(choices):
        raise InvalidRequest(f"{field}: a choice is a list of texts, none of them empty", field=field)
    return "start: " + " | ".join(json.dumps(choice) for choice in dict.fromkeys(choices))


def _json_schema(text: str, field: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"{field}: the JSON Schema is not valid JSON: {exc}", field=field) from exc
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{field}: a JSON Schema is an object, not {text[:80]!r}", field=field)
    return schema
