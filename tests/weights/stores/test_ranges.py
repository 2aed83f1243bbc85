"""Ranges through obstore, from a server that does exactly what a test says: right bytes, or an error with a name."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from coldstream.errors import AccessDenied, BadResponse, ObjectChanged
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.stores.store import Interrupted, Pin, Store

DATA = os.urandom(3_000_000)
PIN = Pin("model.safetensors", len(DATA), etag='"one"')

# Sends an answer to a request for these bytes; whether the connection stays open.
Answer = Callable[[socket.socket, int, int], bool]


def head(start: int, end: int, *, etag: str = '"one"', size: int = len(DATA), length: int | None = None) -> bytes:
    length = end - start if length is None else length
    lines = ["HTTP/1.1 206 Partial Content", f"Content-Range: bytes {start}-{end - 1}/{size}", f"ETag: {etag}"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def served(connection: socket.socket, start: int, end: int) -> bool:
    """As a good server does."""
    connection.sendall(head(start, end) + DATA[start:end])
    return True


def sends(answer: bytes) -> Answer:
    """The same to every request; then the connection is closed."""

    def answers(connection: socket.socket, start: int, end: int) -> bool:
        connection.sendall(answer)
        return False

    return answers


def moved(where: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {where}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()


class Scripted:
    """Answers the requests, in turn, as `answers` say; the last one goes on."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self._answers, self._tls = answers, tls
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}/model"

    def store(self, *, stall: float = 10.0, **environ: str) -> Store:
        return open_store(Location.parse(self.url), environ=environ, stall=stall)

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
            self._open.append(connection)
            threads.append(threading.Thread(target=self._serve, args=(connection,)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _serve(self, raw: socket.socket) -> None:
        with raw, contextlib.suppress(OSError):  # the client may have seen enough
            if self._tls is None:
                return self._converse(raw)
            with self._tls.wrap_socket(raw, server_side=True) as secure:
                self._converse(secure)

    def _converse(self, connection: socket.socket) -> None:
        request = b""
        while more := connection.recv(4096):
            request += more
            if not request.endswith(b"\r\n\r\n"):
                continue
            self.requests.append(request)
            first, last = request.lower().partition(b"bytes=")[2].partition(b"\r\n")[0].split(b"-")
            answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
            request = b""
            if not answer(connection, int(first), int(last) + 1):
                connection.shutdown(socket.SHUT_RDWR)
                return


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    servers: list[Scripted] = []

    def start(*answers: Answer, tls: ssl.SSLContext | None = None) -> Scripted:
        servers.append(Scripted(*answers, tls=tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


async def get(store: Store, start: int = 0, end: int = len(DATA), pin: Pin = PIN) -> bytes:
    return b"".join([bytes(piece) async for piece in store.read_range(pin, start, end)])


async def test_what_came_before_a_body_broke_is_kept(scripted: Callable[..., Scripted]) -> None:
    def broken(connection: socket.socket, start: int, end: int) -> bool:
        connection.sendall(head(start, end) + DATA[:1_234_567])
        return False

    read = scripted(broken).store().read_range(PIN, 0, len(DATA), piecewise=True)
    landed = bytes(await anext(read))
    with pytest.raises(Interrupted):
        landed += b"".join([bytes(piece) async for piece in read])
    assert landed
    assert DATA.startswith(landed)


async def test_a_server_that_falls_silent_is_left(scripted: Callable[..., Scripted]) -> None:
    ended = threading.Event()

    def silent(connection: socket.socket, start: int, end: int) -> bool:
        connection.sendall(head(start, end) + DATA[:1000])
        ended.wait(20.0)
        return False

    with pytest.raises(Interrupted, match="no byte came in time"):
        await get(scripted(silent).store(stall=0.3))
    ended.set()


@pytest.mark.parametrize(("etag", "size"), [('"two"', len(DATA)), ('"one"', len(DATA) + 1)])
async def test_another_version_is_refused(scripted: Callable[..., Scripted], etag: str, size: int) -> None:
    def other(connection: socket.socket, start: int, end: int) -> bool:
        connection.sendall(head(start, end, etag=etag, size=size) + DATA[start:end])
        return True

    with pytest.raises(ObjectChanged, match=r"model\.safetensors"):
        await get(scripted(other).store())


async def test_a_body_is_left_at_the_first_byte_too_many(scripted: Callable[..., Scripted]) -> None:
    """Though it was announced: a server could send for ever."""
    ended = threading.Event()

    def endless(connection: socket.socket, start: int, end: int) -> bool:
        connection.sendall(head(start, end, length=1 << 40))
        with contextlib.suppress(OSError):
            while not ended.is_set():
                connection.sendall(bytes(1_000_000))
        ended.set()
        return False

    with pytest.raises(BadResponse, match="more bytes are sent than were asked for"):
        await get(scripted(endless).store())
    assert ended.wait(20.0)  # the client hung up


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "ignores ranges"),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc", "not the range"),
        (head(1, 4), "not the range"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 206 Partial Content\r\n" + b"X: " + b"y" * 1_000_000, "not an HTTP answer"),
        (b"HTTP/1.1 206 Partial Content\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "without an address"),
        (
            moved("file:///etc/passwd"),
            "HTTP 302",
        ),
        (
            moved("gopher://127.0.0.1/"),
            "not safe",
        ),
        (
            moved("/model"),
            "too many redirects",
        ),
    ],
)
async def test_what_is_no_answer_to_a_range_is_named(
    scripted: Callable[..., Scripted], answer: bytes, says: str
) -> None:
    with pytest.raises(BadResponse, match=rf"model/model\.safetensors: .*({says})"):
        await get(scripted(sends(answer)).store())


async def test_a_throttling_server_is_asked_for_how_long(scripted: Callable[..., Scripted]) -> None:
    busy = b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    class Throttling(Scripted):
        def _serve(self, raw: socket.socket) -> None:
            with raw:
                self.requests.append(raw.recv(4096))
                raw.sendall(busy)

    server = Throttling()
    try:
        with pytest.raises(Interrupted) as caught:
            await get(server.store())
    finally:
        server.close()
    assert (caught.value.throttled, caught.value.retry_after) == (True, 7.0)
    assert [request.partition(b" ")[0] for request in server.requests] == [b"GET", b"HEAD"]


async def test_a_redirect_is_followed(scripted: Callable[..., Scripted]) -> None:
    answer = moved(scripted(served).url)
    assert await get(scripted(sends(answer)).store(), 7, 1000) == DATA[7:1000]


async def test_a_host_without_an_address_may_get_one() -> None:
    with pytest.raises(Interrupted, match="has no address"):
        await get(open_store(Location.parse("http://nowhere.invalid/model"), environ={}))


# -- whom TLS trusts --


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def context(signer: trustme.CA, name: str = "127.0.0.1", *, newest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    signer.issue_cert(name).configure_cert(made)
    if newest is not None:
        made.minimum_version, made.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, newest
    return made


async def test_a_named_authority_is_trusted(
    scripted: Callable[..., Scripted], authority: trustme.CA, trusted: str
) -> None:
    store = scripted(served, tls=context(authority)).store(SSL_CERT_FILE=trusted)
    assert await get(store) == DATA


@pytest.mark.parametrize("why", ["another authority", "another name", "nobody named it"])
async def test_a_certificate_that_proves_nothing_is_refused(
    scripted: Callable[..., Scripted], authority: trustme.CA, trusted: str, why: str
) -> None:
    signer = trustme.CA() if why == "another authority" else authority
    tls = context(signer, "127.0.0.2" if why == "another name" else "127.0.0.1")
    environ = {} if why == "nobody named it" else {"SSL_CERT_FILE": trusted}
    with pytest.raises(BadResponse, match=r"certificate is not trusted.*SSL_CERT_FILE"):
        await get(scripted(served, tls=tls).store(**environ))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_tls_before_1_2_is_not_spoken(
    scripted: Callable[..., Scripted], authority: trustme.CA, trusted: str
) -> None:
    server = scripted(served, tls=context(authority, newest=ssl.TLSVersion.TLSv1_1))
    with pytest.raises((Interrupted, BadResponse)):
        await get(server.store(SSL_CERT_FILE=trusted))
    assert not server.requests


async def test_https_is_never_left_for_http(
    scripted: Callable[..., Scripted], authority: trustme.CA, trusted: str
) -> None:
    plain = scripted(served)
    store = scripted(sends(moved(plain.url)), tls=context(authority)).store(SSL_CERT_FILE=trusted)
    with pytest.raises(BadResponse, match="not safe"):
        await get(store)
    assert not plain.requests


@pytest.mark.parametrize("text", [None, "nothing"])
async def test_authorities_that_are_none_are_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "authorities.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(AccessDenied, match=r"SSL_CERT_FILE=.*authorities\.pem.*correct it"):
        open_store(Location.parse("https://127.0.0.1/model"), environ={"SSL_CERT_FILE": str(file)})


async def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client under obstore looks into the environment by itself, where nothing else is said."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    store = open_store(Location.parse(scripted(served).url))
    assert await get(store, 5, 10) == DATA[5:10]
