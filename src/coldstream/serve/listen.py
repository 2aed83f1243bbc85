"""`coldstream serve` from the port on: bind, fork the front that answers at once, then start the main process.

Only what the front needs is imported at the top: the rest would be time in which nobody answers.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from coldstream.errors import PortInUse, SettingsError
from coldstream.serve.front import Front
from coldstream.serve.keys import read_keys
from coldstream.settings import Settings
from coldstream.timeline import Timeline

if TYPE_CHECKING:
    from coldstream.serve.startup import Startup


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


def serve(settings: Settings, timeline: Timeline, *, watch: Callable[[Startup, int], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, or until nothing can be served any more. No other thread may run yet.

    `watch` is called once, with the start and the port that was bound (port 0 lets the system choose).

    Raises:
        PortInUse, SettingsError: before anything was started.
        ColdstreamError: every model failed; this is the first one's error.
    """
    keys = read_keys(settings.server, os.environ)
    early = EarlyEnd()
    with bind(settings.server.host, settings.server.port) as listener:
        front = Front(listener, keys, settings.models)
        early.listen()
        # Imports make a quarter of a million objects, all to stay, and to look through them again and again takes a
        # seventh of their time (1.87 and 1.61 CPU s, medians of ten).
        gc.disable()
        timeline.mark("port open")
        from coldstream.host.memory import return_large_buffers
        from coldstream.serve.process import Process

        return_large_buffers()
        process = Process(settings, timeline, keys, front, early)
        process.startup.begin()
        watch(process.startup, listener.getsockname()[1])
        try:
            process.run(listener)
        finally:
            process.startup.end()
            front.close()
            gc.enable()
    if process.fault is not None:
        raise process.fault
    if process.startup.status == "failed" and not process.asked_to_end:
        raise process.startup.errors()[0]
