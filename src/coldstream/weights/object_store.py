"""The obstore adapter: every kind of bucket behind the `Store` seam; foreign errors are mapped here, once.

obstore (Rust, no GIL) moves the bytes. It knows neither generation nor CRC32C of an object, so the listing of a Google
bucket is one call of the JSON API.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import obstore
from obstore.exceptions import (
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, S3Store

from coldstream.errors import AccessDenied, BadResponse, ObjectChanged, ObjectNotFound, StoreError
from coldstream.weights import http
from coldstream.weights.credentials import GoogleToken, google_token
from coldstream.weights.store import Buffer, Interrupted, Pin, Store
from coldstream.weights.uri import Location

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

_STATUS = re.compile(r"status code: (\d{3})")
_RETRIED = frozenset({408, 425, 429})
# gcloud's variable for another endpoint of Cloud Storage, as Private Service Connect has.
_ENDPOINT_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"
# The executor decides when to ask again.
_NO_RETRIES: RetryConfig = {"max_retries": 0}
# Seconds without a byte after which a read is cut.
STALL = 10.0
# What a broken connection can cost at most, once reads are made piecewise.
PIECE = 256 * 1024

WELL_KNOWN = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)


def open_store(location: Location, *, environ: Mapping[str, str] = os.environ, stall: float = STALL) -> Store:
    """The store that holds `location`. Connects to nothing yet.

    `STORAGE_EMULATOR_HOST` sends gs:// to an emulator, without credentials; gcloud's
    `CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE` to another endpoint, with them.

    Raises:
        AccessDenied: credentials are configured, but cannot be used.
    """
    client, retry = _client_options(environ, stall), _NO_RETRIES
    if location.scheme == "gs":
        return _google(location, environ, client)
    if location.scheme == "file":
        return ObjectStoreAdapter(location, LocalStore())
    if location.scheme in ("http", "https"):
        store = HTTPStore(f"{location.scheme}://{location.bucket}", client_options=client, retry_config=retry)
        return WebStore(location, store)
    if location.scheme == "s3":
        return ObjectStoreAdapter(location, S3Store(location.bucket, client_options=client, retry_config=retry))
    return ObjectStoreAdapter(location, AzureStore(location.bucket, client_options=client, retry_config=retry))


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

    async def read(self, pin: Pin, start: int, end: int, *, piecewise: bool = False) -> Buffer:
        """See `Store.read`."""
        where = self.location.child(pin.name)
        options: GetOptions = {"range": (start, end), **self._condition(pin)}
        try:
            with _mapped(where):
                result = await obstore.get_async(self._store, self._path(pin.name), options=options)
                self._check_reply(pin, start, end, result)
                return await _pieces(result) if piecewise else memoryview(await result.bytes_async())
        except ObjectNotFound:
            # A generation that is gone looks like an object that never was.
            if await self.pin(pin.name) is not None:
                raise _changed(where) from None
            raise
        except Interrupted as failure:
            if failure.throttled and failure.retry_after is None:
                failure.retry_after = await self._ask_when(pin)
            raise

    async def _ask_when(self, pin: Pin) -> float | None:
        """Retry-After, from a request of our own for one byte: obstore does not hand headers on."""
        signed = await self._signed(pin)
        if signed is None:
            return None
        url, headers = signed
        try:
            response = await http.request(url, headers={**headers, "Range": "bytes=0-0"}, seconds=5.0)
        except http.HttpFailure:
            return None
        return http.retry_after(response)

    async def _signed(self, pin: Pin) -> tuple[str, Mapping[str, str]] | None:
        """A URL and headers with which anybody may read the object; None where there is no such thing."""
        if not isinstance(self._store, S3Store | AzureStore):
            return None
        return await obstore.sign_async(self._store, "GET", self._path(pin.name), timedelta(minutes=1)), {}

    def _condition(self, pin: Pin) -> GetOptions:
        return {"if_match": pin.etag} if pin.etag else {}

    def _check_reply(self, pin: Pin, start: int, end: int, result: GetResult) -> None:
        where = self.location.child(pin.name)
        if not self._same_version(pin, result.meta):
            raise _changed(where)
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


class WebStore(ObjectStoreAdapter):
    """A folder on a web server: it cannot list, so it is asked for what a checkpoint may have."""

    async def list(self) -> Mapping[str, Pin]:
        """See `Store.list`."""
        pins = await asyncio.gather(*(self.pin(name) for name in WELL_KNOWN))
        return {pin.name: pin for pin in pins if pin is not None}

    async def _signed(self, pin: Pin) -> tuple[str, Mapping[str, str]]:
        return str(self.location.child(pin.name)), {}


class GoogleStore(ObjectStoreAdapter):
    """A folder in a Google bucket, pinned by generation."""

    def __init__(self, location: Location, store: ObjectStore, *, api: str, token: GoogleToken | None) -> None:
        super().__init__(location, store)
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
            _raise_for_status(response, self.location)
        try:
            value = json.loads(response.body)
        except ValueError as exc:
            raise BadResponse(f"{self.location}: {self._api} did not answer JSON; is it a storage server?") from exc
        if not isinstance(value, dict):
            raise BadResponse(f"{self.location}: {self._api} did not answer a JSON object; is it a storage server?")
        return value

    def _condition(self, pin: Pin) -> GetOptions:
        return {"version": pin.generation} if pin.generation else {}

    def _same_version(self, pin: Pin, meta: ObjectMeta) -> bool:
        version = meta["version"]
        return meta["size"] == pin.size and (not pin.generation or not version or version == pin.generation)

    async def _signed(self, pin: Pin) -> tuple[str, Mapping[str, str]]:
        bucket, path = quote(self.location.bucket, safe=""), quote(self.location.child(pin.name).path, safe="")
        return f"{self._api}/storage/v1/b/{bucket}/o/{path}?alt=media", await self._headers()

    async def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {await self._token.value()}"} if self._token else {}


async def _pieces(result: GetResult) -> Buffer:
    """The body piece by piece, so that what has landed outlives a broken connection."""
    landed = bytearray()
    try:
        async for piece in result.stream(min_chunk_size=PIECE):
            landed += piece
    except BaseError as exc:
        raise Interrupted(_summary(exc), partial=memoryview(landed)) from exc
    return memoryview(landed).toreadonly()


def _client_options(environ: Mapping[str, str], stall: float) -> ClientConfig:
    options: ClientConfig = {
        "allow_http": True,
        "read_timeout": timedelta(seconds=stall),
        "timeout": timedelta(hours=1),
        "connect_timeout": timedelta(seconds=10),
    }
    # OpenSSL's variable, which curl and Python know as well.
    if environ.get("SSL_CERT_FILE"):
        options["root_certificate"] = _certificates(Path(environ["SSL_CERT_FILE"]))
    return options


def _certificates(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise AccessDenied(f"SSL_CERT_FILE={path}: cannot be read ({exc.strerror}); unset it or correct it") from exc


def _google(location: Location, environ: Mapping[str, str], client: ClientConfig) -> Store:
    retry = _NO_RETRIES
    emulator = environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        base = emulator.rstrip("/") if "://" in emulator else f"http://{emulator}"
        store = GCSStore(
            location.bucket,
            config={"base_url": base, "skip_signature": True},
            client_options=client,
            retry_config=retry,
        )
        return GoogleStore(location, store, api=base, token=None)
    token = google_token(environ)
    base = (environ.get(_ENDPOINT_VARIABLE) or "https://storage.googleapis.com").rstrip("/")
    store = GCSStore(
        location.bucket,
        config={"base_url": base},
        client_options=client,
        retry_config=retry,
        credential_provider=token.credential,
    )
    return GoogleStore(location, store, api=base, token=token)


def _google_pin(item: Mapping[str, Any], prefix: str) -> Pin:
    checksum = item.get("crc32c")
    return Pin(
        name=item["name"].removeprefix(prefix),
        size=int(item["size"]),
        generation=item.get("generation"),
        etag=item.get("etag"),
        crc32c=int.from_bytes(base64.b64decode(checksum), "big") if checksum else None,
    )


def _changed(where: Location) -> ObjectChanged:
    return ObjectChanged(f"{where}: was replaced while it was being read; start again to load the new version")


def _raise_for_status(response: http.Response, where: Location) -> None:
    status = response.status
    if status in _RETRIED or status >= 500:
        raise Interrupted(f"HTTP {status}", throttled=status in (429, 503), retry_after=http.retry_after(response))
    raise _refusal(status, where)


def _refusal(status: int, where: Location) -> StoreError:
    if status in (401, 403):
        return _denied(where, status)
    if status in (404, 410):
        return ObjectNotFound(f"{where}: no such bucket or object (HTTP {status}); check the URI")
    return BadResponse(f"{where}: the store answered HTTP {status}; check the URI and the endpoint")


def _denied(where: Location, status: int) -> AccessDenied:
    hint = {
        "gs": "grant roles/storage.objectViewer on the bucket, or run: gcloud auth application-default login",
        "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of someone with s3:GetObject and s3:ListBucket",
        "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or a SAS token",
        "file": "check the file's permissions",
    }.get(where.scheme, "the server wants credentials")
    return AccessDenied(f"{where}: access denied (HTTP {status}); {hint}")


@contextlib.contextmanager
def _mapped(where: Location) -> Iterator[None]:
    """Foreign errors to ours."""
    try:
        yield
    except FileNotFoundError as exc:
        raise ObjectNotFound(f"{where}: no such bucket or object; check the URI") from exc
    except PreconditionError as exc:
        raise _changed(where) from exc
    except PermissionDeniedError as exc:
        raise _denied(where, 403) from exc
    except UnauthenticatedError as exc:
        raise _denied(where, 401) from exc
    except NotSupportedError as exc:
        raise _ignores_ranges(where) from exc
    except BaseError as exc:
        raise _generic(exc, where) from exc


def _ignores_ranges(where: Location) -> BadResponse:
    return BadResponse(f"{where}: the server ignores ranges (answered 200 to a range); use another server")


def _summary(exc: BaseError) -> str:
    """The first line, without the URL, which may be signed."""
    text = str(exc).partition("\n")[0]
    return text.rpartition(" - ")[2] or text


def _generic(exc: BaseError, where: Location) -> Exception:
    text = str(exc)
    status = _STATUS.search(text)
    if status is not None:
        code = int(status[1])
        if code in _RETRIED or code >= 500:
            return Interrupted(f"HTTP {code}", throttled=code in (429, 503))
        return _refusal(code, where)
    if "NotPartial" in text:
        return _ignores_ranges(where)
    if "Permission denied" in text:
        return _denied(where, 403)
    return Interrupted(_summary(exc), refused="ConnectionRefused" in text)
