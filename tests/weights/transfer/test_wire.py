"""The wire against a server that does exactly what a test says, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from coldstream.errors import BadResponse, ObjectChanged
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.network import Network
from coldstream.weights.stores.store import Interrupted, Pin
from coldstream.weights.transfer.answers import range_of
from coldstream.weights.transfer.wire import PATIENCE, Accept, Wire

DATA = os.urandom(6_000_000)
WHOLE = {"Range": f"bytes=0-{len(DATA) - 1}"}
PIN = Pin("model.safetensors", len(DATA), etag="one")
HERE = Location.parse("http://127.0.0.1/model/model.safetensors")

ANSWER = (
    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{last}/{size}\r\nETag: one\r\n"
    "Content-Length: {length}\r\n\r\n"
)

# Sends an answer to a request; whether the connection stays open.
Answer = Callable[[socket.socket, int, int], bool]


def served(connection: socket.socket, start: int, end: int, *, headers: str = "", version: str = "one") -> bool:
    """As a good server does."""
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{end - 1}/{len(DATA)}\r\nETag: {version}\r\n"
    connection.sendall(f"{head}Content-Length: {end - start}\r\n{headers}\r\n".encode() + DATA[start:end])
    return True


class Scripted:
    """Answers the requests, in turn, as `answers` say; the last one goes on."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = answers
        self.connections = 0
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/model"

    def close(self) -> None:
        for end in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _listen(self) -> None:
        threads = []
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                break
            self.connections += 1
            self._open.append(connection)
            threads.append(threading.Thread(target=self._serve, args=(connection,)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the client may have seen enough
            request = b""
            while more := connection.recv(4096):
                request += more
                if not request.endswith(b"\r\n\r\n"):
                    continue
                self.requests.append(request)
                first, last = request.partition(b"bytes=")[2].partition(b"\r\n")[0].split(b"-")
                answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
                request = b""
                if not answer(connection, int(first), int(last) + 1):
                    return


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    servers: list[Scripted] = []

    def start(*answers: Answer) -> Scripted:
        servers.append(Scripted(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def accepted(start: int, end: int) -> Accept:
    return range_of(PIN, start, end, HERE)


async def get(wire: Wire, server: Scripted, start: int = 0, end: int = len(DATA)) -> bytes:
    target, landed = bytearray(end - start), list[memoryview]()
    headers = {"Range": f"bytes={start}-{end - 1}"}
    await wire.get(server.url, headers, memoryview(target), accepted(start, end), landed.append)
    assert b"".join(landed) == target  # told of every byte, once and in order
    return bytes(target)


def nobody(piece: memoryview) -> None:
    """Told of what landed, and does nothing."""


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire(stall=5.0)
    yield wire
    wire.close_idle()


async def test_a_connection_serves_one_read_after_another(scripted: Callable[..., Scripted], wire: Wire) -> None:
    server = scripted(served)
    for start, end in ((0, len(DATA)), (5, 6), (1_000_001, 2_900_000)):
        assert await get(wire, server, start, end) == DATA[start:end]
    assert server.connections == 1


async def test_reads_that_run_together_have_a_connection_each(scripted: Callable[..., Scripted], wire: Wire) -> None:
    together = threading.Barrier(3, timeout=20.0)

    def waits(connection: socket.socket, start: int, end: int) -> bool:
        together.wait()
        return served(connection, start, end)

    server = scripted(waits)
    found = await asyncio.gather(*(get(wire, server, n, n + 1000) for n in range(3)))
    assert found == [DATA[n : n + 1000] for n in range(3)]
    assert server.connections == 3


async def test_a_connection_that_was_closed_meanwhile_is_replaced(
    scripted: Callable[..., Scripted], wire: Wire
) -> None:
    """A server may close what no read uses; no read fails of it."""
    server = scripted(lambda *range_: served(*range_) and False, served)
    assert await get(wire, server) == DATA
    assert await get(wire, server) == DATA
    assert server.connections == 2


async def test_connection_close_is_obeyed(scripted: Callable[..., Scripted], wire: Wire) -> None:
    server = scripted(lambda *range_: served(*range_, headers="Connection: close\r\n"))
    await get(wire, server)
    await get(wire, server)
    assert server.connections == 2


async def test_a_chunked_answer(scripted: Callable[..., Scripted], wire: Wire) -> None:
    def chunked(connection: socket.socket, start: int, end: int) -> bool:
        connection.sendall(
            f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{end - 1}/{len(DATA)}\r\n"
            "ETag: one\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for at in range(start, end, 700_001):
            piece = DATA[at : min(at + 700_001, end)]
            connection.sendall(f"{len(piece):x};extension=1\r\n".encode() + piece + b"\r\n")
        connection.sendall(b"0\r\nTrailer: 1\r\n\r\n")
        return True

    server = scripted(chunked)
    assert await get(wire, server, 10) == DATA[10:]
    assert await get(wire, server, 0, 5) == DATA[:5]
    assert server.connections == 1


@pytest.mark.parametrize("endless", ["trailers", "interim"])
async def test_what_never_ends_is_cut(scripted: Callable[..., Scripted], wire: Wire, endless: str) -> None:
    def answers(connection: socket.socket, start: int, end: int) -> bool:
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{end - 1}/{len(DATA)}\r\nETag: one\r\n"
        if endless == "trailers":
            body = f"{end - start:x}\r\n".encode() + DATA[start:end] + b"\r\n0\r\n"
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + body)
        while True:  # until the client has seen enough
            connection.sendall(b"Trailer: 1\r\n" if endless == "trailers" else b"HTTP/1.1 100 Continue\r\n\r\n")

    with pytest.raises(BadResponse, match="more than"):
        await get(wire, scripted(answers), 0, 10)


async def test_what_has_landed_of_a_broken_body_is_told(scripted: Callable[..., Scripted], wire: Wire) -> None:
    def broken(connection: socket.socket, start: int, end: int) -> bool:
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{end - 1}/{len(DATA)}\r\nETag: one\r\n"
        connection.sendall(f"{head}Content-Length: {end - start}\r\n\r\n".encode() + DATA[:1_234_567])
        return False

    server = scripted(broken)
    target, landed = bytearray(len(DATA)), list[memoryview]()
    with pytest.raises(Interrupted):
        await wire.get(server.url, WHOLE, memoryview(target), accepted(0, len(DATA)), landed.append)
    assert b"".join(landed) == DATA[:1_234_567]
    assert target[:1_234_567] == DATA[:1_234_567]


async def test_a_server_that_falls_silent_is_left(scripted: Callable[..., Scripted]) -> None:
    ended = threading.Event()

    def silent(connection: socket.socket, start: int, end: int) -> bool:
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{end - 1}/{len(DATA)}\r\nETag: one\r\n"
        connection.sendall(f"{head}Content-Length: {end - start}\r\n\r\n".encode() + DATA[:1000])
        ended.wait(20.0)
        return False

    server = scripted(silent)
    target, landed = bytearray(len(DATA)), list[memoryview]()
    with pytest.raises(Interrupted, match=r"no byte for 0\.3 s"):
        await Wire(stall=0.3).get(server.url, WHOLE, memoryview(target), accepted(0, len(DATA)), landed.append)
    ended.set()
    assert b"".join(landed) == DATA[:1000]


@pytest.mark.parametrize("size", [1, PATIENCE - 1, PATIENCE + 1, 2 * PATIENCE - 1, 2 * PATIENCE + 1])
async def test_a_slow_server_is_not_a_silent_one(scripted: Callable[..., Scripted], size: int) -> None:
    """The kernel wakes a reader when much has come; but what comes late, or last, must not wait for more."""

    def slowly(connection: socket.socket, start: int, end: int) -> bool:
        connection.sendall(ANSWER.format(start=start, last=end - 1, size=len(DATA), length=end - start).encode())
        edges = [start, *range(start + 500_000, end - size, 500_000), end - size, end]
        for low, high in pairwise(edges):
            connection.sendall(DATA[low:high])
            time.sleep(0.1)
        return True

    wire = Wire(stall=0.25)
    try:
        assert await get(wire, scripted(slowly)) == DATA
        assert await get(wire, scripted(served)) == DATA
    finally:
        wire.close_idle()


async def test_another_version_is_refused_before_a_byte_of_it_lands(
    scripted: Callable[..., Scripted], wire: Wire
) -> None:
    server = scripted(lambda *range_: served(*range_, version="two"))
    target = bytearray(1000)
    with pytest.raises(ObjectChanged, match=r"model\.safetensors"):
        await wire.get(server.url, {"Range": "bytes=0-999"}, memoryview(target), accepted(0, 1000), nobody)
    assert bytes(target) == bytes(1000)


async def test_a_longer_object_is_another_version(scripted: Callable[..., Scripted], wire: Wire) -> None:
    def longer(connection: socket.socket, start: int, end: int) -> bool:
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{end - 1}/{len(DATA) + 1}\r\n"
        connection.sendall(f"{head}Content-Length: {end - start}\r\n\r\n".encode() + DATA[start:end])
        return True

    with pytest.raises(ObjectChanged):
        await get(wire, scripted(longer))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "ignores ranges"),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc", "no range"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1-3/6000000\r\n\r\n", "asked for bytes 0-6000000"),
        (b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n", "HTTP 302"),
        (b"HTTP/1.1 206 Partial Content\r\n" + b"X: " + b"y" * 100_000, "longer than"),
    ],
)
async def test_what_is_no_answer_to_a_range_is_named(
    scripted: Callable[..., Scripted], wire: Wire, answer: bytes, says: str
) -> None:
    def answers(connection: socket.socket, start: int, end: int) -> bool:
        connection.sendall(answer)
        return False

    with pytest.raises(BadResponse, match=says):
        await get(wire, scripted(answers))


async def test_a_redirect_is_followed_where_no_credentials_are_sent(scripted: Callable[..., Scripted]) -> None:
    good = scripted(served)
    moved = f"HTTP/1.1 302 Found\r\nLocation: {good.url}\r\nContent-Length: 0\r\n\r\n".encode()
    wire = Wire(stall=5.0, follow=True)
    server = scripted(lambda connection, *_: connection.sendall(moved) or True)
    assert await get(wire, server, 7, 1000) == DATA[7:1000]
    wire.close_idle()


@pytest.mark.parametrize("where", ["file:///etc/passwd", "gopher://127.0.0.1/"])
async def test_a_redirect_leads_nowhere_but_to_the_web(scripted: Callable[..., Scripted], where: str) -> None:
    moved = f"HTTP/1.1 302 Found\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode()
    server = scripted(lambda connection, *_: connection.sendall(moved) or True)
    with pytest.raises(BadResponse, match="not safe"):
        await get(Wire(stall=5.0, follow=True), server)


async def test_redirects_in_a_circle_end(scripted: Callable[..., Scripted]) -> None:
    moved = b"HTTP/1.1 307 Again\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"
    server = scripted(lambda connection, *_: connection.sendall(moved) or False)
    with pytest.raises(BadResponse, match="more than 5 redirects"):
        await get(Wire(stall=5.0, follow=True), server)


async def test_nobody_writes_to_the_target_after_a_read_was_cancelled(
    scripted: Callable[..., Scripted], wire: Wire
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(connection: socket.socket, start: int, end: int) -> bool:
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{end - 1}/{len(DATA)}\r\nETag: one\r\n"
        connection.sendall(f"{head}Content-Length: {end - start}\r\n\r\n".encode() + DATA[:1000])
        begun.set()
        go_on.wait(20.0)
        with contextlib.suppress(OSError):
            connection.sendall(DATA[1000:])
        return False

    server = scripted(slow)
    target = bytearray(len(DATA))
    reading = asyncio.create_task(wire.get(server.url, WHOLE, memoryview(target), accepted(0, len(DATA)), nobody))
    assert await asyncio.to_thread(begun.wait, 20.0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not [thread for thread in threading.enumerate() if thread.name == "coldstream-read"]
    before = bytes(target)
    go_on.set()
    server.close()
    assert bytes(target) == before


async def test_authorities_that_are_none_are_named(scripted: Callable[..., Scripted], tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    url = scripted(served).url.replace("http://", "https://")
    with pytest.raises(BadResponse, match=r"empty\.pem.*SSL_CERT_FILE"):
        await Wire(stall=5.0, network=Network({"SSL_CERT_FILE": str(tmp_path / "empty.pem")})).get(
            url, {}, memoryview(b""), accepted(0, 1), nobody
        )


async def test_a_host_without_an_address_may_get_one() -> None:
    target = memoryview(bytearray(1))
    with pytest.raises(Interrupted, match=r"nowhere\.invalid"):
        await Wire(stall=5.0).get("http://nowhere.invalid/model", {}, target, accepted(0, 1), nobody)
