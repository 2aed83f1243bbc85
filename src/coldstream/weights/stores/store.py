"""The seam to object storage: a small Protocol. Bytes come in the buffers that the store read them into, uncopied.

A store lists a folder and reads ranges of pinned objects. It does not retry: a read that failed raises `Interrupted`,
and the executor (fetch.py) decides what to do about it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from coldstream.weights.checkpoint.uri import Location


@dataclass(frozen=True, slots=True)
class Pin:
    """Exactly one version of one object: `generation` (gs) or `etag` (others) says which. `crc32c` of all its bytes.

    `modified` (UTC) says it where the etag is weak or missing; None when it is too young to.
    """

    name: str
    size: int
    generation: str | None = None
    etag: str | None = None
    crc32c: int | None = None
    modified: datetime | None = None

    @property
    def version(self) -> str:
        """What tells this version from another one, best first."""
        return self.generation or self.etag or (self.modified.isoformat() if self.modified else str(self.size))


class Interrupted(Exception):
    """A read ended before its last byte. What `read_range` yielded is good.

    `throttled`: the server asked for less, `retry_after` (seconds) says when. `refused`: the port was shut.
    Never seen by users: the executor turns it into a retry or an error of errors.py.
    """

    def __init__(
        self,
        message: str,
        *,
        throttled: bool = False,
        refused: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.throttled = throttled
        self.refused = refused
        self.retry_after = retry_after


class Store(Protocol):
    """A folder in object storage."""

    @property
    def location(self) -> Location:
        """The folder."""
        ...

    async def list(self) -> Mapping[str, Pin]:
        """The objects in the folder (not in folders below it) by name, in one call.

        A web server cannot list: it is asked for the names that a checkpoint may have.

        Raises:
            Interrupted, ObjectNotFound, AccessDenied.
        """
        ...

    async def pin(self, name: str) -> Pin | None:
        """One object that the listing did not have; None when it does not exist.

        Raises:
            Interrupted, AccessDenied.
        """
        ...

    def read_range(
        self, pin: Pin, start: int, end: int, *, piecewise: bool = False
    ) -> AsyncGenerator[memoryview, None]:
        """Bytes `start` to `end` (exclusive) of exactly this version: in one buffer, or several in order.

        `piecewise` asks for small ones, so that what came before a connection broke is not lost; it costs more.
        Each is the receiver's: nothing writes to it any more. They never hold more bytes than were asked for, and fewer
        only with an error.

        Raises:
            Interrupted: it may work when asked again. Also when no byte came for some seconds.
            ObjectNotFound, AccessDenied, ObjectChanged, BadResponse: it will not.
        """
        ...

    def close_idle(self) -> None:
        """Let go of connections that are kept for the next read; it may still come, and makes its own."""
        ...


async def read(store: Store, pin: Pin, start: int, end: int) -> bytes:
    """Bytes `start` to `end` (exclusive), for what is small.

    Raises:
        As `Store.read_range`.
    """
    async with aclosing(store.read_range(pin, start, end)) as pieces:
        return b"".join([piece async for piece in pieces])
