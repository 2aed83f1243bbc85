"""The seam for writing: one object, front to back, in bounded memory, whole or not at all."""

from __future__ import annotations

from typing import Protocol, cast

from coldstream.errors import LocationError
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.stores.store import Pin, Store


class Upload(Protocol):
    """An object that is being written; nothing lies under its name before `finish`."""

    async def write(self, data: memoryview) -> None:
        """The next bytes; returns when they were taken, so that little waits here.

        Raises:
            StoreError: see `coldstream.errors`.
        """
        ...

    async def finish(self) -> Pin:
        """The object is there now, as this pin; all the bytes that were announced have been written.

        Raises:
            ObjectChanged: another writer was there meanwhile. StoreError.
        """
        ...

    async def abort(self) -> None:
        """Leave nothing behind; harmless after `finish`."""
        ...


class WritableStore(Store, Protocol):
    """A folder that can be written to."""

    async def begin_upload(self, name: str, size: int, *, replaces: Pin | None) -> Upload:
        """Begin an object of `size` bytes, in place of the one that is pinned, or of none.

        Raises:
            ObjectChanged: another one lies there. StoreError.
        """
        ...


def open_writable(location: Location) -> WritableStore:
    """The store that holds `location`, for writing.

    Raises:
        LocationError: such stores are only read.
        AccessDenied: credentials are configured, but cannot be used.
    """
    if location.scheme not in ("gs", "file"):
        raise LocationError(
            f"{location}: {location.scheme}:// is only read; write into a folder of this machine, and copy it there"
        )
    return cast("WritableStore", open_store(location))
