"""Work of unknown cost, on what strangers sent, in processes that are killed when it costs too much.

Each kind of work has a process, or a few, of its own, started when the first of its kind comes, so that what one kind
costs no other waits for. Its limits are its own to keep: the kernel ends it beyond its time, and refuses it memory. One
that has ended, or has grown, is replaced when the next piece of work comes. One that has had nothing to do for a while
ends, unless it was asked for before there was work.
"""

from __future__ import annotations

import json
import logging
import queue
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from coldstream.errors import EngineError, InvalidRequest, TokenizerError, TooCostly
from coldstream.host.memory import give_back
from coldstream.workers import messages
from coldstream.workers.child import Child
from coldstream.workers.limits import Limits

_log = logging.getLogger(__name__)
_PATIENCE = 10
"""Seconds of waiting for one of the processor's: a machine may have much else to do. After that it hangs."""
_REST = 20.0
"""Seconds without work after which a process ends: starting it again costs the next request a tenth of one."""


class Workers:
    """Safe to use from any thread, and to be waited for: not for an event loop.

    A process ends that has had nothing to do for `rest` seconds, and this process gives back what answers took.
    """

    def __init__(self, *, rest: float = _REST) -> None:
        self._lock = threading.Lock()
        self._crews: dict[str, _Crew] = {}
        self._is_closed = False
        self._rest, self._closing = rest, threading.Event()
        self._resting: threading.Thread | None = None

    def call(
        self,
        work: str,
        argument: Any,
        data: bytes = b"",
        *,
        limits: Limits,
        subject: str,
        field: str | None = None,
        beside: int = 1,
    ) -> Any:
        """What `work`, the "module:class" of a `serve.Work`, makes of `argument` (as JSON has it) and `data`.

        `subject` says in messages what it is about, `field` where that stands in the request; `beside` is how many
        pieces of this work may be done at a time.

        Raises:
            TooCostly: it took more than the limits allow; names the limit.
            InvalidRequest, TokenizerError: what the work raised.
            EngineError: the work is at fault, or no process can be started.
        """
        try:
            return self._of(work, beside).call(argument, data, limits, subject, field)
        finally:
            self._see_to_rest()

    def begin(self, work: str, *, beside: int = 1) -> None:
        """Start a process for this work, which imports what it needs, and do not wait; it stays when there is none."""
        self._of(work, beside).begin()

    def deaths(self) -> Mapping[str, int]:
        """How many processes were ended by their work, by the work's class."""
        with self._lock:
            return {name.rpartition(":")[2]: crew.deaths for name, crew in self._crews.items()}

    def close(self) -> None:
        """End them all; each call that waits for one gets an error."""
        with self._lock:
            self._is_closed = True
            crews = list(self._crews.values())
        self._closing.set()
        for crew in crews:
            crew.close()

    def _see_to_rest(self) -> None:
        """A thread that is there while there are processes to end."""
        with self._lock:
            if self._resting is None and not self._is_closed:
                self._resting = threading.Thread(target=self._end_idle, name="coldstream-workers-rest", daemon=True)
                self._resting.start()

    def _end_idle(self) -> None:
        while not self._closing.wait(self._rest / 2):
            with self._lock:  # work that is done meanwhile finds this thread, or starts another
                before = time.monotonic() - self._rest
                resting = [crew.end_idle(before) for crew in self._crews.values()]
                is_over = all(resting)
                if is_over:
                    self._resting = None
            give_back()
            if is_over:
                return

    def _of(self, work: str, size: int) -> _Crew:
        with self._lock:
            if self._is_closed:
                raise _closed()
            if work not in self._crews:
                self._crews[work] = _Crew(work, size)
            return self._crews[work]


class _Crew:
    """The processes for one kind of work; the one that worked last is taken first, and others start when it is busy."""

    def __init__(self, work: str, size: int) -> None:
        self._workers = [_Worker(work) for _ in range(size)]
        self._free: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._free.put(worker)

    @property
    def deaths(self) -> int:
        return sum(worker.deaths for worker in self._workers)

    def begin(self) -> None:
        self._workers[-1].begin()

    def call(self, argument: Any, data: bytes, limits: Limits, subject: str, field: str | None) -> Any:
        worker = self._free.get()
        try:
            return worker.call(argument, data, limits, subject, field)
        finally:
            self._free.put(worker)

    def end_idle(self, before: float) -> bool:
        """End those that have had nothing to do since this moment; whether all of them now rest."""
        resting = [worker.end_idle(before) for worker in self._workers]
        return all(resting)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class _Worker:
    """One process, or none yet, and its line, for one caller at a time."""

    def __init__(self, work: str) -> None:
        self.deaths = 0
        self._work = work
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._is_closed = self._stays = False
        self._worked = time.monotonic()

    def begin(self) -> None:
        with self._lock:
            self._stays = True
            self._started()

    def call(self, argument: Any, data: bytes, limits: Limits, subject: str, field: str | None) -> Any:
        head = json.dumps([astuple(limits), argument]).encode()
        with self._lock:
            answer = self._ask(head, data, limits)
            self._worked = time.monotonic()
            if isinstance(answer, str):
                raise TooCostly(f"{subject} {answer}", field=field)
        kind, body = answer[:1], answer[1:]
        if kind == b"m":
            raise TooCostly(f"{subject} {_too_much_memory(limits)}", field=field)
        return _read(kind, body, subject)

    def end_idle(self, before: float) -> bool:
        """End the process if it has had nothing to do since this moment and need not stay; whether it now rests."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            is_idle = self._worked <= before
            if is_idle and not self._stays:
                self._end()
            return is_idle
        finally:
            self._lock.release()

    def close(self) -> None:
        self._is_closed = True
        child = self._child
        if child is not None:
            child.kill()  # so that a call comes to its end
        with self._lock:
            self._end()

    def _ask(self, head: bytes, data: bytes, limits: Limits) -> bytes | str:
        """The answer, or what it did instead."""
        child = self._started()
        line = child.sockets[0]
        line.settimeout(limits.seconds * _PATIENCE)
        try:
            messages.send(line, len(head).to_bytes(4, "little"), head, data)
            answer = messages.receive(line, most=limits.output)
        except messages.TooLong:
            return self._died(f"makes more than {limits.output:,} bytes")
        except TimeoutError:
            return self._died(_too_much_time(limits))
        except OSError:
            answer = None
        if answer is None:
            return self._died(None, limits)
        if answer[:1] == b"!":
            self._end()
        return answer[1:]

    def _started(self) -> Child:
        if self._child is not None and self._child.has_ended:
            self._end()
        if self._is_closed:
            raise _closed()
        if self._child is None:
            try:
                self._child = Child("coldstream.workers.serve:serve", self._work, lines=1, is_silent=True)
            except OSError as exc:
                raise EngineError(f"no process can be started for a request's work: {exc}") from exc
        return self._child

    def _end(self) -> int:
        child, self._child = self._child, None
        return child.end() if child is not None else 0

    def _died(self, why: str | None, limits: Limits | None = None) -> str:
        status = self._end()
        if self._is_closed:
            raise _closed()
        if why is None:
            assert limits is not None
            why = _why(status, limits)
        self.deaths += 1
        fields = {"work": self._work.rpartition(":")[2], "why": why}
        _log.warning("a worker was ended by its work, which %s", why, extra={"fields": fields})
        return why


def _closed() -> EngineError:
    return EngineError("the server is shutting down; send the request to another instance")


def _why(status: int, limits: Limits) -> str:
    if status == -signal.SIGPROF:
        return _too_much_time(limits)
    if status in (-signal.SIGKILL, -signal.SIGABRT):  # the kernel's, or an allocator's that cannot fail
        return _too_much_memory(limits)
    return f"ends the process that does it (status {status})"


def _too_much_time(limits: Limits) -> str:
    return f"takes more than {limits.seconds:g} s"


def _too_much_memory(limits: Limits) -> str:
    return f"takes more than {limits.memory // 1024**2} MiB of memory"


def _read(kind: bytes, body: bytes, subject: str) -> Any:
    if kind == b"s":
        return body.decode("utf-8", "surrogatepass")
    if kind == b"b":
        return body
    if kind == b"j":
        return json.loads(body)
    if kind == b"x":
        raise EngineError(f"{subject} failed ({body.decode()})")
    name, message, field = json.loads(body)
    raise TokenizerError(message) if name == TokenizerError.__name__ else InvalidRequest(message, field=field)
