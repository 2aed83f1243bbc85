"""A server's threads take short turns, and nothing is collected while it starts; afterwards all is as it was."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from coldstream.host.interpreter import StartingInterpreter

USUAL = sys.getswitchinterval()


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_turns_are_short_and_nothing_is_collected_until_the_start_is_settled() -> None:
    with StartingInterpreter() as interpreter:
        assert (gc.isenabled(), sys.getswitchinterval() < USUAL) == (False, True)
        interpreter.settle()
        assert (gc.isenabled(), sys.getswitchinterval() < USUAL) == (True, True)
        assert gc.get_freeze_count() > 0
    assert sys.getswitchinterval() == USUAL


def test_what_is_settled_stays_so() -> None:
    with StartingInterpreter() as interpreter:
        interpreter.settle()
        gc.unfreeze()
        interpreter.settle()
        assert gc.get_freeze_count() == 0


def test_a_start_that_fails_leaves_the_interpreter_as_it_was() -> None:
    with pytest.raises(ValueError, match="no"), StartingInterpreter():
        raise ValueError("no")
    assert (gc.isenabled(), sys.getswitchinterval()) == (True, USUAL)
