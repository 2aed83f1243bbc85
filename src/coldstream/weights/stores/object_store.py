"""S3 and Azure behind the `Store` seam: obstore lists, pins and signs; its errors are mapped here, once.

Bytes are read over our own wire (wire.py), where there is an address that anybody may read; else by obstore.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import (
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from coldstream.errors import AccessDenied, BadResponse, ObjectNotFound
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.credentials import NoCredentials
from coldstream.weights.stores.reason import reason_in, usual_mend
from coldstream.weights.stores.store import Interrupted, OnLanded, Pin
from coldstream.weights.stores.web import read_over
from coldstream.weights.transfer.answers import (
    RETRIED,
    changed,
    check_version,
    denied,
    encoded,
    etag_of,
    ignores_ranges,
    refusal,
    settled,
    strong,
)
from coldstream.weights.transfer.wire import Wire

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import ObjectStore, S3Store

_STATUS = re.compile(r"status code: (\d{3})")
# Where the clouds' machines ask for their own role's credentials; none is there elsewhere.
_ROLES = re.compile(r"latest/api/token|latest/meta-data|metadata/identity|//169\.254\.")
# How long a signed address is good for: as long as the longest read.
_SIGNED = timedelta(hours=1)

logger = logging.getLogger("coldstream.weights")

_T = TypeVar("_T")


class ObjectStoreAdapter:
    """A folder of an obstore store, pinned by etag. `public` is the same as it is for callers without credentials."""

    def __init__(self, location: Location, store: ObjectStore, public: ObjectStore | None = None) -> None:
        self.location = location
        self._store = store
        self._public = public

    @property
    def is_public(self) -> bool:
        """Whether it turned out that there are no credentials, and that none are needed."""
        return self._store is self._public

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
            with _mapped(where):
                return await ask(self._store)
        except NoCredentials as missing:
            if self._public is None:
                raise
            try:
                with _mapped(where):
                    answer = await ask(self._public)
            except AccessDenied as refused:
                raise AccessDenied(f"{missing} (without credentials it says: {refused})") from missing
        if not self.is_public:
            self._store = self._public
            logger.warning("%s: no credentials here; it is public and is read without", self.location)
        return answer

    async def read_into(self, pin: Pin, start: int, target: memoryview, landed: OnLanded) -> None:
        """See `Store.read_into`."""
        where = self.location.child(pin.name)
        options: GetOptions = {"range": (start, start + target.nbytes)}
        if strong(pin.etag):
            options["if_match"] = pin.etag
        with _mapped(where):
            result = await obstore.get_async(self._store, self._path(pin.name), options=options)
            self._check_reply(pin, start, start + target.nbytes, result)
            await _fill(target, result, landed)

    def close_idle(self) -> None:
        """See `Store.close_idle`; obstore keeps its own."""

    def _check_reply(self, pin: Pin, start: int, end: int, result: GetResult) -> None:
        where = self.location.child(pin.name)
        meta = result.meta
        if meta["size"] != pin.size:
            raise changed(where)
        check_version(pin, where, etag=meta["e_tag"], modified=meta["last_modified"])
        if tuple(result.range) != (start, end):
            raise BadResponse(
                f"{where}: asked for bytes {start}-{end}, the answer is {result.range}; use another server"
            )
        if result.attributes.get("Content-Encoding") not in (None, "identity", "aws-chunked"):
            raise encoded(where)

    def _path(self, name: str) -> str:
        return self.location.child(name).path.lstrip("/")

    def _pinned(self, meta: ObjectMeta, name: str | None = None) -> Pin:
        date = settled(meta["last_modified"])
        return Pin(name or meta["path"].rpartition("/")[2], meta["size"], etag=etag_of(meta["e_tag"]), modified=date)


class S3(ObjectStoreAdapter):
    """A folder of an S3 bucket. A read goes to a signed address, because signing is obstore's and reading is ours."""

    def __init__(self, location: Location, store: S3Store, public: S3Store, wire: Wire) -> None:
        super().__init__(location, store, public)
        self._s3 = store
        self._wire = wire

    async def read_into(self, pin: Pin, start: int, target: memoryview, landed: OnLanded) -> None:
        """See `Store.read_into`."""
        if self.is_public:
            return await super().read_into(pin, start, target, landed)
        with _mapped(self.location):
            url = await obstore.sign_async(self._s3, "GET", self._path(pin.name), _SIGNED)
        await read_over(self._wire, url, pin, start, target, landed, self.location.child(pin.name))

    def close_idle(self) -> None:
        """See `Store.close_idle`."""
        self._wire.close_idle()


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
        raise denied(where, 403, reason_in(str(exc))) from exc
    except UnauthenticatedError as exc:
        raise denied(where, 401, reason_in(str(exc))) from exc
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
    if _ROLES.search(text.partition("\n")[0]):
        return NoCredentials(
            f"{where}: no credentials: none in the environment, and the machine has no role; {usual_mend(where.scheme)}"
        )
    status = _STATUS.search(text)
    if status is not None:
        code = int(status[1])
        if code in RETRIED or code >= 500:
            return Interrupted(f"HTTP {code}", throttled=code in (429, 503))
        return refusal(code, where, reason_in(text))
    if "NotPartial" in text:
        return ignores_ranges(where)
    return Interrupted(_summary(exc), refused="ConnectionRefused" in text)
