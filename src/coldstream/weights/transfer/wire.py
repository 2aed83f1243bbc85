"""Ranges over HTTP/1.1, from the socket straight into the caller's memory: one copy, by the kernel, without the GIL.

A range is a few system calls (MSG_WAITALL) on a thread of its own. A general client reads a quarter of a megabyte at a
time, and copies it once or twice more; what that costs is in docs/lab/2026-11-23-streaming.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

from coldstream.errors import BadResponse
from coldstream.weights.stores.http import Response, check_tunnel, chunk_size, parse_head
from coldstream.weights.stores.network import Network, Proxy
from coldstream.weights.stores.store import Interrupted, OnLanded
from coldstream.weights.transfer.memory import steps
from coldstream.weights.transfer.readers import Readers

CONNECT_SECONDS = 10.0
MAX_HEAD = 64 * 1024
# Bytes that the kernel collects before it wakes a reader, while more than that is to come. Woken for every segment, the
# readers of a fast network switched twice as often, and took a fifth more CPU seconds.
PATIENCE = 2 * 1024 * 1024
MAX_REDIRECTS = 5
MAX_TRAILERS = 100
# Answers of 100 to 199 before the one that counts.
MAX_INTERIM = 10
# Of a refusal's body, which says why.
MAX_REASON = 16 * 1024
REDIRECTS = frozenset({301, 302, 303, 307, 308})

DIRECT = Network({})
# A family, and what sock_connect wants.
_Address = tuple[int, tuple[Any, ...]]
# Looks at an answer's head before its body is read; raises what is wrong with it.
Accept = Callable[[Response], None]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection leads to, and the proxy it leads through."""

    host: str
    port: int
    secure: bool
    proxy: Proxy | None = None

    @property
    def first(self) -> tuple[str, int]:
        """The host and port to connect to."""
        return (self.proxy.host, self.proxy.port) if self.proxy else (self.host, self.port)


class Wire:
    """Connections to the origins of one store, kept between reads. May be used by several event loops in turn.

    Args:
        stall: seconds without a byte after which a read is cut.
        network: proxies, and certificates that are trusted as well as the system's.
        follow: whether a redirect is obeyed; credentials must not be sent along.
    """

    def __init__(self, *, stall: float, network: Network = DIRECT, follow: bool = False) -> None:
        self._stall = stall
        self._network = network
        self._follow = follow
        self._readers = Readers()
        self._idle: list[_Connection] = []
        self._resolved: dict[tuple[str, int], list[_Address]] = {}
        self._secure: Callable[[socket.socket, str], _SecureSocket] | None = None
        self._finalizer = weakref.finalize(self, _close_all, self._idle)

    async def get(
        self, url: str, headers: Mapping[str, str], target: memoryview, accept: Accept, landed: OnLanded
    ) -> None:
        """Fill `target` with the body of the answer; `landed` is told of every good byte, by the thread that reads.

        Raises:
            Interrupted: there was no answer, or less of it.
            BadResponse: it is not HTTP, or has another length. Whatever `accept` raises.
        """
        for _ in range(MAX_REDIRECTS + 1):
            where = await self._one(url, headers, _Sink(target, accept, landed))
            if where is None:
                return
            url = redirected(url, where)
        raise BadResponse(f"{url}: more than {MAX_REDIRECTS} redirects; use the address where they end")

    def close_idle(self) -> None:
        """Close the connections, and end the threads, that no read uses now."""
        _close_all(self._idle)
        self._readers.close()

    async def _one(self, url: str, headers: Mapping[str, str], sink: _Sink) -> str | None:
        """One exchange; where it is redirected to."""
        origin, request = _request(url, headers, self._network.proxy_to(url))
        call = _Call(request, sink, self._follow)
        kept = self._take(origin)
        if kept is not None:
            with contextlib.suppress(_Stale):
                return await self._on(kept, call)
        return await self._on(await self._connect(origin), call)

    async def _on(self, connection: _Connection, call: _Call) -> str | None:
        try:
            redirect = await self._readers.run(lambda: connection.exchange(call), connection.abort)
        except BaseException:
            connection.close()
            raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return redirect

    def _take(self, origin: Origin) -> _Connection | None:
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].origin == origin:
                return self._idle.pop(index)
        return None

    async def _connect(self, origin: Origin) -> _Connection:
        where = "{}:{}".format(*origin.first)
        try:
            raw = await self._open(origin)
        except ConnectionRefusedError as exc:
            raise Interrupted(f"{where}: connection refused", refused=True) from exc
        except OSError as exc:
            self._resolved.pop(origin.first, None)
            raise Interrupted(f"{where}: {exc.strerror or exc or 'no connection'}") from exc
        try:
            if origin.proxy is not None and origin.secure:
                await _tunnel(raw, origin, origin.proxy)
            return _Connection(origin, raw, self._stall, self._over(raw, origin))
        except OSError as exc:
            raw.close()
            raise BadResponse(f"{origin.host}: no TLS ({exc}); check the address and SSL_CERT_FILE") from exc
        except BaseException:
            raw.close()
            raise

    async def _open(self, origin: Origin) -> socket.socket:
        """A connected socket, to any of the host's addresses; the next one begins with the next."""
        addresses = self._resolved.get(origin.first) or await self._resolve(*origin.first)
        self._resolved[origin.first] = [*addresses[1:], addresses[0]]
        failure: OSError | None = None
        for family, address in addresses:
            raw = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await asyncio.get_running_loop().sock_connect(raw, address)
            except OSError as exc:  # TimeoutError is one
                raw.close()
                failure = exc
            except BaseException:
                raw.close()
                raise
            else:
                return raw
        raise failure or OSError("no address")

    async def _resolve(self, host: str, port: int) -> list[_Address]:
        found = await self._readers.run(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), lambda: None)
        return [(family, address) for family, _, _, _, address in found]

    def _over(self, raw: socket.socket, origin: Origin) -> _SecureSocket | None:
        """TLS, where the origin has it."""
        if not origin.secure:
            return None
        if self._secure is None:
            self._secure = _trusting(self._network.authorities)
        return self._secure(raw, origin.host)


@dataclass(frozen=True, slots=True)
class _Sink:
    """Where a body goes, who looks at its head before, and who is told what has landed."""

    target: memoryview
    accept: Accept
    landed: OnLanded


@dataclass(frozen=True, slots=True)
class _Call:
    request: bytes
    sink: _Sink
    follow: bool


class _Stale(Exception):
    """A connection that was kept was closed by the other side meanwhile."""


class _Socket(Protocol):
    def sendall(self, data: bytes, /) -> None: ...

    def recv(self, nbytes: int, /) -> bytes: ...

    def recv_into(self, target: memoryview, nbytes: int, flags: int, /) -> int: ...


class _SecureSocket(_Socket, Protocol):
    def close(self) -> None: ...


class _Connection:
    """One socket. All but `abort` runs on the thread that has it for a call."""

    def __init__(self, origin: Origin, raw: socket.socket, stall: float, secure: _SecureSocket | None) -> None:
        self.origin = origin
        self.reusable = False
        self._raw = raw
        self._secure = secure
        self._socket: _Socket = secure or raw
        self._stall = stall
        self._used = False
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel's own timeout: Python's would poll before each read, and could not wait for all of it.
        raw.setblocking(True)
        limit = struct.pack("ll", int(stall), int(stall % 1 * 1e6))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def abort(self) -> None:
        """From any thread: the thread that waits for the socket wakes up."""
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """No call is under way."""
        if self._secure is not None:
            self._secure.close()
        self._raw.close()

    def exchange(self, call: _Call) -> str | None:
        """Ask, and fill the target; where the answer redirects to instead."""
        self.reusable = False
        try:
            head, rest = self._ask(call.request)
        except (OSError, EOFError) as exc:
            if self._used and not isinstance(exc, TimeoutError | BlockingIOError):
                raise _Stale from exc
            raise self._interrupted(exc) from exc
        if call.follow and head.status in REDIRECTS and "location" in head.headers:
            return head.headers["location"]
        call.sink.accept(self._with_reason(head, rest))
        self._body(head, rest, call.sink)
        self._used = True
        self.reusable = head.headers.get("connection", "").lower() != "close"
        return None

    def _ask(self, request: bytes) -> tuple[Response, bytes]:
        self._socket.sendall(request)
        data = b""
        for _ in range(MAX_INTERIM + 1):
            while (end := data.find(b"\r\n\r\n")) < 0:
                if len(data) > MAX_HEAD:
                    raise BadResponse(f"{self.origin.host}: an answer's head is longer than {MAX_HEAD} bytes")
                more = self._socket.recv(8192)
                if not more:
                    raise EOFError("the connection was closed before an answer")
                data += more
            try:
                head = parse_head(data[:end])
            except ValueError as exc:
                raise BadResponse(f"{self.origin.host}:{self.origin.port}: {exc}; is it a storage server?") from exc
            data = data[end + 4 :]
            if head.status >= 200:
                return head, data
        raise BadResponse(f"{self.origin.host}: more than {MAX_INTERIM} answers before the answer")

    def _with_reason(self, head: Response, rest: bytes) -> Response:
        """A refusal with the start of its body; the connection is not used again."""
        length = head.headers.get("content-length", "")
        if head.status < 400 or not length.isdecimal():
            return head
        wanted = min(int(length), MAX_REASON)
        with contextlib.suppress(OSError, EOFError):
            while len(rest) < wanted and (more := self._socket.recv(wanted - len(rest))):
                rest += more
        return replace(head, body=rest[:wanted])

    def _body(self, head: Response, rest: bytes, sink: _Sink) -> None:
        source = _Source(self._socket, self._wake_after, sink.landed, rest)
        try:
            if head.headers.get("transfer-encoding", "").lower() == "chunked":
                _unchunk(source, sink.target)
            else:
                _check_length(head, sink.target.nbytes)
                source.fill(sink.target)
        except (OSError, EOFError) as exc:
            raise self._interrupted(exc) from exc
        except ValueError as exc:
            raise BadResponse(f"{self.origin.host}:{self.origin.port}: {exc}; is it a storage server?") from exc

    def _wake_after(self, nbytes: int) -> None:
        """Have the kernel collect so many bytes before it wakes the thread that waits for them."""
        with contextlib.suppress(OSError):  # only a matter of speed
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, nbytes)

    def _interrupted(self, failure: Exception) -> Interrupted:
        if isinstance(failure, TimeoutError | BlockingIOError):
            return Interrupted(f"no byte for {self._stall:g} s")
        return Interrupted(str(failure) or type(failure).__name__)


@dataclass(slots=True)
class _Source:
    """The body: what came along with the head, then the socket."""

    socket: _Socket
    wake_after: Callable[[int], None]
    landed: OnLanded
    rest: bytes

    def fill(self, target: memoryview) -> None:
        """All of `target`."""
        left, patient = target.nbytes, False
        for step in steps(target):  # before anything is written: a page in use keeps a huge one from its place
            left -= step.nbytes
            if patient != (left >= 2 * PATIENCE):  # never for more than is to come and not in a TLS session's buffer
                patient = not patient
                self.wake_after(PATIENCE if patient else 1)
            filled = min(len(self.rest), step.nbytes)
            step[:filled] = self.rest[:filled]
            self.rest = self.rest[filled:]
            self._fill_step(step, filled)

    def _fill_step(self, step: memoryview, filled: int) -> None:
        try:
            while filled < step.nbytes:
                count = self.socket.recv_into(step[filled:], 0, socket.MSG_WAITALL)
                if not count:
                    raise EOFError("the connection was closed in the middle of the body")
                filled += count
        finally:
            self.landed(step[:filled])

    def read_line(self) -> bytes:
        """Up to the next end of line, without it."""
        while b"\n" not in self.rest:
            if len(self.rest) > MAX_HEAD:
                raise ValueError("a chunk's size is longer than a line")
            more = self.socket.recv(8192)
            if not more:
                raise EOFError("the connection was closed in the middle of the body")
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\n")
        return line.rstrip(b"\r")


def _unchunk(source: _Source, target: memoryview) -> None:
    """RFC 9112, section 7.1."""
    position = 0
    while size := chunk_size(source.read_line()):
        if position + size > target.nbytes:
            raise ValueError(f"sent more than the {target.nbytes} bytes that were asked for")
        source.fill(target[position : position + size])
        position += size
        source.read_line()
    if position < target.nbytes:
        raise EOFError(f"only {position} bytes came")
    for _ in range(MAX_TRAILERS):
        if not source.read_line():
            return
    raise ValueError(f"more than {MAX_TRAILERS} trailers")


def _check_length(head: Response, wanted: int) -> None:
    """A length that is too long was refused with the head."""
    length = head.headers.get("content-length", "")
    if not length.isdecimal():
        raise ValueError("an answer without a length")
    if int(length) < wanted:
        raise EOFError(f"only {length} bytes of {wanted} are sent")


async def _tunnel(raw: socket.socket, origin: Origin, proxy: Proxy) -> None:
    """Ask the proxy for a way to the origin (CONNECT)."""
    loop = asyncio.get_running_loop()
    answer = b""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await loop.sock_sendall(raw, proxy.connect(origin.host, origin.port))
            while not answer.endswith(b"\r\n\r\n"):  # nothing follows it: TLS begins with us
                more = await loop.sock_recv(raw, 1) if len(answer) < MAX_HEAD else b""
                if not more:
                    raise Interrupted(f"{proxy}: no answer to CONNECT")
                answer += more
        check_tunnel(answer, proxy)
    except (OSError, ValueError) as exc:
        raise Interrupted(f"{origin.host}:{origin.port}: {exc or type(exc).__name__}") from exc


def _request(url: str, headers: Mapping[str, str], proxy: Proxy | None) -> tuple[Origin, bytes]:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    origin = Origin(parts.hostname or "", parts.port or (443 if secure else 80), secure, proxy)
    host = parts.netloc.rpartition("@")[2]
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if proxy is not None and not secure:
        target, headers = f"http://{host}{target}", {**headers, **proxy.headers}
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return origin, "\r\n".join([*lines, "", ""]).encode("latin-1")


def redirected(url: str, where: str) -> str:
    """Where an answer's Location leads.

    Raises:
        BadResponse: away from the web, or from https to http.
    """
    target = urljoin(url, where)
    schemes = urlsplit(url).scheme, urlsplit(target).scheme
    if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
        raise BadResponse(f"{url}: redirects to {schemes[1]}, which is not safe; use another address")
    return target


def _trusting(authorities: str | None) -> Callable[[socket.socket, str], _SecureSocket]:
    """What makes a connected socket a secure one. Imported when it is needed."""
    from coldstream.weights.transfer.openssl import TlsContext, library

    openssl = library()
    if openssl is not None:
        return TlsContext(openssl, authorities).secure
    from coldstream.weights.transfer.tls import Decryption

    return Decryption(authorities).secure


def _close_all(connections: list[_Connection]) -> None:
    while connections:
        connections.pop().close()
