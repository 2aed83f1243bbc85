"""The `tokenizers` library as we use it: one tokenizer with all its tokens, in this process.

Encoding holds the GIL for all of it, a second for a million characters; process.py keeps that out of
a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coldstream.engine.tokenizer import control_tokens
from coldstream.engine.tokenizer.added_tokens import Declared, declare
from coldstream.engine.tokenizer.vocabulary import Names, Spell, Vocabulary, decoder_of, longest, spelling, vocabulary
from coldstream.errors import TokenizerError


class LibraryTokenizer:
    """A `tokenizers.Tokenizer` that knows what the other files declared; `source` is the checkpoint's URI.

    Raises:
        TokenizerError: it is not a tokenizer.json that the library can read.
    """

    def __init__(self, tokenizer_json: bytes, declared: Declared, *, source: str) -> None:
        import tokenizers

        self._where = f"{source}/tokenizer.json"
        try:
            self._backend: Any = tokenizers.Tokenizer.from_buffer(tokenizer_json)
            self._backend.no_truncation()
            self._backend.no_padding()
            self.special_ids = declare(self._backend, declared)
        except Exception as exc:  # the library raises plain Exception
            raise TokenizerError(f"{self._where} cannot be read by tokenizers: {exc}") from exc
        added = self._backend.get_added_tokens_decoder()
        self.added_tokens: dict[str, int] = {token.content: number for number, token in added.items()}
        self.decoder = decoder_of(self._backend)
        self._spell = spell_of(self.decoder)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Backend.encode`."""
        return control_tokens.encode(self, text, add_special_tokens=add_special_tokens)

    def ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """See `Spelling.ids`."""
        found: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return found

    def bare(self, text: str) -> list[int]:
        """See `Spelling.bare`."""
        words = words_of(text, self._backend.normalizer, self._backend.pre_tokenizer)
        return [token.id for word in words for token in self._backend.model.tokenize(word)]

    def offsets(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Backend.offsets`."""
        return starts(self._backend.encode(text, add_special_tokens=add_special_tokens).offsets)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """See `Backend.decode`."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_to_id(self, token: str) -> int | None:
        """See `Backend.token_to_id`."""
        number: int | None = self._backend.token_to_id(token)
        return number

    def id_to_token(self, id: int) -> str | None:
        """See `Backend.id_to_token`."""
        name: str | None = self._backend.id_to_token(id)
        return name

    def token_bytes(self, id: int) -> bytes | None:
        """See `Backend.token_bytes`."""
        return bytes_of(self.id_to_token(id), self.added_tokens, self._spell)

    def learn(self, ids: Sequence[int]) -> None:
        """See `Backend.learn`: they are here."""

    def get_vocab_size(self, *, with_added_tokens: bool = True) -> int:
        """See `Backend.get_vocab_size`."""
        size: int = self._backend.get_vocab_size(with_added_tokens)
        return size

    def longest_token(self) -> int | None:
        """See `Backend.longest_token`."""
        return longest(Names.of(self._backend))

    def vocabulary(self) -> Vocabulary:
        """See `Backend.vocabulary`."""
        try:
            return vocabulary(Names.of(self._backend), self.special_ids)
        except ValueError as exc:
            raise TokenizerError(f"{self._where}: {exc}") from exc


def spell_of(decoder: dict[str, Any]) -> Spell | None:
    """How the names of tokens spell bytes; None where they do not."""
    try:
        return spelling(decoder)
    except ValueError:
        return None


def bytes_of(name: str | None, added: dict[str, int], spell: Spell | None) -> bytes | None:
    """The bytes of a token by its name; None where it has none of its own."""
    if name is None:
        return b""
    if name in added:
        return name.encode()
    return spell(name) if spell is not None else None


def words_of(text: str, normalizer: Any, pre_tokenizer: Any) -> list[str]:
    """What the model of a tokenizer gets of a text without added tokens."""
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    if pre_tokenizer is None:
        return [text]
    return [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]


def starts(offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Where tokens begin in their text: one that the text does not hold, where the next one does."""
    found: list[int] = []
    place = offsets[-1][1] if offsets else 0
    for start, end in reversed(offsets):
        place = start if end > start else place
        found.append(place)
    return found[::-1]
