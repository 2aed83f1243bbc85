"""Pieces of work beside the thread that receives them."""

from __future__ import annotations

import threading

import pytest

from coldstream.backends.cpu.crew import Crew


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_done_is_called_once_behind_the_last_piece(workers: int) -> None:
    seen: list[str] = []
    crew = Crew(workers)
    pieces = [lambda number=number: seen.append(str(number)) for number in range(5)]
    crew.run("one", pieces, done=lambda: seen.append("done"), failed=pytest.fail)
    crew.end()
    assert sorted(seen[:-1]) == ["0", "1", "2", "3", "4"]
    assert seen[-1] == "done"


def test_pieces_of_one_subject_wait_for_its_earlier_ones() -> None:
    seen: list[str] = []
    first = threading.Event()
    crew = Crew(2)

    def slow() -> None:
        first.wait(0.05)
        seen.append("first")

    for name, piece in (("first", slow), ("second", lambda: seen.append("second"))):
        crew.run("one", [piece], done=lambda name=name: seen.append(f"{name} done"), failed=pytest.fail)
    crew.end()
    assert seen == ["first", "first done", "second", "second done"]


def test_after_stop_nothing_more_is_taken() -> None:
    seen: list[str] = []
    crew = Crew(1)
    crew.stop()
    crew.run("one", [lambda: seen.append("piece")], done=lambda: seen.append("done"), failed=pytest.fail)
    crew.end()
    assert seen == []
