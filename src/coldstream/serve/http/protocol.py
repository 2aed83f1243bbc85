"""HTTP/1.1 by uvicorn and httptools, which bound neither a head nor a wait; this does.

A request that goes beyond a limit is refused and its connection closed; a connection that keeps the server waiting is
closed. A body is not read before its application asks for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from coldstream.serve.middleware.errors import HttpError, body

Refused = Callable[[HttpError], str]
"""Takes note of a request that was refused before it had a scope, and gives it an id."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one request may take. Sizes in bytes, times in seconds.

    `head`: request line and fields together. `head_seconds`: from the first byte, or from connecting, to the end of the
    head. `rest_seconds`: from the end of an answer to the end of a body that nothing asked for. `send_seconds`: that a
    client may leave more unread than the kernel holds.
    """

    url: int = 16 * 1024
    head: int = 64 * 1024
    fields: int = 100
    head_seconds: float = 20.0
    rest_seconds: float = 10.0
    send_seconds: float = 30.0


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, limits: HttpLimits, refused: Refused, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits, self._refused = limits, refused
        self._refusal: HttpError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._head_bytes = self._field_count = self._unparsed = 0
        self._has_head = self._is_receiving = False
        self.url = b""
        self.since = self.loop.time()
        """When it began to wait for what it waits for, on the loop's clock."""

    @property
    def answers(self) -> bool:
        """Whether a response is being made or sent."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def can_go(self) -> bool:
        """Whether nothing but its client's slowness keeps it open."""
        return self._is_receiving or not self.answers

    def abort(self) -> None:
        """Close it at once, to make room."""
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._wait(self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_waiting()
        self._is_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Much is unread; see `asyncio.Protocol`."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """What was unread is read; see `asyncio.Protocol`."""
        super().resume_writing()
        self._is_read()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._refusal is None:
            self._unparsed += len(data)
            super().data_received(data)
            self._look_after(len(data))

    def _look_after(self, size: int) -> None:
        """What the parser, which took so many bytes, keeps to itself."""
        if self._refusal is not None:
            return
        if self._unparsed > self._limits.head + size:
            self._refusal = self._too_large()
            self.send_400_response("")
        elif self._timer is None and not self.answers:
            self._wait(self._limits.head_seconds)  # whatever that was, the next request is now waited for

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._head_bytes = self._field_count = 0
        self._has_head, self._is_receiving = False, True

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._unparsed = 0
        super().on_url(url)
        self._head_bytes += len(url)
        if len(self.url) > self._limits.url:
            raise self._refuse(HttpError(f"the URL has more than {self._limits.url} bytes", status=414))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or a trailer, which is counted and dropped."""
        self._unparsed = 0
        self._head_bytes += len(name) + len(value) + len(b": \r\n")
        self._field_count += 1
        if self._head_bytes > self._limits.head or self._field_count > self._limits.fields:
            raise self._refuse(self._too_large())
        if not self._has_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole; its body waits in the socket until the application asks for it."""
        self._unparsed, self._has_head = 0, True
        self._stop_waiting()
        super().on_headers_complete()
        if _has_body(self.headers):
            self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._unparsed, self._is_receiving = 0, False
        if not self.answers:
            self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is out."""
        super().on_response_complete()
        self.since = self.loop.time()
        if not self.flow.write_paused:
            self._wait_for_reader()
        if self._is_receiving:
            self._wait(self._limits.rest_seconds)

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed, or is more than may be; the connection ends."""
        error = self._refusal or HttpError("this is not an HTTP/1.1 request", status=400)
        self._refusal = error
        self._stop_waiting()
        if self.answers:  # of an earlier request: this one's refusal would be taken for its answer
            self.transport.close()
            return
        request_id = self._refused(error)
        content = json.dumps(body(error, self.url.decode("latin-1"))).encode()
        fields = f"content-type: application/json\r\ncontent-length: {len(content)}\r\nx-request-id: {request_id}\r\n"
        self.transport.write(STATUS_LINE[error.status] + fields.encode() + b"connection: close\r\n\r\n" + content)
        self.transport.close()

    def _wait_for_reader(self) -> None:
        self._is_read()
        if self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(self._limits.send_seconds, self._left_unread)

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _left_unread(self) -> None:
        self._unread = None
        if self.transport.get_write_buffer_size() and (self.flow.write_paused or not self.answers):
            self.transport.abort()  # closing would wait for the reader

    def _too_large(self) -> HttpError:
        limits = self._limits
        return HttpError(f"the request's head has more than {limits.head} bytes or {limits.fields} fields", status=431)

    def _refuse(self, error: HttpError) -> HttpError:
        """The error, to be raised through the parser, which hides it from its caller."""
        self._refusal = error
        return error

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.answers:  # and the next request has begun to come
            self._wait(self._limits.head_seconds)
        elif self._is_receiving and not self._has_head:
            seconds = self._limits.head_seconds
            self._refusal = HttpError(f"the request's head was not whole after {seconds:.0f} s", status=408)
            self.send_400_response("")
        else:
            self.transport.abort()


def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)
