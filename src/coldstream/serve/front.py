"""The front: a small process of its own that answers while the main one loads.

Imports, dlopen(3) and the building of models hold the GIL for up to a second at a time, so no thread and no event loop
of the main process can promise an answer. The front is forked before any of that. It accepts every connection, looks at
the first request without taking it from the socket (MSG_PEEK), and either answers it or hands the connection,
untouched, to the main process (SCM_RIGHTS, unix(7)), where it waits in the door's queue.

    GET /healthz   200
    GET /readyz    the state that the main process told last, with its status
    GET /startup   for `Accept: text/event-stream`: that state, five times a second
    all else       handed over

When the start is over, or should the front end for any other reason, the main process sees the end of their common
socket and accepts connections itself. The front ends when the main process does, for the same reason.

Only the standard library is imported here, and little of it: this is on the way to the first answer.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coldstream.errors import Unauthorized

if TYPE_CHECKING:
    from coldstream.serve.auth import ApiKeys

_HEAD = 1 << 16
"""Bytes of a request that are looked at; whoever sends more before a body is answered by the main process."""
_EVENT_PERIOD = 0.2
_RETRY_PERIOD = 0.02
"""Seconds until a connection that the main process could not take yet is offered again."""
_EAGER = -10
"""Niceness of the front, which has next to nothing to do but should do it at once."""
_CONNECTION, _OVER = b"c", b"o"
_REASONS = {200: "OK", 401: "Unauthorized", 503: "Service Unavailable"}


def first_state(models: Iterable[str]) -> dict[str, Any]:
    """The state of a start that has not begun; see `Startup.state`."""
    left = 3
    waiting = {"phase": "waiting", "bytes": 0, "total_bytes": 0, "rate": 0, "seconds_left": left, "unverified": []}
    nothing = {"bytes": 0, "total_bytes": 0, "rate": 0, "seconds_left": left, "seconds": 0.0}
    return {"status": "loading", "phase": "waiting", **nothing, "models": {name: dict(waiting) for name in models}}


class Front:
    """The main process's end. Fork it while there is one thread only."""

    def __init__(self, listener: socket.socket, keys: ApiKeys, models: Iterable[str]) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        state = _Told.of(first_state(models), retry_after=3)
        self._process = os.fork()
        if not self._process:
            _live(listener, theirs, self.control, keys, state)
        theirs.close()
        self.control.setblocking(False)
        self._is_closed = False

    def tell(self, state: Mapping[str, Any], *, retry_after: int) -> None:
        """What /readyz and /startup say from now on."""
        with contextlib.suppress(OSError):  # the next state comes soon, or it is gone
            self.control.send(_Told.of(state, retry_after=retry_after).packed())

    def take(self) -> socket.socket | None:
        """The next connection that was handed over; None when there will be no more.

        Raises:
            BlockingIOError: there is none at the moment.
        """
        try:
            said, descriptors, _, _ = socket.recv_fds(self.control, 1, 1)
        except ConnectionError:
            return None
        return socket.socket(fileno=descriptors[0]) if said else None

    def dismiss(self) -> None:
        """Ask for every connection that is still open, and for the end."""
        while True:
            try:
                self.control.send(_OVER)
            except BlockingIOError:  # it has much to read; the socket is the event loop's, and never made to block
                time.sleep(_RETRY_PERIOD)
                continue
            except OSError:
                pass  # it is gone already
            return

    def close(self) -> None:
        """End it at once, if it lives, and wait for it; any number of times."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)  # an event loop may keep it from being closed
        self.control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process, 0)


@dataclass(frozen=True, slots=True)
class _Told:
    """A state as it is sent to the front and on to clients."""

    status: int
    retry_after: int
    settled: bool
    body: bytes

    @classmethod
    def of(cls, state: Mapping[str, Any], *, retry_after: int) -> _Told:
        ready = state["status"] in ("ready", "degraded")
        body = json.dumps(state, ensure_ascii=False).encode()
        return cls(200 if ready else 503, retry_after, state["status"] != "loading", body)

    def packed(self) -> bytes:
        return b"%d %d %d\n" % (self.status, self.retry_after, self.settled) + self.body

    @classmethod
    def unpacked(cls, message: bytes) -> _Told:
        numbers, _, body = message.partition(b"\n")
        status, retry_after, settled = map(int, numbers.split())
        return cls(status, retry_after, bool(settled), body)


def _live(listener: socket.socket, control: socket.socket, theirs: socket.socket, keys: ApiKeys, told: _Told) -> None:
    """The child's whole life; never returns."""
    try:
        theirs.close()
        for number in (signal.SIGTERM, signal.SIGINT):  # the main process ends us, when its requests are answered
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(PermissionError):  # where it may, it goes before those that compute
            os.setpriority(os.PRIO_PROCESS, 0, _EAGER)
        control.setblocking(False)
        _Answering(listener, control, keys, told).run()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


class _Answering:
    """One loop over every connection that has not been handed over."""

    def __init__(self, listener: socket.socket, control: socket.socket, keys: ApiKeys, told: _Told) -> None:
        self._listener, self._control, self._keys, self._told = listener, control, keys, told
        self._idle: dict[int, socket.socket] = {}
        self._watching: dict[int, socket.socket] = {}
        self._leaving: deque[socket.socket] = deque()
        self._event_at = 0.0
        self._is_over = False
        self._poll = select.epoll()
        self._poll.register(listener, select.EPOLLIN)
        self._poll.register(control, select.EPOLLIN)

    def run(self) -> None:
        while not self._is_over:
            for number, _ in self._poll.poll(self._patience()):
                self._ready(number)
            self._send_events()
            self._hand_over()
        self._leave_everything()

    def _patience(self) -> float | None:
        if self._leaving:
            return _RETRY_PERIOD
        return max(self._event_at - time.monotonic(), 0.0) if self._watching else None

    def _ready(self, number: int) -> None:
        if number == self._listener.fileno():
            self._accept()
        elif number == self._control.fileno():
            self._listen_to_main()
        elif number in self._idle:
            self._look(self._idle[number])
        elif number in self._watching:
            self._end(self._watching[number])  # it hung up, or says what nobody asked it

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor left: those that wait stay in the kernel's queue for a moment
            time.sleep(_RETRY_PERIOD)
            return
        connection.setblocking(False)
        self._idle[connection.fileno()] = connection
        self._poll.register(connection, select.EPOLLIN)
        self._look(connection)

    def _listen_to_main(self) -> None:
        try:
            message = self._control.recv(1 << 20)
        except BlockingIOError:
            return
        except ConnectionError:
            message = b""
        if not message:
            os._exit(0)  # the main process is gone
        if message == _OVER:
            self._is_over = True
        else:
            self._told = _Told.unpacked(message)
            self._event_at = 0.0 if self._told.settled else self._event_at

    def _look(self, connection: socket.socket) -> None:
        """Answer the request that begins here, if it is one of ours and whole."""
        try:
            head = connection.recv(_HEAD, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            head = b""
        if not head:
            self._end(connection)
            return
        request = _Request.read(head)
        if request is None or not self._answer(connection, request):
            self._release(connection)
            self._leaving.append(connection)

    def _answer(self, connection: socket.socket, request: _Request) -> bool:
        """False when it is not for us."""
        if request.path == "/healthz":
            self._reply(connection, request, 200, b'{"status": "ok"}')
        elif request.path == "/readyz":
            self._reply(connection, request, self._told.status, self._told.body)
        elif request.path == "/startup" and "text/event-stream" in request.headers.get("accept", ""):
            self._begin_events(connection, request)
        else:
            return False
        return True

    def _reply(self, connection: socket.socket, request: _Request, status: int, body: bytes, more: str = "") -> None:
        more += f"retry-after: {self._told.retry_after}\r\n" if status == 503 else ""
        more += "" if request.keeps_alive else "connection: close\r\n"
        more += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        connection.recv(request.size)  # what is not read makes the kernel reset the connection when it is closed
        self._send(connection, _head(status, more) + (body if request.method == "GET" else b""))
        if not request.keeps_alive:
            self._end(connection)

    def _begin_events(self, connection: socket.socket, request: _Request) -> None:
        try:
            self._keys.check(request.headers.get("authorization"), request.headers.get("x-api-key"))
        except Unauthorized as exc:
            body = json.dumps({"error": {"type": "Unauthorized", "message": str(exc)}}).encode()
            self._reply(connection, request, 401, body, "www-authenticate: Bearer\r\n")
            return
        connection.recv(request.size)
        self._send(connection, _head(200, "content-type: text/event-stream\r\nconnection: close\r\n"))
        if request.method == "HEAD":
            self._end(connection)
        elif self._idle.pop(connection.fileno(), None) is not None:
            self._watching[connection.fileno()] = connection
            self._event_at = 0.0

    def _send_events(self) -> None:
        if not self._watching or time.monotonic() < self._event_at:
            return
        self._event_at = time.monotonic() + _EVENT_PERIOD
        event = b"data: " + self._told.body + b"\n\n"
        for connection in tuple(self._watching.values()):
            self._send(connection, event + b"data: [DONE]\n\n" * self._told.settled)
            if self._told.settled:
                self._end(connection)

    def _send(self, connection: socket.socket, data: bytes) -> None:
        """Whoever does not read has a full buffer, and is hung up on."""
        try:
            whole = connection.send(data) == len(data)
        except OSError:
            whole = False
        if not whole:
            self._end(connection)

    def _hand_over(self) -> None:
        while self._leaving:
            connection = self._leaving[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.fileno()]))]
            try:
                self._control.sendmsg([_CONNECTION], rights)
            except ConnectionError:
                os._exit(0)
            except OSError:  # EAGAIN, or ETOOMANYREFS: the main process has not come round to the others yet
                return
            self._leaving.popleft().close()

    def _leave_everything(self) -> None:
        self._listener.close()
        for connection in tuple(self._idle.values()):
            self._release(connection)
            self._leaving.append(connection)
        self._told = _Told(self._told.status, self._told.retry_after, True, self._told.body)
        self._event_at = 0.0
        self._send_events()
        self._control.setblocking(True)
        self._hand_over()

    def _release(self, connection: socket.socket) -> None:
        number = connection.fileno()
        if self._idle.pop(number, None) or self._watching.pop(number, None):
            self._poll.unregister(number)

    def _end(self, connection: socket.socket) -> None:
        if connection.fileno() >= 0:
            self._release(connection)
            connection.close()


@dataclass(frozen=True, slots=True)
class _Request:
    """The head of a request without a body."""

    method: str
    path: str
    headers: Mapping[str, str]
    size: int
    keeps_alive: bool

    @classmethod
    def read(cls, data: bytes) -> _Request | None:
        """None when it is not whole, not plain, or not one that has no body: the main process judges it then."""
        head, end, _ = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if not end or len(words) != 3 or words[0] not in ("GET", "HEAD") or not words[2].startswith("HTTP/1."):
            return None
        pairs = [line.partition(":") for line in lines]
        headers = {name.lower(): value.strip() for name, colon, value in pairs if colon}
        if not headers.keys().isdisjoint(_CONTENT) or len(headers) != len(lines) or "host" not in headers:
            return None
        asks_to_close = "close" in headers.get("connection", "").lower() or words[2] == "HTTP/1.0"
        return cls(words[0], words[1].partition("?")[0], headers, len(head) + len(end), not asks_to_close)


_CONTENT = frozenset({"content-length", "transfer-encoding", "upgrade", "expect"})


def _head(status: int, fields: str) -> bytes:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    return f"HTTP/1.1 {status} {_REASONS[status]}\r\ndate: {date}\r\ncache-control: no-store\r\n{fields}\r\n".encode()
