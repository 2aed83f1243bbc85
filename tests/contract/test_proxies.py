"""Hosts that only a proxy can reach: their names are none here."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trustme

from coldstream.errors import SettingsError, StoreUnavailable
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.network import Network
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.transfer.retry import RetryPolicy
from coldstream.weights.transfer.stream import StreamOptions, stream
from tests.contract.test_credentials import TokenServer, grants
from tests.support import files
from tests.support.servers import GoogleServer, RangeServer

TENSORS = files.model()
FILES = {f"model/{name}": data for name, data in files.checkpoint(TENSORS).items()}
FAST = RetryPolicy(attempts=2, first_delay=0.001)


class Proxy(socketserver.ThreadingTCPServer):
    """Every tunnel leads to the one port that it knows; None refuses."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int | None) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.port = port
        self.asked: list[bytes] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://user:p%40ss@127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Tunnel(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            more = self.request.recv(1)
            if not more:
                return
            head += more
        self.server.asked.append(head)
        if self.server.port is None:
            self.request.sendall(b"HTTP/1.1 503 no\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", self.server.port)) as upstream:
            self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_copy, args=(upstream, self.request))
            back.start()
            _copy(self.request, upstream)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("storage.invalid").configure_cert(context)
    return context, path


@pytest.fixture
def web(trusted: tuple[ssl.SSLContext, Path]) -> Iterator[RangeServer]:
    with RangeServer(FILES, tls=trusted[0]) as server:
        yield server


def port_of(server: RangeServer) -> int:
    return int(server.url.rpartition(":")[2])


async def load(uri: str, environ: Mapping[str, str]) -> dict[str, bytes]:
    store = open_store(Location.parse(uri), environ=environ)
    checkpoint = await open_checkpoint_async(uri, store=store, retry=FAST)
    landed = stream(checkpoint, options=StreamOptions(retry=FAST))
    return {item.info.name: bytes(item.data) async for item in landed}


def right() -> dict[str, bytes]:
    return {name: data for name, (_, _, data) in TENSORS.items()}


async def test_https_goes_through_a_tunnel(web: RangeServer, trusted: tuple[ssl.SSLContext, Path]) -> None:
    with Proxy(port_of(web)) as proxy:
        environ = {"HTTPS_PROXY": proxy.url, "SSL_CERT_FILE": str(trusted[1])}
        assert await load("https://storage.invalid/model", environ) == right()
    for asked in proxy.asked:
        assert asked.startswith(b"CONNECT storage.invalid:443 HTTP/1.1\r\n")
        assert b"\r\nproxy-authorization: basic dxnlcjpwqhnz\r\n" in asked.lower()


async def test_a_bucket_and_its_bytes_go_through_a_tunnel_but_the_metadata_server_does_not(
    trusted: tuple[ssl.SSLContext, Path],
) -> None:
    server = GoogleServer({f"models/{name}": data for name, data in FILES.items()}, token="good", tls=trusted[0])
    with server, Proxy(port_of(server)) as proxy, TokenServer(grants) as metadata:
        environ = {
            "https_proxy": proxy.url,
            "http_proxy": proxy.url,
            "SSL_CERT_FILE": str(trusted[1]),
            "HOME": "/nonexistent",
            "GCE_METADATA_HOST": metadata.host,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": "https://storage.invalid",
        }
        assert await load("gs://models/model", environ) == right()
    assert {asked.split(b" ")[0] for asked in proxy.asked} == {b"CONNECT"}
    assert metadata.seen


async def test_plain_http_is_asked_of_the_proxy_itself() -> None:
    with RangeServer(FILES) as server:  # takes whole URLs, as a proxy has to
        assert await load("http://storage.invalid/model", {"http_proxy": server.url}) == right()


async def test_a_proxy_that_refuses_is_named_without_its_password() -> None:
    with Proxy(None) as proxy, pytest.raises(StoreUnavailable) as caught:
        await load("https://storage.invalid/model", {"HTTPS_PROXY": proxy.url})
    assert f"the proxy 127.0.0.1:{proxy.server_address[1]} answered HTTP 503" in str(caught.value)
    assert "p%40ss" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_this_machine_is_reached_directly(host: str) -> None:
    with RangeServer(FILES) as server:
        environ = {"HTTP_PROXY": "http://127.0.0.1:1"}
        assert await load(f"{server.url.replace('127.0.0.1', host)}/model", environ) == right()


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("*", "https://a.b/", True),
        ("a.b", "https://a.b/", True),
        (".b", "https://a.b/", True),
        ("*.b", "https://a.b/", True),
        ("b", "https://a.b/", True),
        ("b", "https://ab/", False),
        ("a.b:444", "https://a.b:444/", True),
        ("a.b:444", "https://a.b:443/", False),
        ("10.0.0.0/8", "https://10.1.2.3/", True),
        ("10.0.0.0/8", "https://11.1.2.3/", False),
        ("2001:db8::1", "https://[2001:db8::1]:8443/", True),
        (" , c ,a.b", "https://A.B/", True),
        ("", "https://a.b/", False),
    ],
)
def test_no_proxy_is_read_as_by_curl(no_proxy: str, url: str, is_direct: bool) -> None:
    network = Network({"all_proxy": "proxy:3128", "NO_PROXY": no_proxy})
    assert (network.proxy_to(url) is None) is is_direct


@pytest.mark.parametrize("value", ["socks5://host:1", "https://host:1", "http://", "http://host:port"])
def test_a_proxy_that_cannot_be_used_is_refused_by_name(value: str) -> None:
    with pytest.raises(SettingsError, match="https_proxy"):
        Network({"HTTPS_PROXY": value}).proxy_to("https://a.b/")
