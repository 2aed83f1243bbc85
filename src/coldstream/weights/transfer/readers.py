"""Threads that wait for bytes, so that the event loop does not: one a read, kept from one read to the next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
# More than reads can run at once, second reads included; a thread is made when there is no idle one.
_MOST = 256


class Readers:
    """Blocking work for an event loop. Nothing is started before the first piece of it."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[[], _T], abort: Callable[[], None]) -> _T:
        """The result. When cancelled: `abort`, which must make it end soon; then wait until it has."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_MOST, thread_name_prefix="coldstream-read")
        ended = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            abort()
            await _end_of(ended)
            raise

    def close(self) -> None:
        """End the threads, when no work is under way; more of it starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


async def _end_of(future: asyncio.Future[_T]) -> None:
    """Wait for it through any number of cancellations."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({future})
    future.exception()  # no caller is left to raise it to
