"""Which block of the key/value cache belongs to whom: pure bookkeeping, no arrays.

A block holds `size` tokens of one sequence in all layers of a group: layers with the same window share a group, and a
sequence has blocks in each. In a sliding group the blocks behind the window are given back as the sequence goes on.

Blocks are shared by content: a full block is known by the digest of its own tokens and of all before it, so a
sequence with the same prefix finds it, in use or not. Blocks out of use keep their content until they are needed for
something else, the least recently used first. A prefix counts as found up to a point when the full group has all of it,
and each sliding group has the window before that point.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from coldstream.backends.protocol import Copy, Group
from coldstream.engine.kvcache.pool import Pool, Table
from coldstream.model.memory import blocks_held, blocks_of_context

_ENDLESS = 1 << 62


@dataclass(frozen=True, slots=True)
class Admitted:
    """The first `cached` tokens need no computing, once the copies are made."""

    cached: int
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """Tokens `start ... end - 1` stand for something that their ids do not tell, an image: `digest` does."""

    start: int
    end: int
    digest: bytes


@dataclass(slots=True)
class Chain:
    """The digests of a sequence's full blocks, each of its own tokens and all before; grown on demand.

    A block that holds any part of what a mark stands for is known by all of it: the tokens of an image see one another.
    Chains of different salts (at most 64 bytes) have no digest in common.
    """

    marks: tuple[Mark, ...] = ()
    salt: bytes = b""
    digests: list[bytes] = field(default_factory=list)

    def reach(self, tokens: Sequence[int], size: int) -> list[bytes]:
        """The digests of all full blocks of `tokens`."""
        while (len(self.digests) + 1) * size <= len(tokens):
            start = len(self.digests) * size
            content = array("q", tokens[start : start + size]).tobytes()
            for mark in self.marks:
                if mark.start < start + size and start < mark.end:
                    content += mark.digest
            previous = self.digests[-1] if self.digests else self.salt
            self.digests.append(hashlib.blake2b(content, key=previous, digest_size=16).digest())
        return self.digests


@dataclass(slots=True)
class _Entry:
    """What is shared of a sequence: how many of its blocks are published, and which it has promised to compute."""

    published: int
    promised: list[bytes]


class Blocks:
    """The blocks of all groups. Not thread-safe: the engine's thread owns it.

    `step` is how many tokens of one sequence may be computed at once; a sliding group needs so many beyond its window.

    Invariants: a block has as many references as tables name it; a block with references never gets another content;
    every block is held, cached or empty.
    """

    def __init__(
        self, groups: Sequence[Group], size: int, *, step: int, share: bool = True, together: bool = False
    ) -> None:
        self.groups = tuple(groups)
        self.size = size
        self.share = share
        self.step = step
        self.hit_tokens = 0
        self.asked_tokens = 0
        self._pools = tuple(Pool(group.count, together=together) for group in groups)
        self._entries: dict[str, _Entry] = {}
        self._promised: dict[bytes, str] = {}

    @property
    def total(self) -> int:
        """Blocks of all groups."""
        return sum(group.count for group in self.groups)

    @property
    def used(self) -> int:
        """Blocks that running sequences hold."""
        return sum(pool.count - pool.available for pool in self._pools)

    @property
    def cached(self) -> int:
        """Blocks without a holder, kept for the next sequence with the same prefix."""
        return sum(pool.cached for pool in self._pools)

    @property
    def capacity(self) -> int:
        """How many tokens one sequence can reach when it has all blocks to itself."""
        return min(self._reach(group) for group in self.groups)

    def _reach(self, group: Group) -> int:
        # A sliding group that holds a window, a step and the blocks that both begin in, holds any length.
        if group.window is not None and group.count >= self.needed(group.window + self.step) + 2:
            return _ENDLESS
        return group.count * self.size

    def needed(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.size)

    def tables(self, key: str) -> tuple[Table, ...]:
        """The sequence's blocks in each group; read only."""
        return tuple(pool.tables[key] for pool in self._pools)

    def is_promised(self, tokens: Sequence[int], chain: Chain) -> bool:
        """Whether another sequence is just computing a block that this prompt could share: waiting is cheaper."""
        if not self.share or not self._promised:
            return False
        digests = chain.reach(tokens, self.size)[: self._shareable(tokens)]
        known = self._matched(digests)
        return known < len(digests) and digests[known] in self._promised

    def admit(
        self, key: str, tokens: Sequence[int], chain: Chain, *, expected: int, share: bool = True, spare: int = 0
    ) -> Admitted | None:
        """Blocks for `tokens`, shared where the prefix is known; None, and no change, if there are too few.

        A sliding group gets those of the first step. `expected` is how many tokens the sequence may reach, `spare` how
        many blocks must be left in each group. At least one token is left to compute. `share` False computes all anew.
        """
        digests = chain.reach(tokens, self.size) if self.share else []
        known = self._matched(digests[: self._shareable(tokens)]) if share else 0
        plans = [self._plan(group, known, len(tokens), expected) for group in self.groups]
        for pool, (first, blocks, _) in zip(self._pools, plans, strict=True):
            if pool.price(digests[first:known], blocks) + spare > pool.available:
                return None
        copies: list[Copy] = []
        for index, (pool, (first, blocks, most)) in enumerate(zip(self._pools, plans, strict=True)):
            moves = pool.open(key, first=first, digests=digests[first:known], blocks=blocks, expected=most)
            copies += (Copy(index, source, target) for source, target in moves)
        self._entries[key] = _Entry(known, self._promise(key, digests[known:]))
        self.asked_tokens += len(tokens)
        self.hit_tokens += known * self.size
        return Admitted(known * self.size, tuple(copies))

    def grow(self, key: str, tokens: int) -> bool:
        """Make room for so many tokens in all; False, and nothing changes, if there are not enough blocks."""
        stop = self.needed(tokens)
        if any(pool.missing(key, stop) > pool.available for pool in self._pools):
            return False
        for pool in self._pools:
            pool.extend(key, stop)
        return True

    def computed(self, key: str, tokens: Sequence[int], count: int, chain: Chain) -> None:
        """The first `count` of `tokens` are in the cache: full blocks can be shared, and windows move on."""
        if self.share:
            self._publish(key, chain.reach(tokens, self.size), count // self.size)
        for group, pool in zip(self.groups, self._pools, strict=True):
            if group.window is not None:
                pool.trim(key, self._first(group.window, count))

    def release(self, key: str) -> None:
        """The sequence is gone; what it computed stays known until its blocks are needed."""
        for digest in self._entries.pop(key).promised:
            if self._promised.get(digest) == key:
                del self._promised[digest]
        for pool in self._pools:
            pool.close(key)

    def forget(self) -> None:
        """No content is known any more: the weights were replaced. Only when no sequence holds blocks."""
        assert not self._entries
        for pool in self._pools:
            pool.forget()

    def check(self) -> None:
        """Assert the invariants; for tests."""
        for pool in self._pools:
            pool.check()
            assert pool.tables.keys() == self._entries.keys()
        assert set(self._promised.values()) <= self._entries.keys()

    def _shareable(self, tokens: Sequence[int]) -> int:
        return max(0, len(tokens) - 1) // self.size

    def _matched(self, digests: Sequence[bytes]) -> int:
        """How many blocks of the prefix are known, in the sense of the module's docstring."""
        known = len(digests)
        for group, pool in zip(self.groups, self._pools, strict=True):
            if group.window is None:
                known = next((place for place in range(known) if not pool.knows(digests[place])), known)
        while known and not all(
            pool.knows(digests[place])
            for group, pool in zip(self.groups, self._pools, strict=True)
            if group.window is not None
            for place in range(self._first(group.window, known * self.size), known)
        ):
            known -= 1
        return known

    def _first(self, window: int, computed: int) -> int:
        """The first block that the token at position `computed`, and all after it, can see."""
        return max(0, computed - window + 1) // self.size

    def _plan(self, group: Group, known: int, tokens: int, expected: int) -> tuple[int, int, int]:
        """For a group: the first block to hold, how many to take now, and how many to have room for."""
        stop = self.needed(tokens)
        if group.window is None:
            return 0, stop, self.needed(expected)
        first = self._first(group.window, known * self.size)
        stop = min(stop, self.needed(known * self.size + self.step))
        return first, stop - first, self._most(group, first, self.needed(expected))

    def _most(self, group: Group, first: int, stop: int) -> int:
        """How many blocks from `first` on a run should have: to the end, but in a sliding group twice the window."""
        if group.window is None:
            return stop - first
        return min(stop - first, 2 * self.needed(group.window) + self.needed(self.step))

    def _promise(self, key: str, digests: Sequence[bytes]) -> list[bytes]:
        mine = [digest for digest in digests if digest not in self._promised]
        self._promised.update(dict.fromkeys(mine, key))
        return mine

    def _publish(self, key: str, digests: Sequence[bytes], full: int) -> None:
        entry = self._entries[key]
        for place in range(entry.published, full):
            for pool in self._pools:
                pool.publish(key, place, digests[place])
            if self._promised.get(digests[place]) == key:
                del self._promised[digests[place]]
        entry.published = max(entry.published, full)


def divide(
    budget: int,
    *,
    block_bytes: Sequence[int],
    windows: Sequence[int | None],
    size: int,
    sequences: int,
    context: int,
    step: int,
) -> tuple[Group, ...] | None:
    """Blocks a group so that `sequences` sequences of equal length, as long as the budget (bytes) allows, fit together.

    A sequence of n tokens takes n in the full group and at most its window and a step in a sliding one. None when the
    budget does not give each sequence two blocks.
    """

    def counts(blocks: int) -> list[int]:
        return [sequences * blocks_held(blocks, window, step=step, size=size) for window in windows]

    def cost(blocks: int) -> int:
        return sum(each * count for each, count in zip(block_bytes, counts(blocks), strict=True))

    low, high = 1, blocks_of_context(context, size)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle - 1)
    if low < 2:
        return None
    return tuple(Group(window, count) for window, count in zip(windows, counts(low), strict=True))
