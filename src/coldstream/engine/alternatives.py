"""The alternatives to a token as they are kept until the answer is written: numbers, named when they are read.

An answer may hold a quarter of a million of them. As objects these take ten times the memory, and what else lives a
little longer lies between them and keeps it from being given back.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

from coldstream.engine.request import TokenLogprob

Spelling = tuple[bytes, str]
"""A token's bytes, and these as text."""


class Alternatives(Sequence[TokenLogprob]):
    """Ids and log probabilities (nats), best first; equal to any sequence of the same. `spellings` knows each id."""

    __slots__ = ("_ids", "_spellings", "_values")

    def __init__(self, best: Iterable[tuple[int, float]], spellings: Mapping[int, Spelling]) -> None:
        best = tuple(best)
        self._ids = array("I", [token for token, _ in best])
        self._values = array("d", [value for _, value in best])
        self._spellings = spellings

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> TokenLogprob: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[TokenLogprob, ...]: ...
    def __getitem__(self, place: int | slice) -> TokenLogprob | tuple[TokenLogprob, ...]:
        if isinstance(place, slice):
            return tuple(self[each] for each in range(*place.indices(len(self))))
        return named(self._ids[place], self._values[place], self._spellings)

    def spelled(self) -> Iterator[tuple[bytes, float]]:
        """The bytes of each and its log probability, without an object for each."""
        spellings = self._spellings
        return ((spellings[token][0], value) for token, value in zip(self._ids, self._values, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def spelled(top: Sequence[TokenLogprob]) -> Iterable[tuple[bytes, float]]:
    """The bytes and the log probabilities of a token's alternatives, however they are kept."""
    return top.spelled() if isinstance(top, Alternatives) else ((item.spelled, item.logprob) for item in top)


def named(token_id: int, logprob: float, spellings: Mapping[int, Spelling]) -> TokenLogprob:
    """A token without alternatives of its own."""
    raw, text = spellings[token_id]
    return TokenLogprob(token_id, text, logprob, raw=raw)
