"""Who may come in, who is told when to come back, and what becomes of clients that go away."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import InvalidRequest, NotReady, TooManyRequests
from coldstream.serve.requests.admission import Gate
from coldstream.settings import EngineSettings, ServerSettings, Settings, for_uri
from tests.support.scripted import ScriptedModel


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def settings(server: ServerSettings, *, sequences: int = 1) -> Settings:
    return replace(for_uri("gs://b/m"), server=server, engine=EngineSettings(max_sequences=sequences))


def test_the_queue_is_bounded_by_sequences_and_gives_places_back() -> None:
    gate = Gate(running=1, max_queue=1, max_queue_tokens=100)
    first = gate.enter(1)
    with gate.enter(1), pytest.raises(TooManyRequests, match="2 sequences already run or wait"):
        gate.enter(1)
    with gate.enter(1):
        assert gate.sequences == 2
    first.__exit__()
    assert (gate.sequences, gate.waiting, gate.waiting_tokens) == (0, 0, 0)


def test_prompt_tokens_that_wait_are_bounded_but_one_long_prompt_may_wait_alone() -> None:
    gate = Gate(running=8, max_queue=8, max_queue_tokens=100)
    long, short = gate.enter(1), gate.enter(1)
    long.claim(1000)
    with pytest.raises(TooManyRequests, match="1000 prompt tokens already wait"):
        short.claim(1)
    long.started()
    short.claim(1)
    assert gate.waiting_tokens == 1


def test_more_samples_than_can_ever_run_are_the_callers_mistake() -> None:
    with pytest.raises(InvalidRequest, match="at most 3") as caught:
        Gate(running=1, max_queue=2, max_queue_tokens=1).enter(4)
    assert caught.value.field == "n"


def test_a_full_queue_before_the_model_is_there_says_when_it_will_be() -> None:
    gate = Gate(running=1, max_queue=0, max_queue_tokens=1)
    gate.enter(1, loading=30.0)
    with pytest.raises(NotReady) as caught:
        gate.enter(1, loading=12.5)
    assert caught.value.retry_after == 12.5


def test_retry_after_follows_the_measured_rate_and_spreads_the_refused() -> None:
    clock = Clock()
    gate = Gate(running=4, max_queue=0, max_queue_tokens=1000, clock=clock)
    for _ in range(5):
        ticket = gate.enter(1)
        ticket.finished()
        ticket.__exit__()
        clock.now += 2.0
    tickets = [gate.enter(1) for _ in range(4)]
    waits = []
    for _ in range(6):
        with pytest.raises(TooManyRequests) as caught:
            gate.enter(1)
        waits.append(caught.value.retry_after)
    step = (clock.now - 100.0) / 4
    assert waits == pytest.approx([step, 2 * step, 3 * step, 4 * step, 4 * step, 4 * step])
    assert len(tickets) == 4


def test_before_anything_was_measured_the_oldest_requests_age_is_the_estimate() -> None:
    clock = Clock()
    gate = Gate(running=1, max_queue=0, max_queue_tokens=1000, clock=clock)
    gate.enter(1)
    clock.now += 7.0
    with pytest.raises(TooManyRequests) as caught:
        gate.enter(1)
    assert caught.value.retry_after == 7.0


@given(st.lists(st.tuples(st.sampled_from(["enter", "claim", "start", "leave"]), st.integers(1, 40)), max_size=60))
def test_whatever_happens_the_counts_are_those_of_the_open_requests(steps) -> None:
    gate = Gate(running=2, max_queue=6, max_queue_tokens=50)
    open_ = []
    for what, size in steps:
        if what == "enter":
            try:
                open_.append(gate.enter(size % 4 + 1))
            except TooManyRequests:
                assert gate.sequences + size % 4 + 1 > 8
        elif open_:
            ticket = open_[size % len(open_)]
            if what == "claim" and ticket.waiting and not ticket.tokens:
                try:
                    ticket.claim(size)
                except TooManyRequests:
                    assert gate.waiting_tokens + size > 50
            if what == "start":
                ticket.started()
            if what == "leave":
                open_.remove(ticket)
                ticket.__exit__()
        assert gate.sequences == sum(ticket.sequences for ticket in open_) <= 8
        assert gate.waiting == sum(ticket.sequences for ticket in open_ if ticket.waiting)
        assert gate.waiting_tokens == sum(ticket.tokens for ticket in open_ if ticket.waiting)


async def test_over_the_bound_is_429_with_retry_after_and_no_work(serve, engine) -> None:
    stuck = engine("a", manual=True)
    served = await serve(ScriptedModel(stuck), settings(ServerSettings(max_queue=1)))
    asking = [asyncio.create_task(served.client.post("/generate", json={"prompt": "x"})) for _ in range(2)]
    await asyncio.to_thread(stuck.wait_until, lambda: len(stuck.submitted) == 2)
    refused = await served.client.post("/generate", json={"prompt": "x"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "TooManyRequests")
    assert int(refused.headers["retry-after"]) >= 1
    await asyncio.to_thread(stuck.step)
    assert [(await task).json() for task in asking] == ["a", "a"]
    assert len(stuck.submitted) == 2


async def test_over_the_bound_while_loading_is_503_with_the_loads_own_estimate(serve, engine) -> None:
    model = ScriptedModel(engine("ok"), loading=True)
    served = await serve(model, settings(ServerSettings(max_queue=0)))
    waiting = asyncio.create_task(served.client.post("/generate", json={"prompt": "x"}))
    while not (await served.client.get("/metrics")).text.count('open_sequences{model="default"} 1.0'):
        assert not waiting.done()
    refused = await served.client.post("/generate", json={"prompt": "x"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "NotReady")
    assert refused.headers["retry-after"] == "8"
    model.loaded()
    assert (await waiting).json() == "ok"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_its_place_and_stops_the_work(serve, engine, stream) -> None:
    stuck = engine("abc", manual=True)
    served = await serve(ScriptedModel(stuck), settings(ServerSettings(max_queue=0)))
    body = json.dumps({"prompt": "x", "stream": stream}).encode()
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await asyncio.to_thread(stuck.wait_until, lambda: len(stuck.submitted) == 1)
    if stream:
        await asyncio.to_thread(stuck.step)
        assert b"200 OK" in await reader.readline()
    writer.close()
    await asyncio.to_thread(stuck.wait_until, lambda: stuck.cancelled == [stuck.submitted[0].id])
    again = asyncio.create_task(served.client.post("/generate", json={"prompt": "x", "max_tokens": 1}))
    await asyncio.to_thread(stuck.wait_until, lambda: len(stuck.submitted) == 2)
    await asyncio.to_thread(stuck.step)
    assert (await again).json() == "a"


async def test_a_body_over_the_limit_is_413_declared_or_chunked(serve, engine) -> None:
    served = await serve(ScriptedModel(engine()), settings(ServerSettings(max_body_bytes=100)))
    sent = 0

    async def pieces():
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 60
            await asyncio.sleep(0)

    declared = await served.client.post("/generate", content=b"x" * 101)
    assert (declared.status_code, declared.json()["error"]["type"]) == (413, "HttpError")
    chunked = await served.client.post("/v1/completions", content=pieces())
    assert (chunked.status_code, "100 bytes" in chunked.json()["error"]["message"]) == (413, True)
    assert (await served.client.post("/generate", json={"prompt": "x"})).json() == "hello"


async def test_shutting_down_refuses_new_work_and_lets_what_runs_finish(serve, engine) -> None:
    slow = engine("ab", manual=True)
    served = await serve(ScriptedModel(slow))
    running = asyncio.create_task(served.client.post("/generate", json={"prompt": "x"}))
    await asyncio.to_thread(slow.wait_until, lambda: len(slow.submitted) == 1)
    closing = asyncio.create_task(served.state.shut_down(grace=30))
    await asyncio.wait({closing}, timeout=0.05)
    refused = await served.client.post("/generate", json={"prompt": "x"})
    assert (refused.status_code, refused.json()["error"]["type"], refused.headers["retry-after"]) == (
        503,
        "NotReady",
        "1",
    )
    assert (await served.client.get("/readyz")).json()["status"] == "closing"
    await asyncio.to_thread(slow.step, 2)
    assert (await running).json() == "ab"
    await closing


async def test_after_the_grace_the_rest_ends_with_a_valid_last_event(serve, engine) -> None:
    slow = engine("abc", manual=True)
    loading = ScriptedModel(engine(), name="late", loading=True)
    tasks = for_uri("gs://b/m")
    late = {"late": replace(tasks.tasks["text"], name="late", model="late")}
    both = replace(tasks, tasks={**tasks.tasks, **late})
    served = await serve({"default": ScriptedModel(slow), "late": loading}, both)
    whole = asyncio.create_task(served.client.post("/generate", json={"type": "text", "prompt": "x"}))
    waiting = asyncio.create_task(served.client.post("/generate", json={"type": "late", "prompt": "x"}))
    chat = {"model": "default", "messages": [{"role": "user", "content": "x"}], "stream": True}
    streaming = asyncio.create_task(served.client.post("/v1/chat/completions", json=chat))
    await asyncio.to_thread(slow.wait_until, lambda: len(slow.submitted) == 2)
    await asyncio.to_thread(slow.step)
    while 'open_sequences{model="late"} 1.0' not in (await served.client.get("/metrics")).text:
        assert not waiting.done()
    await served.state.shut_down(grace=0.01)
    assert (await whole).status_code == (await waiting).status_code == 503
    *_, error, done, end = (await streaming).text.split("\n\n")
    assert (json.loads(error[6:])["error"]["code"], done, end) == ("not_ready", "data: [DONE]", "")
    assert sorted(slow.cancelled) == sorted(request.id for request in slow.submitted)


async def test_after_a_crowd_of_every_kind_nothing_is_left(serve, engine) -> None:
    """Answers, refusals, errors, streams that are read, streams that are left and clients that hang up at once."""
    used = engine(lambda request: list("some text") if int(request.id[-3], 36) % 5 else ["a", "<error>"])
    served = await serve(ScriptedModel(used), settings(ServerSettings(max_queue=12), sequences=2))
    chat = {"model": "default", "messages": [{"role": "user", "content": "x"}]}

    async def one(number: int) -> int:
        kind = number % 4
        if kind == 0:
            return (await served.client.post("/generate", json={"prompt": "x"})).status_code
        if kind == 1:
            async with served.client.stream("POST", "/v1/chat/completions", json={**chat, "stream": True}) as reply:
                await reply.aread()
                return reply.status_code
        if kind == 2:
            async with served.client.stream(
                "POST", "/v1/chat/completions", json={**chat, "stream": True, "n": 2}
            ) as reply:
                return reply.status_code
        try:
            async with asyncio.timeout(0.002):
                return (
                    await served.client.post("/v1/completions", json={"model": "default", "prompt": "x"})
                ).status_code
        except TimeoutError:
            return 0

    statuses = {status for _ in range(4) for status in await asyncio.gather(*(one(number) for number in range(40)))}
    assert statuses <= {0, 200, 429, 500}
    assert {200, 429} <= statuses
    await asyncio.wait_for(served.state.lifecycle.idle(), 10)
    await asyncio.to_thread(used.wait_until, lambda: not used.stats().running)
    text = (await served.client.get("/metrics")).text
    for name in ("open_sequences", "queue_sequences", "queue_tokens"):
        assert f'coldstream_{name}{{model="default"}} 0.0' in text
    assert not served.state.lifecycle.streams
