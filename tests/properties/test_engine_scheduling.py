"""Whatever is added, cancelled, preempted and shared: every token is computed over the right keys, and everybody ends.

The machine below plays the model: it "writes" into a block what the token there depends on (all tokens up to it), makes
the copies that a step asks for, and looks at every key that attention would read.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coldstream.backends.protocol import Group
from coldstream.engine.kvcache.blocks import Blocks
from coldstream.engine.scheduler import CHUNK_ALIGNMENT, SCORED_TOKENS, Piece, Scheduler, Sequence, Step

SIZE = 4


class Serving(RuleBasedStateMachine):
    """Sequences over an alphabet of two, so that prefixes meet all the time."""

    @initialize(
        full=st.integers(14, 60),
        window=st.sampled_from([None, 1, 5, 12]),
        sliding_share=st.integers(0, 20),
        sequences=st.integers(1, 6),
        step_tokens=st.sampled_from([8, 40]),
        share=st.booleans(),
        together=st.booleans(),
    )
    def begin(
        self,
        full: int,
        window: int | None,
        sliding_share: int,
        sequences: int,
        step_tokens: int,
        share: bool,
        together: bool,
    ) -> None:
        groups = [Group(None, full)]
        if window is not None:
            groups.append(Group(window, -(-(window + CHUNK_ALIGNMENT) // SIZE) + 2 + sliding_share))
        self.blocks = Blocks(groups, SIZE, step=CHUNK_ALIGNMENT, share=share, together=together)
        self.scheduler = Scheduler(self.blocks, sequences, step_tokens)
        self.written: list[dict[tuple[int, int], tuple[int, ...]]] = [{} for _ in groups]
        self.alive: list[Sequence] = []
        self.ended: set[str] = set()
        self.count = 0
        self.seed = 1
        self.together = together

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=44), new=st.integers(1, 20), share=st.booleans())
    def add(self, prompt: list[int], new: int, share: bool) -> None:
        self.count += 1
        most = min(self.blocks.capacity, len(prompt) + new)
        if len(prompt) >= most:
            return
        sequence = Sequence(str(self.count), list(prompt), len(prompt), most, self.count, share_prefix=share)
        self.alive.append(sequence)
        self.scheduler.add(sequence)

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        sequence = self.alive.pop(which % len(self.alive))
        self.scheduler.remove(sequence)

    @rule()
    def replace_weights(self) -> None:
        self.scheduler.restart_all()
        self.written = [{} for _ in self.written]

    @rule(times=st.integers(1, 12))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self.one_step()

    def one_step(self) -> Step:
        step = self.scheduler.schedule()
        keys = [piece.sequence.key for piece in step.pieces]
        assert len(keys) == len(set(keys)), "a sequence twice in a step"
        assert step.pieces or not self.scheduler.has_work, "there is work, and nobody gets any"
        assert self.together or not step.copies, "copied for nobody"
        self.copy(step)
        for piece in step.pieces:
            self.write(piece)
        for piece in step.pieces:
            self.read(piece)
        self.scheduler.finish(step)
        for piece in step.pieces:
            if piece.draws:
                self.draw(piece.sequence)
        return step

    def copy(self, step: Step) -> None:
        for copy in step.copies:
            assert copy.source != copy.target
        for group, written in enumerate(self.written):
            mine = [copy for copy in step.copies if copy.group == group]
            assert len({copy.target for copy in mine}) == len(mine), "two copies into one block"
            read = {
                (copy.target, place): written.get((copy.source, place), ()) for copy in mine for place in range(SIZE)
            }
            written.update(read)

    def write(self, piece: Piece) -> None:
        tables = self.blocks.tables(piece.sequence.key)
        for written, table in zip(self.written, tables, strict=True):
            for place in range(piece.start, piece.end):
                block = table.blocks[place // SIZE - table.first]
                written[block, place % SIZE] = tuple(piece.sequence.tokens[: place + 1])

    def read(self, piece: Piece) -> None:
        tables = self.blocks.tables(piece.sequence.key)
        for group, written, table in zip(self.blocks.groups, self.written, tables, strict=True):
            low = 0 if group.window is None else max(0, piece.start + 1 - group.window)
            for place in range(low, piece.end):
                index = place // SIZE - table.first
                assert index >= 0, "a key behind the window was given back too early"
                seen = written[table.blocks[index], place % SIZE]
                assert seen == tuple(piece.sequence.tokens[: place + 1]), "another sequence's key"

    def draw(self, sequence: Sequence) -> None:
        self.seed = (self.seed * 1103515245 + 12345) % (1 << 31)
        sequence.tokens.append(self.seed >> 16 & 1)
        if len(sequence.tokens) >= sequence.max_length:
            self.alive.remove(sequence)
            self.scheduler.remove(sequence)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "blocks"):
            self.blocks.check()
            assert len(self.scheduler.running) <= self.scheduler.max_sequences
            assert {*self.scheduler.running, *self.scheduler.waiting} == set(self.alive)

    def teardown(self) -> None:
        if not hasattr(self, "blocks"):
            return
        work = sum(item.max_length for item in self.alive)
        for _ in range(40 * work + 40):
            if not self.alive:
                break
            self.one_step()
        assert not self.alive, "somebody starves"
        assert self.blocks.used == 0
        self.blocks.check()


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=8),
    st.sampled_from([64, 512]),
    st.integers(1, 8),
)
def test_a_step_scores_no_more_tokens_than_it_may_and_every_prompt_is_read(prompts, step_tokens, running) -> None:
    blocks = Blocks([Group(None, 1000)], SIZE, step=step_tokens)
    scheduler = Scheduler(blocks, running, step_tokens)
    for number, (length, scored) in enumerate(prompts):
        scheduler.add(
            Sequence(str(number), [0] * length, length, length + 1, number, share_prefix=not scored, is_scored=scored)
        )
    seen = dict.fromkeys(map(str, range(len(prompts))), 0)
    while scheduler.has_work:
        step = scheduler.schedule()
        assert step.pieces, "there is work, and no sequence gets any"
        assert sum(piece.count for piece in step.pieces if piece.sequence.is_scored) <= SCORED_TOKENS
        scheduler.finish(step)
        for piece in step.pieces:
            seen[piece.sequence.key] = piece.end
            if piece.draws:
                scheduler.remove(piece.sequence)
    assert list(seen.values()) == [length for length, _ in prompts]
