"""How much of prompts a step may read while others wait for their next token. Learned from the steps themselves.

A step gives every sequence that draws one token, however much of a prompt it reads beside: on a slow processor a full
one takes seconds, and each stream stands still for them.
"""

from __future__ import annotations

BESIDE = 0.1
"""Seconds that a step may take beside sequences that draw. Where one takes most of them without any prompt, because the
model is large, twice those: its weights are not to be read for a few tokens at a time."""
_FIRST = 64
"""Tokens before it is known what one takes."""
_FEWEST = 32
"""Tokens of prompts in a step from which it is learned what one takes; fewer hide behind what a step takes anyway."""
_NEWS, _DELAY = 0.3, 0.05
"""The weight of the last step in what is expected; and of one that drew, took longer and may have been held up."""


class ReadingPace:
    """Expects what a step that only draws takes, and what a prompt's token beside it does; in seconds."""

    def __init__(self) -> None:
        self._alone: float | None = None
        self._token: float | None = None

    def took(self, seconds: float, *, read: int) -> None:
        """A step took so long, and read so many tokens of prompts."""
        if not read:
            late = self._alone is not None and seconds > self._alone
            self._alone = _mean(self._alone, seconds, _DELAY if late else _NEWS)
        elif read >= _FEWEST:
            rest = max(seconds - (self._alone or 0.0), seconds / 10)
            self._token = _mean(self._token, rest / read, _NEWS)

    def tokens(self, most: int) -> int:
        """How many tokens of prompts the next step may read beside sequences that draw, at most so many."""
        if self._token is None:
            return min(most, _FIRST)
        alone = self._alone or 0.0
        return min(most, int(max(BESIDE - alone, alone) / self._token))


def _mean(known: float | None, new: float, weight: float) -> float:
    return new if known is None else known + weight * (new - known)
