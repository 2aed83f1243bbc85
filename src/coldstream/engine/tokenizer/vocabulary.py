"""The bytes of tokens, by their names; grammars and logprobs are told by them.

Two ways of writing bytes as names are known, and every model here uses one of them: byte-level (GPT-2: a printable
character for each byte) and byte-fallback (SentencePiece: text with U+2581 for a space, and <0x0A> for a lone byte).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_LONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Spell = Callable[[str], bytes]
"""The bytes that a token's name stands for."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`tokens[id]` is what the token stands for in UTF-8, empty for an id that is none; `special`: control tokens."""

    tokens: tuple[bytes, ...]
    special: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Names:
    """The names of tokens by their ids, those of `added` tokens apart, and the decoder, which says how they spell."""

    own: Mapping[int, str]
    added: Mapping[int, str]
    decoder: Mapping[str, Any]

    @classmethod
    def of(cls, backend: Any) -> Names:
        """Of a `tokenizers.Tokenizer`."""
        added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
        own = {number: name for name, number in backend.get_vocab(with_added_tokens=True).items()}
        return cls(own, added, decoder_of(backend))


def vocabulary(names: Names, special: Collection[int]) -> Vocabulary:
    """Of all tokens. Takes about half a second for 262,144 of them.

    Raises:
        ValueError: the decoder writes bytes in neither of the two ways.
    """
    return Vocabulary(tuple(_tokens(names)), tuple(sorted(special)))


def longest(names: Names) -> int | None:
    """How many characters a token covers at most; None where one may cover any number: what is unknown becomes one."""
    try:
        return max((len(token.decode(errors="replace")) for token in _tokens(names)), default=None)
    except ValueError:
        return None


def spelling(decoder: Mapping[str, Any]) -> Spell:
    """How a tokenizer with this decoder writes bytes; the decoder is what its `__getstate__` says.

    Raises:
        ValueError: in neither of the two ways.
    """
    kinds = {step.get("type") for step in decoder.get("decoders", [decoder])}
    if "ByteLevel" in kinds:
        bytes_of = {character: byte for byte, character in _byte_level().items()}
        return lambda name: (
            bytes(bytes_of[character] for character in name) if bytes_of.keys() >= set(name) else name.encode()
        )
    if "ByteFallback" in kinds or "Metaspace" in kinds:
        return _with_fallback
    raise ValueError(f"a grammar needs a byte-level or byte-fallback tokenizer; this one decodes by {sorted(kinds)}")


def decoder_of(backend: Any) -> dict[str, Any]:
    """What a `tokenizers.Tokenizer` says of its decoder; empty where it has none."""
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    return state


def _tokens(names: Names) -> Iterator[bytes]:
    spell = spelling(names.decoder)
    for number in range(1 + max((*names.own, *names.added))):
        if number in names.added:
            yield names.added[number].encode()
        else:
            name = names.own.get(number)
            yield b"" if name is None else spell(name)


def _with_fallback(name: str) -> bytes:
    lone = _LONE_BYTE.fullmatch(name)
    return bytes([int(lone[1], 16)]) if lone else name.replace("\u2581", " ").encode()


def _byte_level() -> Mapping[int, str]:
    """A printable character for each byte: itself where Latin-1 prints it, else the next one from U+0100 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}
