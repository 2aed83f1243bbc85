"""One HTTP/1.1 request over asyncio streams: for listings, tokens and pins.

http.client would cost 20 ms to import on the way to the first byte, and a thread for each call.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

MAX_BODY = 64 * 1024 * 1024
TIMEOUT = 30.0


class HttpFailure(Exception):
    """No usable answer: refused, reset, timed out or malformed. `refused` when nobody listens."""

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
) -> Response:
    """Send one request on a connection of its own.

    Raises:
        HttpFailure: there is no answer, or it is not HTTP.
    """
    try:
        async with asyncio.timeout(seconds):
            return await _exchange(url, method, dict(headers or {}), body)
    except TimeoutError as exc:
        raise HttpFailure(f"{method} {url}: no answer in {seconds:g} s") from exc
    except ConnectionRefusedError as exc:
        raise HttpFailure(f"{method} {url}: connection refused", refused=True) from exc
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as exc:
        raise HttpFailure(f"{method} {url}: {exc or type(exc).__name__}") from exc


async def _exchange(url: str, method: str, headers: dict[str, str], body: bytes) -> Response:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    reader, writer = await asyncio.open_connection(
        parts.hostname,
        parts.port or (443 if secure else 80),
        ssl=ssl.create_default_context() if secure else None,
        limit=MAX_BODY,
    )
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [
            f"{method} {target} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Connection: close",
            "Accept-Encoding: identity",
        ]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        return await _response(reader, method)
    finally:
        writer.close()


async def _response(reader: asyncio.StreamReader, method: str) -> Response:
    head = parse_head(await reader.readuntil(b"\r\n\r\n"))
    return replace(head, body=b"" if method == "HEAD" else await _body(reader, head.headers))


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


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        chunks = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            chunks.append(await reader.readexactly(size))
            await reader.readexactly(2)
        return b"".join(chunks)
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read()


def retry_after(response: Response) -> float | None:
    """Seconds from Retry-After (RFC 9110, section 10.2.3), in either of its spellings."""
    text = response.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        when = datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return None
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
