"""The engine over a backend that answers late: what it knows of a step before the answer is there."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from coldstream.engine.engine import Engine
from coldstream.engine.request import Request
from coldstream.settings import EngineSettings
from tests.support.late_backend import LAYERS, LateBackend
from tests.support.parts import VOCAB, Inbox, make_tokenizer, request

PROMPT = [4 + 3 * place % 200 for place in range(100)]


class Config:
    vocab_size, max_positions = len(VOCAB), 400


def made(backend: LateBackend) -> Engine:
    return Engine(backend, make_tokenizer(), Config(), EngineSettings(kv_bytes=1 << 14, step_tokens=64))


def asked(key: str) -> Request:
    return request(key, PROMPT, max_tokens=8, ignore_eos=True)


def test_the_engine_is_imported_without_an_array_library() -> None:
    code = "import coldstream.engine.engine, sys; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("given_up", [1, 2])
def test_nothing_of_a_step_that_was_given_up_is_known_to_whom_comes_with_the_same_prompt(given_up: int) -> None:
    """The prompt takes two steps; in one of them its request goes, and the backend says so when it is asked."""
    entered, go_on = threading.Event(), threading.Event()

    def wait(step: int) -> None:
        if step == given_up:
            entered.set()
            assert go_on.wait(60)

    backend, inbox = LateBackend(len(VOCAB), wait), Inbox()
    engine = made(backend)
    engine.start()
    try:
        engine.submit(asked("gone"), inbox.deliver)
        assert entered.wait(60)
        engine.cancel("gone")
        go_on.set()
        engine.submit(asked("same"), inbox.deliver)
        (last,) = inbox.wait("same")
        assert backend.layers[given_up - 1] == 0, "a layer, for nobody"
        assert backend.layers[given_up] == LAYERS
        assert last.usage is not None
        assert last.usage.cached_tokens == 64 * (given_up - 1)
        assert engine.stats().blocks_used == 0
    finally:
        go_on.set()
        engine.stop()
    other = made(LateBackend(len(VOCAB)))
    other.start()
    other.submit(asked("fresh"), inbox.deliver)
    inbox.wait("fresh")
    other.stop()
    assert inbox.ids("same") == inbox.ids("fresh")


def test_a_step_is_not_computed_until_its_outcomes_are_there() -> None:
    """What an event may rest on: no other step begins, and no token is counted, while one is waited for."""
    entered, go_on = threading.Event(), threading.Event()

    def wait(step: int) -> None:
        entered.set()
        assert go_on.wait(60)

    backend, inbox = LateBackend(len(VOCAB), wait), Inbox()
    engine = made(backend)
    engine.start()
    try:
        engine.submit(asked("a"), inbox.deliver)
        assert entered.wait(60)
        engine.submit(asked("b"), inbox.deliver)
        assert (backend.steps, engine.stats().steps, engine.stats().completion_tokens) == (1, 0, 0)
        go_on.set()
        inbox.wait("a", "b")
        assert backend.steps == engine.stats().steps
    finally:
        go_on.set()
        engine.stop()
