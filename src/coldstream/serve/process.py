"""The main process: begin the start, take over the connections, answer, and end cleanly.

The order is the point: the front answers already; the first bytes are asked for before uvicorn is imported, and FastAPI
and torch come beside it.
"""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coldstream.serve.auth import ApiKeys
from coldstream.serve.door import ASGIApp, Door
from coldstream.serve.front import Front
from coldstream.serve.startup import Startup
from coldstream.settings import Settings
from coldstream.timeline import Timeline

if TYPE_CHECKING:
    from coldstream.serve.http_server import HttpServer
    from coldstream.serve.listen import EarlyEnd
    from coldstream.serve.state import ServerState

_HANGING_UP = 2
"""Seconds that connections get to close after the last event has been sent."""
_TELL_PERIOD = 0.1
"""Seconds between two states that the front is told of."""


class Process:
    """What lives on the main thread: the event loop, the door, and the way out."""

    def __init__(self, settings: Settings, timeline: Timeline, keys: ApiKeys, front: Front, early: EarlyEnd) -> None:
        self.startup = Startup(settings, timeline, on_change=self._model_changed)
        self.asked_to_end = False
        self.fault: BaseException | None = None
        self._settings, self._timeline, self._keys, self._front, self._early = settings, timeline, keys, front, early
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()
        self._news = threading.Event()
        self._is_open = False
        self._telling = threading.Thread(target=self._tell_front, name="front", daemon=True)

    def run(self, listener: socket.socket) -> None:
        """Serve until somebody asks for the end, or until nothing can be served."""
        self._telling.start()
        try:
            with self._timeline.span("import uvicorn"):
                import uvloop

                from coldstream.serve import http_server  # noqa: F401  so that the span has it
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve(listener))
        finally:
            self._end.set()
            self._news.set()
            self._telling.join()

    async def _serve(self, listener: socket.socket) -> None:
        from coldstream.serve.http_server import HttpServer
        from coldstream.serve.playground import Playground
        from coldstream.serve.state import ServerState

        self._loop = asyncio.get_running_loop()
        playground = Playground() if self._settings.server.playground else None
        door = Door(self.startup, self._keys, max_waiting=self._settings.server.max_queue, playground=playground)
        state = ServerState(self._settings, self.startup.models, keys=self._keys, timeline=self._timeline)
        server = HttpServer(door, hanging_up=_HANGING_UP)
        with self._signals(self._loop):
            serving = asyncio.create_task(server.serve(sockets=[]))
            taking = asyncio.create_task(self._take_over(server, listener))
            application = asyncio.create_task(asyncio.to_thread(self._application, state))
            application.add_done_callback(lambda task: self._open(door, task))
            self._model_changed()  # one may have failed before there was a loop to tell
            if self._early.was_asked:
                self._asked(self._loop, signal.SIGTERM)
            await self._end.wait()
            await state.shut_down()
            taking.cancel()
            await asyncio.wait({taking})
            self._front.close()
            server.should_exit = True
            await serving
            self._loop = None

    async def _take_over(self, server: HttpServer, listener: socket.socket) -> None:
        """Adopt what the front hands over; when it is gone, listen."""
        assert self._loop is not None
        some = asyncio.Event()
        self._loop.add_reader(self._front.control, some.set)
        try:
            while True:
                try:
                    connection = self._front.take()
                except BlockingIOError:
                    some.clear()
                    await some.wait()
                    continue
                if connection is None:
                    break
                await server.adopt(connection)
        finally:
            self._loop.remove_reader(self._front.control)
        self._front.close()  # it has ended, but somebody must ask for its exit status
        await server.listen(listener)

    def _tell_front(self) -> None:
        """On a thread of its own: keep the front informed, and send it away when everything is settled."""
        while not self._end.is_set():
            self._news.clear()
            settled = self._is_open and self.startup.status != "loading"
            self._front.tell(self.startup.state(), retry_after=math.ceil(self.startup.retry_after()))
            if settled:
                self._front.dismiss()
                # What the start has made stays; a full collection of it would stop everybody for 0.12 s.
                gc.freeze()
                gc.enable()
                return
            self._news.wait(_TELL_PERIOD)

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
        self._is_open = True
        self._news.set()

    def _model_changed(self) -> None:
        """On any thread: a model became ready or failed. When nothing can be served, the process ends."""
        self._news.set()
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
