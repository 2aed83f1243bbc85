"""Requests through a whole engine on real tiny models: right tokens in any company, and one end for everybody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from coldstream.backends.blocks import bytes_per_block
from coldstream.backends.gate import Gate
from coldstream.backends.torch.decoder import Decoder
from coldstream.backends.torch.layers import PendingTurn
from coldstream.engine.engine import Engine
from coldstream.engine.outbox import Verified
from coldstream.engine.request import Grammar
from coldstream.errors import DeadlineExceeded, EngineError, InvalidRequest, OutOfMemory, PromptTooLong
from coldstream.settings import EngineSettings
from tests.support.parts import EOS, GEMMA, LLAMA, VOCAB, Faulty, Inbox, make_decoder, make_engine, request

KERNELS = {**GEMMA, "head_dim": 16}
"""Heads of a size that our own attention takes."""


@pytest.fixture(scope="module", params=[LLAMA, GEMMA, KERNELS], ids=["llama", "gemma", "kernels"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return make_decoder(request.param)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def running() -> Iterator[Any]:
    engines: list[Engine] = []

    def start(decoder: Any, *, config: Any = None, **more: Any) -> Engine:
        engine = make_engine(decoder, config or decoder.config, **more)
        engines.append(engine)
        engine.start()
        return engine

    yield start
    for engine in engines:
        engine.stop()


def tokens(seed: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, len(VOCAB), (count,), generator=generator).tolist()


def reference(decoder: Decoder, prompt: list[int], count: int) -> tuple[int, ...]:
    """Greedy tokens by the plainest means: the whole text again for every token, attention written out."""
    ids = list(prompt)
    for _ in range(count):
        logits = decoder.forward(
            torch.tensor(ids), torch.arange(len(ids)), Plain(decoder.config), torch.tensor([len(ids) - 1])
        )
        ids.append(int(logits[0].argmax()))
    return tuple(ids[len(prompt) :])


class Plain:
    """Attention of one sequence as the textbook has it."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        window = self._config.layers[layer].window
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * self._config.attention_scale
        place = torch.arange(len(q))
        seen = place[None] <= place[:, None]
        if window is not None:
            seen &= place[None] > place[:, None] - window
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v).reshape(len(q), -1)


PROMPTS = [tokens(seed, count) for seed, count in enumerate((3, 70, 33, 1, 110, 64, 47))]
GREEDY = {"max_tokens": 24, "ignore_eos": True}


def answers(engine: Engine, inbox: Inbox, prompts: list[list[int]], **sampling: Any) -> list[tuple[int, ...]]:
    """All at once."""
    keys = [f"{len(inbox.events)}.{index}" for index in range(len(prompts))]
    for key, prompt in zip(keys, prompts, strict=True):
        engine.submit(request(key, prompt, **(sampling or GREEDY)), inbox.deliver)
    inbox.wait(*keys)
    return [inbox.ids(key) for key in keys]


@pytest.fixture(scope="module")
def expected(decoder: Decoder) -> list[tuple[int, ...]]:
    return [reference(decoder, prompt, 24) for prompt in PROMPTS]


@pytest.mark.parametrize(
    "settings",
    [
        EngineSettings(kv_bytes=16 << 20, threads=1),
        EngineSettings(kv_bytes=16 << 20, threads=1, step_tokens=32, max_sequences=3),
        EngineSettings(kv_bytes=16 << 20, threads=1, prefix_cache=False),
    ],
    ids=["batched", "chunked", "unshared"],
)
def test_greedy_output_is_the_same_alone_and_in_any_batch(
    decoder: Decoder, running: Any, inbox: Inbox, expected: list[tuple[int, ...]], settings: EngineSettings
) -> None:
    engine = running(decoder, settings=settings)
    assert answers(engine, inbox, PROMPTS) == expected, "first time, together"
    assert answers(engine, inbox, PROMPTS) == expected, "again, behind what was cached"
    assert [answers(engine, inbox, [prompt])[0] for prompt in PROMPTS] == expected, "one by one"
    assert bool(engine.stats().cached_tokens) is settings.prefix_cache


def test_greedy_output_survives_preemption(decoder: Decoder, running: Any, inbox: Inbox) -> None:
    budget = 8 * sum(
        bytes_per_block(decoder.config, 32, token_bytes=2 * decoder.config.kv_heads * decoder.config.head_dim * 4)
    )
    engine = running(decoder, settings=EngineSettings(kv_bytes=budget, threads=1, step_tokens=32))
    prompts = [tokens(seed, 3) for seed in range(5)]
    sampling = {"max_tokens": 90, "ignore_eos": True}
    assert answers(engine, inbox, prompts, **sampling) == [reference(decoder, prompt, 90) for prompt in prompts]
    assert engine.stats().preemptions > 0
    assert engine.stats().blocks_used == 0


def test_the_same_prompt_at_once_is_computed_once(decoder: Decoder, running: Any, inbox: Inbox) -> None:
    engine = running(decoder)
    outs = answers(engine, inbox, [PROMPTS[4]] * 4)
    assert len(set(outs)) == 1
    assert engine.stats().cached_tokens == 3 * 96


def test_a_seed_gives_the_same_tokens_in_any_batch(decoder: Decoder, running: Any, inbox: Inbox) -> None:
    engine = running(decoder)
    sampling = {"max_tokens": 20, "ignore_eos": True, "temperature": 1.0, "seed": 7}
    alone = answers(engine, inbox, [PROMPTS[1]], **sampling)[0]
    together = answers(engine, inbox, [PROMPTS[0], PROMPTS[1], PROMPTS[2]], **sampling)
    assert together[1] == alone
    assert answers(engine, inbox, [PROMPTS[1]], **{**sampling, "seed": 8})[0] != alone


def test_stop_ids_and_stop_strings_end_the_text_and_are_not_in_it(running: Any, inbox: Inbox) -> None:
    decoder = make_decoder(LLAMA)
    first, second = reference(decoder, PROMPTS[0], 2)
    engine = running(decoder)
    engine.submit(request("id", PROMPTS[0], stop_token_ids=frozenset({second})), inbox.deliver)
    text = engine.tokenizer.decode([first, second])
    engine.submit(request("text", PROMPTS[0], stop=(text[-1:],), ignore_eos=True), inbox.deliver)
    by_id, by_text = inbox.wait("id", "text")
    assert (by_id.finish_reason, by_id.stop_match, inbox.ids("id")) == ("stop", second, (first,))
    assert (by_text.finish_reason, by_text.stop_match) == ("stop", text[-1:])
    assert text[-1:] not in inbox.text("text")
    assert by_id.usage is not None
    assert (by_id.usage.prompt_tokens, by_id.usage.completion_tokens) == (3, 2)


def test_the_model_may_end_with_its_eos_token(running: Any, inbox: Inbox) -> None:
    decoder = Faulty(make_decoder(LLAMA))
    engine = running(decoder, config=decoder._decoder.config)
    decoder.spoil = lambda logits: torch.nn.functional.one_hot(torch.tensor([EOS] * len(logits)), len(VOCAB)).float()
    engine.submit(request("a", [5]), inbox.deliver)
    assert inbox.wait("a")[0].stop_match == EOS


def test_the_context_ends_a_text_as_length(running: Any, inbox: Inbox) -> None:
    engine = running(make_decoder(LLAMA), max_context=40)
    engine.submit(request("a", tokens(0, 30), max_tokens=1000, ignore_eos=True), inbox.deliver)
    assert inbox.wait("a")[0].finish_reason == "length"
    assert len(inbox.ids("a")) == 10


def test_logprobs_are_the_models_own_and_prompt_logprobs_score_the_prompt(running: Any, inbox: Inbox) -> None:
    decoder = make_decoder(GEMMA)
    prompt = PROMPTS[1]
    logits = decoder.forward(
        torch.tensor(prompt), torch.arange(len(prompt)), Plain(decoder.config), torch.arange(len(prompt))
    )
    scores = logits.log_softmax(-1)
    engine = running(decoder)
    sampling = {"max_tokens": 1, "ignore_eos": True, "logprobs": 2, "prompt_logprobs": 1, "temperature": 2.0}
    for key in ("a", "b"):  # the second finds its prompt in the cache and scores it all the same
        engine.submit(request(key, prompt, **sampling), inbox.deliver)
        inbox.wait(key)
        scored = [item for event in inbox.events[key] for item in event.prompt_logprobs]
        assert scored[0] is None
        assert [item.token_id for item in scored[1:]] == prompt[1:]
        assert [item.logprob for item in scored[1:]] == pytest.approx(
            [float(scores[place, token]) for place, token in enumerate(prompt[1:])], abs=1e-4
        )
        (drawn,) = (item for event in inbox.events[key] for item in event.logprobs)
        assert drawn.logprob == pytest.approx(float(scores[-1, drawn.token_id]), abs=1e-4)
        assert [top.token_id for top in drawn.top] == scores[-1].topk(2).indices.tolist()


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits(running: Any, inbox: Inbox) -> None:
    decoder = Faulty(make_decoder(LLAMA), before=lambda step, ids: time.sleep(0.01))
    engine = running(decoder, config=decoder._decoder.config, settings=EngineSettings(1, 64, 1 << 20, threads=1))
    soon = time.monotonic() + 0.3
    for key in ("runs", "waits"):
        engine.submit(request(key, [5], max_tokens=400, ignore_eos=True, deadline=soon), inbox.deliver)
    for event in inbox.wait("runs", "waits"):
        assert event.finish_reason == "deadline"
        assert isinstance(event.error, DeadlineExceeded)


def test_a_cancelled_request_gives_its_blocks_back(decoder: Decoder, running: Any, inbox: Inbox) -> None:
    engine = running(decoder)
    engine.submit(request("a", PROMPTS[1], max_tokens=400, ignore_eos=True), inbox.deliver)
    inbox.wait_for_token("a")
    engine.cancel("a")
    engine.cancel("nobody")
    assert inbox.wait("a")[0].finish_reason == "cancelled"
    assert engine.stats().waiting == 0
    answers(engine, inbox, [PROMPTS[0]], max_tokens=1)  # the steps go on: what was to be forgotten is
    assert engine.stats().blocks_used == 0


class Landing:
    """A decoder whose last layer has not landed; it remembers which layers' attention was computed, step by step."""

    def __init__(self, config: Any) -> None:
        self.full = make_decoder(config)
        self.config, self.attention_dtype = self.full.config, self.full.attention_dtype
        self.last = self.full.layers[-1].gate = Gate("the last layer")
        self.steps: list[list[int]] = []
        self.waits = threading.Event()

    def forward(self, ids: Tensor, positions: Tensor, attend: Any, rows: Tensor) -> Tensor:
        done: list[int] = []
        self.steps.append(done)

        def attending(layer: int, q: Tensor, k: Tensor, v: Tensor, pending: PendingTurn | None = None) -> Tensor:
            out: Tensor = attend(layer, q, k, v, pending)
            done.append(layer)
            if layer == len(self.full.layers) - 2:
                self.waits.set()
            return out

        return self.full.forward(ids, positions, attending, rows)


def test_a_client_that_goes_while_a_layer_has_not_landed_is_gone_at_once_and_its_step_stops_there(
    running: Any, inbox: Inbox
) -> None:
    decoder = Landing(GEMMA)
    engine = running(decoder)
    engine.submit(request("gone", PROMPTS[1], **GREEDY), inbox.deliver)
    assert decoder.waits.wait(60)
    engine.cancel("gone")
    assert [event.finish_reason for event in inbox.events["gone"]] == ["cancelled"], "ended, with bytes still to come"
    assert engine.stats().waiting + engine.stats().running <= 1
    decoder.last.open()
    assert answers(engine, inbox, [PROMPTS[2]]) == [reference(decoder.full, PROMPTS[2], 24)]
    assert decoder.steps[0] == [0, 1], "the last layer, for nobody"
    assert engine.stats().blocks_used == 0
    assert len(inbox.events["gone"]) == 1


def test_who_shares_a_step_with_a_client_that_goes_while_a_layer_has_not_landed_gets_its_answer(
    inbox: Inbox,
) -> None:
    decoder = Landing(GEMMA)
    engine = make_engine(decoder, decoder.config)
    engine.submit(request("gone", PROMPTS[1], **GREEDY), inbox.deliver)
    engine.submit(request("stays", PROMPTS[2], **GREEDY), inbox.deliver)
    engine.start()
    try:
        assert decoder.waits.wait(60)
        engine.cancel("gone")
        assert [event.finish_reason for event in inbox.events["gone"]] == ["cancelled"]
        decoder.last.open()
        inbox.wait("stays")
        assert inbox.ids("stays") == reference(decoder.full, PROMPTS[2], 24)
        assert decoder.steps[0] == [0, 1, 2]
        assert engine.stats().blocks_used == 0
    finally:
        decoder.last.open()
        engine.stop()


def test_a_step_that_raises_ends_who_was_in_it_and_the_engine_goes_on(running: Any, inbox: Inbox) -> None:
    def break_third(step: int, ids: Tensor) -> None:
        if step == 3:
            raise RuntimeError("a kernel fell over")

    decoder = Faulty(make_decoder(LLAMA), before=break_third)
    engine = running(decoder, config=decoder._decoder.config)
    engine.submit(request("a", [5], max_tokens=10, ignore_eos=True), inbox.deliver)
    (event,) = inbox.wait("a")
    assert event.finish_reason == "error"
    assert isinstance(event.error, EngineError)
    assert "a kernel fell over" in str(event.error)
    assert answers(engine, inbox, PROMPTS[:2]) == [reference(decoder._decoder, prompt, 24) for prompt in PROMPTS[:2]]


def test_logits_that_are_not_numbers_end_only_their_own_request(running: Any, inbox: Inbox) -> None:
    decoder = Faulty(make_decoder(LLAMA))
    engine = running(decoder, config=decoder._decoder.config)

    def spoil(logits: Tensor) -> Tensor:
        if len(logits) == 2:
            logits[0] = float("nan")
        return logits

    decoder.spoil = spoil
    outs = {}
    for key in ("a", "b"):
        engine.submit(request(key, tokens(ord(key), 5), max_tokens=30, ignore_eos=True), inbox.deliver)
    for event in inbox.wait("a", "b"):
        outs[event.request_id] = event.finish_reason
    assert sorted(outs.values()) in (["error", "length"], ["length", "length"])
    assert engine.stats().errors == list(outs.values()).count("error")


def test_a_receiver_that_raises_is_cancelled_and_disturbs_nobody(running: Any, inbox: Inbox) -> None:
    engine = running(make_decoder(LLAMA))
    seen: list[Any] = []

    def broken(event: Any) -> None:
        seen.append(event)
        raise ValueError("gone")

    engine.submit(request("broken", [5], max_tokens=100, ignore_eos=True), broken)
    engine.submit(request("fine", [5], max_tokens=5, ignore_eos=True), inbox.deliver)
    assert inbox.wait("fine")[0].finish_reason == "length"
    engine.drain(5.0)
    assert [event.finish_reason for event in seen].count(None) < len(seen)
    assert sum(event.finish_reason is not None for event in seen) == 1


def test_nothing_leaves_before_the_weights_are_verified(running: Any, inbox: Inbox) -> None:
    decoder = Faulty(make_decoder(LLAMA))
    engine = running(decoder, config=decoder._decoder.config, verified=Verified.NOTHING)
    engine.submit(request("a", PROMPTS[0], max_tokens=5, ignore_eos=True), inbox.deliver)
    engine.submit(request("cancelled", PROMPTS[0], max_tokens=5), inbox.deliver)
    engine.cancel("cancelled")
    inbox.wait("cancelled")
    while decoder.steps < 5:
        time.sleep(0.001)
    assert not inbox.events["a"]
    engine.release()
    inbox.wait("a")
    assert inbox.ids("a") == reference(decoder._decoder, PROMPTS[0], 5)


def test_what_was_computed_on_replaced_weights_is_computed_again(running: Any, inbox: Inbox) -> None:
    wrong, right = make_decoder(LLAMA, seed=1), make_decoder(LLAMA, seed=0)

    class Replaced:
        attention_dtype = torch.float32
        now = wrong
        steps = 0

        def forward(self, *arguments: Any) -> Tensor:
            self.steps += 1
            return self.now.forward(*arguments)

    decoder = Replaced()
    engine = running(decoder, config=right.config, verified=Verified.NOTHING)
    engine.submit(request("a", PROMPTS[1], **GREEDY), inbox.deliver)
    while decoder.steps < 3:
        time.sleep(0.001)
    decoder.now = right
    engine.recompute_all()
    engine.release()
    inbox.wait("a")
    assert inbox.ids("a") == reference(right, PROMPTS[1], 24)


def test_a_failed_load_ends_everybody_with_its_error(running: Any, inbox: Inbox) -> None:
    landed = threading.Event()
    decoder = Faulty(make_decoder(LLAMA), before=lambda step, ids: landed.wait(30) and None)
    engine = running(decoder, config=decoder._decoder.config, verified=Verified.NOTHING)
    engine.submit(request("a", [5]), inbox.deliver)
    error = EngineError("the bucket is gone")
    engine.fail(error)
    assert inbox.wait("a")[0].error is error
    engine.submit(request("b", [5]), inbox.deliver)
    assert inbox.wait("b")[0].error is error
    landed.set()


def test_drain_lets_finish_what_can_and_ends_the_rest(running: Any, inbox: Inbox) -> None:
    decoder = Faulty(make_decoder(LLAMA), before=lambda step, ids: time.sleep(0.005))
    engine = running(decoder, config=decoder._decoder.config)
    engine.submit(request("short", [5], max_tokens=3, ignore_eos=True), inbox.deliver)
    engine.submit(request("long", [5], max_tokens=400, ignore_eos=True), inbox.deliver)
    inbox.wait_for_token("long")
    engine.drain(0.3)
    short, long = inbox.wait("short", "long")
    assert (short.finish_reason, long.finish_reason) == ("length", "cancelled")
    engine.submit(request("late", [5]), inbox.deliver)
    assert inbox.wait("late")[0].finish_reason == "error"


def test_everybody_gets_exactly_one_end_whatever_happens(running: Any, inbox: Inbox) -> None:
    def sometimes(step: int, ids: Tensor) -> None:
        if step % 7 == 0:
            raise RuntimeError("again")

    decoder = Faulty(make_decoder(GEMMA), before=sometimes)
    engine = running(decoder, config=decoder._decoder.config)
    keys = [str(number) for number in range(60)]

    def submit(mine: list[str]) -> None:
        for key in mine:
            engine.submit(request(key, tokens(int(key), 1 + int(key) % 50), max_tokens=6), inbox.deliver)
            if int(key) % 5 == 0:
                engine.cancel(key)

    threads = [threading.Thread(target=submit, args=(keys[part::3],)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    inbox.wait(*keys[:30])
    engine.stop()
    inbox.wait(*keys)
    for key in keys:
        assert [event.finish_reason is not None for event in inbox.events[key]].count(True) == 1
        assert inbox.events[key][-1].finish_reason is not None
    assert engine.stats().running == engine.stats().waiting == 0


def test_a_grammar_binds_its_own_row_only(decoder: Decoder, running: Any, inbox: Inbox) -> None:
    engine = running(decoder)
    grammar = Grammar("regex", "(ab|ba)c{3,5}")
    engine.submit(request("bound", PROMPTS[0], max_tokens=40, grammar=grammar, temperature=1.0, seed=1), inbox.deliver)
    engine.submit(request("free", PROMPTS[0], **GREEDY), inbox.deliver)
    bound, _ = inbox.wait("bound", "free")
    assert bound.finish_reason == "stop"
    assert inbox.text("bound").rstrip("c") in ("ab", "ba")
    assert inbox.ids("free") == reference(decoder, PROMPTS[0], 24)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"stop_token_ids": frozenset({10**6})}, "stop_token_ids"),
        ({"logit_bias": ((len(VOCAB), 1.0),)}, "logit_bias"),
        ({"stop": ("",)}, "stop"),
        ({"grammar": Grammar("regex", "[a-", field="guided_regex")}, "guided_regex"),
        ({"grammar": Grammar("regex", "a"), "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(running: Any, wrong: dict[str, Any], field: str) -> None:
    engine = running(make_decoder(LLAMA))
    with pytest.raises(InvalidRequest) as caught:
        engine.submit(request("a", [5], **wrong), lambda event: None)
    assert caught.value.field == field


def test_prompts_that_cannot_be_answered_are_refused(running: Any) -> None:
    engine = running(make_decoder(LLAMA))
    with pytest.raises(PromptTooLong, match="512"):
        engine.submit(request("a", [5] * 512), lambda event: None)
    with pytest.raises(InvalidRequest, match="no tokens"):
        engine.submit(request("a", []), lambda event: None)
    with pytest.raises(InvalidRequest, match="vocabulary"):
        engine.submit(request("a", [len(VOCAB)]), lambda event: None)


def test_an_id_that_is_in_use_is_refused(running: Any, inbox: Inbox) -> None:
    engine = running(make_decoder(LLAMA), verified=Verified.NOTHING)
    engine.submit(request("a", [5]), inbox.deliver)
    with pytest.raises(InvalidRequest, match="already"):
        engine.submit(request("a", [5]), inbox.deliver)


def test_too_little_memory_for_keys_and_values_is_said_at_once() -> None:
    decoder = make_decoder(LLAMA)
    with pytest.raises(OutOfMemory, match="kv_bytes"):
        make_engine(decoder, decoder.config, settings=EngineSettings(kv_bytes=1000))


def test_a_device_is_proven_by_a_token_of_nobodys(running: Any, inbox: Inbox) -> None:
    faulty = Faulty(make_decoder(LLAMA))
    engine = running(faulty, config=faulty.config)
    engine.prove()
    assert faulty.steps == 1
    assert engine.stats().completion_tokens == engine.stats().steps == 0
    engine.submit(request("1", [5, 6, 7], max_tokens=3), inbox.deliver)
    assert inbox.wait("1")[0].finish_reason == "length"


def test_a_request_that_waits_is_the_proof(running: Any, inbox: Inbox) -> None:
    waiting = threading.Event()

    def wait(step: int, ids: Tensor) -> None:
        waiting.wait(30)

    faulty = Faulty(make_decoder(LLAMA), wait)
    engine = running(faulty, config=faulty.config)
    engine.submit(request("1", [5, 6, 7], max_tokens=1), inbox.deliver)
    threading.Timer(0.1, waiting.set).start()
    engine.prove()
    inbox.wait("1")
    assert faulty.steps == 1, "nothing was computed but what the request asked for"


@pytest.mark.parametrize("spoilt", [True, False])
def test_a_device_that_cannot_compute_is_found_out(running: Any, spoilt: bool) -> None:
    def fail(step: int, ids: Tensor) -> None:
        if not spoilt:
            raise RuntimeError("no kernel image is available for execution on the device")

    faulty = Faulty(make_decoder(LLAMA), fail)
    if spoilt:
        faulty.spoil = lambda logits: logits * float("nan")
    engine = running(faulty, config=faulty.config)
    with pytest.raises(EngineError, match="nan" if spoilt else "no kernel image"):
        engine.prove()


def test_a_proof_ends_with_the_engine(running: Any, inbox: Inbox) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(step: int, ids: Tensor) -> None:
        entered.set()
        go_on.wait(30)

    faulty = Faulty(make_decoder(LLAMA), wait)
    engine = running(faulty, config=faulty.config)
    engine.submit(request("1", [5, 6, 7], max_tokens=9), inbox.deliver)
    assert entered.wait(30)
    engine.fail(EngineError("the load failed"))
    with pytest.raises(EngineError, match="the load failed"):
        engine.prove()
    go_on.set()


def test_a_gpu_without_enough_memory_ends_the_largest_request_and_no_other(running: Any, inbox: Inbox) -> None:
    message = (
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 22.06 GiB. See documentation"
    )
    released = threading.Event()

    def lack(step: int, ids: Tensor) -> None:
        released.wait(30)
        if len(ids) > 200:
            raise torch.OutOfMemoryError(message)

    faulty = Faulty(make_decoder(LLAMA), lack)
    engine = running(faulty, config=faulty.config)
    engine.submit(request("small", [*range(4, 100)], max_tokens=4, prompt_logprobs=0), inbox.deliver)
    engine.submit(request("large", [5] * 300, max_tokens=4), inbox.deliver)
    released.set()
    small, large = inbox.wait("small", "large")
    assert small.finish_reason == "length"
    assert len([item for event in inbox.events["small"] for item in event.prompt_logprobs]) == 96
    assert isinstance(large.error, OutOfMemory)
    assert "20.00 GiB" in str(large.error)
    assert "22.06 GiB" in str(large.error)
    assert "documentation" not in str(large.error)
