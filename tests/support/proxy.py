"""A TCP proxy in front of a storage server that does to real connections what networks do to them."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Trouble:
    """What happens to one answer. `at`: after so many bytes of its body. `seconds`: for how long, or Retry-After.

    Kinds: reset (RST), close (FIN before the end), stall (silence), corrupt (a bit flipped), status (answered by the
    proxy with `status`), call (`action` runs before the request goes on).
    """

    kind: str
    at: int = 0
    seconds: float = 0.0
    status: int = 429
    action: Callable[[], None] | None = None


# Asked with the request's path and Range header; None lets it pass.
Choose = Callable[[str, "tuple[int, int] | None"], "Trouble | None"]

_RANGE = re.compile(rb"^range: *bytes=(\d+)-(\d+)", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)


class ChaosProxy:
    """Forwards to `target`, a URL; a context manager. Listens only from `enter` on, so before that it refuses."""

    def __init__(self, target: str, choose: Choose, *, port: int = 0) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._choose = choose
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self.seen: list[tuple[float, str, tuple[int, int] | None]] = []
        self.met: list[tuple[str, Trouble]] = []
        self.stalled = threading.Event()
        self.hung_up = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._listener.listen(128)
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in list(self._open):
            with contextlib.suppress(OSError):  # gone already
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5.0)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target)
            with server, server.makefile("rb") as answers, client.makefile("rb") as requests:
                while self._exchange(client, requests, server, answers):
                    pass
        except (OSError, ValueError):
            pass  # a side hung up, which is what a proxy has to live with
        finally:
            self._open.discard(client)
            client.close()

    def _exchange(self, client: socket.socket, requests: object, server: socket.socket, answers: object) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = _head(requests)
        if not head:
            return False
        path = unquote(head.split(b" ", 2)[1].decode())
        found = _RANGE.search(head)
        span = (int(found[1]), int(found[2]) + 1) if found else None
        with self._lock:
            self.seen.append((time.monotonic(), path, span))
            trouble = self._choose(path, span)
            if trouble is not None:
                self.met.append((path, trouble))
        if trouble is not None and trouble.action is not None:
            trouble.action()
        if trouble is not None and trouble.kind == "status":
            lines = [f"HTTP/1.1 {trouble.status} Trouble", f"Retry-After: {trouble.seconds:g}", "Content-Length: 0"]
            client.sendall("\r\n".join([*lines, "", ""]).encode())
            return True
        server.sendall(
            re.sub(rb"(?im)^host: .*\r$", b"Host: %s:%d\r" % (self._target[0].encode(), self._target[1]), head)
        )
        answer = _head(answers)
        client.sendall(answer)
        match = _LENGTH.search(answer)
        if match is None:  # chunked, on a connection that the client wants closed
            while data := answers.read1(65536):  # type: ignore[attr-defined]
                client.sendall(data)
            return False
        length = int(match[1])
        return self._body(client, answers, length, trouble)

    def _body(self, client: socket.socket, answers: object, length: int, trouble: Trouble | None) -> bool:
        sent = 0
        while sent < length:
            stop = length if trouble is None or sent >= trouble.at else min(trouble.at, length)
            data = answers.read(min(65536, stop - sent))  # type: ignore[attr-defined]
            if not data:
                return False
            if trouble is not None and sent >= trouble.at and not self._hurt(client, trouble):
                return False
            if trouble is not None and trouble.kind == "corrupt" and sent >= trouble.at:
                data, trouble = bytes([data[0] ^ 1]) + data[1:], None
            client.sendall(data)
            sent += len(data)
        return True

    def _hurt(self, client: socket.socket, trouble: Trouble) -> bool:
        """Whether the connection goes on."""
        if trouble.kind == "stall":
            self.stalled.set()
            client.settimeout(trouble.seconds)
            # Nothing is sent while a body is awaited, so what can be read is the end.
            if client.recv(1) == b"" and not self._closing.is_set():
                self.hung_up.set()
            return False
        if trouble.kind == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return trouble.kind not in ("reset", "close")


def _head(stream: object) -> bytes:
    lines = []
    while line := stream.readline(65536):  # type: ignore[attr-defined]
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""
