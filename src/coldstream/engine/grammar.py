"""Output that must follow a JSON Schema, a regular expression, a choice or a Lark grammar: a mask for each row.

llguidance (https://github.com/guidance-ai/llguidance) does the parsing. Its view of the vocabulary is built once, when
the first grammar comes, and takes up to two seconds (Gemma 3); compiled grammars are kept. A row's next mask is
computed on a thread beside the model's step, so that rows without a grammar do not wait for it.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from coldstream.engine.request import JSON_BLANKS, Grammar
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.errors import EngineError, InvalidRequest, TokenizerError

if TYPE_CHECKING:
    import llguidance

_KEPT = 64
_SHOWN = 1000
_QUOTED = re.compile(r"\s*(\d+ \||\^+\s*$)")
_SPOKEN = {"json_schema": "JSON Schema", "regex": "regular expression", "choice": "choice", "lark": "grammar"}
MAX_GRAMMAR_CHARACTERS = 256 * 1024


class Matcher:
    """The state of one row: which tokens may follow what was drawn so far."""

    def __init__(self, matcher: llguidance.LLMatcher, workers: ThreadPoolExecutor, vocab_size: int) -> None:
        self._matcher = matcher
        self._workers = workers
        self._vocab_size = vocab_size
        self._next: Future[bytes] | None = None

    @property
    def is_complete(self) -> bool:
        """The output is whole and nothing can be added."""
        return bool(self._matcher.is_stopped())

    def prepare(self) -> None:
        """Begin with the next mask, on another thread."""
        if self._next is None:
            self._next = self._workers.submit(self._matcher.compute_bitmask)

    @property
    def allowed(self) -> bytes:
        """The tokens that may follow: bit `i % 8` of byte `i // 8` is token i's; waits for `prepare`.

        None behind the end, which is that of the tokenizer's vocabulary or of the model's.

        Raises:
            EngineError: the grammar became too complex to follow.
        """
        self.prepare()
        assert self._next is not None
        mask = self._next.result()
        self._check()
        return mask[: -(-self._vocab_size // 8)]

    def consume(self, token_id: int) -> None:
        """Take the token that was drawn."""
        self._next = None
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"the grammar cannot be followed any further: {_reason(self._matcher.get_error())}")


class Grammars:
    """Compiles grammars for one tokenizer; safe to use from any thread, and slow: not for an event loop.

    The tokenizer is asked for its vocabulary when the first grammar comes; `stop_ids` may end a whole output.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, stop_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._stop_ids = sorted(stop_ids)
        self._lock = threading.Lock()
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, llguidance.LLMatcher] = OrderedDict()
        self._workers = ThreadPoolExecutor(1, thread_name_prefix="coldstream-grammar")

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the grammar's beginning.

        Raises:
            InvalidRequest: the grammar is broken or not supported; names its field.
        """
        with self._lock:
            compiled = self._compiled.pop(grammar, None)
            if compiled is None:
                compiled = self._compile(grammar)
            self._compiled[grammar] = compiled
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            return Matcher(compiled.deep_copy(), self._workers, self._vocab_size)

    def close(self) -> None:
        """End the thread."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        # Imported when the first grammar comes: the way to the first token does without it.
        import llguidance
        from llguidance import TokenizerWrapper

        source = _source(grammar)
        if self._vocabulary is None:
            # As many ids as the tokenizer has: Gemma 3's has one more than the text models' matrices have rows. And
            # no slices: they double the time that this holds the GIL, and masks are as quick without.
            try:
                spelled = TokenizerWrapper(_Spelled(self._tokenizer, self._stop_ids))
            except TokenizerError as exc:
                raise InvalidRequest(f"{grammar.field}: {exc}", field=grammar.field) from exc
            self._vocabulary = llguidance.LLTokenizer(spelled, eos_token=self._stop_ids or None, slices=[])
        matcher = llguidance.LLMatcher(self._vocabulary, source, log_level=0)
        if matcher.is_error():
            raise InvalidRequest(
                f"{grammar.field}: this {_SPOKEN[grammar.kind]} cannot be followed: {_reason(matcher.get_error())}",
                field=grammar.field,
            )
        return matcher


class _Spelled:
    """The tokenizer as llguidance asks for it. Given tokenizer.json it would build the library's tokenizer once more:
    3 s and 0.4 GB for Gemma 3, with the GIL held."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        known = tokenizer.vocabulary()
        self.tokens, self.special_token_ids = known.tokens, list(known.special)
        self.eos_token_id = stop_ids[0] if stop_ids else len(known.tokens) - 1
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _source(grammar: Grammar) -> str:
    """The grammar as llguidance takes it."""
    from llguidance import LLMatcher

    value, field = grammar.value, grammar.field
    size = len(value) if isinstance(value, str) else sum(map(len, value))
    if size > MAX_GRAMMAR_CHARACTERS:
        raise InvalidRequest(f"{field} has {size} characters; at most {MAX_GRAMMAR_CHARACTERS} are taken", field=field)
    if grammar.kind == "choice":
        return str(LLMatcher.grammar_from_lark(_choice(value, field)))
    if not isinstance(value, str):
        raise InvalidRequest(f"{field}: a {grammar.kind} is given as text", field=field)
    if grammar.kind == "json_schema":
        schema = _json_schema(value, field)
        return str(LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": JSON_BLANKS}))
    make = LLMatcher.grammar_from_regex if grammar.kind == "regex" else LLMatcher.grammar_from_lark
    return str(make(value))


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


def _reason(text: str) -> str:
    """The library's own words on one line, without the grammar that it quotes and the arrows under it.

    What is wrong often stands behind its first line, which only announces it.
    """
    lines = [line for line in text.splitlines() if not _QUOTED.match(line)]
    words = " ".join(" ".join(lines).split()) or "unknown error"
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."
