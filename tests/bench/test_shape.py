"""The proxy passes every byte unchanged, no faster than its rate and no sooner than its time to the first byte."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.bench.shape import BucketShape, ShapedProxy, TokenBucket
from coldstream.errors import SettingsError

DATA = os.urandom(3_000_000)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.send_header("X-Host", self.headers["Host"])
        self.end_headers()
        self.wfile.write(DATA)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def get(connection: http.client.HTTPConnection) -> tuple[bytes, str]:
    connection.request("GET", "/")
    reply = connection.getresponse()
    return reply.read(), reply.headers["X-Host"]


def test_bytes_pass_unchanged_and_the_server_sees_its_own_name(upstream: int) -> None:
    begun = time.monotonic()
    with ShapedProxy("127.0.0.1", upstream, BucketShape()) as proxy:
        connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"))
        for _ in range(3):
            assert get(connection) == (DATA, f"127.0.0.1:{upstream}")
        connection.close()
        assert proxy.bytes > 3 * len(DATA)
        assert begun <= proxy.last_byte


class StandingClock:
    """Time that does not pass, so that what has to be waited for adds up; and how long each sleep was to be."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def shaped(self, upstream: int, shape: BucketShape) -> ShapedProxy:
        return ShapedProxy("127.0.0.1", upstream, shape, clock=lambda: 1.0, sleep=self.slept.append)


def test_every_reply_waits_for_its_first_byte(upstream: int) -> None:
    clock = StandingClock()
    with clock.shaped(upstream, BucketShape(ttfb=0.05)) as proxy:
        connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"))
        for count in (1, 2):
            get(connection)
            assert clock.slept == pytest.approx([0.05] * count)
        connection.close()


def test_all_connections_share_one_rate(upstream: int) -> None:
    clock = StandingClock()
    with clock.shaped(upstream, BucketShape(rate=20e6)) as proxy:
        address = proxy.url.removeprefix("http://")

        def fetch() -> None:
            connection = http.client.HTTPConnection(address)
            assert get(connection)[0] == DATA
            connection.close()

        threads = [threading.Thread(target=fetch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(clock.slept) >= 2 * len(DATA) / 20e6 - 0.01


def test_a_server_that_is_gone_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with ShapedProxy("127.0.0.1", port, BucketShape()) as proxy:
        connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            get(connection)
        connection.close()


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50), st.floats(1e3, 1e9))
def test_a_bucket_never_hands_out_more_than_its_rate_and_a_burst(counts: list[int], rate: float) -> None:
    now = 0.0
    bucket = TokenBucket(rate, clock=lambda: now)
    for passed, count in enumerate(counts):
        now += bucket.take(count)
        assert now >= sum(counts[: passed + 1]) / rate - 0.002 - 1e-6 * now


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("rate=200MB/s,ttfb=60ms", BucketShape(rate=200e6, ttfb=0.06)),
        ("ttfb=1.5s", BucketShape(ttfb=1.5)),
        ("rate=1GiB/s", BucketShape(rate=2.0**30)),
    ],
)
def test_a_shape_is_read(text: str, shape: BucketShape) -> None:
    assert BucketShape.parse(text) == shape


@pytest.mark.parametrize(
    "text", ["", "rate=200", "rate=0MB/s", "rate=-1MB/s", "speed=1MB/s", "ttfb=5", "ttfb=1s,ttfb=2s"]
)
def test_a_wrong_shape_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingsError, match="rate"):
        BucketShape.parse(text)
