"""obstore's errors to ours, once. A status or a cause is in their text alone, which is read here and nowhere else.

https://developmentseed.org/obstore/latest/api/exceptions/
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from obstore.exceptions import (
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from coldstream.errors import BadResponse, ObjectNotFound
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.credentials import NoCredentials
from coldstream.weights.stores.pinning import changed, unpinned
from coldstream.weights.stores.reason import reason_in, usual_mend
from coldstream.weights.stores.refusal import denied, ignores_ranges, interrupted, refusal
from coldstream.weights.stores.store import Interrupted

_STATUS = re.compile(r"status code: (\d{3})")
# Where the clouds' machines ask for their own role's credentials; none is there elsewhere.
_ROLES = re.compile(r"latest/api/token|latest/meta-data|metadata/identity|//169\.254\.")
# Words of a cause that asking again does not mend (object_store's client/get.rs, reqwest's and hyper's errors).
_UNPINNED = re.compile(r"Missing(LastModified|Etag)")
_NO_RANGE = re.compile(r"NoContentRange|ParseContentRange|UnexpectedRange")
_NOT_HTTP = re.compile(r"\bParse\(")
_DISTRUSTED = re.compile(r"InvalidCertificate\(\s*(\w+)")
_CUT = re.compile(r"TimedOut|kind: Timeout")


@contextlib.contextmanager
def mapped(where: Location) -> Iterator[None]:
    """What obstore raises within, as an error of ours about `where`.

    Raises:
        Interrupted, AccessDenied, ObjectNotFound, ObjectChanged, BadResponse.
    """
    try:
        yield
    except FileNotFoundError as exc:
        raise ObjectNotFound(f"{where}: no such bucket or object; check the URI") from exc
    except PreconditionError as exc:
        raise changed(where) from exc
    except PermissionDeniedError as exc:
        raise denied(where, 403, reason_in(str(exc))) from exc
    except UnauthenticatedError as exc:
        raise denied(where, 401, reason_in(str(exc))) from exc
    except NotSupportedError as exc:
        raise ignores_ranges(where) from exc
    except BaseError as exc:
        raise _generic(str(exc), where) from exc


def _generic(text: str, where: Location) -> Exception:
    if _ROLES.search(text.partition("\n")[0]):
        return NoCredentials(
            f"{where}: no credentials: none in the environment, and the machine has no role; {usual_mend(where.scheme)}"
        )
    status = _STATUS.search(text)
    if status is not None:
        code = int(status[1])
        return interrupted(code) or refusal(code, where, reason_in(text))
    return _unusable(text, where) or Interrupted(_cause(text), refused="ConnectionRefused" in text)


def _unusable(text: str, where: Location) -> BadResponse | None:
    """An answer that is none, or is not to be had safely."""
    distrusted = _DISTRUSTED.search(text)
    if distrusted:
        return BadResponse(
            f"{where}: the server's certificate is not trusted ({distrusted[1]}); name its authority's file in"
            " SSL_CERT_FILE"
        )
    if "TooManyRedirects" in text:
        return BadResponse(f"{where}: too many redirects; use the address where they end")
    if "BareRedirect" in text:
        return BadResponse(f"{where}: redirects without an address; AWS_REGION may be another one")
    if "BadScheme" in text:
        return BadResponse(f"{where}: redirects to where it is not safe; use another address")
    if "NotPartial" in text:
        return ignores_ranges(where)
    if _NO_RANGE.search(text):
        return BadResponse(f"{where}: the answer is not the range that was asked for; use another server")
    if _UNPINNED.search(text):
        return unpinned(where, _first_line(text))
    return BadResponse(f"{where}: not an HTTP answer; is it a storage server?") if _NOT_HTTP.search(text) else None


def _cause(text: str) -> str:
    """In a few words, and without the URL, which may be signed."""
    if _CUT.search(text):
        return "no byte came in time"
    if "ConnectionRefused" in text:
        return "connection refused"
    if "dns error" in text:
        return "the host has no address"
    line = _first_line(text)
    return line.rpartition(" - ")[2] or line


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
