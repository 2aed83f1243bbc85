"""A slower bucket: a TCP proxy that caps the bytes a second of all connections together, and delays first bytes.

    with ShapedProxy("127.0.0.1", 4443, BucketShape.parse("rate=200MB/s,ttfb=60ms")) as proxy:
        ...                                  # the same bucket, at proxy.url
        proxy.last_byte                      # when the last byte went to a client, time.monotonic()

Bytes go from socket to socket inside the kernel (splice(2) through a pipe), so that the proxy costs next to nothing of
the machine that it measures. It knows of HTTP only that an answer follows what a client sends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from coldstream.errors import SettingsError

_PIECE = 1 << 18
_BURST_SECONDS = 0.002
_F_SETPIPE_SZ = 1031  # linux/fcntl.h
_RATE_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_HOST = re.compile(rb"(?im)^host: [^\r\n]*")  # a server may answer only to its own name, as fake-gcs-server does
_TIME_UNITS = {"ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class BucketShape:
    """`rate` in bytes a second over all connections, None for no cap; `ttfb` in seconds from request to first byte."""

    rate: float | None = None
    ttfb: float = 0.0

    @classmethod
    def parse(cls, text: str) -> BucketShape:
        """From "rate=200MB/s,ttfb=60ms"; either may be left out.

        Raises:
            SettingsError: something else is written there.
        """
        found: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            units = {"rate": {f"{unit}/s": size for unit, size in _RATE_UNITS.items()}, "ttfb": _TIME_UNITS}.get(name)
            number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z/]+)", value.strip())
            if units is None or number is None or number[2] not in units or name in found:
                raise SettingsError(f"shape {text!r}: write rate=200MB/s,ttfb=60ms, not {part.strip()!r}")
            found[name] = float(number[1]) * units[number[2]]
        if found.get("rate") == 0:
            raise SettingsError(f"shape {text!r}: a rate of zero would never end")
        return cls(rate=found.get("rate"), ttfb=found.get("ttfb", 0.0))

    def __str__(self) -> str:
        rate = "unlimited" if self.rate is None else f"{self.rate / 1e6:g} MB/s"
        return f"{rate}, {self.ttfb * 1e3:g} ms to the first byte"


class TokenBucket:
    """Hands out bytes at a rate to its callers, in the order of their calls; thread-safe."""

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, count: int) -> float:
        """Seconds to wait before `count` bytes may pass."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - _BURST_SECONDS) + count / self._rate
            return max(0.0, self._free_at - now)


class ShapedProxy:
    """A context manager; `host` and `port` say what stands behind. `clock` and `sleep` count in seconds."""

    def __init__(
        self,
        host: str,
        port: int,
        shape: BucketShape,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clock, self.sleep = clock, sleep
        self._upstream = (host, port)
        self._shape = shape
        self._bucket = TokenBucket(shape.rate, clock=clock) if shape.rate is not None else None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self.last_byte = 0.0
        self.bytes = 0

    def __enter__(self) -> ShapedProxy:
        threading.Thread(target=self._accept, name="shape", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with self._lock:
            self._closed = True
            sockets = [self._listener, *self._open]
        for item in sockets:
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def url(self) -> str:
        """Where the slower bucket is."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
            except OSError:
                if self._closed:
                    return
                client.close()
                continue
            threading.Thread(target=_Connection(self, client, server).run, name="shape", daemon=True).start()

    def adopt(self, *sockets: socket.socket) -> bool:
        """Remember the sockets of a connection, to close them in the end; False when that end is already here."""
        with self._lock:
            if not self._closed:
                self._open.update(sockets)
            return not self._closed

    def release(self, *sockets: socket.socket) -> None:
        """Close them now."""
        with self._lock:
            self._open.difference_update(sockets)
        for item in sockets:
            item.close()

    def passed(self, count: int) -> None:
        """Some bytes are about to reach a client: wait as long as the shape wants, and remember."""
        if self._bucket is not None:
            self.sleep(self._bucket.take(count))
        with self._lock:
            self.bytes += count
            self.last_byte = self.clock()

    @property
    def ttfb(self) -> float:
        """Seconds between a request and the first byte of its answer, at least."""
        return self._shape.ttfb


class _Connection:
    """One client: requests go through at once, answers in their time."""

    def __init__(self, proxy: ShapedProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._host = f"Host: {server.getpeername()[0]}:{server.getpeername()[1]}".encode()
        self._asked_at: float | None = None

    def run(self) -> None:
        if not self._proxy.adopt(self._client, self._server):
            self._proxy.release(self._client, self._server)
            return
        for item in (self._client, self._server):
            item.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asking = threading.Thread(target=self._requests, name="shape", daemon=True)
        asking.start()
        with contextlib.suppress(OSError):
            self._answers()
        self._hang_up()
        asking.join()
        self._proxy.release(self._client, self._server)

    def _requests(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(1 << 16):
                self._asked_at = self._proxy.clock()
                self._server.sendall(_HOST.sub(self._host, data, count=1))
        self._hang_up()

    def _answers(self) -> None:
        readable, writable = os.pipe()
        try:
            fcntl.fcntl(writable, _F_SETPIPE_SZ, _PIECE)
            while count := os.splice(self._server.fileno(), writable, _PIECE):
                self._hold_first_byte()
                self._proxy.passed(count)
                while count:
                    count -= os.splice(readable, self._client.fileno(), count)
        finally:
            os.close(readable)
            os.close(writable)

    def _hold_first_byte(self) -> None:
        asked_at, self._asked_at = self._asked_at, None
        if asked_at is not None:
            self._proxy.sleep(max(0.0, asked_at + self._proxy.ttfb - self._proxy.clock()))

    def _hang_up(self) -> None:
        for item in (self._client, self._server):
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
