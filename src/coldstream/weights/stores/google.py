"""Google Cloud Storage: the JSON API lists and pins, because it tells generations and checksums; the XML API is read.

https://cloud.google.com/storage/docs/json_api/v1, https://cloud.google.com/storage/docs/xml-api/get-object-download
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from coldstream.errors import BadResponse, ObjectNotFound
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores import http
from coldstream.weights.stores.credentials import GoogleToken, google_token
from coldstream.weights.stores.store import Interrupted, OnLanded, Pin
from coldstream.weights.transfer.answers import changed, raise_for_status, range_of
from coldstream.weights.transfer.wire import Wire

# gcloud's variable for another endpoint of Cloud Storage, as Private Service Connect has.
_ENDPOINT_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"
_ENDPOINT = "https://storage.googleapis.com"


def google_store(location: Location, environ: Mapping[str, str], wire: Wire) -> GoogleStore:
    """A folder in a Google bucket, or in an emulator's, which asks for no credentials.

    Raises:
        AccessDenied: credentials are configured, but cannot be used.
    """
    emulator = environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        api = emulator.rstrip("/") if "://" in emulator else f"http://{emulator}"
        return GoogleStore(location, wire, api=api, token=None)
    api = (environ.get(_ENDPOINT_VARIABLE) or _ENDPOINT).rstrip("/")
    return GoogleStore(location, wire, api=api, token=google_token(environ))


class GoogleStore:
    """A folder in a Google bucket, pinned by generation."""

    def __init__(self, location: Location, wire: Wire, *, api: str, token: GoogleToken | None) -> None:
        self.location = location
        self._wire = wire
        self._api = api
        self._token = token

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
                return pins
            query["pageToken"] = page["nextPageToken"]

    async def pin(self, name: str) -> Pin | None:
        """See `Store.pin`."""
        path = self.location.child(name).path
        try:
            item = await self._get_json(f"b/{quote(self.location.bucket, safe='')}/o/{quote(path, safe='')}")
        except ObjectNotFound:
            return None
        return _google_pin({**item, "name": name}, "")

    async def _get_json(self, path: str) -> dict[str, Any]:
        try:
            response = await http.request(f"{self._api}/storage/v1/{path}", headers=await self._headers())
        except http.HttpFailure as exc:
            raise Interrupted(str(exc), refused=exc.refused) from exc
        if response.status != 200:
            raise_for_status(response, self.location)
        try:
            value = json.loads(response.body)
        except ValueError as exc:
            raise BadResponse(f"{self.location}: {self._api} did not answer JSON; is it a storage server?") from exc
        if not isinstance(value, dict):
            raise BadResponse(f"{self.location}: {self._api} did not answer a JSON object; is it a storage server?")
        return value

    async def read_into(self, pin: Pin, start: int, target: memoryview, landed: OnLanded) -> None:
        """See `Store.read_into`."""
        where, end = self.location.child(pin.name), start + target.nbytes
        query = f"?{urlencode({'generation': pin.generation})}" if pin.generation else ""
        url = f"{self._api}/{quote(self.location.bucket, safe='')}/{quote(where.path)}{query}"
        headers = {"Range": f"bytes={start}-{end - 1}", **await self._headers()}
        accept = range_of(pin, start, end, where, version=("x-goog-generation", pin.generation))
        try:
            await self._wire.get(url, headers, target, accept, landed)
        except ObjectNotFound:
            # A generation that is gone looks like an object that never was.
            if await self.pin(pin.name) is not None:
                raise changed(where) from None
            raise

    def close_idle(self) -> None:
        """See `Store.close_idle`."""
        self._wire.close_idle()

    async def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {await self._token.value()}"} if self._token else {}


def _google_pin(item: Mapping[str, Any], prefix: str) -> Pin:
    checksum = item.get("crc32c")
    return Pin(
        name=item["name"].removeprefix(prefix),
        size=int(item["size"]),
        generation=item.get("generation"),
        etag=item.get("etag"),
        crc32c=int.from_bytes(base64.b64decode(checksum), "big") if checksum else None,
    )
