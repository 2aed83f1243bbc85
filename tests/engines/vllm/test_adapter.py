"""The adapter on what vLLM really said (recording.json): its tokens, logprobs and ends as our events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from coldstream.engine.request import Request, SamplingParams
from coldstream.engines.vllm.engine import VllmEngine
from coldstream.errors import EngineError, InvalidRequest, PromptTooLong
from coldstream.model.config import ModelConfig
from coldstream.settings import EngineSettings
from coldstream.workers.workers import Workers
from tests.engines.vllm.record import CONFIG, PROMPT, RECORDING, REQUESTS
from tests.support.async_llm import RecordedLlm, ScriptedLlm, serve
from tests.support.parts import VOCAB, Inbox, make_decoder, make_engine, make_tokenizer

SAID = json.loads(RECORDING.read_text())


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


@pytest.fixture
def llm() -> RecordedLlm:
    return RecordedLlm(RECORDING)


@pytest.fixture
def engine(llm: RecordedLlm, workers: Workers) -> Iterator[VllmEngine]:
    made = serve(llm, make_tokenizer(), vocab_size=len(VOCAB), max_context=SAID["max_context"], workers=workers)
    yield made
    made.stop()


def answered(engine: Any, name: str) -> Inbox:
    inbox = Inbox()
    engine.submit(Request(name, PROMPT, REQUESTS[name]), inbox.deliver)
    inbox.wait(name)
    return inbox


def drawn(name: str) -> list[int]:
    outputs = SAID["requests"][name]["outputs"]
    return [token for item in outputs for token in item["completion"]["token_ids"]]


@pytest.mark.parametrize("name", ["greedy", "penalties", "stop token"])
def test_vllm_and_the_native_engine_draw_the_same_tokens_of_the_same_weights(engine: VllmEngine, name: str) -> None:
    config = ModelConfig.from_json(CONFIG)
    native = make_engine(make_decoder(CONFIG), config, settings=EngineSettings(kv_bytes=16 << 20, threads=1))
    native.start()
    try:
        ours, theirs = answered(native, name), answered(engine, name)
    finally:
        native.stop()
    assert theirs.ids(name) == ours.ids(name)
    assert theirs.text(name) == ours.text(name)
    last, other = theirs.events[name][-1], ours.events[name][-1]
    assert (last.finish_reason, last.stop_match) == (other.finish_reason, other.stop_match)


def test_logprobs_of_answer_and_prompt_are_the_native_ones(engine: VllmEngine) -> None:
    native = make_engine(make_decoder(CONFIG), ModelConfig.from_json(CONFIG))
    native.start()
    try:
        ours, theirs = answered(native, "greedy"), answered(engine, "greedy")
    finally:
        native.stop()
    for field in ("logprobs", "prompt_logprobs"):
        one, other = (
            [item for event in box.events["greedy"] for item in getattr(event, field)] for box in (ours, theirs)
        )
        assert len(one) == len(other) > 0
        for mine, their in zip(one, other, strict=True):
            assert (mine is None) == (their is None)
            if mine is not None and their is not None:
                assert (mine.token_id, mine.text, mine.raw) == (their.token_id, their.text, their.raw)
                assert their.logprob == pytest.approx(mine.logprob, abs=2e-3)
                assert [item.token_id for item in their.top] == [item.token_id for item in mine.top]


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_a_recorded_answer_is_told_whole(engine: VllmEngine, name: str) -> None:
    inbox = answered(engine, name)
    last = inbox.events[name][-1]
    assert last.error is None
    assert last.usage is not None
    assert last.usage.prompt_tokens == len(PROMPT)
    ids = inbox.ids(name)
    assert list(ids) == drawn(name)[: len(ids)]
    if not REQUESTS[name].stop:
        assert last.usage.completion_tokens == len(drawn(name))
    if "\ufffd" not in inbox.text(name):
        assert make_tokenizer().decode(ids).startswith(inbox.text(name))


@pytest.mark.parametrize(
    ("name", "text"),
    [("regex", r"[ab]{3}c"), ("choice", "yes|no"), ("lark", "xy"), ("json", r'\{"a":(true|false)\}')],
)
def test_a_grammar_was_obeyed(engine: VllmEngine, name: str, text: str) -> None:
    import re

    assert re.fullmatch(text, answered(engine, name).text(name))


def test_a_stop_string_ends_the_request_in_vllm_as_well(workers: Workers) -> None:
    async def at_once(place: int) -> None:
        """Nothing waits."""

    llm = ScriptedLlm(at_once)
    engine = serve(llm, make_tokenizer(), vocab_size=len(VOCAB), max_context=200, workers=workers)
    letters = tuple((VOCAB[f"<0x{byte:02X}>"], 100.0) for byte in b"abc")
    inbox = Inbox()
    params = SamplingParams(max_tokens=100, ignore_eos=True, logit_bias=letters, stop=("b",))
    engine.submit(Request("a", (5, 6), params), inbox.deliver)
    (last,) = inbox.wait("a")
    engine.stop()
    assert (last.finish_reason, last.stop_match) == ("stop", "b")
    assert "b" not in inbox.text("a")
    assert llm.aborted == ["a"]
    assert llm.is_shut_down


class Raising:
    """An AsyncLLM that refuses, as vLLM does with errors of its own."""

    errored = False

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> Any:
        raise self._error
        yield

    def shutdown(self, timeout: float | None = None) -> None:
        """It has nothing to end."""


def error_named(name: str, message: str, base: type[Exception] = Exception, **more: Any) -> Exception:
    made = type(name, (base,), {})(message)
    made.__dict__.update(more)
    return made


CLIENT = type("VLLMClientError", (Exception,), {})


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (
            error_named("VLLMValidationError", "too warm", CLIENT, parameter="temperature"),
            InvalidRequest,
            "temperature",
        ),
        (
            error_named("VLLMValidationError", "longer than the maximum model length of 8", CLIENT),
            PromptTooLong,
            "maximum model length",
        ),
        (error_named("EngineGenerateError", "it fell over"), EngineError, "it fell over"),
    ],
)
def test_what_vllm_raises_becomes_our_error(
    error: Exception, kind: type[Exception], told: str, workers: Workers
) -> None:
    engine = serve(Raising(error), make_tokenizer(), vocab_size=len(VOCAB), max_context=200, workers=workers)
    inbox = Inbox()
    engine.submit(Request("a", (5,)), inbox.deliver)
    (last,) = inbox.wait("a")
    assert type(last.error) is kind
    assert told in str(last.error)
    assert not engine.stats().died
    engine.stop()


def test_an_engine_whose_process_has_ended_says_so_and_takes_nothing_more(workers: Workers) -> None:
    dead = error_named("EngineDeadError", "EngineCore encountered an issue")
    engine = serve(Raising(dead), make_tokenizer(), vocab_size=len(VOCAB), max_context=200, workers=workers)
    inbox = Inbox()
    for key in ("a", "b"):
        engine.submit(Request(key, (5,)), inbox.deliver)
        inbox.wait(key)
    assert engine.stats().died
    assert all(inbox.events[key][-1].finish_reason == "error" for key in ("a", "b"))
    engine.stop()


def test_an_engine_whose_process_ends_while_nothing_is_asked_died_too(workers: Workers) -> None:
    async def at_once(place: int) -> None:
        """Nothing waits."""

    llm = ScriptedLlm(at_once)
    engine = serve(llm, make_tokenizer(), vocab_size=len(VOCAB), max_context=200, workers=workers)
    assert not engine.stats().died
    llm.errored = True
    assert engine.stats().died
    engine.stop()
    assert not engine.stats().died, "it was told to end"


def test_images_are_refused_by_a_model_that_takes_text_only(engine: VllmEngine) -> None:
    import numpy as np

    from coldstream.engine.request import PromptImage

    image = PromptImage(0, 1, np.zeros((2, 2, 3), np.uint8), b"d")
    with pytest.raises(InvalidRequest, match="text only"):
        engine.validate(Request("a", (5, 6), images=(image,)))
