"""A request's body, read whole up to a limit before its route is called, and its client watched from then on."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import MutableMapping
from typing import Any

from coldstream.errors import InvalidRequest
from coldstream.serve.asgi import ASGIApp, Receive, Scope, Send, disconnected, headers
from coldstream.serve.failures import HttpError
from coldstream.serve.inference import closing
from coldstream.serve.record import SCOPE_KEY
from coldstream.serve.state import ServerState


class WholeBody:
    """Reads a body up to a limit, then watches the client while the request is answered.

    A client that goes away cancels the task that answers it, wherever that waits; its `finally` clauses end its work.
    So no route polls, and a plain reply and a stream are treated alike.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._limit = state.settings.server.max_body_bytes
        self._lifecycle = state.lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        if self._lifecycle.closing:
            raise closing()
        body = await self._read(scope, receive)
        if body is not None:
            await _until_gone(self._app, scope, receive, send, body)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None when the client went away before it was sent."""
        declared = headers(scope).get("content-length", "0")
        if declared.isascii() and declared.isdecimal() and int(declared[:20]) > self._limit:
            raise self._too_large()
        pieces, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if size > self._limit:
                raise self._too_large()
            pieces.append(piece)
            if not message.get("more_body", False):
                return _well_formed(b"".join(pieces))

    def _too_large(self) -> HttpError:
        # The connection stays open: the server drops what is still sent, and a client that reads its answer only after
        # it has sent everything gets this rather than a reset.
        message = f"the body is larger than {self._limit} bytes, the most that this server reads"
        return HttpError(message, status=413)


async def _until_gone(app: ASGIApp, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
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
        await app(scope, _replay(body, receive), sending)
    except asyncio.CancelledError:
        if not gone:
            raise
        answering.uncancel()
        scope[SCOPE_KEY].error = "ClientGone"
    finally:
        watcher.cancel()


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _well_formed(body: bytes) -> bytes:
    """Refuse half a surrogate pair, which JSON can spell (RFC 8259, section 8.2) and no tokenizer can read.

    What is no JSON at all is left to the parser, whose message is better.
    """
    if _SURROGATE.search(body):
        try:
            json.dumps(json.loads(body), ensure_ascii=False).encode()
        except UnicodeEncodeError as exc:
            message = f"the body holds half a surrogate pair ({exc.object[exc.start]!a}), which is not text"
            raise InvalidRequest(message) from exc
        except (ValueError, RecursionError):
            return body
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> MutableMapping[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return replayed
