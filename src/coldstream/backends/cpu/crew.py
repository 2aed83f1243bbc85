"""Threads that take tensors in beside the one that receives them; bounded, so that little waits in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait


class Crew:
    """Runs pieces of work; with no workers, at once and here. Pieces of one subject never overtake an earlier delivery.

    `run`, `settle`, `end` and `stop` are for one thread, the loader's; `stop` may also be called by a worker.
    """

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pack") if workers else None
        self._room = threading.BoundedSemaphore(2 * workers) if workers else None
        self._stopped = threading.Event()
        self._pending: dict[str, list[Future[None]]] = {}

    def run(
        self,
        subject: str,
        pieces: Sequence[Callable[[], None]],
        *,
        done: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Do all pieces, then `done`; a piece that raises goes to `failed`. Waits while too much is under way.

        After `stop` workers take nothing more: the load has failed, and `failed` has said so.
        """
        if self._pool is None:
            for piece in pieces:
                piece()
            done()
            return
        if self._stopped.is_set():
            return
        wait(self._pending.pop(subject, ()))
        whole = _Countdown(len(pieces), done)
        try:
            self._pending[subject] = [self._submit(piece, whole, failed) for piece in pieces]
        except RuntimeError:  # the pool's word for "shut down": another piece failed meanwhile
            if not self._stopped.is_set():
                raise

    def settle(self) -> None:
        """Wait for everything that is under way."""
        wait([piece for pieces in self._pending.values() for piece in pieces])

    def end(self) -> None:
        """Wait for everything that is under way, and let the threads go."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def stop(self) -> None:
        """Begin nothing more; does not wait. Pieces that had not begun end without being done.

        They are not cancelled: `wait` does not hear of a future that a pool has cancelled.
        """
        self._stopped.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _submit(
        self, piece: Callable[[], None], whole: _Countdown, failed: Callable[[BaseException], None]
    ) -> Future[None]:
        assert self._pool is not None
        assert self._room is not None
        room = self._room

        def work() -> None:
            try:
                if self._stopped.is_set():
                    return
                piece()
                whole.count()
            except BaseException as exc:
                failed(exc)
                raise
            finally:
                room.release()

        room.acquire()
        return self._pool.submit(work)


class _Countdown:
    """Calls `done` when it was counted down to nothing, on the thread that did so last."""

    def __init__(self, count: int, done: Callable[[], None]) -> None:
        self._count, self._done = count, done
        self._lock = threading.Lock()

    def count(self) -> None:
        with self._lock:
            self._count -= 1
            last = self._count == 0
        if last:
            self._done()
