"""ASGI without a framework: what answers before FastAPI is imported is written with this.

https://asgi.readthedocs.io/en/latest/specs/www.html. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


def headers(scope: Scope) -> dict[str, str]:
    """The request's header fields by lower-case name; of one that was sent twice, the first."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    return found


async def send_json(send: Send, status: int, body: Any, more: Headers = ()) -> None:
    """A whole response that no cache keeps."""
    # Names of a checkpoint may hold half a surrogate pair, which JSON can spell and UTF-8 cannot.
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    fields = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *more]
    await send_whole(send, status, data, fields)


async def send_whole(send: Send, status: int, body: bytes, fields: Headers) -> None:
    """A response in one piece."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *fields]})
    await send_chunk(send, body, more=False)


async def send_chunk(send: Send, body: bytes, *, more: bool) -> None:
    """A piece of a response whose head was sent; `more` False ends it."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def disconnected(receive: Receive) -> None:
    """Return when the client is gone, or the response is out. What the request's body still brings is dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass


def replay(body: bytes) -> Receive:
    """A `receive` that gives this body, whole, and then says that the client is gone."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> MutableMapping[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return replayed
