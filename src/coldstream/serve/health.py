"""Whether this server lives, whether it can be asked, and how its start went: from the open port to the last answer.

    GET /healthz, /health, /live, /ping   200 while the process answers and every engine with work makes steps; else 503
    GET /readyz, /ready                   200 when a model can be asked; 503 while it loads, drains or has failed
    GET /startup                          the whole state and timeline as JSON; `Accept: text/event-stream`: as events
    GET /startup.svg                      the waterfall of the start

The probes carry no key, take no method but GET and HEAD, and never read a body. What names objects of a bucket is said
only to those who may ask the models, too.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from coldstream.errors import RequestError
from coldstream.serve.http.asgi import ASGIApp, Receive, Scope, Send, disconnected, send_chunk, send_json, send_whole

if TYPE_CHECKING:
    from coldstream.serve.middleware.auth import ApiKeys
    from coldstream.serve.state import Lifecycle, ServedModel
    from coldstream.timeline import Timeline

LIVENESS = ("/healthz", "/health", "/live", "/ping")
READINESS = ("/readyz", "/ready")
PROBES = frozenset({*LIVENESS, *READINESS})

_EVENT_PERIOD = 0.2
"""Seconds between two server-sent events of /startup."""


class StartView(Protocol):
    """The part of `coldstream.serve.startup.Startup` that is asked while it goes on and afterwards."""

    @property
    def timeline(self) -> Timeline: ...

    @property
    def status(self) -> str:
        """`loading`, `ready`, `degraded` or `failed`."""

    def state(self) -> dict[str, Any]:
        """How far it is, as plain data for JSON; `status` is in it, and each model's state under `models`."""

    def retry_after(self) -> float:
        """Seconds until every model is expected to be ready."""

    def spans(self) -> list[dict[str, Any]]:
        """The timeline as plain data for JSON."""


class Watchdog:
    """Finds engines that stand still, from what each probe sees of them.

    An engine is stuck when its thread has died, and when it has had work for `patience` seconds, from probe to probe,
    and made no step in them. A model that still loads is never stuck: a step of it waits for weights. `patience` has to
    exceed the longest honest step.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        *,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models, self._patience, self._clock = models, patience, clock
        self._seen: dict[str, tuple[int, float]] = {}
        """Of each engine at work: its count of steps, and when that count was first seen."""

    def stuck(self) -> list[str]:
        """The names of the models whose engines are stuck."""
        return [name for name, model in self._models.items() if model.is_ready and self._is_stuck(name, model)]

    def _is_stuck(self, name: str, model: ServedModel) -> bool:
        stats = model.engine.stats()
        if stats.died:
            return True
        if not stats.running and not stats.waiting:
            self._seen.pop(name, None)
            return False
        now = self._clock()
        steps, since = self._seen.get(name, (-1, now))
        if steps != stats.steps:
            self._seen[name] = (stats.steps, now)
            return False
        return now - since > self._patience


class Health:
    """Answers the probes, and who watches the start."""

    def __init__(self, start: StartView, lifecycle: Lifecycle, keys: ApiKeys, watchdog: Watchdog) -> None:
        self._start, self._lifecycle, self._keys, self._watchdog = start, lifecycle, keys, watchdog

    @property
    def probes(self) -> Mapping[str, ASGIApp]:
        """What is answered without a key, by path."""
        return dict.fromkeys(LIVENESS, self._live) | dict.fromkeys(READINESS, self._ready)

    @property
    def views(self) -> Mapping[str, ASGIApp]:
        """What names buckets and times, by path."""
        return {"/startup": self._startup, "/startup.svg": self._waterfall}

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._watchdog.stuck():
            await send_json(send, 503, {"status": "stuck"})
        else:
            await send_json(send, 200, {"status": "ok"})

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._state()
        shown = state if self._may_know(scope) else {key: value for key, value in state.items() if key != "models"}
        if state["status"] in ("ready", "degraded"):
            await send_json(send, 200, shown)
            return
        seconds = 1 if self._lifecycle.closing else math.ceil(self._start.retry_after())
        await send_json(send, 503, shown, [(b"retry-after", str(seconds).encode())])

    def _state(self) -> dict[str, Any]:
        state = self._start.state()
        return state | {"status": "closing"} if self._lifecycle.closing else state

    def _may_know(self, scope: Scope) -> bool:
        try:
            self._keys.check_headers(scope)
        except RequestError:
            return False
        return True

    async def _startup(self, scope: Scope, receive: Receive, send: Send) -> None:
        if b"text/event-stream" in dict(scope["headers"]).get(b"accept", b""):
            await self._events(receive, send)
            return
        await send_json(send, 200, self._state() | {"timeline": self._start.spans()})

    async def _events(self, receive: Receive, send: Send) -> None:
        fields = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            while not gone.done():
                state = self._state()
                await send_chunk(send, f"data: {json.dumps(state)}\n\n".encode(), more=True)
                if state["status"] != "loading":
                    break
                await asyncio.wait({gone}, timeout=_EVENT_PERIOD)
            await send_chunk(send, b"data: [DONE]\n\n", more=False)
        finally:
            gone.cancel()

    async def _waterfall(self, scope: Scope, receive: Receive, send: Send) -> None:
        from coldstream.serve.observe.waterfall import svg

        picture = svg(self._start.timeline.spans(), now=self._start.timeline.now()).encode()
        await send_whole(send, 200, picture, [(b"content-type", b"image/svg+xml"), (b"cache-control", b"no-store")])
