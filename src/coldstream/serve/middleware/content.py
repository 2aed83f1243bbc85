"""A request's body as its sender meant it: unpacked (RFC 9110, 8.4), and its text in UTF-8 (RFC 8259, 8.1). Pure."""

from __future__ import annotations

import codecs
import zlib

from coldstream.errors import InvalidRequest
from coldstream.serve.middleware.errors import HttpError

_GZIP = zlib.MAX_WBITS | 16
_PIECE = 256 * 1024


def decoded(body: bytes, *, encoding: str, kind: str, limit: int) -> bytes:
    """The body without its Content-Encoding; `kind` is its Content-Type. No more than `limit` bytes are unpacked.

    Raises:
        HttpError: 415, an encoding that is not taken; 413, it holds more than the limit.
        InvalidRequest: it is not what its headers say.
    """
    codings = [name.strip().lower() for name in encoding.split(",") if name.strip()]
    codings = [name for name in codings if name != "identity"]
    if codings not in ([], ["gzip"], ["x-gzip"]):
        message = f"Content-Encoding: {encoding[:100]} is not taken; send the body as it is, or with gzip"
        raise HttpError(message, status=415, headers={"accept-encoding": "gzip"})
    if codings:
        body = _unpacked(body, limit)
    if not kind.startswith("multipart/"):
        _check_text(body)
    return body


def _unpacked(body: bytes, limit: int) -> bytes:
    """All members of a gzip file, one behind the other (RFC 1952, section 2.2)."""
    pieces: list[bytes] = []
    left, room = body, limit + 1
    try:
        while left:
            member = zlib.decompressobj(_GZIP)
            pieces.append(member.decompress(left, room))
            room -= len(pieces[-1])
            if room <= 0:
                raise HttpError(f"the unpacked body is larger than {limit} bytes, the most that is read", status=413)
            if not member.eof:
                raise InvalidRequest("the body is cut off: its gzip stream does not end")
            left = member.unused_data
    except zlib.error as exc:
        raise InvalidRequest(f"the body is not gzip, as its Content-Encoding says ({exc})") from exc
    return b"".join(pieces)


def _check_text(body: bytes) -> None:
    """In pieces, between which other threads run."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(body), _PIECE):
            decoder.decode(body[start : start + _PIECE])
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        raise _no_text(body) from None


def _no_text(body: bytes) -> InvalidRequest:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as exc:
        message = f"the body is not UTF-8: byte 0x{body[exc.start]:02x} at offset {exc.start} ({exc.reason})"
        return InvalidRequest(message)
    raise AssertionError("what cannot be decoded in pieces cannot be decoded whole")
