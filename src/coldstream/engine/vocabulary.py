"""The bytes of every token, which a grammar is followed by; taken from a tokenizer of the `tokenizers` library.

Two ways of writing bytes as names are known, and every model here uses one of them: byte-level (GPT-2: a printable
character for each byte) and byte-fallback (SentencePiece: text with U+2581 for a space, and <0x0A> for a lone byte).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_LONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`tokens[id]` is what the token stands for in UTF-8, empty for an id that is none; `special`: control tokens."""

    tokens: tuple[bytes, ...]
    special: tuple[int, ...]


def vocabulary(backend: Any) -> Vocabulary:
    """Of a `tokenizers.Tokenizer`. Takes about half a second for 262,144 tokens.

    Raises:
        ValueError: its decoder writes bytes in neither of the two ways.
    """
    added = backend.get_added_tokens_decoder()
    spell = _spelling(json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {})
    size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
    names = (added[number].content if number in added else backend.id_to_token(number) for number in range(size))
    tokens = tuple(
        b"" if name is None else name.encode() if number in added else spell(name) for number, name in enumerate(names)
    )
    return Vocabulary(tokens, tuple(sorted(number for number, token in added.items() if token.special)))


def _spelling(decoder: Mapping[str, Any]) -> Callable[[str], bytes]:
    kinds = {step.get("type"): step for step in decoder.get("decoders", [decoder])}
    if "ByteLevel" in kinds:
        bytes_of = {character: byte for byte, character in _byte_level().items()}
        return lambda name: bytes(bytes_of[character] for character in name)
    if "ByteFallback" in kinds or "Metaspace" in kinds:
        return _with_fallback
    raise ValueError(f"a grammar needs a byte-level or byte-fallback tokenizer; this one decodes by {sorted(kinds)}")


def _with_fallback(name: str) -> bytes:
    lone = _LONE_BYTE.fullmatch(name)
    return bytes([int(lone[1], 16)]) if lone else name.replace("\u2581", " ").encode()


def _byte_level() -> Mapping[int, str]:
    """A printable character for each byte: itself where Latin-1 prints it, else the next one from U+0100 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}
