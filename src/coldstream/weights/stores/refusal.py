"""What a store's refusal means, in errors of ours."""

from __future__ import annotations

from typing import NoReturn

from coldstream.errors import AccessDenied, BadResponse, ObjectNotFound, StoreError
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores import http
from coldstream.weights.stores.pinning import changed
from coldstream.weights.stores.reason import mend, reason_of, usual_mend
from coldstream.weights.stores.store import Interrupted

RETRIED = frozenset({408, 425, 429})
THROTTLED = frozenset({429, 503})


def interrupted(status: int, retry_after: float | None = None) -> Interrupted | None:
    """What may be asked again; None for a status that asking again does not mend."""
    if status not in RETRIED and status < 500:
        return None
    return Interrupted(f"HTTP {status}", throttled=status in THROTTLED, retry_after=retry_after)


def raise_for_status(response: http.Response, where: Location) -> NoReturn:
    """What an answer without success means.

    Raises:
        Interrupted, AccessDenied, ObjectNotFound, ObjectChanged, BadResponse.
    """
    again = interrupted(response.status, http.retry_after(response))
    raise again or refusal(response.status, where, reason_of(response))


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


def encoded(where: Location) -> BadResponse:
    """An object whose bytes are not the file's."""
    return BadResponse(
        f"{where}: is stored compressed (Content-Encoding), so no part of it can be read by itself; upload it without,"
        " for instance: gcloud storage cp FILE URI, not -z or -Z"
    )


def ignores_ranges(where: Location) -> BadResponse:
    """A server that sends everything, whatever it is asked for."""
    return BadResponse(f"{where}: the server ignores ranges (answered 200 to a range); use another server")
