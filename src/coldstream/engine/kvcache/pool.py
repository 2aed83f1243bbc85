"""The physical blocks of one kind of layer: who holds which, what is known of their content, and where there is room.

A sequence's blocks lie next to each other wherever that can be had, because then its keys are read from end to end, and
are one view of the cache for torch's attention, which copies those that are not. So a new sequence is put where it can
grow to its expected end, and the blocks behind it are softly reserved: others take them only when nothing else is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_UNOWNED = 0
# What is so of a block, in its byte of `Pool._state`; all blocks are searched at once, by `translate` and `find`.
_HELD, _KNOWN, _RESERVED = 1, 2, 4
_UNHELD = bytes(not value & _HELD for value in range(256))
_OPEN = bytes(not value & (_HELD | _RESERVED) for value in range(256))
_EMPTY = bytes(not value for value in range(256))

Copies = tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Table:
    """The blocks of one sequence: `blocks[i]` is block `first + i` of its tokens; the others are behind its window."""

    owner: int
    first: int = 0
    blocks: list[int] = field(default_factory=list)
    together: bool = True

    @property
    def stop(self) -> int:
        """One past its last block, counted in the sequence's tokens."""
        return self.first + len(self.blocks)

    def changed(self) -> None:
        """Look again whether the blocks lie next to each other."""
        blocks = self.blocks
        self.together = not blocks or (
            blocks[-1] - blocks[0] == len(blocks) - 1
            and all(block == blocks[0] + place for place, block in enumerate(blocks))
        )


class Pool:
    """`count` blocks. A block is held (it has references), cached (content known, no references), or empty.

    `together`: attention is so much faster over blocks that lie together that a prefix is rather copied.
    """

    def __init__(self, count: int, *, together: bool = False) -> None:
        self.count = count
        self._together = together
        self.available = count
        self.tables: dict[str, Table] = {}
        self._references = [0] * count
        self._state = bytearray(count)
        self._cached: dict[int, None] = {}  # the longest unused first
        self._reserved: dict[int, int] = {}  # by block, the owner of the table behind which it lies
        self._digests: dict[int, bytes] = {}
        self._by_digest: dict[bytes, int] = {}
        self._owners = 0

    @property
    def cached(self) -> int:
        """Blocks without a holder whose content is known."""
        return len(self._cached)

    def knows(self, digest: bytes) -> bool:
        """Whether some block has this content."""
        return digest in self._by_digest

    def price(self, digests: Sequence[bytes], blocks: int) -> int:
        """How many available blocks it takes to hold the known `digests` and `blocks` in all."""
        revived = sum(1 for digest in digests if not self._references[self._by_digest[digest]])
        return revived + max(0, blocks - len(digests))

    def open(self, key: str, *, first: int, digests: Sequence[bytes], blocks: int, expected: int) -> Copies:
        """A table of `blocks` blocks from place `first` on, the first of them those known by `digests`.

        There must be room (see `price`). `expected` blocks are reserved if they can be had. Returns (from, to) blocks
        to copy: with `together`, while most of the pool is free, a prefix that cannot be continued in place.
        """
        self._owners += 1
        table = self.tables[key] = Table(self._owners, first)
        known = [self._by_digest[digest] for digest in digests]
        for block in known:
            self._hold(block)
        expected = max(blocks, expected)
        copies: Copies = ()
        table.blocks = list(known)
        if not known or not self._can_follow(known, blocks - len(known)):
            start = self._find_run(expected) if not known or self._copies(blocks) else None
            if start is not None:
                table.blocks = self._occupy(start, blocks)
                copies = tuple(zip(known, table.blocks, strict=False))
                for block in known:
                    self._drop(block)
        table.changed()
        self.extend(key, first + blocks)
        self._reserve(table, expected - blocks)
        return copies

    def missing(self, key: str, stop: int) -> int:
        """How many blocks the table lacks to reach place `stop`."""
        return max(0, stop - self.tables[key].stop)

    def extend(self, key: str, stop: int) -> None:
        """Let the table reach place `stop`; there must be as many blocks available as are missing."""
        table = self.tables[key]
        while table.stop < stop:
            following = table.blocks[-1] + 1 if table.blocks else self.count
            if following >= self.count or not self._is_open(following, table.owner):
                following = self._anywhere()
            table.blocks += self._occupy(following, 1)
            table.changed()

    def trim(self, key: str, first: int) -> None:
        """Give back the blocks before place `first`: they are behind the window. Their content stays known."""
        table = self.tables[key]
        behind = min(first - table.first, len(table.blocks))
        if behind <= 0:
            return
        for block in reversed(table.blocks[:behind]):
            self._drop(block)
        del table.blocks[:behind]
        table.first += behind
        table.changed()

    def publish(self, key: str, place: int, digest: bytes) -> None:
        """The table's block at `place` is full and computed: others may share it from now on."""
        table = self.tables[key]
        if place < table.first or digest in self._by_digest:
            return
        block = table.blocks[place - table.first]
        if block not in self._digests:
            self._by_digest[digest] = block
            self._digests[block] = digest
            self._state[block] |= _KNOWN

    def close(self, key: str) -> None:
        """The sequence is gone; the content of its full blocks stays known until they are needed."""
        table = self.tables.pop(key)
        self._unreserve(table)
        # The end of a prefix is worth less than its beginning: it counts as unused for longer.
        for block in reversed(table.blocks):
            self._drop(block)

    def forget(self) -> None:
        """No content is known any more."""
        for block in self._digests:
            self._state[block] &= ~_KNOWN
        self._cached.clear()
        self._digests.clear()
        self._by_digest.clear()

    def check(self) -> None:
        """Assert the invariants; for tests."""
        references = [0] * self.count
        for table in self.tables.values():
            assert len(set(table.blocks)) == len(table.blocks), "a sequence holds a block twice"
            for block in table.blocks:
                references[block] += 1
        assert references == self._references
        assert self.available == references.count(0)
        assert {digest: block for block, digest in self._digests.items()} == self._by_digest
        assert self._cached.keys() == {block for block in self._digests if not references[block]}
        assert set(self._reserved.values()) <= {table.owner for table in self.tables.values()}
        assert not any(references[block] for block in self._reserved), "a held block is reserved"
        for block, state in enumerate(self._state):
            known, reserved = block in self._digests, block in self._reserved
            assert state == bool(references[block]) * _HELD + known * _KNOWN + reserved * _RESERVED

    def _copies(self, blocks: int) -> bool:
        return self._together and self.available - blocks >= self.count // 4

    def _can_follow(self, known: list[int], fresh: int) -> bool:
        """Whether `fresh` blocks right behind the known ones, which lie together, are there to be taken."""
        start, last = known[0], known[-1]
        if known != list(range(start, last + 1)) or last + fresh >= self.count:
            return False
        return all(self._is_open(block, _UNOWNED) for block in range(last + 1, last + 1 + fresh))

    def _is_open(self, block: int, owner: int) -> bool:
        return not self._references[block] and self._reserved.get(block, owner) == owner

    def _anywhere(self) -> int:
        """The start of the longest unreserved run of empty blocks; else what was unused the longest; else any."""
        empty = self._state.translate(_EMPTY)
        longest = max(empty.split(b"\0"), key=len)
        if longest:
            return empty.find(longest)
        unreserved = next((block for block in self._cached if block not in self._reserved), None)
        return self._state.translate(_UNHELD).find(1) if unreserved is None else unreserved

    def _find_run(self, size: int) -> int | None:
        """The start of a run of unreserved blocks: empty ones, else those whose contents were unused the longest."""
        run, free = b"\1" * size, self._state.translate(_EMPTY)
        if run in free:
            return free.find(run)
        if run not in self._state.translate(_OPEN):
            return None
        cached = [block for block in self._cached if block not in self._reserved]
        low, high, given = 1, len(cached), 0
        while low <= high:  # the fewest contents, the oldest, whose loss makes room
            middle = (low + high) // 2
            for place in range(given, middle):
                free[cached[place]] = 1
            for place in range(middle, given):
                free[cached[place]] = 0
            given = middle
            low, high = (low, middle - 1) if run in free else (middle + 1, high)
        for place in range(given, low):
            free[cached[place]] = 1
        return free.find(run)

    def _occupy(self, start: int, size: int) -> list[int]:
        taken = list(range(start, start + size))
        for block in taken:
            digest = self._digests.pop(block, None)
            if digest is not None:
                del self._by_digest[digest]
                self._state[block] &= ~_KNOWN
            self._hold(block)
        return taken

    def _reserve(self, table: Table, size: int) -> None:
        """Mark up to `size` blocks behind the table as its own to grow into."""
        block = table.blocks[-1] + 1 if table.blocks else self.count
        while size > 0 and block < self.count and self._is_open(block, _UNOWNED):
            self._reserved[block] = table.owner
            self._state[block] |= _RESERVED
            block, size = block + 1, size - 1

    def _unreserve(self, table: Table) -> None:
        for block in [block for block, owner in self._reserved.items() if owner == table.owner]:
            self._open_again(block)

    def _open_again(self, block: int) -> None:
        if self._reserved.pop(block, None) is not None:
            self._state[block] &= ~_RESERVED

    def _hold(self, block: int) -> None:
        if not self._references[block]:
            self.available -= 1
            self._state[block] |= _HELD
            self._cached.pop(block, None)
            # A cached block that is used again may lie in another table's reservation.
            self._open_again(block)
        self._references[block] += 1

    def _drop(self, block: int) -> None:
        self._references[block] -= 1
        if not self._references[block]:
            self.available += 1
            self._state[block] &= ~_HELD
            if block in self._digests:
                self._cached[block] = None
