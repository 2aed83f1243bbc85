"""A worker that had to wait for the processor leaves it to others, while it is asked to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from coldstream.backends.cpu.crew import Crew

WAITED = 0.1


def begins(*, is_patient: Callable[[], bool]) -> list[float]:
    """When each of two pieces began that spend their time without the processor."""
    began: list[float] = []

    def piece() -> None:
        began.append(time.perf_counter())
        time.sleep(WAITED)

    crew = Crew(1, is_patient=is_patient)
    for subject in ("first", "second"):
        crew.run(subject, [piece], done=lambda: None, failed=pytest.fail)
    crew.end()
    return began


def test_a_patient_worker_waits_as_long_as_it_had_to() -> None:
    first, second = begins(is_patient=lambda: True)
    assert second - first >= 2 * WAITED * 0.9


def test_it_is_asked_after_each_piece() -> None:
    answers = iter((True, False))
    asked: list[bool] = []
    begins(is_patient=lambda: asked.append(next(answers)) or asked[-1])
    assert asked == [True, False]


def test_done_is_called_before_the_rest_and_stop_ends_it() -> None:
    done, crew = threading.Event(), Crew(1, is_patient=lambda: True)
    crew.run("one", [lambda: time.sleep(5 * WAITED)], done=done.set, failed=pytest.fail)
    assert done.wait(10)
    began = time.perf_counter()
    crew.stop()
    crew.end()
    assert time.perf_counter() - began < 4 * WAITED
