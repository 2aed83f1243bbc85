"""The texts that a converted tokenizer is held against its source on: scripts, blanks, numbers, code, added tokens."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from coldstream.engine.tokenizer.added_tokens import AddedToken

COUNT = 1000
_RANGES = (
    (0x00, 0x20), (0x20, 0x7F), (0x20, 0x7F), (0x7F, 0xA0), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530),
    (0x590, 0x600), (0x600, 0x700), (0x900, 0xE80), (0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2070),
    (0x2070, 0x2C00), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xE000, 0xE010), (0xFE00, 0xFE10),
    (0xFF00, 0xFFEF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x20100), (0xE0000, 0xE0080),
)  # fmt: skip
_BLANKS = " \t\n\r\x0b\x0c\x85\u00a0\u2028\u3000\u200b\ufeff"
_WORDS = (
    "the", "Hello", "don't", "I'LL", "12345", "3.14", "https://example.com/a?b=c", "def f(x):", '{"a": 1}', "...",
    "\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "e\u0301", "\u0130", "\u4f60\u597d", "\uc548\ub155", "!!!",
    "\u0645\u0631\u062d\u0628\u0627", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a", "\u2581",
    "\u0120", "<0x0A>", "<|", "|>", "aaaaaaaaaaaa",
)  # fmt: skip


def check_texts(added: Collection[AddedToken], names: Sequence[bytes | None]) -> list[str]:
    """A thousand texts, the same for the same tokenizer."""
    drawn = random.Random(0)  # noqa: S311 (nothing secret is drawn)
    tokens = [token.content for token in added] or [""]
    words = [name.decode() for name in names if name is not None]
    return ["".join(_piece(drawn, tokens, words) for _ in range(drawn.randint(1, 6))) for _ in range(COUNT)]


def _piece(drawn: random.Random, tokens: Sequence[str], words: Sequence[str]) -> str:
    blank = " " if drawn.random() < 0.3 else ""
    kind = drawn.randrange(6)
    if kind == 0:
        return blank + drawn.choice(_WORDS)
    if kind == 1:
        return blank + drawn.choice(tokens)
    if kind == 2:
        return "".join(drawn.choice(_BLANKS) for _ in range(drawn.randint(1, 6)))
    if kind == 3:
        return blank + drawn.choice(words).replace("\u2581", " ").replace("\u0120", " ")
    first, behind = drawn.choice(_RANGES)
    return blank + "".join(chr(drawn.randrange(first, behind)) for _ in range(drawn.randint(1, 6)))
