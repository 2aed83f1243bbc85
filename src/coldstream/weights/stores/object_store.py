"""S3 and Azure behind the `Store` seam: obstore lists, pins, signs and reads."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import obstore

from coldstream.errors import AccessDenied, ObjectNotFound
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.credentials import NoCredentials
from coldstream.weights.stores.foreign_errors import mapped
from coldstream.weights.stores.pinning import dated, etag_of, settled
from coldstream.weights.stores.ranges import ask_range, body
from coldstream.weights.stores.store import Pin

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

logger = logging.getLogger("coldstream.weights")

_T = TypeVar("_T")


class ObjectStoreAdapter:
    """A folder of an obstore store, pinned by etag. `public` is the same as it is for callers without credentials."""

    def __init__(self, location: Location, store: ObjectStore, public: ObjectStore | None = None) -> None:
        self.location = location
        self._store = store
        self._public = public

    async def list(self) -> Mapping[str, Pin]:
        """See `Store.list`."""
        prefix = self.location.path.strip("/") or None
        result = await self._ask(self.location, lambda store: obstore.list_with_delimiter_async(store, prefix))
        return {pin.name: pin for pin in map(self._pinned, result["objects"])}

    async def pin(self, name: str) -> Pin | None:
        """See `Store.pin`."""
        path = self._path(name)
        try:
            meta = await self._ask(self.location.child(name), lambda store: obstore.head_async(store, path))
        except ObjectNotFound:
            return None
        return self._pinned(meta, name)

    async def _ask(self, where: Location, ask: Callable[[ObjectStore], Awaitable[_T]]) -> _T:
        """The answer; without any credentials, the one that anybody gets."""
        try:
            with mapped(where):
                return await ask(self._store)
        except NoCredentials as missing:
            if self._public is None:
                raise
            try:
                with mapped(where):
                    answer = await ask(self._public)
            except AccessDenied as refused:
                raise AccessDenied(f"{missing} (without credentials it says: {refused})") from missing
        if self._store is not self._public:
            self._store = self._public
            logger.warning("%s: no credentials here; it is public and is read without", self.location)
        return answer

    async def read_range(
        self, pin: Pin, start: int, end: int, *, piecewise: bool = False
    ) -> AsyncGenerator[memoryview, None]:
        """See `Store.read_range`."""
        where = self.location.child(pin.name)
        answer = await ask_range(self._store, self._path(pin.name), pin, start, end, where)
        async with aclosing(body(answer, where, piecewise=piecewise)) as pieces:
            async for piece in pieces:
                yield piece

    def close_idle(self) -> None:
        """See `Store.close_idle`; obstore keeps its own."""

    def _path(self, name: str) -> str:
        return self.location.child(name).path.lstrip("/")

    def _pinned(self, meta: ObjectMeta, name: str | None = None) -> Pin:
        date = settled(dated(meta["last_modified"]))
        return Pin(name or meta["path"].rpartition("/")[2], meta["size"], etag=etag_of(meta["e_tag"]), modified=date)
