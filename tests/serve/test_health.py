"""Probes: from the open port to the last answer, without a key, without a body, and without an application."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from coldstream.errors import ObjectNotFound
from coldstream.serve.health import LIVENESS, READINESS, Watchdog
from coldstream.serve.middleware.auth import ApiKeys
from coldstream.settings import for_uri
from tests.support.scripted import LetterTokenizer, ScriptedEngine, ScriptedModel, Stats

KEYS = ApiKeys.of("secret")
AUTHORIZED = {"authorization": "Bearer secret"}


@pytest.mark.parametrize("path", LIVENESS)
async def test_a_server_lives_before_anything_is_loaded(serve, engine, path) -> None:
    served = await serve(ScriptedModel(engine(), loading=True), keys=KEYS, early=True)
    assert (await served.client.get(path)).json() == {"status": "ok"}


@pytest.mark.parametrize("path", READINESS)
async def test_readiness_is_503_with_progress_and_retry_after_until_ready(serve, engine, path) -> None:
    model = ScriptedModel(engine(), loading=True)
    served = await serve(model, early=True)
    early = await served.client.get(path)
    model.loaded()
    late = await served.client.get(path)
    assert (early.status_code, early.headers["retry-after"], early.json()["total_bytes"]) == (503, "8", 4)
    assert (late.status_code, late.json()["status"]) == (200, "ready")


async def test_some_models_failed_is_still_ready_for_the_others(serve, engine) -> None:
    models = {name: ScriptedModel(engine(), name=name, loading=name == "b") for name in ("a", "b")}
    models["b"].failed(ObjectNotFound("gs://secret/b: no such bucket"))
    served = await serve(models)
    reply = await served.client.get("/ready")
    assert (reply.status_code, reply.json()["status"]) == (200, "degraded")


@pytest.mark.parametrize("early", [True, False])
async def test_a_draining_server_is_not_ready_whether_it_had_started_or_not(serve, engine, early) -> None:
    served = await serve(ScriptedModel(engine()), early=early)
    assert (await served.client.get("/readyz")).status_code == 200
    served.state.begin_shutdown()
    reply = await served.client.get("/readyz")
    assert (reply.status_code, reply.json()["status"], reply.headers["retry-after"]) == (503, "closing", "1")
    assert (await served.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("path", [*LIVENESS, *READINESS])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_probes_take_get_and_head_alone(serve, engine, path, method) -> None:
    served = await serve(ScriptedModel(engine()), keys=KEYS)
    refused = await served.client.request(method, path)
    assert (refused.status_code, refused.headers["allow"], refused.json()["error"]["type"]) == (
        405,
        "GET, HEAD",
        "HttpError",
    )
    head = await served.client.head(path)
    assert (head.status_code, head.content) == (200, b"")


async def test_what_names_a_bucket_is_told_to_those_with_the_key(serve, engine) -> None:
    model = ScriptedModel(engine(), loading=True)
    model.failed(ObjectNotFound("gs://private/model: no such bucket"))
    served = await serve(model, keys=KEYS)
    stranger = await served.client.get("/readyz")
    assert (stranger.status_code, stranger.json()["status"]) == (503, "failed")
    assert "private" not in stranger.text
    assert "private" in (await served.client.get("/readyz", headers=AUTHORIZED)).text
    open_to_all = await serve(model)
    assert "private" in (await open_to_all.client.get("/readyz")).text


async def test_the_start_is_not_shown_without_the_key(serve, engine) -> None:
    served = await serve(ScriptedModel(engine(), loading=True), keys=KEYS, early=True)
    for path in ("/startup", "/startup.svg"):
        assert (await served.client.get(path)).status_code == 401
        assert (await served.client.get(path, headers=AUTHORIZED)).status_code == 200
    assert (await served.client.get("/readyz")).status_code == 503


async def events(served, act) -> list[str]:
    """The events of the start, of which the first has come before `act` is called."""
    async with served.client.stream("GET", "/startup", headers={"accept": "text/event-stream"}) as reply:
        lines = reply.aiter_lines()
        first = await anext(lines)
        act()
        rest = [line async for line in lines]
    return [line.removeprefix("data: ") for line in [first, *rest] if line]


async def test_startup_events_end_when_the_start_is_over(serve, engine) -> None:
    model = ScriptedModel(engine(), loading=True)
    found = await events(await serve(model, early=True), model.loaded)
    assert json.loads(found[0])["status"] == "loading"
    assert json.loads(found[-2])["status"] == "ready"
    assert found[-1] == "[DONE]"


async def test_startup_events_do_not_hold_up_a_server_that_ends(serve, engine) -> None:
    served = await serve(ScriptedModel(engine(), loading=True))
    found = await events(served, served.state.begin_shutdown)
    assert json.loads(found[-2])["status"] == "closing"
    await asyncio.wait_for(served.state.shut_down(grace=30), 5)


class Engine:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.now = Stats(running=0)

    def stats(self) -> Stats:
        return self.now


@pytest.fixture
def stood() -> tuple[Engine, ScriptedModel, list[float], Watchdog]:
    engine, clock = Engine(), [100.0]
    model = ScriptedModel(engine, tokenizer=LetterTokenizer())  # type: ignore[arg-type]
    return engine, model, clock, Watchdog({"m": model}, patience=60, clock=lambda: clock[0])


def test_an_engine_whose_thread_died_is_stuck_at_once(stood) -> None:
    engine, _, _, watchdog = stood
    engine.now = Stats(running=0, died=True)
    assert watchdog.stuck() == ["m"]


def test_an_engine_that_has_work_and_makes_no_step_is_stuck(stood) -> None:
    engine, _, clock, watchdog = stood
    engine.now = Stats(running=1, steps=7)
    assert watchdog.stuck() == []
    clock[0] += 59
    assert watchdog.stuck() == []
    clock[0] += 2
    assert watchdog.stuck() == ["m"]
    engine.now = Stats(running=1, steps=8)
    assert watchdog.stuck() == []


def test_work_that_came_after_a_long_rest_has_its_time(stood) -> None:
    engine, _, clock, watchdog = stood
    engine.now = Stats(running=1, steps=7)
    watchdog.stuck()
    engine.now = Stats(running=0, steps=7)
    watchdog.stuck()
    clock[0] += 1000
    engine.now = Stats(running=0, waiting=1, steps=7)
    assert watchdog.stuck() == []
    clock[0] += 59
    assert watchdog.stuck() == []


def test_a_step_that_waits_for_weights_is_not_stuck_and_has_its_time_when_they_are_there(stood) -> None:
    engine, model, clock, watchdog = stood
    engine.now, model.is_ready = Stats(running=1, steps=0), False
    for _ in range(3):
        clock[0] += 1000
        assert watchdog.stuck() == []
    model.is_ready = True
    assert watchdog.stuck() == []
    clock[0] += 61
    assert watchdog.stuck() == ["m"]


async def test_a_stuck_engine_fails_liveness(serve) -> None:
    """Its loop makes no step, and its only request has no deadline left."""
    stuck = ScriptedEngine(manual=True)
    known = for_uri("gs://b/m")
    served = await serve(ScriptedModel(stuck), replace(known, server=replace(known.server, request_timeout=0.0)))
    stuck.submit(*unanswered())
    assert (await served.client.get("/live")).status_code == 200
    reply = await served.client.get("/live")
    assert (reply.status_code, reply.json()) == (503, {"status": "stuck"})
    stuck.close()


def unanswered():
    from coldstream.engine.request import Request

    return Request("r", (1,)), lambda event: None
