"""An async generator on an event loop on a thread of its own: bytes go on landing while the caller computes."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

_T = TypeVar("_T")


class BackgroundIterator(Generic[_T]):
    """A plain iterator over an async generator. It ends with its thread and loop: at the last item, at an error, at
    `close()`, or when the interpreter exits, because obstore's runtime must be idle by then.
    """

    def __init__(self, generator: AsyncGenerator[_T, None], *, name: str) -> None:
        self._generator = generator
        self._loop = asyncio.new_event_loop()
        ended = threading.Event()
        self._thread = threading.Thread(target=_run, args=(self._loop, ended), name=name, daemon=True)
        # Before the thread begins: Ctrl-C may come at any line, and would else leave it behind.
        self._finalizer = weakref.finalize(self, _close, self._loop, self._thread, ended, generator)
        self._thread.start()

    def __iter__(self) -> BackgroundIterator[_T]:
        return self

    def __next__(self) -> _T:
        if not self._finalizer.alive:
            raise StopIteration
        future = asyncio.run_coroutine_threadsafe(_next(self._generator), self._loop)
        try:
            return future.result()
        except StopAsyncIteration:
            self.close()
            raise StopIteration from None
        except BaseException:
            future.cancel()
            self.close()
            raise

    def close(self) -> None:
        """End everything that runs there, then the thread."""
        self._finalizer()


async def _next(generator: AsyncGenerator[_T, None]) -> _T:
    return await anext(generator)


def _run(loop: asyncio.AbstractEventLoop, ended: threading.Event) -> None:
    try:
        loop.run_forever()
    finally:
        ended.set()


def _close(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    ended: threading.Event,
    generator: AsyncGenerator[_T, None],
) -> None:
    """End the thread, whatever interrupts us meanwhile: that is raised afterwards."""
    if thread.ident is None:  # interrupted before it began
        loop.close()
        return
    ending = asyncio.run_coroutine_threadsafe(_end(generator), loop)
    ending.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
    interrupt: KeyboardInterrupt | None = None
    while not ended.is_set():
        try:
            ended.wait()
        except KeyboardInterrupt as exc:
            interrupt = exc
    thread.join()
    loop.close()
    if interrupt is not None:
        raise interrupt
    ending.result()


async def _end(generator: AsyncGenerator[_T, None]) -> None:
    # Cancelled first: a generator that is running cannot be closed.
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await generator.aclose()
