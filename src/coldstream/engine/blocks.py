"""Which block of the key/value cache belongs to whom: pure bookkeeping, no torch.

Blocks are shared by content: a full block is known by the digest of its own tokens and of all before it, so whoever
comes with the same prefix finds it, in use or not. Blocks that nobody uses keep their content until they are needed
for something else, the least recently used first.

A sequence's blocks lie next to each other wherever that can be had, because then its keys are one view of the cache and
attention copies nothing. So a new sequence is put where it can grow to its expected end, and the blocks behind it are
softly reserved: others take them only when nothing else is left.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_NOBODY = 0


@dataclass(frozen=True, slots=True)
class Admitted:
    """The first `cached` tokens need no computing; `copies` are (from, to) blocks to copy before the next step."""

    cached: int
    copies: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class _Table:
    """The blocks of one sequence, and the digests of those that are full and computed."""

    owner: int
    blocks: list[int]
    digests: list[bytes] = field(default_factory=list)
    promised: list[bytes] = field(default_factory=list)
    end: int = 0  # one past the last softly reserved block


class Blocks:
    """`count` blocks of `size` tokens. Not thread-safe: the engine's thread owns it.

    Invariants: a block has as many references as tables name it; a block with references is never given to another
    content; every block is either referenced, cached (a digest, no references) or empty.
    """

    def __init__(self, count: int, size: int, *, share: bool = True) -> None:
        self.count = count
        self.size = size
        self.share = share
        self._references = [0] * count
        self._digest: list[bytes | None] = [None] * count
        self._used_at = [0] * count
        self._reserved = array("q", [_NOBODY]) * count
        self._by_digest: dict[bytes, int] = {}
        self._promised: dict[bytes, str] = {}
        self._tables: dict[str, _Table] = {}
        self._available = count
        self._clock = 0
        self._owners = 0
        self.hit_tokens = 0
        self.asked_tokens = 0

    @property
    def available(self) -> int:
        """Blocks without references: empty, or cached and free to be taken."""
        return self._available

    @property
    def used(self) -> int:
        """Blocks that running sequences hold."""
        return self.count - self._available

    @property
    def cached(self) -> int:
        """Blocks that nobody holds, kept for whoever comes with the same prefix."""
        return sum(1 for block in self._by_digest.values() if not self._references[block])

    def needed(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.size)

    def table(self, key: str) -> Sequence[int]:
        """The sequence's blocks, in order of its tokens."""
        return self._tables[key].blocks

    def is_promised(self, tokens: Sequence[int]) -> bool:
        """Whether another sequence is just computing a block that this prompt could share: waiting is cheaper."""
        if not self.share or not self._promised:
            return False
        for digest in self._chain(tokens, max(0, len(tokens) - 1) // self.size):
            if digest not in self._by_digest:
                return digest in self._promised
        return False

    def admit(self, key: str, tokens: Sequence[int], *, expected: int, share: bool = True) -> Admitted | None:
        """Blocks for all of `tokens`, shared where the prefix is known; None, and no change, if there are too few.

        `expected` is how many tokens the sequence may reach. At least one token is left to compute. `share` False
        computes everything anew.
        """
        assert key not in self._tables, key
        known = self._match(tokens) if self.share and share else []
        need = self.needed(len(tokens))
        fresh = need - len(known)
        revived = sum(1 for block in known if not self._references[block])
        if fresh + revived > self._available:
            return None
        self._owners += 1
        table = _Table(self._owners, [])
        self._tables[key] = table
        self.asked_tokens += len(tokens)
        self.hit_tokens += len(known) * self.size
        copies = self._place(table, known, need, max(need, self.needed(expected)))
        cached = len(known) * self.size
        if self.share:
            table.digests = list(self._chain(tokens, len(known)))
            self._promise(key, table, tokens)
        return Admitted(cached, copies)

    def grow(self, key: str, tokens: int) -> bool:
        """Make room for so many tokens in all; False, and nothing changes, if there are not enough blocks."""
        table = self._tables[key]
        missing = self.needed(tokens) - len(table.blocks)
        if missing <= 0:
            return True
        if missing > self._available:
            return False
        for _ in range(missing):
            self._extend(table)
        return True

    def computed(self, key: str, tokens: Sequence[int]) -> None:
        """All of `tokens` are in the cache now: full blocks among them can be shared from here on."""
        if not self.share:
            return
        table = self._tables[key]
        full = len(tokens) // self.size
        while len(table.digests) < full:
            place = len(table.digests)
            digest = self._link(table.digests[-1] if table.digests else b"", tokens, place)
            table.digests.append(digest)
            block = table.blocks[place]
            if digest not in self._by_digest and self._digest[block] is None:
                self._by_digest[digest] = block
                self._digest[block] = digest
            if self._promised.get(digest) == key:
                del self._promised[digest]

    def release(self, key: str) -> None:
        """The sequence is gone; what it computed stays known until its blocks are needed."""
        table = self._tables.pop(key)
        for digest in table.promised:
            if self._promised.get(digest) == key:
                del self._promised[digest]
        last = table.blocks[-1] if table.blocks else -1
        for block in range(last + 1, table.end):
            if self._reserved[block] == table.owner:
                self._reserved[block] = _NOBODY
        # The end of a prefix is worth less than its beginning: it gets the older time.
        for block in reversed(table.blocks):
            self._drop(block)

    def forget(self) -> None:
        """No content is known any more: the weights were replaced. Sequences keep their blocks."""
        for block in self._by_digest.values():
            self._digest[block] = None
        self._by_digest.clear()
        self._promised.clear()
        for table in self._tables.values():
            table.digests.clear()
            table.promised.clear()

    def check(self) -> None:
        """Assert the invariants; for tests."""
        references = [0] * self.count
        for table in self._tables.values():
            assert len(set(table.blocks)) == len(table.blocks), "a sequence holds a block twice"
            for block in table.blocks:
                references[block] += 1
        assert references == self._references
        assert self._available == sum(1 for count in references if not count)
        assert all(self._digest[block] == digest for digest, block in self._by_digest.items())
        assert sum(1 for digest in self._digest if digest is not None) == len(self._by_digest)
        assert all(key in self._tables for key in self._promised.values())
        owners = {table.owner for table in self._tables.values()} | {_NOBODY}
        assert all(owner in owners for owner in self._reserved)

    # -- contents ------------------------------------------------------------------------------------------------------

    def _link(self, previous: bytes, tokens: Sequence[int], place: int) -> bytes:
        start = place * self.size
        content = array("q", tokens[start : start + self.size]).tobytes()
        return hashlib.blake2b(content, key=previous, digest_size=16).digest()

    def _chain(self, tokens: Sequence[int], blocks: int) -> Iterator[bytes]:
        digest = b""
        for place in range(blocks):
            digest = self._link(digest, tokens, place)
            yield digest

    def _match(self, tokens: Sequence[int]) -> list[int]:
        found = []
        for digest in self._chain(tokens, max(0, len(tokens) - 1) // self.size):
            block = self._by_digest.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def _promise(self, key: str, table: _Table, tokens: Sequence[int]) -> None:
        digest = table.digests[-1] if table.digests else b""
        for place in range(len(table.digests), len(tokens) // self.size):
            digest = self._link(digest, tokens, place)
            if digest not in self._by_digest and digest not in self._promised:
                self._promised[digest] = key
                table.promised.append(digest)

    # -- places --------------------------------------------------------------------------------------------------------

    def _place(self, table: _Table, known: list[int], need: int, want: int) -> tuple[tuple[int, int], ...]:
        """Give `table` its blocks: behind the known ones, or all in a new run, or wherever there are any."""
        for block in known:
            self._hold(block)
        fresh = need - len(known)
        if known and self._can_follow(known, fresh):
            table.blocks = list(known)
        elif known and self._available - need >= self.count // 2 and (start := self._find_run(want)) is not None:
            # Half of the blocks are still free: a copy of the prefix is cheaper than gathering it at every step.
            table.blocks = self._occupy(table, start, need)
            self._reserve(table, start + want)
            for block in known:
                self._drop(block)
            return tuple(zip(known, table.blocks, strict=False))
        else:
            table.blocks = list(known)
            start = None if known else self._find_run(want)
            if start is not None:
                table.blocks = self._occupy(table, start, need)
        while len(table.blocks) < need:
            self._extend(table)
        self._reserve(table, table.blocks[-1] + 1 + want - need)
        return ()

    def _can_follow(self, known: list[int], fresh: int) -> bool:
        last = known[-1]
        together = all(right == left + 1 for left, right in itertools.pairwise(known))
        behind = range(last + 1, last + 1 + fresh)
        return together and behind.stop <= self.count and all(self._is_open(block, _NOBODY) for block in behind)

    def _is_open(self, block: int, owner: int) -> bool:
        return not self._references[block] and self._reserved[block] in (_NOBODY, owner)

    def _extend(self, table: _Table) -> None:
        """One more block: the next one, or the start of the longest free run, or any."""
        following = table.blocks[-1] + 1 if table.blocks else self.count
        if following < self.count and self._is_open(following, table.owner):
            table.blocks += self._occupy(table, following, 1)
            return
        start = self._find_run(1, longest=True)
        if start is None:
            start = next(block for block in range(self.count) if not self._references[block])
        table.blocks += self._occupy(table, start, 1)

    def _occupy(self, table: _Table, start: int, size: int) -> list[int]:
        taken = list(range(start, start + size))
        for block in taken:
            self._forget_block(block)
            self._reserved[block] = _NOBODY
            self._hold(block)
        return taken

    def _reserve(self, table: _Table, end: int) -> None:
        table.end = min(end, self.count)
        for block in range(table.blocks[-1] + 1, table.end):
            if not self._is_open(block, _NOBODY):
                table.end = block
                return
            self._reserved[block] = table.owner

    def _find_run(self, want: int, *, longest: bool = False) -> int | None:
        """The start of a run of unreserved blocks without references: empty ones, else those unused the longest."""
        empty = [self._is_open(block, _NOBODY) and self._digest[block] is None for block in range(self.count)]
        start, size = _longest_run(empty)
        if size >= want:
            return start if longest else _first_run(empty, want)
        ages = sorted({self._used_at[block] for block in self._by_digest.values() if not self._references[block]})
        low, high = 0, len(ages)
        best: int | None = None
        while low < high:  # the oldest content whose loss makes room
            middle = (low + high) // 2
            found = _first_run(
                [self._is_open(b, _NOBODY) and self._age(b) <= ages[middle] for b in range(self.count)], want
            )
            if found is None:
                low = middle + 1
            else:
                best, high = found, middle
        return best

    def _age(self, block: int) -> int:
        return self._used_at[block] if self._digest[block] is not None else 0

    def _hold(self, block: int) -> None:
        if not self._references[block]:
            self._available -= 1
        self._references[block] += 1

    def _drop(self, block: int) -> None:
        self._references[block] -= 1
        if not self._references[block]:
            self._available += 1
            self._clock += 1
            self._used_at[block] = self._clock

    def _forget_block(self, block: int) -> None:
        digest = self._digest[block]
        if digest is not None:
            del self._by_digest[digest]
            self._digest[block] = None


def _first_run(free: Sequence[bool], want: int) -> int | None:
    size = 0
    for block, is_free in enumerate(free):
        size = size + 1 if is_free else 0
        if size == want:
            return block - want + 1
    return None


def _longest_run(free: Sequence[bool]) -> tuple[int, int]:
    best, size = (0, 0), 0
    for block, is_free in enumerate(free):
        size = size + 1 if is_free else 0
        if size > best[1]:
            best = (block - size + 1, size)
    return best
