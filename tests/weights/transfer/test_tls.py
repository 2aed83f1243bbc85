"""Both ways to speak TLS, against a server of Python's own: right bytes, no authority trusted that should not be."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from coldstream.errors import BadResponse
from coldstream.weights.transfer.openssl import DirectSocket, TlsContext, library
from coldstream.weights.transfer.tls import Decryption, SecureSocket

DATA = os.urandom(5_000_000)

Speak = Callable[[ssl.SSLSocket], None]
Secure = Callable[[socket.socket, str], "DirectSocket | SecureSocket"]


def direct(authorities: str | None) -> Secure:
    openssl = library()
    assert openssl is not None
    return TlsContext(openssl, authorities).secure


def pythons(authorities: str | None) -> Secure:
    return Decryption(authorities).secure


@pytest.fixture(params=[direct, pythons], ids=["openssl", "python"])
def trusting(request: pytest.FixtureRequest) -> Callable[[str | None], Secure]:
    chosen: Callable[[str | None], Secure] = request.param
    return chosen


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


class Server:
    """One connection after another; `speak` has each."""

    def __init__(self, context: ssl.SSLContext, speak: Speak) -> None:
        self._context, self._speak = context, speak
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def connect(self, *, stall: float = 10.0) -> socket.socket:
        raw = socket.create_connection(self._listener.getsockname())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(stall), int(stall % 1 * 1e6)))
        return raw

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            with raw, contextlib.suppress(OSError), self._context.wrap_socket(raw, server_side=True) as connection:
                self._speak(connection)


@pytest.fixture
def served(authority: trustme.CA) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(speak: Speak, *names: str, signer: trustme.CA = authority) -> Server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        signer.issue_cert(*(names or ("127.0.0.1",))).configure_cert(context)
        servers.append(Server(context, speak))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def sends_everything(connection: ssl.SSLSocket) -> None:
    connection.recv(100)
    connection.sendall(DATA)


def filled(secure: DirectSocket | SecureSocket, target: memoryview) -> int:
    position = 0
    while position < target.nbytes:
        count = secure.recv_into(target[position : position + 2_000_000], 0, 0)
        if not count:
            raise EOFError
        position += count
    return position


@contextlib.contextmanager
def session(secure: Secure, raw: socket.socket, host: str = "127.0.0.1") -> Iterator[DirectSocket | SecureSocket]:
    with raw:
        made = secure(raw, host)
        try:
            yield made
        finally:
            made.close()


def test_every_byte_comes_where_it_belongs(
    served: Callable[..., Server], trusted: str, trusting: Callable[[str | None], Secure]
) -> None:
    server = served(sends_everything)
    with session(trusting(trusted), server.connect()) as secure:
        secure.sendall(b"go")
        first = secure.recv(1000)
        target = bytearray(len(DATA) - len(first))
        assert filled(secure, memoryview(target)) == len(target)
    assert first + target == DATA
    assert 0 < len(first) <= 1000


def test_a_name_is_looked_for_in_the_certificate(
    served: Callable[..., Server], trusted: str, trusting: Callable[[str | None], Secure]
) -> None:
    server = served(sends_everything, "storage.example")
    with session(trusting(trusted), server.connect(), "storage.example") as secure:
        secure.sendall(b"go")
        assert secure.recv(10) == DATA[:10]


@pytest.mark.parametrize(
    ("names", "host"),
    [
        (("127.0.0.1",), "storage.example"),
        (("storage.example",), "other.example"),
        (("storage.example",), "127.0.0.1"),
        (("127.0.0.2",), "127.0.0.1"),
        (("*.example",), "a.b.example"),
    ],
)
def test_a_certificate_of_another_server_is_refused(
    served: Callable[..., Server],
    trusted: str,
    trusting: Callable[[str | None], Secure],
    names: tuple[str, ...],
    host: str,
) -> None:
    server = served(sends_everything, *names)
    with session(trusting(trusted), server.connect(), host) as secure, pytest.raises(BadResponse, match="not trusted"):
        secure.sendall(b"go")


def test_an_authority_that_nobody_trusts_is_refused(
    served: Callable[..., Server], trusting: Callable[[str | None], Secure]
) -> None:
    server = served(sends_everything)
    with session(trusting(None), server.connect()) as secure, pytest.raises(BadResponse, match="SSL_CERT_FILE"):
        secure.sendall(b"go")


def test_an_authority_of_the_same_name_is_refused(
    served: Callable[..., Server], trusted: str, trusting: Callable[[str | None], Secure]
) -> None:
    server = served(sends_everything, signer=trustme.CA())
    with session(trusting(trusted), server.connect()) as secure, pytest.raises(BadResponse, match="not trusted"):
        secure.sendall(b"go")


def test_old_versions_are_refused(
    authority: trustme.CA, trusted: str, trusting: Callable[[str | None], Secure]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    server = Server(context, sends_everything)
    try:
        with session(trusting(trusted), server.connect()) as secure, pytest.raises((OSError, EOFError)):
            secure.sendall(b"go")
    finally:
        server.close()


def test_a_connection_that_is_cut_is_no_end(
    served: Callable[..., Server], trusted: str, trusting: Callable[[str | None], Secure]
) -> None:
    """A body may not be cut short by a man in the middle who closes the connection."""

    def cut(connection: ssl.SSLSocket) -> None:
        connection.recv(100)
        connection.sendall(DATA[:100_000])
        socket.socket.shutdown(connection, socket.SHUT_WR)

    server = served(cut)
    target = memoryview(bytearray(200_000))
    with session(trusting(trusted), server.connect()) as secure:
        secure.sendall(b"go")
        with pytest.raises((OSError, EOFError)):
            filled(secure, target)
    assert target[:100_000] == DATA[:100_000]


def test_silence_is_noticed(
    served: Callable[..., Server], trusted: str, trusting: Callable[[str | None], Secure]
) -> None:
    heard = threading.Event()

    def silent(connection: ssl.SSLSocket) -> None:
        connection.recv(100)
        heard.wait(20.0)

    server = served(silent)
    with session(trusting(trusted), server.connect(stall=0.3)) as secure:
        secure.sendall(b"go")
        with pytest.raises(BlockingIOError):
            secure.recv_into(memoryview(bytearray(100_000)), 0, 0)
    heard.set()


def test_a_file_that_has_no_certificates_is_named(tmp_path: Path, trusting: Callable[[str | None], Secure]) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(OSError, match=r"certificate|PEM|empty"):
        trusting(str(tmp_path / "empty.pem"))
