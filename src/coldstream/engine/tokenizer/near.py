"""A tokenizer in this process for short texts, and in one of its own for what would hold the interpreter's lock."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from coldstream.engine.tokenizer.converted import ConvertedTokenizer
from coldstream.engine.tokenizer.process import TokenizerProcess
from coldstream.engine.tokenizer.vocabulary import Vocabulary
from coldstream.errors import ColdstreamError, TokenizerError

NEAR = 4096
"""Characters from which on a text is encoded in the other process: below, that takes some milliseconds."""


class NearTokenizer:
    """See `TokenizerBackend`: a converted tokenizer, and `begin`, which starts a process with the same one.

    That is done when it is first needed: the first long text waits for it.
    """

    def __init__(self, here: ConvertedTokenizer, begin: Callable[[], TokenizerProcess]) -> None:
        self._here = here
        self._begin = begin
        self._lock = threading.Lock()
        self._far: TokenizerProcess | None = None
        self.special_tokens = here.special_tokens
        self.special_ids = here.special_ids
        self.added_tokens = here.added_tokens
        self.decode = here.decode
        self.token_to_id = here.token_to_id
        self.id_to_token = here.id_to_token
        self.token_bytes = here.token_bytes
        self.learn = here.learn
        self.get_vocab_size = here.get_vocab_size

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Backend.encode`."""
        if len(text) >= NEAR:
            return self._apart().encode(text, add_special_tokens=add_special_tokens)
        with _as_errors_of_ours():
            return self._here.encode(text, add_special_tokens=add_special_tokens)

    def offsets(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Backend.offsets`."""
        if len(text) >= NEAR:
            return self._apart().offsets(text, add_special_tokens=add_special_tokens)
        with _as_errors_of_ours():
            return self._here.offsets(text, add_special_tokens=add_special_tokens)

    def longest_token(self) -> int | None:
        """See `Backend.longest_token`."""
        return self._apart().longest_token()

    def vocabulary(self) -> Vocabulary:
        """See `Backend.vocabulary`."""
        return self._apart().vocabulary()

    def _apart(self) -> TokenizerProcess:
        with self._lock:
            if self._far is None:
                self._far = self._begin()
            return self._far


@contextlib.contextmanager
def _as_errors_of_ours() -> Iterator[None]:
    try:
        yield
    except ColdstreamError:
        raise
    except Exception as exc:  # the library raises plain Exception
        raise TokenizerError(f"the converted tokenizer cannot encode the text: {exc}") from exc
