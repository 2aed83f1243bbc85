"""The loader's crew: what is stopped is not waited for."""

from __future__ import annotations

import threading

from coldstream.backends.cpu.crew import Crew


def test_after_a_stop_nothing_waits_for_what_had_not_begun() -> None:
    crew, begun, go = Crew(1), threading.Event(), threading.Event()
    done: list[int] = []

    def first() -> None:
        begun.set()
        go.wait(5)

    crew.run("a", [first, lambda: done.append(1)], done=lambda: done.append(2), failed=done.append)
    begun.wait(5)
    crew.stop()
    go.set()
    crew.settle()
    crew.run("a", [lambda: done.append(3)], done=lambda: done.append(4), failed=done.append)
    crew.end()
    assert done == []
