"""What belongs to a model is closed once, the last first, whenever it comes."""

from __future__ import annotations

from coldstream.loading.closing import Closing


def test_the_last_is_closed_first_and_each_once() -> None:
    closed: list[str] = []
    closing = Closing()
    closing.add(lambda: closed.append("process"))
    closing.add(lambda: closed.append("engine"))
    closing.close()
    closing.close()
    assert closed == ["engine", "process"]


def test_what_comes_after_the_end_is_closed_at_once() -> None:
    closed: list[str] = []
    closing = Closing()
    closing.close()
    closing.add(lambda: closed.append("late"))
    assert closed == ["late"]
