"""The surface: requests that come before the application wait, in a bounded number; every one has a record."""

from __future__ import annotations

import asyncio

from coldstream.serve.middleware.auth import ApiKeys
from coldstream.settings import ServerSettings, for_uri
from tests.serve.requests.test_admission import settings
from tests.serve.test_observed import lines_of, log, samples
from tests.support.scripted import ScriptedModel

__all__ = ["log"]

COMPLETION = {"model": "default", "prompt": "x"}


async def test_a_request_that_comes_early_is_answered_when_the_application_is_there(serve, engine) -> None:
    served = await serve(ScriptedModel(engine()), early=True)
    early = asyncio.create_task(served.client.post("/generate", json={"prompt": "x"}))
    await served.client.get("/healthz")
    assert not early.done()
    served.stack.open()
    assert (await early).json() == "hello"


async def test_more_early_requests_than_may_wait_get_503_and_when_to_come_back(serve, engine) -> None:
    served = await serve(ScriptedModel(engine()), settings(ServerSettings(max_queue=2)), early=True)
    early = [asyncio.create_task(served.client.post("/v1/completions", json=COMPLETION)) for _ in range(3)]
    (refused,), _ = await asyncio.wait(early, return_when=asyncio.FIRST_COMPLETED)
    assert (refused.result().status_code, refused.result().headers["retry-after"]) == (503, "8")
    assert refused.result().json()["error"]["code"] == "not_ready"
    served.stack.open()
    assert sorted([(await task).status_code for task in early]) == [200, 200, 503]


async def test_requests_that_waited_for_an_application_that_never_came_are_told(serve, engine) -> None:
    served = await serve(ScriptedModel(engine()), early=True)
    early = asyncio.create_task(served.client.post("/generate"))
    await served.client.get("/healthz")
    served.stack.surface.close()
    assert (await early).status_code == 503


async def test_the_key_is_asked_for_before_a_request_may_wait(serve, engine) -> None:
    served = await serve(ScriptedModel(engine()), keys=ApiKeys.of("secret"), early=True)
    for path, kind in (("/generate", "Unauthorized"), ("/v1/chat/completions", "authentication_error")):
        reply = await served.client.post(path, content=b"x" * (33 << 20))
        assert (reply.status_code, reply.json()["error"]["type"]) == (401, kind)


async def test_every_refusal_has_an_id_a_line_and_a_count(serve, engine, log) -> None:
    model = ScriptedModel(engine())
    served = await serve(model, settings(ServerSettings(max_queue=0)), keys=ApiKeys.of("secret"), early=True)
    key = {"authorization": "Bearer secret"}
    refused = [
        await served.client.post("/readyz"),
        await served.client.get("/startup"),
        await served.client.post("/generate", headers={"authorization": "Bearer wrong"}),
        await served.client.post("/generate", headers=key),
    ]
    served.stack.open()
    refused += [
        await served.client.post("/generate", headers=key),
        await served.client.get("/nowhere", headers=key),
    ]
    statuses = [405, 401, 401, 503, 422, 404]
    assert [reply.status_code for reply in refused] == statuses
    lines = lines_of(log.getvalue())
    assert [line["httpRequest"]["status"] for line in lines] == statuses
    assert [line["request_id"] for line in lines] == [reply.headers["x-request-id"] for reply in refused]
    served.client.headers.update(key)
    found = await samples(served)
    counts = {status: found["coldstream_http_requests_total", "other", str(status)] for status in (405, 401, 503, 404)}
    assert counts == {405: 1, 401: 2, 503: 1, 404: 1}


async def test_probes_that_are_answered_have_no_line(serve, engine, log) -> None:
    served = await serve(ScriptedModel(engine(), loading=True))
    assert [(await served.client.get(path)).status_code for path in ("/healthz", "/readyz")] == [200, 503]
    assert log.getvalue() == ""


async def test_a_refusal_can_be_read_by_the_page_that_was_refused(serve, engine) -> None:
    known = settings(ServerSettings(cors_origins=("https://app.example",)))
    served = await serve(ScriptedModel(engine()), known, keys=ApiKeys.of("secret"), early=True)
    origin = {"origin": "https://app.example"}
    asked = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    assert (await served.client.options("/generate", headers=asked)).status_code == 200
    refused = await served.client.post("/generate", headers=origin)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")


async def test_two_credentials_are_refused_since_a_proxy_may_have_believed_the_other(serve, engine) -> None:
    for keys in (ApiKeys(), ApiKeys.of("secret")):
        served = await serve(ScriptedModel(engine()), keys=keys)
        for name in ("authorization", "x-api-key"):
            twice = [(name, "Bearer secret"), (name, "Bearer other")]
            reply = await served.client.get("/v1/models", headers=twice)
            assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_forms_are_counted_under_their_route(serve, engine) -> None:
    served = await serve(ScriptedModel(engine()), for_uri("gs://b/m"))
    assert (await served.client.post("/generate", files={"prompt": (None, "hi")})).status_code == 200
    assert (await samples(served))["coldstream_http_requests_total", "/generate", "200"] == 1
