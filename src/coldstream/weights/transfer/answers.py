"""What a store's HTTP answer means, in errors of ours; and whether an answer to a range is what was asked for."""

from __future__ import annotations

import re
from typing import NoReturn

from coldstream.errors import AccessDenied, BadResponse, ObjectChanged, ObjectNotFound, StoreError
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores import http
from coldstream.weights.stores.store import Interrupted, Pin
from coldstream.weights.transfer.wire import Accept

RETRIED = frozenset({408, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def range_of(pin: Pin, start: int, end: int, where: Location, *, version: tuple[str, str | None]) -> Accept:
    """Accepts an answer with exactly these bytes of exactly this version.

    Args:
        version: the header that names it, and what it must say where it is there.
    """

    def accept(head: http.Response) -> None:
        if head.status == 200:
            raise ignores_ranges(where)
        if head.status != 206:
            raise_for_status(head, where)
        name, wanted = version
        found = head.headers.get(name)
        span = _CONTENT_RANGE.fullmatch(head.headers.get("content-range", ""))
        if (wanted and found and found != wanted) or (span and span[3] not in ("*", str(pin.size))):
            raise changed(where)
        if span is None or (int(span[1]), int(span[2]) + 1) != (start, end):
            got = head.headers.get("content-range", "no range")
            raise BadResponse(f"{where}: asked for bytes {start}-{end}, the answer is {got}; use another server")
        length = head.headers.get("content-length", "")
        if length.isdecimal() and int(length) > end - start:
            raise BadResponse(f"{where}: asked for {end - start} bytes, {length} are sent; use another server")

    return accept


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
    raise refusal(status, where)


def refusal(status: int, where: Location) -> StoreError:
    """The error of a status that retrying cannot mend."""
    if status in (401, 403):
        return denied(where, status)
    if status == 412:
        return changed(where)
    if status in (404, 410):
        return ObjectNotFound(f"{where}: no such bucket or object (HTTP {status}); check the URI")
    return BadResponse(f"{where}: the store answered HTTP {status}; check the URI and the endpoint")


def denied(where: Location, status: int) -> AccessDenied:
    """401 or 403, and what helps in this kind of store."""
    hint = {
        "gs": "grant roles/storage.objectViewer on the bucket, or run: gcloud auth application-default login",
        "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of someone with s3:GetObject and s3:ListBucket",
        "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or a SAS token",
        "file": "check the file's permissions",
    }.get(where.scheme, "the server wants credentials")
    return AccessDenied(f"{where}: access denied (HTTP {status}); {hint}")
