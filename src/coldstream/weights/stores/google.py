"""Google Cloud Storage: the JSON API lists and pins, because it tells generations and checksums; the XML API is read.

https://cloud.google.com/storage/docs/json_api/v1, https://cloud.google.com/storage/docs/xml-api/get-object-download
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from coldstream.errors import AccessDenied, BadResponse, ObjectNotFound
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores import http
from coldstream.weights.stores.credentials import PATIENCE, GoogleToken, NoCredentials
from coldstream.weights.stores.google_login import google_token
from coldstream.weights.stores.network import Network
from coldstream.weights.stores.store import Interrupted, OnLanded, Pin
from coldstream.weights.transfer.answers import changed, raise_for_status, range_of, unpinned
from coldstream.weights.transfer.wire import Accept, Wire

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
    location: Location, environ: Mapping[str, str], wire: Wire, *, patience: float = PATIENCE
) -> GoogleStore:
    """A folder in a Google bucket, or in an emulator's, which asks for no credentials.

    Args:
        patience: seconds for which credentials that may come later are waited for.

    Raises:
        AccessDenied: credentials are configured, but cannot be used.
    """
    emulator = environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        api = emulator.rstrip("/") if "://" in emulator else f"http://{emulator}"
        return GoogleStore(location, wire, Caller(None), api=api, network=Network(environ))
    api = (environ.get(_ENDPOINT_VARIABLE) or _ENDPOINT).rstrip("/").removesuffix("/storage/v1")
    caller = Caller(google_token(environ), payer=environ.get(_PAYER_VARIABLE), patience=patience)
    return GoogleStore(location, wire, caller, api=api, network=Network(environ))


class _TokenRefused(Exception):
    """401: this token is not, or no longer, good."""

    def __init__(self, answer: http.Response) -> None:
        super().__init__()
        self.answer = answer


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
            return await _refused_for_good(where, send({}))
        try:
            token = await self._token.value()
        except NoCredentials as missing:
            return await self._as_anybody(self._token, where, send, missing)
        try:
            return await send(self._headers(token))
        except _TokenRefused:
            self._token.forget(token)
        return await _refused_for_good(where, send(self._headers(await self._token.value())))

    async def _as_anybody(
        self, tokens: GoogleToken, where: Location, send: Callable[[_Headers], Awaitable[_T]], missing: NoCredentials
    ) -> _T:
        try:
            answer = await _refused_for_good(where, send({}))
        except AccessDenied as refused:
            try:
                token = await tokens.value(patience=self._patience)
            except NoCredentials:
                raise AccessDenied(f"{where}: {missing} (without credentials it says: {refused})") from missing
            return await _refused_for_good(where, send(self._headers(token)))
        if not self._is_public:
            self._is_public = True
            logger.warning("%s: no Google credentials here; the bucket is public and is read without", where)
        return answer

    def _headers(self, token: str) -> _Headers:
        headers = {"Authorization": f"Bearer {token}"}
        return headers | ({"x-goog-user-project": self._payer} if self._payer else {})


async def _refused_for_good(where: Location, sent: Awaitable[_T]) -> _T:
    try:
        return await sent
    except _TokenRefused as refusal:
        raise_for_status(refusal.answer, where)


class GoogleStore:
    """A folder in a Google bucket, pinned by generation."""

    def __init__(self, location: Location, wire: Wire, caller: Caller, *, api: str, network: Network) -> None:
        self.location = location
        self._wire = wire
        self._caller = caller
        self._api = api
        self._network = network

    async def list(self) -> Mapping[str, Pin]:
        """See `Store.list`."""
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
        path = self.location.child(name).path
        try:
            item = await self._get_json(f"b/{quote(self.location.bucket, safe='')}/o/{quote(path, safe='')}")
        except ObjectNotFound:
            return None
        return _google_pin({**item, "name": name}, "")

    async def _get_json(self, path: str) -> dict[str, Any]:
        response = await self._caller.call(self.location, lambda headers: self._ask(path, headers))
        if response.status != 200:
            raise_for_status(response, self.location)
        try:
            value = json.loads(response.body)
        except ValueError as exc:
            raise BadResponse(f"{self.location}: {self._api} did not answer JSON; is it a storage server?") from exc
        if not isinstance(value, dict):
            raise BadResponse(f"{self.location}: {self._api} did not answer a JSON object; is it a storage server?")
        return value

    async def _ask(self, path: str, headers: _Headers) -> http.Response:
        try:
            response = await http.request(f"{self._api}/storage/v1/{path}", headers=headers, network=self._network)
        except http.HttpFailure as exc:
            raise Interrupted(str(exc), refused=exc.refused) from exc
        if response.status == 401:
            raise _TokenRefused(response)
        if response.status == 403:  # for a caller without credentials it is the same
            raise_for_status(response, self.location)
        return response

    async def read_into(self, pin: Pin, start: int, target: memoryview, landed: OnLanded) -> None:
        """See `Store.read_into`."""
        where, end = self.location.child(pin.name), start + target.nbytes
        if pin.generation is None:
            raise unpinned(where, "its bucket knows no generations")
        query = urlencode({"generation": pin.generation})
        url = f"{self._api}/{quote(self.location.bucket, safe='')}/{quote(where.path)}?{query}"
        accept = _accept(range_of(pin, start, end, where))

        async def send(headers: _Headers) -> None:
            await self._wire.get(url, {"Range": f"bytes={start}-{end - 1}", **headers}, target, accept, landed)

        try:
            await self._caller.call(where, send)
        except ObjectNotFound:
            # A generation that is gone looks like an object that never was.
            if await self.pin(pin.name) is not None:
                raise changed(where) from None
            raise

    def close_idle(self) -> None:
        """See `Store.close_idle`."""
        self._wire.close_idle()


def _accept(of_range: Accept) -> Accept:
    def accept(head: http.Response) -> None:
        if head.status == 401:
            raise _TokenRefused(head)
        of_range(head)

    return accept


def _google_pin(item: Mapping[str, Any], prefix: str) -> Pin:
    checksum = item.get("crc32c")
    return Pin(
        name=item["name"].removeprefix(prefix),
        size=int(item["size"]),
        generation=item.get("generation"),
        etag=item.get("etag"),
        crc32c=int.from_bytes(base64.b64decode(checksum), "big") if checksum else None,
    )
