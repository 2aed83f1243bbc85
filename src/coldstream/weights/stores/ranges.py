"""A range of an object through obstore: one request, its answer held against the pin, its bytes in obstore's buffers.

obstore collects an answer in one buffer of the range's length, without Python's lock, and hands it over uncopied; what
came before a connection broke is lost with it. Its stream loses no more than a piece, but each is copied twice more,
under the lock: `docs/lab/2026-11-30-obstore.md`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import obstore

from coldstream.errors import BadResponse
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.foreign_errors import mapped
from coldstream.weights.stores.pinning import changed, check_generation, check_version, dated, strong
from coldstream.weights.stores.refusal import encoded
from coldstream.weights.stores.store import Interrupted, Pin

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult
    from obstore.store import ObjectStore

PIECE = 256 * 1024
# Not encodings of the object: S3's chunks of an upload are undone by S3.
_PLAIN = (None, "", "identity", "aws-chunked")


async def ask_range(store: ObjectStore, path: str, pin: Pin, start: int, end: int, where: Location) -> GetResult:
    """The answer to a request for bytes `start` to `end` (exclusive) of the pinned version, before its body.

    Raises:
        As `Store.read_range`.
    """
    options: GetOptions = {"range": (start, end)}
    if pin.generation is not None:
        options["version"] = pin.generation
    elif strong(pin.etag):  # a weak one never matches (RFC 9110, section 13.1.1)
        options["if_match"] = pin.etag
    with mapped(where):
        result = await obstore.get_async(store, path, options=options)
    _check_answer(pin, start, end, result, where)
    return result


def _check_answer(pin: Pin, start: int, end: int, result: GetResult, where: Location) -> None:
    meta = result.meta
    if meta["size"] != pin.size:
        raise changed(where)
    if pin.generation is None:
        check_version(pin, where, etag=meta["e_tag"], modified=dated(meta["last_modified"]))
    else:
        check_generation(pin, where, meta["version"])
    if tuple(result.range) != (start, end):
        raise BadResponse(f"{where}: asked for bytes {start}-{end}, the answer is {result.range}; use another server")
    if result.attributes.get("Content-Encoding") not in _PLAIN:
        raise encoded(where)


async def body(result: GetResult, where: Location, *, piecewise: bool) -> AsyncGenerator[memoryview, None]:
    """The bytes of an answer, in one buffer or in pieces; never more of them than the answer's range has.

    Raises:
        As `Store.read_range`.
    """
    left = result.range[1] - result.range[0]
    if piecewise:
        stream = aiter(result.stream(PIECE))
        while (piece := await _next(stream, where)) is not None:
            left = _less(left, len(piece), where)
            yield memoryview(piece)
    else:
        with mapped(where):
            buffer = memoryview(await result.bytes_async()).cast("B")
        left = _less(left, buffer.nbytes, where)
        yield buffer
    if left:
        raise Interrupted(f"the answer ended {left} bytes early")


async def _next(stream: obstore.BytesStream, where: Location) -> bytes | None:
    with mapped(where):
        try:
            return await anext(stream)
        except StopAsyncIteration:
            return None


def _less(left: int, nbytes: int, where: Location) -> int:
    if nbytes > left:
        raise BadResponse(f"{where}: more bytes are sent than were asked for; use another server")
    return left - nbytes
