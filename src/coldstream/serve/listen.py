"""The process of `coldstream serve`: bind, begin the start, answer, and end cleanly.

The order is the point: the socket is bound and the first bytes are asked for before uvicorn is imported; FastAPI and
torch come beside it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coldstream.errors import PortInUse, SettingsError
from coldstream.serve.allocator import return_large_buffers
from coldstream.serve.door import ASGIApp, Door
from coldstream.serve.keys import ApiKeys, read_keys
from coldstream.serve.startup import Startup
from coldstream.settings import Settings
from coldstream.timeline import Timeline

if TYPE_CHECKING:
    from coldstream.serve.state import ServerState

_HANGING_UP = 2
"""Seconds that connections get to close after the last event has been sent."""


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


def serve(settings: Settings, timeline: Timeline, *, watch: Callable[[Startup, int], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, or until nothing can be served any more.

    `watch` is called once, with the start and the port that was bound (port 0 lets the system choose).

    Raises:
        PortInUse, SettingsError: before anything was started.
        ColdstreamError: every model failed; this is the first one's error.
    """
    return_large_buffers()
    keys = read_keys(settings.server, os.environ)
    with bind(settings.server.host, settings.server.port) as listener:
        process = _Process(settings, timeline, keys)
        process.startup.begin()
        watch(process.startup, listener.getsockname()[1])
        try:
            process.run(listener)
        finally:
            process.startup.end()
    if process.fault is not None:
        raise process.fault
    if process.startup.status == "failed" and not process.asked_to_end:
        raise process.startup.errors()[0]


class _Process:
    """What lives on the main thread: the event loop, the door, and the way out."""

    def __init__(self, settings: Settings, timeline: Timeline, keys: ApiKeys) -> None:
        self.startup = Startup(settings, timeline, on_change=self._model_changed)
        self.asked_to_end = False
        self.fault: BaseException | None = None
        self._settings, self._timeline, self._keys = settings, timeline, keys
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()

    def run(self, listener: socket.socket) -> None:
        with self._timeline.span("import uvicorn"):
            import uvloop

            from coldstream.serve import http_server  # noqa: F401  so that the span has it
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        from coldstream.serve.http_server import HttpServer
        from coldstream.serve.playground import Playground
        from coldstream.serve.state import ServerState

        self._loop = asyncio.get_running_loop()
        playground = Playground() if self._settings.server.playground else None
        door = Door(self.startup, self._keys, max_waiting=self._settings.server.max_queue, playground=playground)
        state = ServerState(self._settings, self.startup.models, keys=self._keys, timeline=self._timeline)
        server = HttpServer(door, hanging_up=_HANGING_UP, on_open=lambda: self._timeline.mark("port open"))
        with self._signals(self._loop):
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            application = asyncio.create_task(asyncio.to_thread(self._application, state))
            application.add_done_callback(lambda task: self._open(door, task))
            self._model_changed()  # one may have failed before there was a loop to tell
            await self._end.wait()
            await state.shut_down()
            server.should_exit = True
            await serving
            self._loop = None

    def _application(self, state: ServerState) -> ASGIApp:
        with self._timeline.span("import FastAPI, build the application"):
            from coldstream.serve.app import create_app

            return create_app(state)

    def _open(self, door: Door, built: asyncio.Task[ASGIApp]) -> None:
        if built.cancelled() or built.exception() is not None:
            self.fault = None if built.cancelled() else built.exception()
            door.close()
            self._end.set()
            return
        door.open_to(built.result())

    def _model_changed(self) -> None:
        """On any thread: a model became ready or failed. When nothing can be served, the process ends."""
        if self._loop is not None and self.startup.status == "failed":
            self._loop.call_soon_threadsafe(self._end.set)

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
