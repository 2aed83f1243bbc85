"""Google Cloud Storage: the JSON API lists and pins, because it tells generations and checksums; the XML API is read.

https://cloud.google.com/storage/docs/json_api/v1, https://cloud.google.com/storage/docs/xml-api/get-object-download
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

from coldstream.errors import AccessDenied, BadResponse, ObjectNotFound, StoreError
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores import http
from coldstream.weights.stores.client import client_options
from coldstream.weights.stores.credentials import PATIENCE, GoogleToken, NoCredentials
from coldstream.weights.stores.google_login import google_token
from coldstream.weights.stores.network import Network
from coldstream.weights.stores.pinning import changed, unpinned
from coldstream.weights.stores.reason import reason_of
from coldstream.weights.stores.refusal import encoded, raise_for_status, refusal
from coldstream.weights.stores.store import Interrupted, Pin

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import GCSStore

    from coldstream.weights.stores.google_upload import GoogleUpload

# gcloud's variable for another endpoint of Cloud Storage, as Private Service Connect has.
_ENDPOINT_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"
_ENDPOINT = "https://storage.googleapis.com"
# google-auth's variable for the project that pays.
_PAYER_VARIABLE = "GOOGLE_CLOUD_QUOTA_PROJECT"
# What a load may read; of these, checksums that the listing left out are asked for, so many at once.
_READ = (".safetensors", ".json", ".jinja")
_ASKED_AT_ONCE = 32

logger = logging.getLogger("coldstream.weights")

_T = TypeVar("_T")
_Headers = dict[str, str]


def google_store(
    location: Location, environ: Mapping[str, str], *, stall: float, patience: float = PATIENCE
) -> GoogleStore:
    """A folder in a Google bucket, or in an emulator's, which asks for no credentials.

    Args:
        stall: seconds without a byte after which a read is cut.
        patience: seconds for which credentials that may come later are waited for.

    Raises:
        AccessDenied: credentials are configured, but cannot be used.
    """
    network = Network(environ)
    emulator = environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        api = emulator.rstrip("/") if "://" in emulator else f"http://{emulator}"
        return GoogleStore(location, Caller(None), api=api, network=network, stall=stall)
    api = (environ.get(_ENDPOINT_VARIABLE) or _ENDPOINT).rstrip("/").removesuffix("/storage/v1")
    caller = Caller(google_token(environ), payer=environ.get(_PAYER_VARIABLE), patience=patience)
    return GoogleStore(location, caller, api=api, network=network, stall=stall)


class _TokenRefused(Exception):
    """401: this token is not, or no longer, good."""

    def __init__(self, error: StoreError) -> None:
        super().__init__()
        self.error = error


class Caller:
    """As whom a bucket is asked: with a token, or, where this machine has none, as anybody.

    Args:
        token: None asks for nothing, and sends nothing.
        payer: the project that pays; by default the one that the credentials name.
    """

    def __init__(self, token: GoogleToken | None, *, payer: str | None = None, patience: float = PATIENCE) -> None:
        self._token = token
        self._payer = payer or (token.quota_project if token else None)
        self._patience = patience
        self._is_public = False

    async def call(self, where: Location, send: Callable[[_Headers], Awaitable[_T]]) -> _T:
        """What `send` answers with the headers of this caller; a token that is refused is replaced once.

        Raises:
            AccessDenied: the bucket refuses, or there are no credentials and it is not public. What `send` raises.
        """
        if self._token is None or self._is_public:
            return await _refused_for_good(send({}))
        try:
            token = await self._token.value()
        except NoCredentials as missing:
            return await self._as_anybody(self._token, where, send, missing)
        try:
            return await send(self._headers(token))
        except _TokenRefused:
            self._token.forget(token)
        return await _refused_for_good(send(self._headers(await self._token.value())))

    async def _as_anybody(
        self, tokens: GoogleToken, where: Location, send: Callable[[_Headers], Awaitable[_T]], missing: NoCredentials
    ) -> _T:
        try:
            answer = await _refused_for_good(send({}))
        except AccessDenied as refused:
            try:
                token = await tokens.value(patience=self._patience)
            except NoCredentials:
                raise AccessDenied(f"{where}: {missing} (without credentials it says: {refused})") from missing
            return await _refused_for_good(send(self._headers(token)))
        if not self._is_public:
            self._is_public = True
            logger.warning("%s: no Google credentials here; the bucket is public and is read without", where)
        return answer

    def _headers(self, token: str) -> _Headers:
        headers = {"Authorization": f"Bearer {token}"}
        return headers | ({"x-goog-user-project": self._payer} if self._payer else {})


async def _refused_for_good(sent: Awaitable[_T]) -> _T:
    try:
        return await sent
    except _TokenRefused as refused:
        raise refused.error from None


class GoogleStore:
    """A folder in a Google bucket, pinned by generation."""

    def __init__(self, location: Location, caller: Caller, *, api: str, network: Network, stall: float) -> None:
        self.location = location
        self._caller = caller
        self._api = api
        self._network = network
        self._client = client_options(network, api, stall=stall)
        self._buckets: dict[frozenset[tuple[str, str]], GCSStore] = {}

    async def list(self) -> Mapping[str, Pin]:
        """See `Store.list`. obstore is imported while the answer is on its way."""
        importing = Thread(target=import_module, args=("coldstream.weights.stores.ranges",), name="coldstream-import")
        importing.start()
        try:
            return await self._listed()
        finally:
            importing.join()

    async def _listed(self) -> Mapping[str, Pin]:
        prefix = f"{self.location.path}/" if self.location.path else ""
        query = {
            "prefix": prefix,
            "delimiter": "/",
            "fields": "nextPageToken,items(name,size,generation,crc32c,etag)",
        }
        pins: dict[str, Pin] = {}
        while True:
            page = await self._get_json(f"b/{quote(self.location.bucket, safe='')}/o?{urlencode(query)}")
            for item in page.get("items", ()):
                pin = _google_pin(item, prefix)
                if pin.name:
                    pins[pin.name] = pin
            if not page.get("nextPageToken"):
                return {**pins, **await self._with_checksums(pins)}
            query["pageToken"] = page["nextPageToken"]

    async def _with_checksums(self, pins: Mapping[str, Pin]) -> Mapping[str, Pin]:
        """Those that the listing gave without: under a customer's key only the object itself tells its checksum."""
        turn = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def ask(name: str) -> Pin | None:
            async with turn:
                return await self.pin(name)

        without = [name for name, pin in pins.items() if pin.crc32c is None and name.endswith(_READ)]
        asked = await asyncio.gather(*(ask(name) for name in without))
        return {pin.name: pin for pin in asked if pin is not None and pin.generation == pins[pin.name].generation}

    async def pin(self, name: str) -> Pin | None:
        """See `Store.pin`."""
        try:
            return _google_pin({**await self._item(name), "name": name}, "")
        except ObjectNotFound:
            return None

    async def _item(self, name: str) -> dict[str, Any]:
        path = self.location.child(name).path
        return await self._get_json(f"b/{quote(self.location.bucket, safe='')}/o/{quote(path, safe='')}")

    async def _get_json(self, path: str) -> dict[str, Any]:
        response = await self._caller.call(self.location, lambda headers: self._ask(path, headers))
        if response.status != 200:
            raise_for_status(response, self.location)
        return _json_object(response.body, self.location, self._api)

    async def _ask(self, path: str, headers: _Headers) -> http.Response:
        try:
            response = await http.request(f"{self._api}/storage/v1/{path}", headers=headers, network=self._network)
        except http.HttpFailure as exc:
            raise Interrupted(str(exc), refused=exc.refused) from exc
        if response.status == 401:
            raise _TokenRefused(refusal(401, self.location, reason_of(response)))
        if response.status == 403:  # for a caller without credentials it is the same
            raise_for_status(response, self.location)
        return response

    async def read_range(
        self, pin: Pin, start: int, end: int, *, piecewise: bool = False
    ) -> AsyncGenerator[memoryview, None]:
        """See `Store.read_range`."""
        from coldstream.weights.stores.ranges import body

        where = self.location.child(pin.name)
        if pin.generation is None:
            raise unpinned(where, "its bucket knows no generations")
        try:
            answer = await self._caller.call(where, lambda headers: self._ask_range(pin, start, end, headers))
        except ObjectNotFound:
            # A generation that is gone looks like an object that never was.
            if await self.pin(pin.name) is not None:
                raise changed(where) from None
            raise
        async with aclosing(body(answer, where, piecewise=piecewise)) as pieces:
            async for piece in pieces:
                yield piece

    async def _ask_range(self, pin: Pin, start: int, end: int, headers: _Headers) -> GetResult:
        from obstore.exceptions import UnauthenticatedError

        from coldstream.weights.stores.ranges import ask_range

        where = self.location.child(pin.name)
        try:
            return await ask_range(self._bucket(headers), where.path, pin, start, end, where)
        except Interrupted as failure:
            if failure.throttled:  # obstore does not tell for how long
                failure.retry_after = await http.asked_to_wait(self._media(where, pin), headers, self._network)
            raise
        except AccessDenied as denied:
            if isinstance(denied.__cause__, UnauthenticatedError):
                raise _TokenRefused(denied) from None
            raise
        except BadResponse:  # what is unpacked on the way is sent whole
            if (await self._item(pin.name)).get("contentEncoding", "identity") != "identity":
                raise encoded(where) from None
            raise

    async def begin_upload(self, name: str, size: int, *, replaces: Pin | None) -> GoogleUpload:
        """See `WritableStore.begin_upload`."""
        from coldstream.weights.stores.google_upload import begin

        where = self.location.child(name)
        only_if = "0" if replaces is None else replaces.generation
        query = urlencode({"uploadType": "resumable", "name": where.path, "ifGenerationMatch": only_if})
        url = f"{self._api}/upload/storage/v1/b/{quote(self.location.bucket, safe='')}/o?{query}"

        def pinned(resource: bytes) -> Pin:
            return _google_pin({**_json_object(resource, where, self._api), "name": name}, "")

        return await begin(where, url, size, self._caller.call, self._network, pinned)

    def _media(self, where: Location, pin: Pin) -> str:
        query = urlencode({"generation": pin.generation})
        return f"{self._api}/{quote(self.location.bucket, safe='')}/{quote(where.path)}?{query}"

    def _bucket(self, headers: _Headers) -> GCSStore:
        """The bucket for callers with these headers; a token that was replaced takes its connections with it."""
        from obstore.store import GCSStore

        caller = frozenset(headers.items())
        if caller not in self._buckets:
            self._buckets.clear()
            self._buckets[caller] = GCSStore(
                self.location.bucket,
                config={"base_url": self._api, "skip_signature": True},
                client_options={**self._client, "default_headers": headers},
                retry_config={"max_retries": 0},
            )
        return self._buckets[caller]

    def close_idle(self) -> None:
        """See `Store.close_idle`."""
        self._buckets.clear()


def _json_object(body: bytes, where: Location, api: str) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as exc:
        raise BadResponse(f"{where}: {api} did not answer JSON; is it a storage server?") from exc
    if not isinstance(value, dict):
        raise BadResponse(f"{where}: {api} did not answer a JSON object; is it a storage server?")
    return value


def _google_pin(item: Mapping[str, Any], prefix: str) -> Pin:
    checksum = item.get("crc32c")
    return Pin(
        name=item["name"].removeprefix(prefix),
        size=int(item["size"]),
        generation=item.get("generation"),
        etag=item.get("etag"),
        crc32c=int.from_bytes(base64.b64decode(checksum), "big") if checksum else None,
    )
