"""Threads that load a model give way, with all that they started; those that answer do not."""

from __future__ import annotations

import os
import threading

from coldstream.host.threads import give_way, loader_name, rename_thread


class Worker:
    """A thread of a given kernel name, and one that it started."""

    def __init__(self, name: str | None) -> None:
        self.numbers: list[int] = []
        self._started, self._over = threading.Barrier(3), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(name,))
        self._thread.start()
        self._started.wait(10)

    def _work(self, name: str | None) -> None:
        if name is not None:
            rename_thread(name)
        inner = threading.Thread(target=self._wait)
        inner.start()
        self._wait()
        inner.join()

    def _wait(self) -> None:
        self.numbers.append(threading.get_native_id())
        self._started.wait(10)
        self._over.wait(10)

    def niceness(self) -> set[int]:
        return {os.getpriority(os.PRIO_PROCESS, number) for number in self.numbers}

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def test_what_loads_and_what_it_started_gives_way_and_no_other_thread_does() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    first, second, answers = Worker(loader_name(1)), Worker(loader_name(11)), Worker(None)
    try:
        give_way([loader_name(1)])
        assert first.niceness() == {max(before, 19)}
        assert second.niceness() == answers.niceness() == {before}
    finally:
        for worker in (first, second, answers):
            worker.end()
