"""The door: an ASGI app that answers before FastAPI, torch or a single weight is there.

It serves the health routes and the progress of the start itself, from plain data, and lets every other request wait,
in a bounded number, for the application behind it. Importing this costs nothing but the standard library.

    GET /healthz       200 as soon as the port is open
    GET /readyz        200 when every model is ready, or has failed beside one that is; until then 503, with progress
    GET /startup       the whole state and timeline as JSON; as server-sent events for `Accept: text/event-stream`
    GET /startup.svg   the waterfall of the start
    GET /              the page that shows it, and its files (serve/playground), unless it is switched off
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from coldstream.errors import Unauthorized

if TYPE_CHECKING:
    from coldstream.serve.auth import ApiKeys
    from coldstream.serve.playground import Playground
    from coldstream.serve.startup import Startup

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_EVENT_PERIOD = 0.2
"""Seconds between two server-sent events of /startup."""


class Door:
    """Answers the start-up routes; everything else goes to the application, once `open_to` has been called."""

    def __init__(
        self, startup: Startup, keys: ApiKeys, *, max_waiting: int, playground: Playground | None = None
    ) -> None:
        self._startup = startup
        self._pages: dict[str, ASGIApp] = dict.fromkeys(playground.paths, playground) if playground else {}
        self._keys = keys
        self._max_waiting = max_waiting
        self._waiting = 0
        self._application: ASGIApp | None = None
        self._opened = asyncio.Event()

    def open_to(self, application: ASGIApp) -> None:
        """Let the waiting requests, and all later ones, through to the application. Call it on the event loop."""
        self._application = application
        self._opened.set()

    def close(self) -> None:
        """No application will ever come: the waiting requests get their 503."""
        self._opened.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._pass_on(scope, receive, send)
            return
        route = self._routes().get(scope["path"]) if scope["method"] in ("GET", "HEAD") else None
        if route is None:
            await self._pass_on(scope, receive, send)
        elif scope["path"] in _PUBLIC or scope["path"] in self._pages or await self._permits(scope, send):
            await route(scope, receive, send)

    async def _permits(self, scope: Scope, send: Send) -> bool:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._keys.check(headers.get(b"authorization"), headers.get(b"x-api-key"))
        except Unauthorized as exc:
            body = {"error": {"type": "Unauthorized", "message": str(exc)}}
            await _json(send, 401, body, [(b"www-authenticate", b"Bearer")])
            return False
        return True

    def _routes(self) -> dict[str, ASGIApp]:
        return {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/startup": self._startup_state,
            "/startup.svg": self._waterfall,
            **self._pages,
        }

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._application is None and not self._opened.is_set():
            if self._waiting >= self._max_waiting:
                await self._not_ready(send, f"{self._waiting} requests are already waiting for the start")
                return
            self._waiting += 1
            try:
                await self._opened.wait()
            finally:
                self._waiting -= 1
        if self._application is None:
            await self._not_ready(send, "the server could not start")
            return
        await self._application(scope, receive, send)

    async def _not_ready(self, send: Send, why: str) -> None:
        seconds = math.ceil(self._startup.retry_after())
        body = {"error": {"type": "NotReady", "message": f"{why}; come back in {seconds} s"}}
        await _json(send, 503, body, [(b"retry-after", str(seconds).encode())])

    async def _healthz(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _json(send, 200, {"status": "ok"})

    async def _readyz(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._startup.state()
        if state["status"] in ("ready", "degraded"):
            await _json(send, 200, state)
            return
        seconds = math.ceil(self._startup.retry_after())
        await _json(send, 503, state, [(b"retry-after", str(seconds).encode())])

    async def _startup_state(self, scope: Scope, receive: Receive, send: Send) -> None:
        accept = dict(scope["headers"]).get(b"accept", b"")
        if b"text/event-stream" in accept:
            await self._startup_events(receive, send)
            return
        await _json(send, 200, self._startup.state() | {"timeline": self._startup.spans()})

    async def _startup_events(self, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            while not gone.done():
                state = self._startup.state()
                await _chunk(send, f"data: {json.dumps(state)}\n\n".encode(), more=True)
                if state["status"] != "loading":
                    break
                await asyncio.wait({gone}, timeout=_EVENT_PERIOD)
            await _chunk(send, b"data: [DONE]\n\n", more=False)
        finally:
            gone.cancel()

    async def _waterfall(self, scope: Scope, receive: Receive, send: Send) -> None:
        from coldstream.serve.waterfall import svg

        picture = svg(self._startup.timeline.spans(), now=self._startup.timeline.now()).encode()
        headers = [(b"content-type", b"image/svg+xml"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _chunk(send, picture, more=False)


_PUBLIC = frozenset({"/healthz", "/readyz"})
"""Probes carry no key, and the page asks its reader for one. The rest names buckets and times, and wants one."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _chunk(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _json(send: Send, status: int, body: dict[str, Any], headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    data = json.dumps(body, ensure_ascii=False).encode()
    base = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*base, *headers]})
    await _chunk(send, data, more=False)
