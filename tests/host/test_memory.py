"""Memory comes as asked for, and goes with its last view."""

from __future__ import annotations

import gc

import pytest

from coldstream.host.memory import allocate
from coldstream.host.process import resident, sizes

MB = 1 << 20


@pytest.mark.parametrize("nbytes", [0, 1, MB - 1, MB, 3 * MB + 5])
def test_it_is_as_large_as_asked_for_and_can_be_written(nbytes: int) -> None:
    memory = allocate(nbytes)
    assert memory.nbytes == nbytes
    memory[:] = b"x" * nbytes
    assert bytes(memory) == b"x" * nbytes


def test_a_part_keeps_it_and_the_last_one_gives_it_back() -> None:
    gc.collect()  # what other tests left would go meanwhile
    before = resident()
    memory = allocate(64 * MB)
    memory[:] = bytes([1]) * memory.nbytes
    part = memory[5:10].toreadonly()
    del memory
    gc.collect()
    assert resident() - before > 56 * MB
    assert bytes(part) == bytes([1]) * 5
    del part
    gc.collect()
    assert resident() - before < 8 * MB


def test_what_is_not_written_is_no_memory() -> None:
    before, (addresses, _) = resident(), sizes()
    memory = allocate(256 * MB)
    assert resident() - before < 8 * MB
    assert sizes()[0] - addresses >= 256 * MB
    assert memory[-1] == 0
