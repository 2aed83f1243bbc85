"""Bodies as they are sent: packed, in other encodings, and paths in what is said of them; HEAD beside GET."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.errors import InvalidRequest
from coldstream.serve.middleware.content import decoded
from coldstream.serve.middleware.errors import HttpError
from coldstream.settings import ServerSettings, for_uri
from tests.support.scripted import ScriptedModel

JSON = {"content-type": "application/json"}
HI = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}


@settings(deadline=None)
@given(st.lists(st.text(max_size=50), min_size=1, max_size=3))
def test_a_packed_body_is_what_was_packed_however_many_members_it_has(texts) -> None:
    packed = b"".join(gzip.compress(text.encode()) for text in texts)
    assert decoded(packed, encoding="gzip", kind="application/json", limit=1000) == "".join(texts).encode()


def test_no_more_is_unpacked_than_the_limit() -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 60_000
    with pytest.raises(HttpError, match="larger than 1000 bytes"):
        decoded(bomb, encoding="gzip", kind="application/json", limit=1000)
    with pytest.raises(HttpError, match="larger than 10 bytes"):
        decoded(gzip.compress(b"123456") * 3, encoding="gzip", kind="application/json", limit=10)


@pytest.mark.parametrize(
    "body",
    [b"{}", gzip.compress(b"{}")[:-9], gzip.compress(b"{}") + b"more", zlib.compress(b"{}")],
    ids=["plain", "cut off", "with more behind it", "zlib"],
)
def test_what_is_not_whole_gzip_is_said(body) -> None:
    with pytest.raises(InvalidRequest, match="gzip"):
        decoded(body, encoding="gzip", kind="application/json", limit=1000)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate"])
async def test_gzip_is_taken_and_other_codings_are_415(serve, engine, path) -> None:
    served = await serve(ScriptedModel(engine()))
    body = json.dumps(HI if path.startswith("/v1") else {"prompt": "hi"}).encode()
    packed = await served.client.post(path, content=gzip.compress(body), headers=JSON | {"content-encoding": "gzip"})
    assert packed.status_code == 200
    for coding in ("br", "gzip, gzip", "zstd"):
        refused = await served.client.post(path, content=body, headers=JSON | {"content-encoding": coding})
        assert (refused.status_code, refused.headers["accept-encoding"]) == (415, "gzip")
        assert coding in refused.json()["error"]["message"]


async def test_a_packed_body_that_unpacks_to_too_much_is_413(serve, engine) -> None:
    settings = for_uri("gs://bucket/default")
    small = type(settings)(settings.models, settings.tasks, ServerSettings(max_body_bytes=2000))
    served = await serve(ScriptedModel(engine()), small)
    reply = await served.client.post(
        "/generate", content=gzip.compress(b" " * 10**6), headers=JSON | {"content-encoding": "gzip"}
    )
    assert reply.status_code == 413


async def test_what_packed_bodies_unpack_to_counts_among_those_that_are_held(serve, engine) -> None:
    settings = for_uri("gs://bucket/default")
    small = type(settings)(settings.models, settings.tasks, ServerSettings(max_body_bytes=2000))
    model = ScriptedModel(engine(), loading=True)
    served = await serve(model, small)
    packed = gzip.compress(b'{"prompt": "hi"}' + b" " * 1900)
    headers = JSON | {"content-encoding": "gzip"}
    asked = [asyncio.create_task(served.client.post("/generate", content=packed, headers=headers)) for _ in range(5)]
    (refused,), waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    assert refused.result().status_code == 429
    model.loaded()
    assert [(await task).status_code for task in waiting] == [200] * 4


@pytest.mark.parametrize(("body", "place"), [(b'{"prompt": "\xe9"}', 12), ('{"prompt": "é"}'.encode("utf-16"), 0)])
async def test_a_body_that_is_not_utf8_is_told_where(serve, engine, body, place) -> None:
    served = await serve(ScriptedModel(engine()))
    reply = await served.client.post("/generate", content=body, headers=JSON)
    assert reply.status_code == 422
    assert f"not UTF-8: byte 0x{body[place]:02x} at offset {place}" in reply.json()["error"]["message"]


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [USER, {"role": "user", "content": [{"type": "text"}]}]}, "messages.1.content.0.text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages.0.content.0.image_url",
        ),
        ({"messages": [{"role": "user", "content": "x", "extra": 1}]}, "messages.0.extra"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls.0.function"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": "any"}, "tool_choice"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        ({"stop": [""]}, "stop.0"),
        ({"logit_bias": {"a": "b"}}, "logit_bias.a"),
        ({"unknown": 1}, "unknown"),
        ({"model": None}, "model"),
    ],
)
async def test_a_path_in_an_error_is_a_path_of_the_request(serve, engine, change, path) -> None:
    served = await serve(ScriptedModel(engine()))
    reply = await served.client.post("/v1/chat/completions", json=HI | change)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, path)
    assert error["message"].startswith(path)


async def test_a_missing_field_is_named(serve, engine) -> None:
    served = await serve(ScriptedModel(engine()))
    error = (await served.client.post("/v1/chat/completions", json={"model": "default"})).json()["error"]
    assert (error["param"], error["message"]) == ("messages", "messages is missing")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/default", "/v1/tasks", "/metrics", "/healthz", "/readyz"])
async def test_head_is_answered_as_get_is_without_content(serve, engine, path) -> None:
    served = await serve(ScriptedModel(engine()))
    whole, head = await served.client.get(path), await served.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert (await served.client.head("/v1/models/none")).status_code == 404
    assert (await served.client.head("/generate")).status_code == 405
