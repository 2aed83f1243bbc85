"""Control tokens in a user's text are text: only a chat template writes those that begin and end turns.

Before a template is rendered, each control token in what a user gave is set between two marks; the template's own
stand bare. Encoding takes the marks away and what stands between them as plain text. The marks are halves of surrogate
pairs, which no text of a request can hold (RFC 8259, section 8.2), so nothing of the user's is lost or forged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from coldstream.errors import InvalidRequest

_BEGIN, _END = "\udc00", "\udc01"
_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}|[{_BEGIN}{_END}]")
_ESCAPED = (("\\udc00", _BEGIN), ("\\udc01", _END))
# Before a piece that is encoded by itself, so that no tokenizer takes it for the beginning of a text.
_BEFORE = "\n"


class ControlTokens:
    """The tokens of one model that mean something beside their letters."""

    def __init__(self, texts: Iterable[str]) -> None:
        longest_first = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
        self.texts = frozenset(longest_first)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def mark(self, value: Any) -> Any:
        """A copy of a text, or of lists and objects of texts, with these tokens marked in all values.

        Raises:
            InvalidRequest: a text holds half a surrogate pair.
        """
        if isinstance(value, str):
            if _BEGIN in value or _END in value:
                raise InvalidRequest("a text holds half a surrogate pair, which is no character", field="messages")
            return self._any.sub(rf"{_BEGIN}\g<0>{_END}", value)
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark(item) for item in value]
        return value


def unescaped(text: str) -> str:
    """The marks as they were, in JSON that was written with `ensure_ascii`."""
    for escaped, mark in _ESCAPED:
        text = text.replace(escaped, mark)
    return text


def unmarked(text: str) -> str:
    """The text without marks, as a person reads it."""
    return text.replace(_BEGIN, "").replace(_END, "")


def bare(text: str) -> str:
    """What a template wrote: the text without what stands between marks."""
    return _MARKED.sub(_BEGIN, text)


def replaced(text: str, old: str, new: str) -> str:
    """The text with `new` in place of each `old`, but for those between marks."""
    kept = [found[0] for found in _MARKED.finditer(text)]
    rest = iter(kept)
    return "".join(part + next(rest, "") for part in (piece.replace(old, new) for piece in _between(text)))


def _between(text: str) -> list[str]:
    places = [(found.start(), found.end()) for found in _MARKED.finditer(text)]
    begins = [0, *(end for _, end in places)]
    ends = [*(start for start, _ in places), len(text)]
    return [text[begin:end] for begin, end in zip(begins, ends, strict=True)]


def pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The text cut at its marks: (piece, whether it stood between two of them), none empty."""
    place = 0
    for found in _MARKED.finditer(text):
        if found.start() > place:
            yield text[place : found.start()], False
        if found[1]:
            yield found[1], True
        place = found.end()
    if place < len(text):
        yield text[place:], False


class Spelling(Protocol):
    """What `encode` asks of a tokenizer."""

    def ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of a text without marks."""

    def bare(self, text: str) -> list[int]:
        """The ids of a text in which no added token is looked for."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its exact name."""


def encode(tokenizer: Spelling, text: str, *, add_special_tokens: bool) -> list[int]:
    """The ids of a text that may hold marks.

    Raises:
        InvalidRequest: the tokenizer makes a control token of its letters, whatever is done.
    """
    if _BEGIN not in text and _END not in text:
        return tokenizer.ids(text, add_special_tokens=add_special_tokens)
    ids: list[int] = []
    before = tokenizer.bare(_BEFORE)
    for piece, is_text in pieces(text):
        if is_text:
            ids += _as_text(tokenizer, piece, before)
        elif not ids:
            ids += tokenizer.ids(piece, add_special_tokens=False)
        else:
            found = tokenizer.ids(_BEFORE + piece, add_special_tokens=False)
            ids += _behind(before, found) or tokenizer.ids(piece, add_special_tokens=False)
    return ids


def _as_text(tokenizer: Spelling, token: str, before: list[int]) -> list[int]:
    """The token's letters. Some tokenizers find the token in them all the same: then one letter after the other."""
    own = tokenizer.token_to_id(token)
    for parts in ((token,), tuple(token)):
        ids = [number for part in parts for number in _after(tokenizer, part, before)]
        if own not in ids:
            return ids
    raise InvalidRequest(
        f"{token!r} is a control token of this model, and its tokenizer cannot write it as text", field="messages"
    )


def _after(tokenizer: Spelling, text: str, before: list[int]) -> list[int]:
    return _behind(before, tokenizer.bare(_BEFORE + text)) or tokenizer.bare(text)


def _behind(before: list[int], ids: list[int]) -> list[int]:
    """The ids behind those that stand before a piece; none where the tokenizer has joined the two."""
    return ids[len(before) :] if ids[: len(before)] == before else []
