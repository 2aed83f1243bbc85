"""A request's body, read whole up to a limit before its route is called, and its client watched from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

from coldstream.errors import TooManyRequests
from coldstream.serve.http import asgi
from coldstream.serve.http.asgi import ASGIApp, Receive, Scope, Send, disconnected, headers
from coldstream.serve.middleware.content import decoded
from coldstream.serve.middleware.errors import HttpError
from coldstream.serve.middleware.json_body import LargeBodies
from coldstream.serve.middleware.record import SCOPE_KEY
from coldstream.serve.requests.inference import closing
from coldstream.serve.state import ServerState

_STALL = 20.0
"""Seconds without a byte of a body that is waited for."""
_BODIES_AT_ONCE = 4
"""How many bodies of the largest size are held in memory; smaller ones share their room."""


class WholeBody:
    """Reads a body up to a limit, then watches the client while the request is answered.

    A client that goes away cancels the task that answers it, wherever that waits; its `finally` clauses end its work.
    So no route polls, and a plain reply and a stream are treated alike.
    """

    def __init__(self, app: ASGIApp, state: ServerState, bodies: LargeBodies) -> None:
        self._app, self._bodies = app, bodies
        self._limit = state.settings.server.max_body_bytes
        self._seconds = state.settings.server.request_timeout
        self._lifecycle = state.lifecycle
        self._held = _Held(_BODIES_AT_ONCE * self._limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        if self._lifecycle.closing:
            raise closing()
        with _Share(self._held) as share:
            body = await self._read_in_time(scope, receive, share)
            if body is not None:
                await _until_gone(self._app, scope, receive, send, body)

    async def _read_in_time(self, scope: Scope, receive: Receive, share: _Share) -> Receive | None:
        """What gives the body once, and does not keep it."""
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(scope, receive, share)
                return None if body is None else asgi.replay(body)
        except TimeoutError as exc:
            raise HttpError(f"the body was not whole after {self._seconds:g} s", status=408) from exc

    async def _read(self, scope: Scope, receive: Receive, share: _Share) -> bytes | None:
        """The body; None when the client went away before it was sent."""
        declared = headers(scope).get("content-length", "0")
        if declared.isascii() and declared.isdecimal() and int(declared[:20]) > self._limit:
            raise self._too_large()
        pieces, size = [], 0
        while True:
            message = await self._next(receive)
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if size > self._limit:
                raise self._too_large()
            share.add(len(piece))
            pieces.append(piece)
            if not message.get("more_body", False):
                sent = headers(scope)
                most = self._limit if sent.get("content-encoding") else size
                body = await self._bodies.read(most, partial(self._decoded, pieces, sent))
                share.add(max(0, len(body) - size))
                return body

    def _decoded(self, pieces: Sequence[bytes], sent: Mapping[str, str]) -> bytes:
        kind, encoding = sent.get("content-type", ""), sent.get("content-encoding", "")
        return decoded(b"".join(pieces), encoding=encoding, kind=kind, limit=self._limit)

    async def _next(self, receive: Receive) -> MutableMapping[str, Any]:
        try:
            async with asyncio.timeout(_STALL):
                return await receive()
        except TimeoutError as exc:
            raise HttpError(f"nothing of the body came for {_STALL:g} s", status=408) from exc

    def _too_large(self) -> HttpError:
        # The connection stays open: the server drops what is still sent, and a client that reads its answer only after
        # it has sent everything gets this rather than a reset.
        message = f"the body is larger than {self._limit} bytes, the most that this server reads"
        return HttpError(message, status=413)


class _Held:
    """The bytes of all bodies that are held."""

    def __init__(self, most: int) -> None:
        self.most, self.now = most, 0


class _Share:
    """What one request holds of them, until the block is left."""

    def __init__(self, held: _Held) -> None:
        self._held, self._mine = held, 0

    def __enter__(self) -> _Share:
        return self

    def __exit__(self, *exc: object) -> None:
        self._held.now -= self._mine

    def add(self, size: int) -> None:
        """Hold so many more.

        Raises:
            TooManyRequests: there is no room for them.
        """
        if self._held.now + size > self._held.most:
            message = f"the server holds {self._held.now} bytes of other requests' bodies; send it again in a moment"
            raise TooManyRequests(message, retry_after=1.0)
        self._held.now += size
        self._mine += size


async def _until_gone(app: ASGIApp, scope: Scope, receive: Receive, send: Send, body: Receive) -> None:
    answering = asyncio.current_task()
    assert answering is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        await disconnected(receive)
        gone = True
        answering.cancel()

    watcher = asyncio.ensure_future(watch())

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            watcher.cancel()  # a server reports the end of the response as a disconnect, too
        await send(message)

    try:
        await app(scope, body, sending)
    except asyncio.CancelledError:
        if not gone:
            raise
        answering.uncancel()
        scope[SCOPE_KEY].error = "ClientGone"
    finally:
        watcher.cancel()
