"""One request over a real socket: what a server may say, and how it may break off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from coldstream.weights.stores import http
from coldstream.weights.stores.http import HttpFailure, Response, retry_after


class Server:
    """Answers every connection with the same bytes, once the request's head is there."""

    def __init__(self, answer: bytes, *, silent: bool = False) -> None:
        self.answer, self.silent = answer, silent
        self.seen = b""
        self.url = ""
        self.done = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        finally:
            writer.close()
            self.done.set()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in self.seen.split(b"\r\n") if line.lower().startswith(b"content-length")]
        if length:
            self.seen += await reader.readexactly(int(length[0].split(b":")[1]))
        if self.silent:
            await reader.read()
            return
        writer.write(self.answer)
        await writer.drain()


@asynccontextmanager
async def serving(answer: bytes, *, silent: bool = False) -> AsyncIterator[Server]:
    server = Server(answer, silent=silent)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
        await server.done.wait()
    finally:
        listener.close()
        await listener.wait_closed()


async def answered(answer: bytes, method: str = "GET") -> Response:
    async with serving(answer) as server:
        return await http.request(f"{server.url}/a%20b?c=d", method=method)


async def test_status_headers_and_body() -> None:
    response = await answered(b"HTTP/1.1 206 Partial\r\nContent-Length: 3\r\nX-Odd:  a: b \r\n\r\nabcd")
    assert (response.status, response.body, response.headers["x-odd"]) == (206, b"abc", "a: b")


async def test_what_comes_before_an_answer_is_none() -> None:
    response = await answered(
        b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"
    )
    assert (response.status, "link" in response.headers) == (204, False)


async def test_a_status_without_a_reason() -> None:
    assert (await answered(b"HTTP/1.1 204\r\nContent-Length: 0\r\n\r\n")).status == 204


async def test_chunks_with_extensions() -> None:
    body = b"4;x=1\r\nabcd\r\nA\r\n0123456789\r\n0\r\n\r\n"
    assert (await answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + body)).body == b"abcd0123456789"


async def test_a_body_until_the_end() -> None:
    assert (await answered(b"HTTP/1.0 200 OK\r\n\r\nall of it")).body == b"all of it"


async def test_a_head_has_no_body() -> None:
    assert (await answered(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", "HEAD")).body == b""


async def test_what_is_sent() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as server:
        await http.request(f"{server.url}/a?b=c", method="POST", headers={"X-Key": "value"}, body=b"12345")
    head, _, body = server.seen.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /a?b=c HTTP/1.1"
    assert {f"Host: {server.url[7:]}", "Connection: close", "X-Key: value", "Content-Length: 5"} <= set(lines)
    assert body == b"12345"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabcde\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0_5\r\nabcde\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 fine OK\r\n\r\n",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
    ],
)
async def test_an_answer_that_is_none(answer: bytes) -> None:
    with pytest.raises(HttpFailure, match=r"GET http://127\.0\.0\.1.*: ."):
        await answered(answer)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + bytes(1001),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"300\r\n" + bytes(768) + b"\r\n") * 2
        + b"0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n" + bytes(5000),
    ],
)
async def test_a_body_that_is_too_long_is_not_kept(answer: bytes) -> None:
    async with serving(answer) as server:
        with pytest.raises(HttpFailure, match="longer than 1000 bytes"):
            await http.request(server.url, limit=1000)


async def test_silence_ends_in_time() -> None:
    async with serving(b"", silent=True) as server:
        with pytest.raises(HttpFailure, match=r"no answer in 0\.05 s"):
            await http.request(server.url, seconds=0.05)


async def test_nobody_listens() -> None:
    with pytest.raises(HttpFailure, match="connection refused") as caught:
        await http.request("http://127.0.0.1:1/")
    assert caught.value.refused


async def test_a_name_that_does_not_exist_is_no_refusal() -> None:
    with pytest.raises(HttpFailure) as caught:
        await http.request("http://no-such-host.invalid/")
    assert not caught.value.refused


def after(text: str) -> float | None:
    return retry_after(Response(429, {"retry-after": text}, b""))


def test_retry_after_in_seconds() -> None:
    assert after("120") == 120.0
    assert after("0") == 0.0


def test_retry_after_as_a_date() -> None:
    moment = datetime.now(UTC) + timedelta(seconds=90)
    found = after(moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    assert found is not None
    assert 60 < found <= 90
    assert after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "²", "21 Oct 2015"])
def test_retry_after_that_says_nothing(text: str) -> None:
    assert after(text) is None
