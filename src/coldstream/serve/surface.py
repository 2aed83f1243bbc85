"""The one ASGI application of the server, from the open port to the last answer.

    every request        has a record: an id, a line in the log, a count          serve/middleware/record.py
    errors               become replies, for a browser with its CORS headers      serve/middleware/errors.py
    probes, the page     are answered without a key                               serve/health.py, serve/playground
    the key              is checked, before anything of a body is read            serve/middleware/auth.py
    /startup             shows the start                                          serve/health.py
    all else             waits for the application, in a bounded number           serve/app.py

Importing this imports no framework: it answers while FastAPI, torch and the weights are still on their way.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from coldstream.errors import NotReady
from coldstream.serve.health import PROBES, Health, StartView, Watchdog
from coldstream.serve.http.asgi import ASGIApp, Receive, Scope, Send
from coldstream.serve.middleware.auth import CheckKey
from coldstream.serve.middleware.errors import HttpError, RenderErrors
from coldstream.serve.middleware.record import KeepRecord
from coldstream.serve.playground import ApiReference, Playground

if TYPE_CHECKING:
    from coldstream.serve.observe.metrics import Metrics
    from coldstream.serve.observe.tracing import Tracing
    from coldstream.serve.state import ServerState


class Surface:
    """Answers what it can itself; everything else goes to the application, once `open_to` has been called."""

    def __init__(self, start: StartView, state: ServerState, metrics: Metrics, *, environ: Mapping[str, str]) -> None:
        server = state.settings.server
        # No request in a step can be answered after this: the deadline of each has passed.
        watchdog = Watchdog(state.models, patience=server.request_timeout)
        health = Health(start, state.lifecycle, state.keys, watchdog)
        pages = (Playground(), ApiReference()) if server.playground else ()
        self._waiting = AwaitApplication(start, limit=server.max_queue)
        app: ASGIApp = Routes(health.views, self._waiting)
        app = CheckKey(app, state.keys)
        app = Routes(dict(health.probes) | {path: page for page in pages for path in page.paths}, app)
        app = RenderErrors(app)
        app = _with_cors(app, server.cors_origins)
        self._record = KeepRecord(
            app,
            lifecycle=state.lifecycle,
            metrics=metrics,
            unlogged=PROBES,
            project=environ.get("GOOGLE_CLOUD_PROJECT"),
        )

    def open_to(self, application: ASGIApp, tracing: Tracing | None = None) -> None:
        """Let the waiting requests, and all later ones, through. Call it on the event loop."""
        self._record.tracing = tracing
        self._waiting.open_to(application)

    def refused(self, error: HttpError) -> str:
        """Take note of what was no request that could be passed on; returns the id that it gets."""
        return self._record.refused(error.status, type(error).__name__)

    def close(self) -> None:
        """No application will come any more: the waiting requests get their 503."""
        self._waiting.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"ASGI {scope['type']!r} is not served here")
        await self._record(scope, receive, send)


class Routes:
    """Exact paths that are read, before `app`, which has the rest. They take GET and HEAD, and no body."""

    def __init__(self, routes: Mapping[str, ASGIApp], app: ASGIApp) -> None:
        self._routes, self._app = routes, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"])
        if route is None:
            await self._app(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD"):
            await route(scope, receive, send)
        else:
            message = f"{scope['method']} {scope['path']}: Method Not Allowed; it takes GET and HEAD"
            raise HttpError(message, status=405, headers={"allow": "GET, HEAD"})


class AwaitApplication:
    """Holds requests, at most `limit` of them, until the application is there; then it is the application."""

    def __init__(self, start: StartView, *, limit: int) -> None:
        self._start, self._limit = start, limit
        self._waiting = 0
        self._settled = asyncio.Event()
        self._application: ASGIApp | None = None

    def open_to(self, application: ASGIApp) -> None:
        self._application = application
        self._settled.set()

    def close(self) -> None:
        self._settled.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._settled.is_set():
            await self._wait()
        if self._application is None:
            raise self._not_ready("the server could not start, or ends")
        await self._application(scope, receive, send)

    async def _wait(self) -> None:
        if self._waiting >= self._limit:
            raise self._not_ready(f"{self._waiting} requests are already waiting for the start")
        self._waiting += 1
        try:
            await self._settled.wait()
        finally:
            self._waiting -= 1

    def _not_ready(self, why: str) -> NotReady:
        seconds = self._start.retry_after()
        return NotReady(f"{why}; come back in {math.ceil(seconds)} s", retry_after=seconds)


def _with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    if not origins:
        return app
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )
