"""What a store's HTTP answer means, in errors of ours; and whether an answer to a range is what was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from coldstream.errors import AccessDenied, BadResponse, ObjectChanged, ObjectNotFound, StoreError
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores import http
from coldstream.weights.stores.reason import mend, reason_of, usual_mend
from coldstream.weights.stores.store import Interrupted, Pin
from coldstream.weights.transfer.wire import Accept

RETRIED = frozenset({408, 425, 429})
GENERATION = "x-goog-generation"
# A date of whole seconds names a version only once that second is long over (RFC 9110, section 8.8.2.2).
SETTLED = timedelta(seconds=60)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def range_of(pin: Pin, start: int, end: int, where: Location) -> Accept:
    """Accepts an answer with exactly these bytes of exactly this version."""

    def accept(head: http.Response) -> None:
        if head.status == 200:
            raise encoded(where) if _encoding(head.headers) else ignores_ranges(where)
        if head.status != 206:
            raise_for_status(head, where)
        span = _CONTENT_RANGE.fullmatch(head.headers.get("content-range", ""))
        if span and span[3] not in ("*", str(pin.size)):
            raise changed(where)
        if span is None or (int(span[1]), int(span[2]) + 1) != (start, end):
            got = head.headers.get("content-range", "no range")
            raise BadResponse(f"{where}: asked for bytes {start}-{end}, the answer is {got}; use another server")
        if pin.generation is None:
            check_version(pin, where, etag=head.headers.get("etag"), modified=modified(head.headers))
        else:
            check_generation(pin, where, head.headers.get(GENERATION))
        if _encoding(head.headers):
            raise encoded(where)
        length = head.headers.get("content-length", "")
        if length.isdecimal() and int(length) > end - start:
            raise BadResponse(f"{where}: asked for {end - start} bytes, {length} are sent; use another server")

    return accept


def check_generation(pin: Pin, where: Location, found: str | None) -> None:
    """Hold an answer's generation against the pinned one.

    Raises:
        ObjectChanged: it is another one.
        BadResponse: the answer names none.
    """
    if found is None:
        raise unpinned(where, f"an answer has no {GENERATION}")
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
    return http.date(headers.get("last-modified", ""))


def settled(moment: datetime | None, *, now: datetime | None = None) -> datetime | None:
    """The date, when it is old enough to name a version; by the server's clock (`now`) as well, where that is known."""
    here = datetime.now(UTC)
    return moment if moment is not None and min(here, now or here) - moment >= SETTLED else None


def unpinned(where: Location, why: str) -> BadResponse:
    """A server that does not say which version it sends."""
    return BadResponse(
        f"{where}: cannot be pinned ({why}), so two versions of it could be mixed; use a server that sends ETags"
    )


def encoded(where: Location) -> BadResponse:
    """An object whose bytes are not the file's."""
    return BadResponse(
        f"{where}: is stored compressed (Content-Encoding), so no part of it can be read by itself; upload it without,"
        " for instance: gcloud storage cp FILE URI, not -z or -Z"
    )


def _encoding(headers: Mapping[str, str]) -> bool:
    """Whether the bytes are stored in another form than the file's; Google's servers may have unpacked them."""
    found = headers.get("x-goog-stored-content-encoding") or headers.get("content-encoding") or "identity"
    return found.lower() not in ("identity", "aws-chunked")


def ignores_ranges(where: Location) -> BadResponse:
    """A server that sends everything, whatever it is asked for."""
    return BadResponse(f"{where}: the server ignores ranges (answered 200 to a range); use another server")


def changed(where: Location) -> ObjectChanged:
    """Another version lies there."""
    return ObjectChanged(f"{where}: was replaced while it was being read; start again to load the new version")


def raise_for_status(response: http.Response, where: Location) -> NoReturn:
    """What an answer without success means.

    Raises:
        Interrupted, AccessDenied, ObjectNotFound, ObjectChanged, BadResponse.
    """
    status = response.status
    if status in RETRIED or status >= 500:
        raise Interrupted(f"HTTP {status}", throttled=status in (429, 503), retry_after=http.retry_after(response))
    raise refusal(status, where, reason_of(response))


def refusal(status: int, where: Location, reason: str = "") -> StoreError:
    """The error of a status that retrying cannot mend; `reason` are the store's own words."""
    if status in (401, 403):
        return denied(where, status, reason)
    if status == 412:
        return changed(where)
    says = f": {reason}" if reason else ""
    if status in (404, 410):
        return ObjectNotFound(f"{where}: no such bucket or object (HTTP {status}{says}); check the URI")
    known = mend(where.scheme, reason)
    if known:  # Google refuses a reader who does not pay with 400
        return AccessDenied(f"{where}: access denied (HTTP {status}{says}); {known}")
    return BadResponse(f"{where}: the store answered HTTP {status}{says}; check the URI and the endpoint")


def denied(where: Location, status: int, reason: str = "") -> AccessDenied:
    """401 or 403, and what helps against this reason, or else in this kind of store."""
    says = f": {reason}" if reason else ""
    help_ = mend(where.scheme, reason) or usual_mend(where.scheme)
    return AccessDenied(f"{where}: access denied (HTTP {status}{says}); {help_}")
