"""What every engine owes its requests: the native one over a backend that is late, and vLLM's adapter on a script."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import pytest

from coldstream.engine.engine import Engine
from coldstream.engine.request import TokenEvent
from coldstream.engines.protocol import EngineProtocol
from coldstream.errors import DeadlineExceeded, EngineError, InvalidRequest, PromptTooLong
from coldstream.settings import EngineSettings
from tests.support.async_llm import ScriptedLlm, serve
from tests.support.late_backend import LateBackend
from tests.support.parts import VOCAB, Inbox, make_tokenizer, request

CONTEXT = 200
LETTERS = tuple((VOCAB[f"<0x{byte:02X}>"], 100.0) for byte in b"abcdefghijklmnopqrstuvwxyz")
"""Answers are of whole characters."""


class Pacing:
    """Where an engine computes its tokens: `before` is called there, and may wait or raise."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.error: Exception | None = None

    def before(self, step: int) -> None:
        assert self.go_on.wait(60)
        if self.error is not None:
            raise self.error

    async def before_async(self, place: int) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.go_on.wait, 60)
        if self.error is not None:
            raise self.error


class Made(Protocol):
    def __call__(self, pacing: Pacing) -> EngineProtocol: ...


class Config:
    vocab_size, max_positions = len(VOCAB), CONTEXT


def native(pacing: Pacing) -> EngineProtocol:
    settings = EngineSettings(kv_bytes=1 << 14, max_sequences=8)
    engine = Engine(LateBackend(len(VOCAB), pacing.before), make_tokenizer(), Config(), settings)
    engine.start()
    return engine


def vllm(pacing: Pacing) -> EngineProtocol:
    llm = ScriptedLlm(pacing.before_async)
    return serve(llm, make_tokenizer(), vocab_size=len(VOCAB), max_context=CONTEXT)


MAKERS: Mapping[str, Made] = {"native": native, "vllm": vllm}


@pytest.fixture
def pacing() -> Pacing:
    return Pacing()


@pytest.fixture(params=list(MAKERS.values()), ids=list(MAKERS))
def engine(request: pytest.FixtureRequest, pacing: Pacing) -> Iterator[EngineProtocol]:
    made: EngineProtocol = request.param(pacing)
    yield made
    pacing.go_on.set()
    made.stop()


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


def asked(key: str, count: int = 12, *, deadline: float | None = None, **more: Any) -> Any:
    more = {"max_tokens": count, "ignore_eos": True, "logit_bias": LETTERS, **more}
    return request(key, more.pop("prompt", [5, 6, 7]), deadline=deadline, **more)


def ends(inbox: Inbox, key: str) -> list[TokenEvent]:
    return [event for event in inbox.events[key] if event.finish_reason is not None]


def test_tokens_and_their_text_come_in_pieces_and_an_end(engine: EngineProtocol, inbox: Inbox) -> None:
    engine.submit(asked("a"), inbox.deliver)
    (last,) = inbox.wait("a")
    assert last.finish_reason == "length"
    assert len(inbox.ids("a")) == 12
    assert inbox.text("a") == make_tokenizer().decode(inbox.ids("a"))
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 12)
    assert last.usage.first_token_seconds is not None
    assert all(event.usage is None for event in inbox.events["a"][:-1])


def test_a_request_gives_the_same_alone_and_beside_others(engine: EngineProtocol, inbox: Inbox) -> None:
    engine.submit(asked("alone"), inbox.deliver)
    inbox.wait("alone")
    keys = [str(number) for number in range(12)]
    for key in keys:
        engine.submit(asked(key), inbox.deliver)
        engine.submit(asked(f"other {key}", 5, prompt=[9] * (10 + int(key))), inbox.deliver)
    inbox.wait(*keys)
    assert {inbox.ids(key) for key in keys} == {inbox.ids("alone")}


def test_a_stop_token_ends_the_text_and_is_not_in_it(engine: EngineProtocol, inbox: Inbox) -> None:
    engine.submit(asked("whole"), inbox.deliver)
    inbox.wait("whole")
    stop = inbox.ids("whole")[4]
    place = inbox.ids("whole").index(stop)
    engine.submit(asked("cut", stop_token_ids=frozenset({stop})), inbox.deliver)
    (last,) = inbox.wait("cut")
    assert (last.finish_reason, last.stop_match) == ("stop", stop)
    assert inbox.ids("cut") == inbox.ids("whole")[:place]


def test_who_cancels_is_told_before_the_call_returns_and_hears_no_more(
    engine: EngineProtocol, pacing: Pacing, inbox: Inbox
) -> None:
    engine.submit(asked("gone", 150), inbox.deliver)
    engine.submit(asked("stays"), inbox.deliver)
    inbox.wait_for_token("gone")
    pacing.go_on.clear()
    engine.cancel("gone")
    assert [event.finish_reason for event in ends(inbox, "gone")] == ["cancelled"]
    heard = len(inbox.events["gone"])
    engine.cancel("gone")
    engine.cancel("nobody")
    pacing.go_on.set()
    assert inbox.wait("stays")[0].finish_reason == "length"
    assert len(inbox.events["gone"]) == heard


def test_an_id_is_free_again_once_its_request_has_ended(engine: EngineProtocol, pacing: Pacing, inbox: Inbox) -> None:
    pacing.go_on.clear()
    engine.submit(asked("a"), inbox.deliver)
    with pytest.raises(InvalidRequest, match="already"):
        engine.submit(asked("a"), inbox.deliver)
    engine.cancel("a")
    engine.submit(asked("a"), (again := Inbox()).deliver)
    pacing.go_on.set()
    assert again.wait("a")[0].finish_reason == "length"
    assert len(ends(inbox, "a")) == 1


def test_a_deadline_ends_a_request(engine: EngineProtocol, pacing: Pacing, inbox: Inbox) -> None:
    pacing.go_on.clear()
    engine.submit(asked("late", deadline=time.monotonic() + 0.05), inbox.deliver)
    engine.submit(asked("other"), inbox.deliver)
    threading.Timer(0.2, pacing.go_on.set).start()
    late, other = inbox.wait("late", "other")
    assert late.finish_reason == "deadline"
    assert isinstance(late.error, DeadlineExceeded)
    assert other.finish_reason == "length"


def test_what_fails_is_an_error_of_the_requests_in_it_and_the_next_one_is_answered(
    engine: EngineProtocol, pacing: Pacing, inbox: Inbox
) -> None:
    pacing.error = RuntimeError("a kernel fell over")
    engine.submit(asked("a"), inbox.deliver)
    (last,) = inbox.wait("a")
    assert last.finish_reason == "error"
    assert isinstance(last.error, EngineError)
    assert "a kernel fell over" in str(last.error)
    pacing.error = None
    engine.submit(asked("b"), inbox.deliver)
    assert inbox.wait("b")[0].finish_reason == "length"


def test_a_receiver_that_raises_disturbs_nobody(engine: EngineProtocol, inbox: Inbox) -> None:
    heard: list[TokenEvent] = []

    def broken(event: TokenEvent) -> None:
        heard.append(event)
        raise ValueError("gone")

    engine.submit(asked("broken", 100), broken)
    engine.submit(asked("fine"), inbox.deliver)
    assert inbox.wait("fine")[0].finish_reason == "length"
    assert sum(event.finish_reason is not None for event in heard) == 1


def test_a_request_out_of_range_is_refused(engine: EngineProtocol) -> None:
    for ask in (engine.validate, lambda item: engine.submit(item, print)):
        with pytest.raises(PromptTooLong, match=str(CONTEXT)):
            ask(request("a", [5] * CONTEXT))
        with pytest.raises(InvalidRequest, match="vocabulary"):
            ask(request("a", [len(VOCAB)]))
        with pytest.raises(InvalidRequest, match="temperature"):
            ask(request("a", [5], temperature=-1.0))


def test_a_drain_lets_finish_what_can_and_takes_nothing_new(
    engine: EngineProtocol, pacing: Pacing, inbox: Inbox
) -> None:
    engine.submit(asked("short", 3), inbox.deliver)
    inbox.wait("short")
    engine.submit(asked("runs"), inbox.deliver)
    engine.drain(30.0)
    assert inbox.wait("runs")[0].finish_reason == "length"
    engine.submit(asked("new"), inbox.deliver)
    (refused,) = ends(inbox, "new")
    assert refused.finish_reason == "error"
    assert isinstance(refused.error, EngineError)


@pytest.mark.parametrize(
    "end", [lambda engine: engine.stop(), lambda engine: engine.drain(0.05)], ids=["stop", "drain"]
)
def test_who_is_left_at_the_end_is_told(
    engine: EngineProtocol, pacing: Pacing, inbox: Inbox, end: Callable[[EngineProtocol], None]
) -> None:
    pacing.go_on.clear()
    for key in ("a", "b"):
        engine.submit(asked(key), inbox.deliver)
    threading.Timer(0.2, pacing.go_on.set).start()
    end(engine)
    for event in inbox.wait("a", "b"):
        assert event.finish_reason == "cancelled"
    engine.stop()
    assert [len(ends(inbox, key)) for key in ("a", "b")] == [1, 1]


def test_everybody_gets_exactly_one_end_whatever_happens(engine: EngineProtocol, pacing: Pacing, inbox: Inbox) -> None:
    keys = [str(number) for number in range(60)]

    def submit(mine: list[str]) -> None:
        for key in mine:
            engine.submit(asked(key, 1 + int(key) % 5), inbox.deliver)
            if int(key) % 5 == 0:
                engine.cancel(key)
            if int(key) % 17 == 0:
                pacing.error = RuntimeError("now and then") if pacing.error is None else None

    threads = [threading.Thread(target=submit, args=(keys[part::3],)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pacing.error = None
    inbox.wait(*keys[:30])
    engine.stop()
    inbox.wait(*keys)
    assert {len(ends(inbox, key)) for key in keys} == {1}
    assert all(inbox.events[key][-1].finish_reason is not None for key in keys)
    stats = engine.stats()
    assert stats.running == stats.waiting == 0
