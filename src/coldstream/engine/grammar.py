"""Output that must follow a JSON Schema, a regular expression, a choice or a Lark grammar: a mask for each row.

llguidance (https://github.com/guidance-ai/llguidance) does the parsing. Its view of the vocabulary is built once, when
the first grammar comes, and takes up to two seconds (Gemma 3); compiled grammars are kept. A grammar is compiled here
only when a worker could do it within its limits (`grammar_check`); each mask then has limits of llguidance's own. A
row's next mask is computed on a thread beside the model's step, so that rows without a grammar do not wait for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldstream.engine.grammar_check import checked, compiled, reason
from coldstream.engine.request import Grammar
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.errors import InvalidRequest, TokenizerError
from coldstream.workers.workers import Workers

if TYPE_CHECKING:
    import llguidance

_KEPT = 64
_KEPT_BYTES = 128 * 1024 * 1024
"""Memory of all grammars that are kept."""


class Matcher:
    """The state of one row: which tokens may follow what was drawn so far."""

    def __init__(
        self, matcher: llguidance.LLMatcher, threads: ThreadPoolExecutor, vocab_size: int, field: str | None
    ) -> None:
        self._matcher = matcher
        self._threads = threads
        self._field = field
        self._vocab_size = vocab_size
        self._next: Future[bytes] | None = None

    @property
    def is_complete(self) -> bool:
        """The output is whole and nothing can be added."""
        return bool(self._matcher.is_stopped())

    def prepare(self) -> None:
        """Begin with the next mask, on another thread."""
        if self._next is None:
            self._next = self._threads.submit(self._matcher.compute_bitmask)

    @property
    def allowed(self) -> bytes:
        """The tokens that may follow: bit `i % 8` of byte `i // 8` is token i's; waits for `prepare`.

        None behind the end, which is that of the tokenizer's vocabulary or of the model's.

        Raises:
            InvalidRequest: the grammar became too complex to follow.
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
            message = f"{self._field}: the grammar cannot be followed any further: {reason(self._matcher.get_error())}"
            raise InvalidRequest(message, field=self._field)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A grammar's matcher at its beginning, and the bytes of memory that it takes."""

    matcher: llguidance.LLMatcher
    cost: int


class Grammars:
    """Compiles grammars for one tokenizer; safe to use from any thread, and slow: not for an event loop.

    The tokenizer is asked for its vocabulary when the first grammar comes; `stop_ids` may end a whole output.
    `workers` find out what a grammar costs; without any, these are made here, and closed.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int, stop_ids: frozenset[int], workers: Workers | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._stop_ids = sorted(stop_ids)
        self._compiling, self._lock = threading.Lock(), threading.Lock()
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._kept: OrderedDict[Grammar, _Compiled] = OrderedDict()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="coldstream-grammar")
        self._workers = workers or Workers()
        self._owns_workers = workers is None

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the grammar's beginning.

        Raises:
            InvalidRequest: the grammar is broken or not supported; names its field.
            TooCostly: compiling it takes more than the limits.
        """
        return self.prepared(grammar)()

    def prepared(self, grammar: Grammar) -> Callable[[], Matcher]:
        """Compile it now; what makes matchers at its beginning, on any thread, without waiting for another grammar.

        Raises:
            InvalidRequest, TooCostly: as `matcher`.
        """
        found = self._find(grammar)
        if found is None:
            with self._compiling:
                found = self._find(grammar) or self._compile(grammar)
            self._keep(grammar, found)
        first, threads = found.matcher, self._threads
        return lambda: Matcher(first.deep_copy(), threads, self._vocab_size, grammar.field)

    def close(self) -> None:
        """End the thread, and the workers that were made here."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._owns_workers:
            self._workers.close()

    def _find(self, grammar: Grammar) -> _Compiled | None:
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
            return self._kept.get(grammar)

    def _keep(self, grammar: Grammar, made: _Compiled) -> None:
        with self._lock:
            self._kept[grammar] = made
            total = sum(kept.cost for kept in self._kept.values())
            while self._kept and (len(self._kept) > _KEPT or total > _KEPT_BYTES):
                total -= self._kept.popitem(last=False)[1].cost

    def _compile(self, grammar: Grammar) -> _Compiled:
        source, cost = checked(grammar, self._workers, self._tokenizer.special_texts)
        if self._vocabulary is None:
            self._vocabulary = self._spelled(grammar)
        return _Compiled(compiled(self._vocabulary, source, grammar.kind, grammar.field), cost)

    def _spelled(self, grammar: Grammar) -> llguidance.LLTokenizer:
        # Imported when the first grammar comes: the way to the first token does without it.
        from llguidance import LLTokenizer, TokenizerWrapper

        # As many ids as the tokenizer has: Gemma 3's has one more than the text models' matrices have rows. And
        # no slices: they double the time that this holds the GIL, and masks are as quick without.
        try:
            spelled = TokenizerWrapper(_Spelled(self._tokenizer, self._stop_ids))
        except TokenizerError as exc:
            raise InvalidRequest(f"{grammar.field}: {exc}", field=grammar.field) from exc
        return LLTokenizer(spelled, eos_token=self._stop_ids or None, slices=[])


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
