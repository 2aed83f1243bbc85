"""What happens around every request, as plain ASGI: it is seen, its key is checked, its body read, its client watched.

In this order, so that a stranger's body is never read and every refusal is counted and logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coldstream.errors import ColdstreamError, InvalidRequest, Unauthorized
from coldstream.serve import failures, logs
from coldstream.serve.content import decoded
from coldstream.serve.inference import closing
from coldstream.serve.metrics import Metrics
from coldstream.serve.state import ServerState
from coldstream.serve.tracing import Tracing
from coldstream.serve.trail import SCOPE_KEY, Trail

logger = logging.getLogger(f"{logs.LOGGER}.http")

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Answered without a key: probes have none, and they say nothing about anybody's data."""


class Observe:
    """Gives a request its id and trail; counts, logs and, where it broke, answers it."""

    def __init__(
        self, app: ASGIApp, state: ServerState, metrics: Metrics, project: str | None, tracing: Tracing | None
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._lifecycle = state.lifecycle
        self._metrics = metrics
        self._project = project

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = logs.request_id(headers.get("x-request-id")) or f"req-{secrets.token_hex(12)}"
        trail = scope[SCOPE_KEY] = Trail(request_id, trace=logs.trace_id(headers))
        watched = _Sent(send, trail.request_id)
        start = time.monotonic()
        self._lifecycle.enter()
        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            trail.error = trail.error or "Cancelled"
            raise
        except Exception as exc:
            await self._broken(scope, receive, watched, trail, exc)
        finally:
            self._lifecycle.leave()
            trail.seconds = time.monotonic() - start
            self._record(scope, watched.status, trail)

    async def _broken(self, scope: Scope, receive: Receive, send: _Sent, trail: Trail, exc: Exception) -> None:
        trail.error = type(exc).__name__
        fields = {"request_id": trail.request_id, **logs.trace_field(trail.trace, self._project)}
        logger.error("unexpected %s", type(exc).__name__, exc_info=exc, extra={"fields": fields})
        if send.status:
            raise exc  # half an answer is out: only closing the connection can say that it is not whole
        await failures.reply(failures.internal(), scope["path"])(scope, receive, send)

    def _record(self, scope: Scope, status: int, trail: Trail) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(trail.seconds)
        if scope["path"] in OPEN_PATHS:
            return
        if self._tracing is not None:
            self._tracing.record(Headers(scope=scope), scope["method"], route, status, trail)
        level = logs.severity(status) if status else logging.INFO
        if logger.isEnabledFor(level):
            fields: dict[str, Any] = {"request_id": trail.request_id, **logs.trace_field(trail.trace, self._project)}
            http: dict[str, Any] = {
                "requestMethod": scope["method"],
                "requestUrl": scope["path"],
                "status": status,
                "latency": f"{trail.seconds:.6f}s",
            }
            fields = {**fields, "httpRequest": http, **trail.fields()}
            message = f"{scope['method']} {scope['path']} {status or 'client gone'}"
            logger.log(level, message, extra={"fields": fields})


class _Sent:
    """A `send` that adds the request id and remembers the status; 0 until a response has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._id = (b"x-request-id", request_id.encode())
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), self._id]
        await self._send(message)


class CheckKey:
    """Refuses requests without a valid API key, where keys are configured."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._keys = state.keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys.required and scope["path"] not in OPEN_PATHS:
            headers = Headers(scope=scope)
            try:
                self._keys.check(headers.get("authorization"), headers.get("x-api-key"))
            except Unauthorized as error:
                await _refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


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
        try:
            if self._lifecycle.closing:
                raise closing()
            body = await self._read(scope, receive)
        except ColdstreamError as error:
            await _refuse(error, scope, receive, send)
            return
        if body is not None:
            await _until_gone(self._app, scope, receive, send, body)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None when the client went away before it was sent."""
        declared = Headers(scope=scope).get("content-length", "0")
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
                return _well_formed(self._decoded(b"".join(pieces), Headers(scope=scope)))

    def _decoded(self, body: bytes, headers: Headers) -> bytes:
        kind, encoding = headers.get("content-type", ""), headers.get("content-encoding", "")
        return decoded(body, encoding=encoding, kind=kind, limit=self._limit)

    def _too_large(self) -> failures.HttpError:
        # The connection stays open: the server drops what is still sent, and a client that reads its answer only after
        # it has sent everything gets this rather than a reset.
        message = f"the body is larger than {self._limit} bytes, the most that this server reads"
        return failures.HttpError(message, status=413)


async def _until_gone(app: ASGIApp, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
    answering = asyncio.current_task()
    assert answering is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        answering.cancel()

    watcher = asyncio.ensure_future(watch())

    async def sending(message: Message) -> None:
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
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return replayed


async def _refuse(error: ColdstreamError, scope: Scope, receive: Receive, send: Send) -> None:
    trail: Trail = scope[SCOPE_KEY]
    trail.error = type(error).__name__
    await failures.reply(error, scope["path"])(scope, receive, send)
