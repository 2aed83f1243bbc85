"""The threads of one load: each step that blocks has one of its own, while its event loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TypeVar

from coldstream.host.threads import rename_thread

T = TypeVar("T")

_LONGEST_JOIN = 10.0
"""Seconds to wait for threads one of which may be inside `import torch`."""


class LoaderThreads:
    """Daemon threads of the kernel name `kernel_name`, so that they can give way to a model that answers.

    One more is begun at once, for `run_answering`, with the name and the niceness of the thread that makes this object:
    niceness is inherited, and cannot be taken back, so an engine must not be started by a thread that may give way.
    """

    def __init__(self, model: str, *, kernel_name: str) -> None:
        self.kernel_name = kernel_name
        self._model = model
        self._threads: list[threading.Thread] = []
        self._answering: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.begin("engine", lambda: self._answering.get()())

    def begin(self, kind: str, work: Callable[[], None]) -> None:
        """Do it on a thread of its own, and do not wait."""
        thread = threading.Thread(target=work, name=f"{kind} {self._model}", daemon=True)
        self._threads.append(thread)
        thread.start()

    async def run(self, kind: str, work: Callable[[], T]) -> T:
        """Do it on a thread of its own, named by `kind`. When this is cancelled the work goes on, to no avail."""
        result: Future[T] = Future()

        def body() -> None:
            rename_thread(self.kernel_name)
            _settle(result, work)

        self.begin(kind, body)
        return await asyncio.wrap_future(result)

    async def run_answering(self, work: Callable[[], T]) -> T:
        """Do what starts threads that compute answers. Once."""
        result: Future[T] = Future()
        self._answering.put(lambda: _settle(result, work))
        return await asyncio.wrap_future(result)

    def end(self) -> None:
        """`run_answering` will not be called, if it has not been."""
        self._answering.put(lambda: None)

    def join(self, seconds: float = _LONGEST_JOIN) -> None:
        """Wait until the threads have ended, at most so long."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0.0))


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    """Do the work and say how it ended, unless the load was given up meanwhile."""
    with contextlib.suppress(InvalidStateError):
        try:
            result = work()
        except BaseException as exc:  # whatever it is, the load must hear of it
            future.set_exception(exc)
        else:
            future.set_result(result)
