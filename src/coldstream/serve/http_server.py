"""uvicorn, without its own idea of signals and sockets.

The process decides when to end, after the last event is out, and connections come from the front until it is gone.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from coldstream.serve.door import Door


class HttpServer(uvicorn.Server):
    """Serves one door until `should_exit` is set, on the connections that it is given and the sockets it listens on."""

    def __init__(self, door: Door, *, hanging_up: int) -> None:
        config = uvicorn.Config(
            door,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=hanging_up,
        )
        super().__init__(config)
        self._can_take = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._can_take.set()

    async def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that somebody else accepted."""
        await self._can_take.wait()
        connection.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    async def listen(self, listener: socket.socket) -> None:
        """Accept connections from now on."""
        await self._can_take.wait()
        server = await asyncio.get_running_loop().create_server(self._protocol, sock=listener)
        self.servers.append(server)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield
