"""A folder on a web server, which cannot list: it is asked for what a checkpoint may have. HEAD pins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from coldstream.errors import BadResponse
from coldstream.weights.checkpoint.file_names import WELL_KNOWN
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores import http
from coldstream.weights.stores.network import Network
from coldstream.weights.stores.pinning import modified, settled
from coldstream.weights.stores.refusal import raise_for_status
from coldstream.weights.stores.store import Interrupted, Pin

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})


class WebStore:
    """Pinned by ETag, or by a Last-Modified that is old enough.

    Always read in pieces: any server may be named here, and a body in pieces is left at the first byte too many.
    """

    def __init__(self, location: Location, client: ClientConfig, network: Network) -> None:
        self.location = location
        self._client = client
        self._network = network
        self._folder: ObjectStore | None = None

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
            url = _redirected(url, response.headers["location"])
        raise BadResponse(f"{url}: more than {MAX_REDIRECTS} redirects; use the address where they end")

    async def read_range(
        self, pin: Pin, start: int, end: int, *, piecewise: bool = False
    ) -> AsyncGenerator[memoryview, None]:
        """See `Store.read_range`."""
        from coldstream.weights.stores.ranges import ask_range, body

        where = self.location.child(pin.name)
        try:
            answer = await ask_range(self._opened(), pin.name, pin, start, end, where)
        except Interrupted as failure:
            if failure.throttled:  # obstore does not tell for how long
                failure.retry_after = await http.asked_to_wait(str(where), {}, self._network)
            raise
        async with aclosing(body(answer, where, piecewise=True)) as pieces:
            async for piece in pieces:
                yield piece

    def close_idle(self) -> None:
        """See `Store.close_idle`."""
        self._folder = None

    def _opened(self) -> ObjectStore:
        from obstore.store import HTTPStore

        if self._folder is None:
            self._folder = HTTPStore.from_url(
                str(self.location), client_options=self._client, retry_config={"max_retries": 0}
            )
        return self._folder


def _redirected(url: str, where: str) -> str:
    """Where an answer's Location leads.

    Raises:
        BadResponse: away from the web, or from https to http.
    """
    target = urljoin(url, where)
    schemes = urlsplit(url).scheme, urlsplit(target).scheme
    if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
        raise BadResponse(f"{url}: redirects to {schemes[1]}, which is not safe; use another address")
    return target
