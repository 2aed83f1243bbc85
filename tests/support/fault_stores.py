"""Stores behind the seam: one in memory that keeps count, and one that does what networks do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from coldstream.errors import AccessDenied, BadResponse, ObjectChanged
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.store import Interrupted, Pin, read
from coldstream.weights.transfer.checksum import crc32c


@dataclass(frozen=True)
class Request:
    """A read, as the store saw it."""

    name: str
    start: int
    end: int


class MemoryStore:
    """A folder in memory. `checksums` False is a store that publishes none."""

    def __init__(self, files: Mapping[str, bytes], *, checksums: bool = True) -> None:
        self.location = Location.parse("gs://memory/model")
        self.files = dict(files)
        self.generations = dict.fromkeys(files, 1)
        self.checksums = checksums
        self.requests: list[Request] = []
        self.listings = 0
        self.running = 0
        self.most_running = 0

    def replace(self, name: str, data: bytes) -> None:
        """A new generation."""
        self.files[name] = data
        self.generations[name] = self.generations.get(name, 0) + 1

    async def list(self) -> Mapping[str, Pin]:
        self.listings += 1
        return {name: self._pin(name) for name in self.files if "/" not in name}

    async def pin(self, name: str) -> Pin | None:
        return self._pin(name) if name in self.files else None

    async def read_range(
        self, pin: Pin, start: int, end: int, *, piecewise: bool = False
    ) -> AsyncGenerator[memoryview, None]:
        self.requests.append(Request(pin.name, start, end))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(0)
            if pin.generation != str(self.generations[pin.name]):
                raise ObjectChanged(f"{pin.name} was replaced")
            yield memoryview(self.files[pin.name])[start:end]
        finally:
            self.running -= 1

    def close_idle(self) -> None:
        """There are no connections."""

    def _pin(self, name: str) -> Pin:
        data = self.files[name]
        checksum = crc32c(memoryview(data)) if self.checksums else None
        return Pin(name, len(data), generation=str(self.generations[name]), crc32c=checksum)


@dataclass(frozen=True)
class Fault:
    """What happens to one read: `kind`, at byte `at` of it, for `seconds`."""

    kind: str
    at: int = 0
    seconds: float = 0.0


KINDS = (
    "slow",
    "paused",
    "stall",
    "reset",
    "lost",
    "short",
    "long",
    "repeated",
    "wrong",
    "denied",
    "throttled",
    "unavailable",
    "refused",
    "replaced",
)

Choose = Callable[[Request], "Fault | None"]


@dataclass
class FaultStore:
    """`choose` is asked before each read which fault it meets; None is none."""

    inner: MemoryStore
    choose: Choose
    met: list[tuple[Request, Fault]] = field(default_factory=list)
    hit: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def location(self) -> Location:
        return self.inner.location

    async def list(self) -> Mapping[str, Pin]:
        return await self.inner.list()

    async def pin(self, name: str) -> Pin | None:
        return await self.inner.pin(name)

    def close_idle(self) -> None:
        self.inner.close_idle()

    async def read_range(
        self, pin: Pin, start: int, end: int, *, piecewise: bool = False
    ) -> AsyncGenerator[memoryview, None]:
        request = Request(pin.name, start, end)
        fault = self.choose(request)
        if fault is None:
            pieces = self.inner.read_range(pin, start, end)
        else:
            self.met.append((request, fault))
            self.hit.set()
            pieces = self._meet(fault, pin, start, end)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def _meet(self, fault: Fault, pin: Pin, start: int, end: int) -> AsyncGenerator[memoryview, None]:
        if fault.kind == "denied":
            raise AccessDenied(f"{pin.name}: access denied (HTTP 403)")
        if fault.kind == "throttled":
            raise Interrupted("HTTP 429", throttled=True, retry_after=fault.seconds)
        if fault.kind == "unavailable":
            raise Interrupted("HTTP 503", throttled=True)
        if fault.kind == "refused":
            raise Interrupted("connection refused", refused=True)
        if fault.kind == "replaced":
            self.inner.replace(pin.name, self.inner.files[pin.name][::-1])
        if fault.kind in ("slow", "stall"):
            await asyncio.sleep(fault.seconds)
        good = await read(self.inner, pin, start, end)
        if fault.kind == "long":
            where = self.location.child(pin.name)
            raise BadResponse(f"{where}: asked for {len(good)} bytes, {len(good) + 1} are sent; use another server")
        if fault.kind == "paused":  # half-way, and goes on
            yield memoryview(good[: fault.at])
            await asyncio.sleep(fault.seconds)
            yield memoryview(good[fault.at :])
        elif fault.kind in ("reset", "short"):
            whole = min(fault.at, len(good))  # all of it, perhaps: then only the connection is lost
            yield memoryview(good[:whole])
            raise Interrupted(f"{fault.kind} at byte {whole}")
        elif fault.kind in ("lost", "stall"):  # what came is lost with the connection
            raise Interrupted(f"{fault.kind} at byte {min(fault.at, len(good) - 1)}")
        else:
            yield memoryview(_mangled(fault, good))


def _mangled(fault: Fault, good: bytes) -> bytes:
    at = min(fault.at, len(good) - 1)
    if fault.kind == "repeated":  # a piece comes twice, and pushes the rest out
        return (good[:at] + good[max(0, at - 3) :])[: len(good)]
    if fault.kind == "wrong":
        return good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :]
    return good


def once(kind: str, *, after: int = 0, at: int = 0, seconds: float = 0.0, name: str = ".safetensors") -> Choose:
    """The fault, once, at the read number `after` of files that end in `name`; headers count."""
    return times(1, kind, after=after, at=at, seconds=seconds, name=name)


def times(
    count: int, kind: str, *, after: int = 0, at: int = 0, seconds: float = 0.0, name: str = ".safetensors"
) -> Choose:
    """The same fault at `count` reads in a row."""
    seen = 0

    def choose(request: Request) -> Fault | None:
        nonlocal seen
        if not request.name.endswith(name):
            return None
        seen += 1
        return Fault(kind, at, seconds) if after < seen <= after + count else None

    return choose


def damaged(store: MemoryStore, name: str) -> MemoryStore:
    """The same folder with a wrong checksum published for `name`."""

    class Damaged(MemoryStore):
        def _pin(self, wanted: str) -> Pin:
            pin = super()._pin(wanted)
            return replace(pin, crc32c=(pin.crc32c or 0) ^ 1) if wanted == name else pin

    return Damaged(store.files)
