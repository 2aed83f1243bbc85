"""uvicorn, without its own idea of signals: the process decides when to end, after the last event is out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from coldstream.serve.asgi import ASGIApp


class HttpServer(uvicorn.Server):
    """Serves one application until `should_exit` is set, on the sockets that `serve` is given."""

    def __init__(self, app: ASGIApp, *, hanging_up: int) -> None:
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self.answers.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield
