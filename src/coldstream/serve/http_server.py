"""uvicorn, without its own idea of signals: the process decides when to end, after the last event is out."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn

from coldstream.serve.door import Door


class HttpServer(uvicorn.Server):
    """Serves one door on a bound socket until `should_exit` is set; `on_open` is called when it begins to."""

    def __init__(self, door: Door, *, hanging_up: int, on_open: Callable[[], None]) -> None:
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
        self._on_open = on_open

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        self._on_open()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield
