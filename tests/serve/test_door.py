"""The door: answers before anything is loaded, and lets the rest wait, in a bounded number."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from coldstream.serve.auth import ApiKeys
from coldstream.serve.door import Door
from coldstream.timeline import Timeline


class Start:
    """A start that stands still where a test puts it."""

    def __init__(self) -> None:
        self.status = "loading"
        self.timeline = Timeline()

    def state(self) -> dict[str, Any]:
        return {"status": self.status, "phase": "streaming", "bytes": 1, "total_bytes": 4}

    def retry_after(self) -> float:
        return 6.2

    def spans(self) -> list[dict[str, Any]]:
        return []


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the application, " + scope["path"].encode()})


@pytest.fixture
def start() -> Start:
    return Start()


def client(door: Door) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=door), base_url="http://door")


def door_of(start: Start, *, waiting: int = 2, keys: tuple[str, ...] = ()) -> Door:
    return Door(start, ApiKeys.of(*keys), max_waiting=waiting)  # type: ignore[arg-type]


async def test_health_is_200_before_anything_is_loaded(start: Start) -> None:
    async with client(door_of(start)) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}


async def test_readiness_is_503_with_progress_and_retry_after_until_ready(start: Start) -> None:
    async with client(door_of(start)) as http:
        early = await http.get("/readyz")
        start.status = "ready"
        late = await http.get("/readyz")
    assert (early.status_code, early.headers["retry-after"], early.json()["total_bytes"]) == (503, "7", 4)
    assert late.status_code == 200


async def test_some_models_failed_is_still_ready_for_the_others(start: Start) -> None:
    start.status = "degraded"
    async with client(door_of(start)) as http:
        assert (await http.get("/readyz")).status_code == 200


async def test_a_request_that_comes_early_is_answered_when_the_application_is_there(start: Start) -> None:
    door = door_of(start)
    async with client(door) as http:
        early = asyncio.create_task(http.post("/generate"))
        await asyncio.sleep(0)
        door.open_to(application)
        assert (await early).text == "the application, /generate"


async def test_more_early_requests_than_may_wait_get_503_and_when_to_come_back(start: Start) -> None:
    door = door_of(start, waiting=2)
    async with client(door) as http:
        early = [asyncio.create_task(http.post("/generate")) for _ in range(3)]
        done, _ = await asyncio.wait(early, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        assert refused.result().status_code == 503
        assert refused.result().headers["retry-after"] == "7"
        door.open_to(application)
        assert sorted([(await task).status_code for task in early]) == [200, 200, 503]


async def test_requests_that_waited_for_an_application_that_never_came_are_told(start: Start) -> None:
    door = door_of(start)
    async with client(door) as http:
        early = asyncio.create_task(http.post("/generate"))
        await asyncio.sleep(0)
        door.close()
        assert (await early).status_code == 503


async def test_the_start_is_not_shown_without_the_key(start: Start) -> None:
    async with client(door_of(start, keys=("secret",))) as http:
        for path in ("/startup", "/startup.svg"):
            assert (await http.get(path)).status_code == 401
            assert (await http.get(path, headers={"authorization": "Bearer secret"})).status_code == 200
        assert (await http.get("/readyz")).status_code == 503


async def test_startup_events_end_when_the_start_is_over(start: Start) -> None:
    async def finish() -> None:
        await asyncio.sleep(0.05)
        start.status = "ready"

    async with client(door_of(start)) as http:
        finisher = asyncio.create_task(finish())
        reply = await http.get("/startup", headers={"accept": "text/event-stream"})
        await finisher
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert json.loads(lines[0])["status"] == "loading"
    assert json.loads(lines[-2])["status"] == "ready"
    assert lines[-1] == "[DONE]"
