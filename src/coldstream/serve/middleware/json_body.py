"""The JSON of a request's body, whose cost is bounded before it is read (RFC 8259).

What a text of some size costs is up to its sender: "[[],[],[]]" takes twenty times its bytes of memory, and a name in
an object fifty. So the values, texts, names and escapes of a large body are counted first, which needs no memory, and
what has more of them than an honest request is refused. A large body is read on a thread of its own kind, one after the
other, in calls that are short; the event loop goes on between them.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from coldstream.errors import InvalidRequest
from coldstream.serve.http import asgi
from coldstream.serve.http.asgi import ASGIApp, Receive, Scope, Send

PARSED = "coldstream.json"
"""Where a request's scope has the value of its body, when that was read."""
READ = b"{}"
"""Stands for a body whose value is in the scope."""

_T = TypeVar("_T")
_LARGE = 64 * 1024
_CHUNK = 256 * 1024
_HALF_A_PAIR = re.compile(
    rb"\\u(?:[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u)[dD][c-fC-F]..)", re.DOTALL
)
"""In JSON without escaped backslashes (RFC 8259, section 7). It begins with letters, which are found quickly."""
_PAIR = 12
"""Bytes of a pair's escapes."""


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """`values` in lists and objects, `containers` which are these, `texts` with names, `names` in objects, `escapes`
    in texts."""

    values: int = 500_000
    containers: int = 60_000
    texts: int = 100_000
    names: int = 30_000
    escapes: int = 2_000_000


_LIMITS = JsonLimits()


class LargeBodies:
    """A thread for what would hold up the event loop. Small bodies are read at once, and large ones in turn."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="coldstream-bodies")

    async def read(self, size: int, reading: Callable[[], _T]) -> _T:
        """What `reading` makes of a body of so many bytes."""
        if size < _LARGE:
            return reading()
        return await asyncio.get_running_loop().run_in_executor(self._thread, reading)


class ReadJson:
    """Puts the value of a JSON body into the request's scope; what has another type passes. The body must be whole."""

    def __init__(self, app: ASGIApp, bodies: LargeBodies) -> None:
        self._app, self._bodies = app, bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS") or PARSED in scope:
            await self._app(scope, receive, send)
            return
        message = await receive()
        if message.get("body") and _is_json(asgi.headers(scope).get("content-type", "")):
            scope[PARSED] = await self._value(message.pop("body"))
            message["body"] = READ
        await self._app(scope, asgi.replay(message.get("body", b"")), send)

    async def _value(self, body: bytes) -> Any:
        """Of a body that ends with this: its text is not kept beside its value."""
        return await self._bodies.read(len(body), lambda: parsed(body))


def parsed(body: bytes, limits: JsonLimits = _LIMITS, *, large: int = _LARGE, chunk: int = _CHUNK) -> Any:
    """The value; what has fewer than `large` bytes is not counted first, the rest in pieces of `chunk` bytes.

    Raises:
        InvalidRequest: this is no JSON, is nested too deeply, or holds half a surrogate pair (which JSON can spell and
            no tokenizer can read) or more than the limits.
    """
    is_large = len(body) >= large
    if is_large:
        _check(body, limits, chunk)
    try:
        value = _decoded(body, chunk) if is_large else json.loads(body)
    except json.JSONDecodeError as exc:
        raise InvalidRequest(f"the body is not valid JSON: {exc.msg} at character {exc.pos}") from exc
    except RecursionError as exc:
        raise InvalidRequest("the body is nested too deeply") from exc
    except ValueError as exc:  # bytes that are no text, and whole numbers of thousands of digits
        raise InvalidRequest(f"the body cannot be read: {str(exc)[:100]}") from exc
    if b"\\ud" in body or b"\\uD" in body:
        _check_pairs(body.replace(b"\\\\", b"  "), chunk)
    return value


def _decoded(body: bytes, chunk: int) -> Any:
    """json.loads that lets other threads run: between pieces of the text, and at each number.

    A call of Python's is where the interpreter changes threads; the library's own conversion of a number is none, and
    half a million long ones would keep every other thread waiting.
    """
    return json.loads(_text(body, chunk), parse_int=_whole, parse_float=_real)


def _text(body: bytes, chunk: int) -> str:
    decoder = codecs.getincrementaldecoder(json.detect_encoding(body))("surrogatepass")
    return "".join([*(decoder.decode(piece) for piece in _cut(body, chunk)), decoder.decode(b"", True)])


def _whole(digits: str) -> int:
    return int(digits)


def _real(digits: str) -> float:
    return float(digits)


def _cut(body: bytes, chunk: int) -> Iterator[bytes]:
    return (body[start : start + chunk] for start in range(0, len(body), chunk))


def _check_pairs(body: bytes, chunk: int) -> None:
    for start in range(0, len(body), chunk):
        half = _HALF_A_PAIR.search(body, start, start + chunk + _PAIR)
        if half is not None and half.start() < start + chunk:
            raise InvalidRequest(f"the body holds half a surrogate pair ({half[0].decode()}), which is not text")


def _is_json(kind: str) -> bool:
    name = kind.partition(";")[0].strip().lower()
    return name == "application/json" or (name.startswith("application/") and name.endswith("+json"))


@dataclass(slots=True)
class _Counts:
    """What has a cost, in a text that is JSON or in a part of one; in one that is none, no fewer than are read."""

    commas: int = 0
    containers: int = 0
    quotes: int = 0
    names: int = 0

    def add(self, part: bytes) -> None:
        """Count what stands between texts, quotes apart."""
        self.commas += part.count(b",")
        self.containers += part.count(b"[") + part.count(b"{")
        self.names += part.count(b":")

    def excess(self, limits: JsonLimits) -> str | None:
        """What there is too much of."""
        found = (
            (self.commas + self.containers, limits.values, "values"),
            (self.containers, limits.containers, "lists and objects"),
            (self.quotes // 2, limits.texts, "texts"),
            (self.names, limits.names, "names in its objects"),
        )
        return next((f"{most:,} {what}" for count, most, what in found if count > most), None)


def _check(body: bytes, limits: JsonLimits, chunk: int) -> None:
    """Raise InvalidRequest for more than the limits."""
    if sum(piece.count(b"\\") for piece in _cut(body, chunk)) > limits.escapes:
        raise InvalidRequest(f"the body has more than {limits.escapes:,} escapes, the most that are read")
    whole = _Counts()
    for piece in _cut(body, chunk):
        whole.add(piece)
        whole.quotes += piece.count(b'"')
    if whole.excess(limits) is not None:  # with those that stand in texts
        excess = _excess_between_texts(body, limits, chunk)
        if excess is not None:
            raise InvalidRequest(f"the body has more than {excess}, the most that are read")


def _excess_between_texts(body: bytes, limits: JsonLimits, chunk: int) -> str | None:
    counted = _Counts()
    rest, is_inside = b"", False
    for part in _cut(body, chunk):
        piece = (rest + part).replace(b"\\\\", b"")
        rest = b"\\" if piece.endswith(b"\\") else b""
        texts = piece[: len(piece) - len(rest)].replace(b'\\"', b"").split(b'"')
        counted.add(b"".join(texts[is_inside::2]))
        counted.quotes += len(texts) - 1
        is_inside ^= len(texts) % 2 == 0
        excess = counted.excess(limits)
        if excess is not None:
            return excess
    return None
