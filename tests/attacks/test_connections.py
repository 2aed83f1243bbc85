"""Clients without a key that send too much, too slowly, or nothing at all."""

from __future__ import annotations

import asyncio
import resource
import socket
from dataclasses import replace
from pathlib import Path

import pytest

import coldstream.demo
from coldstream.serve.http.protocol import HttpLimits
from coldstream.serve.middleware.auth import ApiKeys
from coldstream.settings import ServerSettings, for_uri
from tests.support.scripted import ScriptedModel
from tests.support.serving import serving

KEYS = ApiKeys.of("secret")
POST = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
FIELD = b"x-field: %d\r\n"


def server(**options):
    return replace(for_uri("gs://b/m"), server=ServerSettings(**options))


HEADS = {
    "many fields": [b"GET /v1/models HTTP/1.1\r\n", *[FIELD * 100 % tuple(range(100))] * 20],
    "one field without end": [b"GET /v1/models HTTP/1.1\r\nx: ", *[b"y" * 65536] * 20],
    "a name without end": [b"GET /v1/models HTTP/1.1\r\n", *[b"y" * 65536] * 20],
    "fields after a body": [POST, b"transfer-encoding: chunked\r\n\r\n0\r\nx: ", *[b"y" * 65536] * 20],
}


@pytest.mark.parametrize("kind", HEADS)
async def test_a_head_without_end_is_refused_and_hung_up_on(serve, engine, connect, kind) -> None:
    served = await serve(ScriptedModel(engine()))
    peer = await connect(served)
    await peer.say(*HEADS[kind])
    heard = await peer.hear()
    assert not heard or heard.startswith(b"HTTP/1.1 431 ")
    assert (await served.client.get("/ready")).status_code == 200


async def test_a_url_without_end_is_refused(serve, engine, connect) -> None:
    served = await serve(ScriptedModel(engine()))
    peer = await connect(served)
    await peer.say(b"GET /", *[b"a" * 8192] * 3)
    assert (await peer.hear()).startswith(b"HTTP/1.1 414 ")
    longest = await served.client.get("/v1/models/" + "a" * 16000)
    assert longest.status_code in (404, 422)


async def test_what_is_within_the_limits_is_answered_whatever_pieces_it_comes_in(serve, engine, connect) -> None:
    served = await serve(ScriptedModel(engine()))
    peer = await connect(served)
    fields = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 600) for number in range(98))
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + fields + b"connection: close\r\n\r\n"
    for start in range(0, len(request), 1000):
        await peer.say(request[start : start + 1000])
        await asyncio.sleep(0)
    assert (await peer.hear()).startswith(b"HTTP/1.1 200 ")


async def test_refusals_of_what_is_no_request_have_an_id_and_a_count(serve, engine, connect) -> None:
    served = await serve(ScriptedModel(engine()))
    peer = await connect(served)
    await peer.say(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
    heard = await peer.hear()
    assert heard.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id: req-" in heard
    counted = (await served.client.get("/metrics")).text
    assert 'coldstream_http_requests_total{route="other",status="400"} 1.0' in counted


SLOW = HttpLimits(head_seconds=0.5, rest_seconds=0.5)


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nhost"])
async def test_a_connection_that_does_not_come_to_the_point_is_closed(serve, engine, connect, said) -> None:
    served = await serve(ScriptedModel(engine()), http={"limits": SLOW})
    peer = await connect(served)
    await peer.say(said)
    heard = await peer.hear()
    assert heard.startswith(b"HTTP/1.1 408 ") if said else not heard


async def test_the_rest_of_a_refused_body_is_not_waited_for(serve, engine, connect) -> None:
    served = await serve(ScriptedModel(engine()), keys=KEYS, http={"limits": SLOW})
    peer = await connect(served)
    await peer.say(POST + b"content-length: 33000000\r\n\r\n{")
    assert (await peer.hear()).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("more", [b"\r\n", b"x" * 9 + b"\r\n", b"x" * 10])
async def test_a_connection_is_not_kept_by_what_comes_after_an_answer(serve, engine, connect, more) -> None:
    served = await serve(ScriptedModel(engine()), keys=KEYS, http={"limits": SLOW})
    peer = await connect(served)
    await peer.say(POST + b"content-length: 10\r\n\r\n")
    assert await peer.status() == 401
    await peer.say(more)
    await peer.hear()


async def test_a_body_that_does_not_come_is_408(serve, engine, connect) -> None:
    served = await serve(ScriptedModel(engine()), server(request_timeout=0.2), http={"limits": SLOW})
    peer = await connect(served)
    await peer.say(POST + b'content-length: 100\r\n\r\n{"prompt')
    assert (await peer.hear()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz", b"/ping"])
async def test_a_probe_reads_no_body(serve, engine, connect, path) -> None:
    served = await serve(ScriptedModel(engine()), keys=KEYS)
    for method, status in ((b"POST", 405), (b"GET", 200)):
        peer = await connect(served)
        await peer.say(method + b" " + path + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 33000000\r\n\r\n", b"x" * 9)
        assert await peer.status() == status


async def test_a_body_is_not_read_before_the_key_is_checked_and_a_place_is_there(serve, engine, connect) -> None:
    """It stays in the kernel, so that the client cannot send more than that holds."""
    served = await serve(ScriptedModel(engine()), early=True)
    peer = await connect(served)
    sent = 0

    async def send() -> None:
        nonlocal sent
        for _ in range(256):
            await peer.say(b"x" * (1 << 18))
            sent += 1 << 18

    await peer.say(POST + b"content-length: 67108864\r\n\r\n")
    sending = asyncio.create_task(send())
    while not (await served.client.get("/healthz")).is_success or sent == 0:
        pass
    await asyncio.wait({sending}, timeout=0.5)
    assert sent < 64 << 20
    sending.cancel()


async def test_bodies_that_are_never_whole_do_not_take_all_the_memory(serve, engine, connect) -> None:
    served = await serve(ScriptedModel(engine()), server(max_body_bytes=1000))
    peers = [await connect(served) for _ in range(5)]
    for peer in peers[:4]:
        await peer.say(POST + b"content-length: 1000\r\n\r\n" + b" " * 990)
    for _ in range(3):
        await served.client.get("/healthz")
    await peers[4].say(POST + b"content-length: 1000\r\n\r\n" + b" " * 990)
    assert await peers[4].status() == 429
    for peer in peers[:4]:
        await peer.say(b'{"prompt"')
        peer.hang_up()
    while (await served.client.post("/generate", content=b" " * 980 + b"{}")).status_code == 429:
        pass


@pytest.mark.parametrize("said", [b"", b"GET /v1", POST + b"content-length: 99\r\n\r\n{"])
async def test_connections_that_wait_give_way_to_those_that_ask(serve, engine, connect, said) -> None:
    served = await serve(ScriptedModel(engine()), http={"connections": 20})
    crowd = [await connect(served) for _ in range(60)]
    for peer in crowd:
        await peer.say(said)
    for _ in range(3):
        assert (await served.client.get("/ready")).status_code == 200
        assert (await served.client.post("/generate", json={"prompt": "x"})).json() == "hello"


async def test_a_crowd_that_is_answered_is_not_disturbed_by_one_more(serve, engine, connect) -> None:
    slow = engine("ab", manual=True)
    served = await serve(ScriptedModel(slow), http={"connections": 3})
    asked = [asyncio.create_task(served.client.post("/generate", json={"prompt": "x"})) for _ in range(3)]
    await asyncio.to_thread(slow.wait_until, lambda: len(slow.submitted) == 3)
    refused = await connect(served)
    assert await refused.hear() == b""
    await asyncio.to_thread(slow.step, 2)
    assert [(await task).json() for task in asked] == ["ab"] * 3


@pytest.mark.more
def test_half_requests_leave_a_loading_server_the_descriptors_that_it_needs() -> None:
    """With 200 of them in all, imports and the model's files must still be opened."""
    model = Path(coldstream.demo.__file__).parent / "sql_model"
    crowd: list[socket.socket] = []
    with serving(model, "-q", ready=False, limits={resource.RLIMIT_NOFILE: 200}) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")

        def is_ready() -> bool:
            if len(crowd) < 400:
                crowd.extend(half_request(host, int(port)))
                return False
            return ready(host, int(port))

        try:
            server.wait_until(is_ready)
        finally:
            for connection in crowd:
                connection.close()


def half_request(host: str, port: int) -> list[socket.socket]:
    try:
        connection = socket.create_connection((host, port), timeout=5)
        connection.sendall(POST)
    except OSError:
        return []
    return [connection]


def ready(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return connection.recv(1 << 12).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
