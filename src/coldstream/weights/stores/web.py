"""A folder on a web server, which cannot list: it is asked for what a checkpoint may have. HEAD pins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from coldstream.errors import BadResponse
from coldstream.weights.checkpoint.file_names import WELL_KNOWN
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores import http
from coldstream.weights.stores.network import Network
from coldstream.weights.stores.store import Interrupted, OnLanded, Pin
from coldstream.weights.transfer.answers import modified, raise_for_status, range_of, settled, strong
from coldstream.weights.transfer.wire import MAX_REDIRECTS, REDIRECTS, Wire, redirected


class WebStore:
    """Pinned by ETag, or by a Last-Modified that is old enough."""

    def __init__(self, location: Location, wire: Wire, network: Network) -> None:
        self.location = location
        self._wire = wire
        self._network = network

    async def list(self) -> Mapping[str, Pin]:
        """See `Store.list`."""
        pins = await asyncio.gather(*(self.pin(name) for name in WELL_KNOWN))
        return {pin.name: pin for pin in pins if pin is not None}

    async def pin(self, name: str) -> Pin | None:
        """See `Store.pin`."""
        where = self.location.child(name)
        response = await self._head(str(where))
        if response.status in (404, 410):
            return None
        if response.status != 200:
            raise_for_status(response, where)
        length = response.headers.get("content-length", "")
        if not length.isdecimal():
            raise BadResponse(f"{where}: the server does not say how long it is (Content-Length); use another server")
        date = settled(modified(response.headers), now=http.date(response.headers.get("date", "")))
        return Pin(name, int(length), etag=response.headers.get("etag"), modified=date)

    async def _head(self, url: str) -> http.Response:
        for _ in range(MAX_REDIRECTS + 1):
            try:
                response = await http.request(url, method="HEAD", network=self._network)
            except http.HttpFailure as exc:
                raise Interrupted(str(exc), refused=exc.refused) from exc
            if response.status not in REDIRECTS or "location" not in response.headers:
                return response
            url = redirected(url, response.headers["location"])
        raise BadResponse(f"{url}: more than {MAX_REDIRECTS} redirects; use the address where they end")

    async def read_into(self, pin: Pin, start: int, target: memoryview, landed: OnLanded) -> None:
        """See `Store.read_into`."""
        where = self.location.child(pin.name)
        await read_over(self._wire, str(where), pin, start, target, landed, where)

    def close_idle(self) -> None:
        """See `Store.close_idle`."""
        self._wire.close_idle()


async def read_over(
    wire: Wire, url: str, pin: Pin, start: int, target: memoryview, landed: OnLanded, where: Location
) -> None:
    """Fill `target` from an address that anybody may read.

    Raises:
        As `Store.read_into`.
    """
    end = start + target.nbytes
    headers = {"Range": f"bytes={start}-{end - 1}"}
    if pin.etag and strong(pin.etag):  # a weak one never matches (RFC 9110, section 13.1.1)
        headers["If-Match"] = pin.etag
    await wire.get(url, headers, target, range_of(pin, start, end, where), landed)
