"""The real routes and the real page before an engine that gives exactly so many tokens a second."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from coldstream.engine.request import Request
from coldstream.serve.http.server import HttpServer
from coldstream.serve.main import bind
from coldstream.timeline import Timeline
from tests.support.production import stack
from tests.support.scripted import ScriptedEngine, ScriptedModel

_WORDS = ("the", "model", "answers", "with", "one", "word", "a", "token", "and", "a", "line", "now", "and", "then.\n")
_MODEL = {
    "phase": "ready",
    "bytes": 1,
    "total_bytes": 1,
    "rate": 1,
    "seconds_left": 0.0,
    "unverified": [],
}


class Started:
    """A start that is over; the part of `serve.startup.Startup` that the surface asks."""

    def __init__(self) -> None:
        self.status = "ready"
        self.timeline = Timeline()

    def state(self) -> dict[str, Any]:
        whole = {key: value for key, value in _MODEL.items() if key != "unverified"}
        return {**whole, "status": "ready", "seconds": 1.0, "models": {"default": _MODEL}}

    def retry_after(self) -> float:
        return 1.0

    def spans(self) -> list[dict[str, Any]]:
        return []


class Paced:
    """A context manager around a server on a free port; each request gets `tokens` words at `rate` a second.

    With `script` it gets those instead.
    """

    def __init__(self, rate: float, tokens: int, script: Callable[[Request], Sequence[str]] | None = None) -> None:
        self._rate, self._tokens = rate, tokens
        self._engine = ScriptedEngine(script or self._words, manual=True)
        self._end = threading.Event()
        self._socket = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._threads = [threading.Thread(target=part, daemon=True) for part in (self._serve, self._pace)]

    def __enter__(self) -> Paced:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._end.set()
        self._server.should_exit = True
        for thread in self._threads:
            thread.join(10)
        self._engine.close()
        self._socket.close()

    def _words(self, request: Request) -> list[str]:
        chance = random.Random(1)
        return [f"{chance.choice(_WORDS)} " for _ in range(self._tokens)]

    def _serve(self) -> None:
        asyncio.run(self._answer())

    async def _answer(self) -> None:
        made = stack(ScriptedModel(self._engine), start=Started()).open()
        self._server = HttpServer(made.surface, self._socket, refused=made.surface.refused, hanging_up=2)
        await self._server.serve()

    def _pace(self) -> None:
        """One step a token, by the clock: a late one is made up for, as a real engine's would not be."""
        begun, done = time.monotonic(), 0
        while not self._end.wait(max(0.0, begun + done / self._rate - time.monotonic())):
            if self._engine.stats().running:
                self._engine.step()
                done += 1
            else:
                begun, done = time.monotonic(), 0
                time.sleep(0.01)
