"""Token ids -> text as it becomes certain: never half a character, never a part of a stop string.

Both parts cost O(1) a token, amortised: only the last few tokens are decoded again, and only a text as long as the
longest stop string is searched again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_REPLACEMENT = "�"
# A character is at most four UTF-8 bytes, hence four byte-fallback tokens: more than that cannot be half a character.
_LONGEST_CHARACTER = 4
_CONTEXT_TOKENS = 6
# The second halves of surrogate pairs.
_FIRST_MARK, _MOST_MARKS = 0xDC00, 0x400


class Decoding(Protocol):
    """What the detokenizer needs of a tokenizer."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the ids."""
        ...


class Detokenizer:
    """Text of a growing sequence of tokens.

    Decoders look at neighbours (a leading space, bytes of one character), so each piece of text is the difference of
    two decodings that begin one piece earlier; a piece begins and ends between characters. `context` are the tokens
    before the first one: the prompt's end. Control tokens have no text, but for those that `written` gives one.
    """

    def __init__(
        self, tokenizer: Decoding, context: Sequence[int] = (), *, written: Mapping[int, str] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._written = written or {}
        self._settled = list(context[-_CONTEXT_TOKENS:])
        self._before = self._decode(self._settled)
        if self._before.endswith(_REPLACEMENT):
            self._settled, self._before = [], ""
        self._pending: list[int] = []
        self._unsettled = ""

    def push(self, token_id: int) -> str:
        """The text that this token makes certain; empty while a character is incomplete."""
        if token_id in self._written:
            return self.flush() + self._written[token_id]
        self._pending.append(token_id)
        text = self._new_text()
        if text == self._unsettled and not self._decode([token_id]):
            self._pending.pop()  # a control token, which is no part of a character
            return ""
        self._unsettled = text
        if not text and len(self._pending) <= _CONTEXT_TOKENS:
            return ""
        if text.endswith(_REPLACEMENT) and len(self._pending) < _LONGEST_CHARACTER:
            return ""
        return self._settle(text)

    def flush(self) -> str:
        """The rest, at the end; an incomplete character becomes U+FFFD."""
        return self._settle(self._new_text())

    def _new_text(self) -> str:
        text = self._decode(self._settled + self._pending)
        if text.startswith(self._before):
            return text[len(self._before) :]
        # One wrong byte turns the whole run of bytes around it into U+FFFD, also what was settled before.
        return self._decode(self._pending)

    def _settle(self, text: str) -> str:
        if self._pending:
            self._settled, self._pending, self._unsettled = self._pending, [], ""
            self._before = self._decode(self._settled)
        return text

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


@dataclass(frozen=True, slots=True)
class Matched:
    """`text` may leave now; `stop` is the stop string that ended it, if one did."""

    text: str
    stop: str | None = None


class StopStrings:
    """Cuts a stream of text at the first stop string, and holds back what might be the start of one.

    Control tokens have no text, but a stop string may name them: `special` are their ids by their names. `marks` is
    what is to be pushed in place of those that stop strings name: half a surrogate pair each, which no text holds. They
    leave with no text.
    """

    def __init__(self, stops: Sequence[str], special: Mapping[str, int] | None = None) -> None:
        named = {name: number for name, number in (special or {}).items() if any(name in stop for stop in stops)}
        longest_first = sorted(named, key=len, reverse=True)
        marks = {name: chr(_FIRST_MARK + place) for place, name in enumerate(longest_first[:_MOST_MARKS])}
        self.marks = {named[name]: mark for name, mark in marks.items()}
        self._without_marks = dict.fromkeys(map(ord, self.marks.values()))
        self._stops = {stop: stop for stop in stops if stop}
        self._stops |= {_marked(stop, marks): stop for stop in self._stops}
        self._held = ""

    def visible(self, text: str) -> str:
        """The text without marks."""
        return text.translate(self._without_marks) if self.marks else text

    def push(self, text: str) -> Matched:
        """What of the held text and `text` is certain."""
        if not self._stops:
            return Matched(text)
        held = self._held + text
        found = self._first(held)
        if found is not None:
            self._held = ""
            return Matched(self.visible(held[: found[0]]), self._stops[found[1]])
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return Matched(self.visible(held[: len(held) - keep]))

    def flush(self) -> str:
        """What was held back; the text has ended and it was no stop string after all."""
        held, self._held = self.visible(self._held), ""
        return held

    def _first(self, text: str) -> tuple[int, str] | None:
        """The earliest match; the longest of those that begin together."""
        found = [(place, -len(stop), stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if not found:
            return None
        place, _, stop = min(found)
        return place, stop


def _marked(stop: str, marks: Mapping[str, str]) -> str:
    for name, mark in marks.items():
        stop = stop.replace(name, mark)
    return stop


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
