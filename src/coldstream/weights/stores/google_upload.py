"""A resumable upload to Cloud Storage: one object, front to back, in chunks that are sent again where one is lost.

https://cloud.google.com/storage/docs/performing-resumable-uploads
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Protocol

from coldstream.errors import BadResponse
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores import http
from coldstream.weights.stores.network import Network
from coldstream.weights.stores.refusal import raise_for_status
from coldstream.weights.stores.store import Interrupted, Pin
from coldstream.weights.transfer.checksum import crc32c
from coldstream.weights.transfer.retry import RetryPolicy, with_retries

CHUNK = 16 * 1024 * 1024
"""Bytes of a request; Google asks for a multiple of 256 KiB."""
_INCOMPLETE = 308


class _Call(Protocol):
    async def __call__(
        self, where: Location, send: Callable[[dict[str, str]], Awaitable[http.Response]]
    ) -> http.Response: ...


class GoogleUpload:
    """See `Upload`. `session` is the URL that Google gave for it, which needs no further credentials."""

    def __init__(
        self,
        where: Location,
        session: str,
        size: int,
        network: Network,
        pinned: Callable[[bytes], Pin],
        *,
        chunk: int = CHUNK,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._where, self._session, self._size, self._network = where, session, size, network
        self._pinned, self._chunk, self._retry = pinned, chunk, retry or RetryPolicy()
        self._waiting = bytearray()
        self._sent = 0
        self._crc = 0
        self._pin: Pin | None = None

    async def write(self, data: memoryview) -> None:
        """See `Upload.write`."""
        for at in range(0, data.nbytes, self._chunk):
            self._waiting += data[at : at + self._chunk]
            while len(self._waiting) >= self._chunk and self._sent + self._chunk < self._size:
                await self._send(self._chunk)

    async def finish(self) -> Pin:
        """See `Upload.finish`."""
        if self._sent + len(self._waiting) != self._size:
            raise ValueError(f"{self._where}: {self._sent + len(self._waiting)} bytes of {self._size} were written")
        while self._pin is None:
            await self._send(min(self._chunk, len(self._waiting)))
        if self._pin.crc32c not in (None, self._crc):
            raise BadResponse(f"{self._where}: what arrived there has another CRC32C than what was sent; run it again")
        return self._pin

    async def abort(self) -> None:
        """See `Upload.abort`."""
        if self._pin is not None:
            return
        try:
            await http.request(self._session, method="DELETE", headers={"Content-Length": "0"}, network=self._network)
        except http.HttpFailure:  # Google forgets it in a week
            return

    async def _send(self, count: int) -> None:
        chunk = bytes(self._waiting[:count])
        begin, asks = self._sent, False

        async def once() -> None:
            nonlocal asks
            if asks:  # what became of the last attempt?
                await self._put(b"", f"bytes */{self._size}")
            if not begin <= self._sent <= begin + len(chunk):
                raise BadResponse(f"{self._where}: the store has {self._sent} bytes, not {begin}; run it again")
            done = self._sent - begin
            if done < len(chunk):
                asks = True
                last = self._sent + len(chunk) - done - 1
                await self._put(chunk[done:], f"bytes {self._sent}-{last}/{self._size}")
            if self._sent < begin + len(chunk):
                raise Interrupted("only a part of a chunk was taken")

        await with_retries(once, self._retry, where=str(self._where))
        self._sent = begin + len(chunk)
        self._crc = crc32c(memoryview(chunk), self._crc)
        del self._waiting[:count]

    async def _put(self, body: bytes, content_range: str) -> None:
        """Send, and note how far Google is."""
        headers = {"Content-Range": content_range} | ({} if body else {"Content-Length": "0"})
        try:
            response = await http.request(
                self._session, method="PUT", headers=headers, body=body, network=self._network, seconds=120.0
            )
        except http.HttpFailure as exc:
            said = str(exc).replace(self._session, "the upload")  # its URL is leave to write
            raise Interrupted(said, refused=exc.refused) from None
        if response.status == _INCOMPLETE:
            _, _, last = response.headers.get("range", "").partition("-")
            self._sent = int(last) + 1 if last.isdecimal() else 0
        elif response.status in (200, 201):
            self._pin = self._pinned(response.body)
            self._sent = self._size
        else:
            raise_for_status(response, self._where)


async def begin(
    where: Location, url: str, size: int, call: _Call, network: Network, pinned: Callable[[bytes], Pin]
) -> GoogleUpload:
    """Ask for an upload's URL. `pinned` reads the pin of the object's resource.

    Raises:
        ObjectChanged: another object lies there than the condition in the URL allows. StoreError.
    """

    async def send(headers: dict[str, str]) -> http.Response:
        body = json.dumps({"contentType": "application/octet-stream"}).encode()
        length = {"X-Upload-Content-Length": str(size), "Content-Type": "application/json"}
        try:
            return await http.request(url, method="POST", headers=headers | length, body=body, network=network)
        except http.HttpFailure as exc:
            raise Interrupted(str(exc), refused=exc.refused) from exc

    async def once() -> http.Response:
        response = await call(where, send)
        if response.status not in (200, 201):
            raise_for_status(response, where)
        return response

    session = (await with_retries(once, RetryPolicy(), where=str(where))).headers.get("location")
    if session is None:
        raise BadResponse(f"{where}: the store gave no URL for an upload; is it Cloud Storage?")
    return GoogleUpload(where, session, size, network, pinned)
