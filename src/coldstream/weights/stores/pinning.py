"""Whether an answer is of the pinned version, by generation, ETag or date (RFC 9110, section 8.8)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from coldstream.errors import BadResponse, ObjectChanged
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores import http
from coldstream.weights.stores.store import Pin

# A date of whole seconds names a version only once that second is long over (RFC 9110, section 8.8.2.2).
SETTLED = timedelta(seconds=60)


def check_generation(pin: Pin, where: Location, found: str | None) -> None:
    """Hold an answer's generation against the pinned one.

    Raises:
        ObjectChanged: it is another one.
        BadResponse: the answer names none.
    """
    if found is None:
        raise unpinned(where, "an answer has no x-goog-generation")
    if found != pin.generation:
        raise changed(where)


def check_version(pin: Pin, where: Location, *, etag: str | None, modified: datetime | None) -> None:
    """Hold an answer's ETag against the pinned one; where one of them is missing or weak, the date.

    Raises:
        ObjectChanged: it is another version.
        BadResponse: nothing says which version it is.
    """
    if pin.etag and etag and _opaque(etag) != _opaque(pin.etag):
        raise changed(where)
    if strong(pin.etag) and strong(etag):
        return
    if pin.modified is None or modified is None:
        raise unpinned(where, "no strong ETag, and no Last-Modified older than a minute")
    if modified != pin.modified:
        raise changed(where)


def strong(etag: str | None) -> bool:
    """Whether it names the bytes; a weak one may stay when they change (RFC 9110, section 8.8.1)."""
    return bool(etag) and not (etag or "").startswith("W/")


def etag_of(text: str | None) -> str | None:
    """As If-Match wants it: Azure's listing, and those of some S3 gateways, leave the quotes out."""
    return text if not text or text.startswith(('"', "W/")) else f'"{text}"'


def _opaque(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def modified(headers: Mapping[str, str]) -> datetime | None:
    """Last-Modified (UTC)."""
    return dated(http.date(headers.get("last-modified", "")))


def dated(moment: datetime | None) -> datetime | None:
    """The date, unless it is that of 1970: obstore says so where an answer has none."""
    return moment if moment is not None and moment.timestamp() != 0 else None


def settled(moment: datetime | None, *, now: datetime | None = None) -> datetime | None:
    """The date, when it is old enough to name a version; by the server's clock (`now`) as well, where that is known."""
    here = datetime.now(UTC)
    return moment if moment is not None and min(here, now or here) - moment >= SETTLED else None


def unpinned(where: Location, why: str) -> BadResponse:
    """A server that does not say which version it sends."""
    return BadResponse(
        f"{where}: cannot be pinned ({why}), so two versions of it could be mixed; use a server that sends ETags"
    )


def changed(where: Location) -> ObjectChanged:
    """Another version lies there."""
    return ObjectChanged(f"{where}: was replaced while it was being read; start again to load the new version")
