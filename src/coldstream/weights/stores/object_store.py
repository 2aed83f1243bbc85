"""S3, Azure and web servers behind the `Store` seam: obstore lists, pins and signs; its errors are mapped here, once.

Bytes are read over our own wire (wire.py), where there is an address that anybody may read; else by obstore.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import (
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from coldstream.errors import BadResponse, ObjectNotFound
from coldstream.weights.checkpoint.file_names import WELL_KNOWN
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.store import Interrupted, OnLanded, Pin
from coldstream.weights.transfer.answers import RETRIED, changed, denied, ignores_ranges, range_of, refusal
from coldstream.weights.transfer.wire import Wire

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import HTTPStore, ObjectStore, S3Store

_STATUS = re.compile(r"status code: (\d{3})")
# How long a signed address is good for: as long as the longest read.
_SIGNED = timedelta(hours=1)


class ObjectStoreAdapter:
    """A folder of an obstore store, pinned by etag."""

    def __init__(self, location: Location, store: ObjectStore) -> None:
        self.location = location
        self._store = store

    async def list(self) -> Mapping[str, Pin]:
        """See `Store.list`."""
        prefix = self.location.path.strip("/")
        with _mapped(self.location):
            result = await obstore.list_with_delimiter_async(self._store, prefix or None)
        return {pin.name: pin for pin in map(self._pinned, result["objects"])}

    async def pin(self, name: str) -> Pin | None:
        """See `Store.pin`."""
        try:
            with _mapped(self.location.child(name)):
                return self._pinned(await obstore.head_async(self._store, self._path(name)), name)
        except ObjectNotFound:
            return None

    async def read_into(self, pin: Pin, start: int, target: memoryview, landed: OnLanded) -> None:
        """See `Store.read_into`."""
        where = self.location.child(pin.name)
        options: GetOptions = {"range": (start, start + target.nbytes)}
        if pin.etag:
            options["if_match"] = pin.etag
        with _mapped(where):
            result = await obstore.get_async(self._store, self._path(pin.name), options=options)
            self._check_reply(pin, start, start + target.nbytes, result)
            await _fill(target, result, landed)

    def close_idle(self) -> None:
        """See `Store.close_idle`; obstore keeps its own."""

    def _check_reply(self, pin: Pin, start: int, end: int, result: GetResult) -> None:
        where = self.location.child(pin.name)
        if not self._same_version(pin, result.meta):
            raise changed(where)
        if tuple(result.range) != (start, end):
            raise BadResponse(
                f"{where}: asked for bytes {start}-{end}, the answer is {result.range}; use another server"
            )

    def _same_version(self, pin: Pin, meta: ObjectMeta) -> bool:
        etag = meta["e_tag"]
        return meta["size"] == pin.size and (not pin.etag or not etag or etag == pin.etag)

    def _path(self, name: str) -> str:
        return self.location.child(name).path.lstrip("/")

    def _pinned(self, meta: ObjectMeta, name: str | None = None) -> Pin:
        return Pin(name or meta["path"].rpartition("/")[2], meta["size"], etag=meta["e_tag"])


class S3(ObjectStoreAdapter):
    """A folder of an S3 bucket. A read goes to a signed address, because signing is obstore's and reading is ours."""

    def __init__(self, location: Location, store: S3Store, wire: Wire) -> None:
        super().__init__(location, store)
        self._s3 = store
        self._wire = wire

    async def read_into(self, pin: Pin, start: int, target: memoryview, landed: OnLanded) -> None:
        """See `Store.read_into`."""
        with _mapped(self.location):
            url = await obstore.sign_async(self._s3, "GET", self._path(pin.name), _SIGNED)
        await _over(self._wire, url, pin, start, target, landed, self.location.child(pin.name))

    def close_idle(self) -> None:
        """See `Store.close_idle`."""
        self._wire.close_idle()


class WebStore(ObjectStoreAdapter):
    """A folder on a web server: it cannot list, so it is asked for what a checkpoint may have."""

    def __init__(self, location: Location, store: HTTPStore, wire: Wire) -> None:
        super().__init__(location, store)
        self._wire = wire

    async def list(self) -> Mapping[str, Pin]:
        """See `Store.list`."""
        pins = await asyncio.gather(*(self.pin(name) for name in WELL_KNOWN))
        return {pin.name: pin for pin in pins if pin is not None}

    async def read_into(self, pin: Pin, start: int, target: memoryview, landed: OnLanded) -> None:
        """See `Store.read_into`."""
        where = self.location.child(pin.name)
        await _over(self._wire, str(where), pin, start, target, landed, where)

    def close_idle(self) -> None:
        """See `Store.close_idle`."""
        self._wire.close_idle()


async def _over(
    wire: Wire, url: str, pin: Pin, start: int, target: memoryview, landed: OnLanded, where: Location
) -> None:
    end = start + target.nbytes
    headers = {"Range": f"bytes={start}-{end - 1}"}
    if pin.etag:
        headers["If-Match"] = pin.etag
    await wire.get(url, headers, target, range_of(pin, start, end, where, version=("etag", pin.etag)), landed)


async def _fill(target: memoryview, result: GetResult, landed: OnLanded) -> None:
    """The body, piece by piece, so that what has landed outlives a broken connection."""
    filled = 0
    try:
        async for piece in result.stream():
            end = filled + len(piece)
            target[filled:end] = piece
            landed(target[filled:end])
            filled = end
    except BaseError as exc:
        raise Interrupted(_summary(exc)) from exc
    if filled < target.nbytes:
        raise Interrupted(f"only {filled} bytes came")


@contextlib.contextmanager
def _mapped(where: Location) -> Iterator[None]:
    """Foreign errors to ours."""
    try:
        yield
    except FileNotFoundError as exc:
        raise ObjectNotFound(f"{where}: no such bucket or object; check the URI") from exc
    except PreconditionError as exc:
        raise changed(where) from exc
    except PermissionDeniedError as exc:
        raise denied(where, 403) from exc
    except UnauthenticatedError as exc:
        raise denied(where, 401) from exc
    except NotSupportedError as exc:
        raise ignores_ranges(where) from exc
    except BaseError as exc:
        raise _generic(exc, where) from exc


def _summary(exc: BaseError) -> str:
    """The first line, without the URL, which may be signed."""
    text = str(exc).partition("\n")[0]
    return text.rpartition(" - ")[2] or text


def _generic(exc: BaseError, where: Location) -> Exception:
    text = str(exc)
    status = _STATUS.search(text)
    if status is not None:
        code = int(status[1])
        if code in RETRIED or code >= 500:
            return Interrupted(f"HTTP {code}", throttled=code in (429, 503))
        return refusal(code, where)
    if "NotPartial" in text:
        return ignores_ranges(where)
    if "Permission denied" in text:
        return denied(where, 403)
    return Interrupted(_summary(exc), refused="ConnectionRefused" in text)
