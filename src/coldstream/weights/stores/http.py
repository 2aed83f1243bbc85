"""One HTTP/1.1 request over asyncio streams: for listings, tokens and pins. Everything that comes is bounded.

http.client would cost 20 ms to import on the way to the first byte, and a thread for each call.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import SplitResult, urlsplit

from coldstream.weights.stores.network import Network, Proxy

# The largest listing known, 10,000 objects a page, has some 3 MB.
MAX_BODY = 64 * 1024 * 1024
MAX_HEAD = 64 * 1024
TIMEOUT = 30.0
_HEX = re.compile(rb"[0-9a-fA-F]{1,16}")


class HttpFailure(Exception):
    """No usable answer: refused, reset, timed out or malformed. `refused` when the port is shut."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Response:
    """Status, headers in lower case, the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def request(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    seconds: float = TIMEOUT,
    network: Network | None = None,
    limit: int = MAX_BODY,
) -> Response:
    """Send one request on a connection of its own.

    Args:
        network: how to get there; by default as this process's environment says.
        limit: bytes that the body may have.

    Raises:
        HttpFailure: there is no answer, it is not HTTP, or it is too long.
        SettingsError: a variable that names a proxy does not.
    """
    parts = urlsplit(url)
    network = network or Network(os.environ)
    proxy = network.proxy_to(url)
    try:
        async with asyncio.timeout(seconds):
            context = _trusting(network.authorities) if parts.scheme == "https" else None
            return await _exchange(_Request(method, parts, dict(headers or {}), body, limit), proxy, context)
    except TimeoutError as exc:
        raise HttpFailure(f"{method} {url}: no answer in {seconds:g} s") from exc
    except ConnectionRefusedError as exc:
        raise HttpFailure(f"{method} {url}: connection refused", refused=True) from exc
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as exc:
        raise HttpFailure(f"{method} {url}: {exc or type(exc).__name__}") from exc


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    parts: SplitResult
    headers: dict[str, str]
    body: bytes
    limit: int

    @property
    def host(self) -> str:
        return self.parts.hostname or ""

    @property
    def secure(self) -> bool:
        return self.parts.scheme == "https"

    @property
    def port(self) -> int:
        return self.parts.port or (443 if self.secure else 80)

    def encoded(self, proxy: Proxy | None) -> bytes:
        """As it goes over the wire; a proxy that is asked itself wants the whole URL."""
        target = (self.parts.path or "/") + (f"?{self.parts.query}" if self.parts.query else "")
        headers = {"Host": self.parts.netloc, "Connection": "close", "Accept-Encoding": "identity", **self.headers}
        if proxy is not None and not self.secure:
            target, headers = f"http://{self.parts.netloc}{target}", {**headers, **proxy.headers}
        if self.body:
            headers["Content-Length"] = str(len(self.body))
        lines = [f"{self.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


async def _exchange(request: _Request, proxy: Proxy | None, context: ssl.SSLContext | None) -> Response:
    reader, writer = await _connect(request, proxy, context)
    try:
        writer.write(request.encoded(proxy))
        await writer.drain()
        head = parse_head(await reader.readuntil(b"\r\n\r\n"))
        while head.status < 200:  # RFC 9110, section 15.2; as many as come in time
            head = parse_head(await reader.readuntil(b"\r\n\r\n"))
        return replace(head, body=b"" if request.method == "HEAD" else await _body(reader, head, request.limit))
    finally:
        writer.transport.abort()  # nothing more is wanted either way; a close would wait for what was not sent


async def _connect(
    request: _Request, proxy: Proxy | None, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if proxy is None:
        return await asyncio.open_connection(request.host, request.port, ssl=context, limit=MAX_HEAD)
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port, limit=MAX_HEAD)
    if context is not None:
        try:
            writer.write(proxy.connect(request.host, request.port))
            check_tunnel(await reader.readuntil(b"\r\n\r\n"), proxy)
            await writer.start_tls(context, server_hostname=request.host)
        except BaseException:
            writer.close()
            raise
    return reader, writer


def check_tunnel(answer: bytes, proxy: Proxy) -> None:
    """What a proxy said to CONNECT.

    Raises:
        ValueError: it refused.
    """
    status = parse_head(answer).status
    if status != 200:
        raise ValueError(f"{proxy} answered HTTP {status}; is the host allowed there? NO_PROXY excepts hosts")


@lru_cache(maxsize=4)
def _trusting(authorities: str | None) -> ssl.SSLContext:
    """Kept, because reading the system's authorities takes longer than a request."""
    context = ssl.create_default_context()
    if authorities:
        context.load_verify_locations(authorities)
    return context


def parse_head(data: bytes) -> Response:
    """Status line and headers (RFC 9112, sections 4 and 5); the body is empty.

    Raises:
        ValueError: it is something else.
    """
    first, *lines = data.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise ValueError(f"not an HTTP answer: {first[:80]!r}")
    fields = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    if version == "HTTP/1.0":
        headers.setdefault("connection", "close")
    return Response(int(rest[:3]), headers, b"")


async def _body(reader: asyncio.StreamReader, head: Response, limit: int) -> bytes:
    if head.headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunks(reader, limit)
    length = head.headers.get("content-length")
    if length is None:
        return await _until_the_end(reader, limit)
    if not length.isdecimal():
        raise ValueError(f"a length that is none: {length[:80]!r}")
    _check_length(int(length), limit)
    return await reader.readexactly(int(length))


async def _chunks(reader: asyncio.StreamReader, limit: int) -> bytes:
    """RFC 9112, section 7.1."""
    body = bytearray()
    while size := chunk_size(await reader.readline()):
        _check_length(len(body) + size, limit)
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    return bytes(body)


def chunk_size(line: bytes) -> int:
    """From the line before a chunk.

    Raises:
        ValueError: it has none.
    """
    digits = line.partition(b";")[0].strip()
    if not _HEX.fullmatch(digits):
        raise ValueError(f"a chunk without a size: {line[:80]!r}")
    return int(digits, 16)


async def _until_the_end(reader: asyncio.StreamReader, limit: int) -> bytes:
    body = bytearray()
    while piece := await reader.read(MAX_HEAD):
        _check_length(len(body) + len(piece), limit)
        body += piece
    return bytes(body)


def _check_length(length: int, limit: int) -> None:
    if length > limit:
        raise ValueError(f"the answer is longer than {limit} bytes")


def retry_after(response: Response) -> float | None:
    """Seconds from Retry-After (RFC 9110, section 10.2.3), in either of its spellings."""
    text = response.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    when = date(text)
    return None if when is None else max(0.0, (when - datetime.now(UTC)).total_seconds())


async def asked_to_wait(url: str, headers: Mapping[str, str], network: Network) -> float | None:
    """Seconds that a server which throttles wants to be left alone for: one HEAD, for clients that do not tell."""
    try:
        response = await request(url, method="HEAD", headers=headers, network=network)
    except HttpFailure:
        return None
    return retry_after(response) if response.status in (429, 503) else None


def date(text: str) -> datetime | None:
    """A date as HTTP writes it (RFC 9110, section 5.6.7; UTC); None when it is none."""
    try:
        return datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return None
