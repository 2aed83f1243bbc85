"""Prompts are read at a pace at which streams beside them go on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coldstream.backends.protocol import Group
from coldstream.engine.kvcache.blocks import Blocks
from coldstream.engine.pace import BESIDE, ReadingPace
from coldstream.engine.scheduler import CHUNK_ALIGNMENT, Scheduler, Sequence

MACHINES = st.tuples(st.floats(0.001, 1.0), st.floats(1e-6, 0.02))


@given(MACHINES, st.sampled_from([64, 512, 4096]))
def test_a_step_beside_a_stream_takes_no_longer_than_it_may_whatever_the_machine(machine, most) -> None:
    """Seconds of a step: what it takes alone, and so much more for each token of a prompt."""
    alone, token = machine
    pace = ReadingPace()
    for _ in range(20):
        pace.took(alone, read=0)
    for _ in range(20):
        read = max(CHUNK_ALIGNMENT, pace.tokens(most))
        pace.took(alone + token * read, read=read)
    read = max(CHUNK_ALIGNMENT, pace.tokens(most))
    allowed = max(BESIDE, 2 * alone)
    assert read == CHUNK_ALIGNMENT or alone + token * read <= 1.05 * allowed
    assert read == most or alone + token * (read + CHUNK_ALIGNMENT) > 0.9 * allowed


def test_one_step_that_was_held_up_does_not_let_the_next_ones_take_as_long() -> None:
    pace = ReadingPace()
    for _ in range(20):
        pace.took(0.02, read=0)
        pace.took(0.1, read=40)
    before = pace.tokens(512)
    pace.took(3.0, read=0)
    assert pace.tokens(512) <= 4 * before


def test_a_long_prompt_is_read_whole_where_nothing_waits_and_in_pieces_beside_a_stream() -> None:
    scheduler = Scheduler(Blocks([Group(None, 1000)], 32, step=512), 4, 512)
    scheduler.add(Sequence("long", [0] * 2000, 2000, 2001, 1))
    assert scheduler.schedule().tokens == 512
    stream = Sequence("stream", [1], 1, 100, 0)
    scheduler.add(stream)
    step = scheduler.schedule()
    scheduler.finish(step)
    stream.tokens.append(1)
    scheduler.pace.took(0.02, read=0)
    scheduler.pace.took(0.22, read=100)
    beside = scheduler.schedule()
    assert {piece.sequence.key: piece.count for piece in beside.pieces} == {"stream": 1, "long": CHUNK_ALIGNMENT}
