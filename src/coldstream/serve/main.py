"""`coldstream serve` from the port on: bind, begin the start, answer, and end cleanly.

The order is the point. The port listens before anything but the standard library is imported: what connects waits in
the kernel. The event loop's own imports come next, alone with the interpreter, while libtorch is mapped without it.
When the loop answers, the first bytes are asked for, and FastAPI, the tokenizer and torch come on threads of their own,
each of which holds the interpreter no longer than the loop can wait.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from coldstream.errors import PortInUse, SettingsError
from coldstream.host.interpreter import StartingInterpreter
from coldstream.serve.middleware.auth import ApiKeys, read_keys
from coldstream.settings import Settings
from coldstream.timeline import Timeline

if TYPE_CHECKING:
    import asyncio

    from coldstream.serve.http.asgi import ASGIApp
    from coldstream.serve.observe.metrics import Metrics
    from coldstream.serve.observe.tracing import Tracing
    from coldstream.serve.startup import Startup
    from coldstream.serve.state import ServerState
    from coldstream.serve.surface import Surface

_HANGING_UP = 2
"""Seconds that connections get to close after the last event has been sent."""


def serve(settings: Settings, timeline: Timeline, *, watch: Callable[[Startup, int], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, or until nothing can be served any more. Main thread only.

    `watch` is called once, with the start and the port that was bound (port 0 lets the system choose).

    Raises:
        PortInUse, SettingsError: before anything was started.
        ColdstreamError: every model failed; this is the first one's error.
    """
    keys = read_keys(settings.server, os.environ)
    early = EarlyEnd()
    with bind(settings.server.host, settings.server.port) as listener, StartingInterpreter() as interpreter:
        early.listen()
        timeline.mark("port open")
        from coldstream.host.memory import return_large_buffers
        from coldstream.loading.torch_need import expects_torch

        return_large_buffers()
        if any(map(expects_torch, settings.models.values())):
            _map_libtorch()
        server = ServerProcess(settings, timeline, keys, early, interpreter)
        try:
            server.run(listener, watch)
        finally:
            server.end()
    if server.fault is not None:
        raise server.fault
    if server.startup.status == "failed" and not server.asked_to_end:
        raise server.startup.errors()[0]


def _map_libtorch() -> None:
    """On a thread of its own, which needs the interpreter only to begin."""
    from coldstream.loading.torch_import import map_libtorch

    threading.Thread(target=map_libtorch, name="map libtorch", daemon=True).start()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; connections queue up in it from now on.

    Raises:
        PortInUse, SettingsError: the address is taken, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        if exc.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is taken; stop what listens there or choose another --port"
            ) from exc
        raise SettingsError(
            f"cannot listen on {host}:{port} ({exc.strerror}); choose another --host or --port"
        ) from exc
    listener.listen(2048)
    listener.setblocking(False)
    return listener


class EarlyEnd:
    """SIGTERM or Ctrl-C before there is an event loop to hear of it: remembered until there is one."""

    def __init__(self) -> None:
        self.was_asked = False

    def listen(self) -> None:
        """From now on; main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.was_asked = True


class ServerProcess:
    """What lives on the main thread: the event loop, the surface, and the way out."""

    def __init__(
        self,
        settings: Settings,
        timeline: Timeline,
        keys: ApiKeys,
        early: EarlyEnd,
        interpreter: StartingInterpreter,
    ) -> None:
        from coldstream.serve.startup import Startup

        self.startup = Startup(settings, timeline, on_change=self._model_changed)
        self.asked_to_end = False
        self.fault: BaseException | None = None
        self._has_begun = False
        self._settings, self._timeline, self._keys, self._early = settings, timeline, keys, early
        self._interpreter = interpreter
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, listener: socket.socket, watch: Callable[[Startup, int], None]) -> None:
        """Serve on this socket until the process is asked to end, or until nothing can be served; see `serve`."""
        import asyncio

        with self._timeline.span("import uvicorn"):
            import uvloop

            from coldstream.serve import state, surface  # noqa: F401  so that the span has them
            from coldstream.serve.http import server as http_server  # noqa: F401  so that the span has them
            from coldstream.serve.observe import metrics  # noqa: F401  so that the span has them
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(listener, watch))

    def end(self) -> None:
        """Stop what the start has begun."""
        if self._has_begun:
            self.startup.end()

    async def _serve(self, listener: socket.socket, watch: Callable[[Startup, int], None]) -> None:
        import asyncio

        from coldstream.serve.http.protocol import HttpLimits
        from coldstream.serve.http.server import HttpServer
        from coldstream.serve.observe.metrics import Metrics
        from coldstream.serve.state import ServerState
        from coldstream.serve.surface import Surface

        self._loop, self._end, self._is_open = asyncio.get_running_loop(), asyncio.Event(), False
        state = ServerState(
            self._settings,
            self.startup.models,
            keys=self._keys,
            timeline=self._timeline,
            workers=self.startup.workers,
        )
        metrics = Metrics()
        surface = Surface(self.startup, state, metrics, environ=os.environ)
        limits = HttpLimits(send_seconds=self._settings.server.send_timeout)
        server = HttpServer(surface, listener, refused=surface.refused, hanging_up=_HANGING_UP, limits=limits)
        with self._signals(self._loop):
            serving = asyncio.create_task(server.serve())
            await server.answers.wait()
            self._begin(listener.getsockname()[1], watch)
            application = asyncio.create_task(asyncio.to_thread(self._application, state, metrics))
            application.add_done_callback(lambda task: self._open(surface, task))
            if self._early.was_asked:
                self._asked(self._loop, signal.SIGTERM)
            await self._end.wait()
            surface.close()
            await state.shut_down()
            server.should_exit = True
            await serving
            self._loop = None

    def _begin(self, port: int, watch: Callable[[Startup, int], None]) -> None:
        self._timeline.mark("answers")
        self.startup.begin()
        self._has_begun = True
        watch(self.startup, port)

    def _application(self, state: ServerState, metrics: Metrics) -> tuple[ASGIApp, Tracing | None]:
        with self._timeline.span("import FastAPI, build the application"):
            from coldstream.serve.app import create_app
            from coldstream.serve.observe.tracing import from_environment

            return create_app(state, metrics), from_environment(os.environ)

    def _open(self, surface: Surface, built: asyncio.Task[tuple[ASGIApp, Tracing | None]]) -> None:
        if built.cancelled() or built.exception() is not None:
            self.fault = None if built.cancelled() else built.exception()
            self._end.set()
            return
        surface.open_to(*built.result())
        self._is_open = True
        self._look_at_start()

    def _model_changed(self) -> None:
        """On any thread: a model became ready or failed."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(self._look_at_start)

    def _look_at_start(self) -> None:
        """When nothing can be served the process ends; when all is settled, so is the interpreter."""
        status = self.startup.status
        if status == "failed":
            self._end.set()
        elif self._is_open and status != "loading":
            self._interpreter.settle()

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """SIGTERM and the first Ctrl-C end the process in order; a second Ctrl-C ends it at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked, loop, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _asked(self, loop: asyncio.AbstractEventLoop, number: signal.Signals) -> None:
        self.asked_to_end = True
        loop.remove_signal_handler(number)
        self._end.set()
