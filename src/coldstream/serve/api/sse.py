"""Server-sent events (HTML standard, section 9.2): framing, and a response that sends them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_T = TypeVar("_T")
DONE = b"data: [DONE]\n\n"
"""How OpenAI, and with it every client, ends a stream."""


def frame(data: Any) -> bytes:
    """One event whose data is compact JSON. JSON escapes line ends, so the data is always a single line."""
    return b"data: " + dumps(data) + b"\n\n"


def dumps(data: Any) -> bytes:
    """Compact UTF-8 JSON; NaN and infinities, which JSON has not, are a ValueError."""
    return _text(data).encode()


def dumps_long(data: Any) -> bytes:
    """The same in pieces, each of them soon done: for another thread than the event loop's, which waits for none."""
    return "".join(_pieces(data)).encode()


def _pieces(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        for place, (name, value) in enumerate(data.items()):
            yield f"{',' if place else '{'}{_text(name)}:"
            yield from _pieces(value)
        yield "}" if data else "{}"
    elif isinstance(data, list) and len(data) > _PIECE:
        for start in range(0, len(data), _PIECE):
            yield f"{',' if start else '['}{_text(data[start : start + _PIECE])[1:-1]}"
        yield "]"
    elif isinstance(data, list):
        for place, value in enumerate(data):
            yield "," if place else "["
            yield from _pieces(value)
        yield "]" if data else "[]"
    else:
        yield _text(data)


_PIECE = 16


def _text(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


async def made(entries: int, make: Callable[[], _T]) -> _T:
    """What `make` makes of so many log probabilities: of many, beside the event loop."""
    return make() if entries < _MANY else await asyncio.to_thread(make)


_MANY = 2000


def json_reply(data: bytes) -> Response:
    """A reply whose JSON is written."""
    return Response(data, media_type="application/json")


class JsonReply(Response):
    """Any JSON value as it is: no second pass through an encoder that looks for models and dates."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


class EventStream(Response):
    """Sends frames as they come. Unlike StreamingResponse it leaves watching the client to the middleware.

    The generator is closed in every case, which is what ends the work of a client that is gone.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, frames: AsyncGenerator[bytes, None]) -> None:
        self.status_code = 200
        self.background = None
        self._first = first
        self._frames = frames
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._frames) as frames:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for chunk in frames:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def opened(frames: AsyncGenerator[bytes, None]) -> EventStream:
    """Wait for the first frame, so that an error that comes before it is still an HTTP status."""
    try:
        first = await anext(frames)
    except BaseException:
        await frames.aclose()
        raise
    return EventStream(first, frames)
