"""Many requests through an engine: never more than the window, each in its place, none left behind."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.engine.request import Deliver, Request, TokenEvent
from coldstream.errors import ColdstreamError, EngineError
from coldstream.library.batch import answers, pieces
from coldstream.library.completion import Completion


class Shuffled:
    """An engine that ends a request at random whenever one is submitted or waited for; `bad` ends with an error."""

    def __init__(self, seed: int, *, window: int, bad: str | None = None) -> None:
        self.most, self.cancelled = 0, set[str]()
        self._chance, self._window, self._bad = random.Random(seed), window, bad
        self._open: dict[str, Deliver] = {}
        self.submitted = 0

    def submit(self, request: Request, deliver: Deliver) -> None:
        self.submitted += 1
        self._open[request.id] = deliver
        self.most = max(self.most, len(self._open))
        while len(self._open) >= self._window or (self._open and request.prompt_ids == (1,)):
            self._end(self._chance.choice(list(self._open)))

    def _end(self, number: str) -> None:
        deliver = self._open.pop(number)
        if number == self._bad:
            deliver(TokenEvent(number, finish_reason="error", error=EngineError("broken")))
            return
        deliver(TokenEvent(number, text=number, token_ids=(1,)))
        deliver(TokenEvent(number, text="!", token_ids=(2,), finish_reason="stop"))

    def cancel(self, request_id: str) -> None:
        self.cancelled.add(request_id)
        self._open.pop(request_id, None)

    def stats(self) -> Any:
        raise NotImplementedError

    @property
    def left(self) -> int:
        return len(self._open)


def requests(count: int) -> list[Request]:
    """The last one makes the engine end all that is left."""
    return [Request(str(place), (1,) if place == count - 1 else (2,)) for place in range(count)]


@given(st.integers(0, 60), st.integers(1, 9), st.integers(0, 1 << 32))
def test_each_answer_is_in_its_place_and_no_more_run_than_fit(count: int, window: int, seed: int) -> None:
    engine, heard = Shuffled(seed, window=window), list[Completion]()
    made = answers(engine, requests(count), window=window, ended=heard.append)
    assert [item.text for item in made] == [f"{place}!" for place in range(count)]
    assert all(item.token_ids == (1, 2) for item in made)
    assert engine.most <= window
    assert sorted(item.text for item in heard) == sorted(item.text for item in made)
    assert not engine.cancelled


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 1 << 32), st.data())
def test_one_that_fails_is_raised_and_ends_the_others(count: int, window: int, seed: int, data: st.DataObject) -> None:
    bad = str(data.draw(st.integers(0, count - 1)))
    engine = Shuffled(seed, window=window, bad=bad)
    with pytest.raises(EngineError, match="broken"):
        answers(engine, requests(count), window=window, ended=lambda _: None)
    assert engine.left == 0


def test_a_reader_that_leaves_ends_its_request() -> None:
    engine = Shuffled(0, window=9)
    list(pieces(engine, Request("whole", (1,))))
    assert not engine.cancelled
    begun = Begun()
    reading = pieces(begun, Request("left", (2,)))
    assert next(reading) == "a"
    reading.close()
    assert begun.cancelled == ["left"]


class Begun:
    """An engine that never ends."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def submit(self, request: Request, deliver: Deliver) -> None:
        deliver(TokenEvent(request.id, text="a"))

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def stats(self) -> Any:
        raise NotImplementedError


def test_an_end_that_is_no_answer_is_never_one() -> None:
    class Closed(Begun):
        def submit(self, request: Request, deliver: Deliver) -> None:
            deliver(TokenEvent(request.id, finish_reason="cancelled"))

    with pytest.raises(ColdstreamError, match="cancelled"):
        answers(Closed(), requests(1), window=1, ended=lambda _: None)
    with pytest.raises(ColdstreamError, match="cancelled"):
        list(pieces(Closed(), requests(1)[0]))
