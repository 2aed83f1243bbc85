"""uvicorn, without its own idea of signals and of how many may connect.

The process decides when to end, after the last event is out. Connections are accepted here, so many that descriptors
are left for what else the process opens; where there are too many, the one that keeps the server waiting longest goes.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from coldstream.serve.http.asgi import ASGIApp
from coldstream.serve.http.protocol import HttpLimits, LimitedProtocol, Refused

_LIMITS = HttpLimits()
_MOST_CONNECTIONS = 512
_RESERVE = 128
"""Descriptors for everything but connections: the store's, files that are imported, pipes of workers."""
_FEWEST_CONNECTIONS = 16
_AT_ONCE = 16
"""Connections that are accepted in a turn of the loop: those that go for them are closed in the next one."""
_PAUSE = 0.05
"""Seconds without accepting, when there was no descriptor for it."""


class HttpServer(uvicorn.Server):
    """Serves one application until `should_exit` is set, on a socket that listens.

    `refused` hears of what was no request; `connections` may be open at a time, None: as descriptors allow.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        refused: Refused,
        hanging_up: int,
        limits: HttpLimits = _LIMITS,
        connections: int | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=hanging_up,
        )
        config.load()  # what it imports is not to be waited for later
        super().__init__(config)
        self.answers = asyncio.Event()
        """Set when connections are taken."""
        self._listener, self._refused, self._limits = listener, refused, limits
        self._most = connections or most_connections()
        self._adopting: set[asyncio.Task[object]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup([])
        self._listen()
        self.answers.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, and let those that are there go."""
        asyncio.get_running_loop().remove_reader(self._listener)
        await super().shutdown(sockets)

    def _listen(self) -> None:
        if not self.should_exit:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptor, or no memory: those that wait stay in the kernel's queue
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._listener)
                loop.call_later(_PAUSE, self._listen)
                return
            self._adopt(connection)

    def _adopt(self, connection: socket.socket) -> None:
        if len(self.server_state.connections) + len(self._adopting) >= self._most and not self._make_room():
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio misses it on what others accepted
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
        self._adopting.add(task)
        task.add_done_callback(self._adopted)

    def _adopted(self, task: asyncio.Task[object]) -> None:
        self._adopting.discard(task)
        if not task.cancelled():
            task.exception()  # the client is gone already

    def _make_room(self) -> bool:
        """Close the connection that keeps the server waiting longest, before its request is whole if need be."""
        idle = [item for item in self.server_state.connections if isinstance(item, LimitedProtocol) and item.can_go]
        if not idle:
            return False
        last = min(idle, key=lambda item: (item.answers, item.since))
        self.server_state.connections.discard(last)
        last.abort()
        return True

    def _protocol(self) -> LimitedProtocol:
        return LimitedProtocol(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            limits=self._limits,
            refused=self._refused,
        )

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


def most_connections() -> int:
    """How many connections may be open, so that descriptors are left for the rest of the process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(_FEWEST_CONNECTIONS, min(_MOST_CONNECTIONS, soft - _RESERVE))
