"""The pages at `/` and `/docs`: static files, answered by the door before FastAPI, torch or a weight is there.

    GET /                    the page
    GET /playground/NAME     its style, scripts and icon
    GET /docs                the API's description for people, of /openapi.json; GET /docs/NAME its files

The files hold no secret and are answered without a key; what the page asks the API carries the key that its user typed.
They are compressed when they are first asked for, in memory, so that nothing in the package can be out of date.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PAGE = "index.html"
PREFIX = "/playground/"

DOCS = "/docs"

_STATIC = Path(__file__).parent / "static"
_REFERENCE = Path(__file__).parent / "reference"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_POLICY = (
    b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Content-Security-Policy (W3C CSP 3): everything from this server, nothing inline, no HTML made of strings.

Pictures may also come from the page itself: the preview of a photo that was dropped on it is a blob.
"""


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file as it goes over the wire."""

    content_type: bytes
    body: bytes
    compressed: bytes
    etag: bytes


class StaticPage:
    """Finds and answers a page's files; reads each of them once. `page` is also answered at `path`."""

    def __init__(self, folder: Path, *, page: str, path: str, prefix: str) -> None:
        self._folder = folder
        names = sorted(item.name for item in folder.iterdir() if item.suffix in _TYPES)
        self._paths = {prefix + name: name for name in names} | {path: page}
        self._files: dict[str, StaticFile] = {}

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that it answers."""
        return tuple(self._paths)

    def file(self, path: str) -> StaticFile:
        """The file at one of `paths`."""
        name = self._paths[path]
        if name not in self._files:
            self._files[name] = _read(self._folder / name)
        return self._files[name]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a GET or HEAD of one of `paths`: 200, or 304 when the reader has this content (RFC 9110, 13.1.2)."""
        file = self.file(scope["path"])
        given = dict(scope["headers"])
        if file.etag in _listed(given.get(b"if-none-match", b"")):
            await _send(send, 304, [(b"etag", file.etag)], b"")
            return
        zipped = b"gzip" in _listed(given.get(b"accept-encoding", b""))
        body = file.compressed if zipped else file.body
        headers = [
            (b"content-type", file.content_type),
            (b"content-length", str(len(body)).encode()),
            (b"etag", file.etag),
            *([(b"content-encoding", b"gzip")] if zipped else []),
        ]
        await _send(send, 200, headers, b"" if scope["method"] == "HEAD" else body)


class Playground(StaticPage):
    """Where a person tries the server out."""

    def __init__(self) -> None:
        super().__init__(_STATIC, page=PAGE, path="/", prefix=PREFIX)


class ApiReference(StaticPage):
    """What FastAPI's own page shows, which would come from a CDN. It shares the playground's style."""

    def __init__(self) -> None:
        super().__init__(_REFERENCE, page="reference.html", path=DOCS, prefix=f"{DOCS}/")


_ALWAYS = [
    (b"cache-control", b"no-cache"),  # ask again each time: a new version of the server brings a new page
    (b"vary", b"accept-encoding"),
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


def _read(path: Path) -> StaticFile:
    body = path.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'.encode()
    return StaticFile(_TYPES[path.suffix], body, gzip.compress(body, mtime=0), etag)


def _listed(value: bytes) -> set[bytes]:
    """The items of a comma-separated header, without parameters (`gzip;q=0` is not taken for a wish)."""
    items = (item.strip().removeprefix(b"W/") for item in value.split(b","))
    return {item.split(b";")[0] for item in items if not item.replace(b" ", b"").endswith((b";q=0", b";q=0.0"))}


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_ALWAYS]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
