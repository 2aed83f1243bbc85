"""Range servers of our own, as strict as the real ones about what a reader depends on: ETags, If-Match, ranges, 416.

Azurite is not on PyPI; `BlobServer` speaks the three calls of Azure's Blob service that a reader makes (Get Blob, Get
Blob Properties, List Blobs: https://learn.microsoft.com/rest/api/storageservices) and checks no signature.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from coldstream.weights.transfer.checksum import crc32c

_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")


class RangeServer:
    """Serves `files` (path -> bytes) at `url`; a context manager. With `tls`, over https."""

    def __init__(self, files: Mapping[str, bytes] | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.files = dict(files or {})
        self.requests: list[tuple[str, str, str | None]] = []
        outer = self

        class Bound(Handler):
            server_of_files = outer

        self._server = _QuietServer(("127.0.0.1", 0), Bound)
        self.scheme = "http"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self.scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler: Handler) -> None:
        """One GET or HEAD."""
        path = unquote(urlsplit(handler.path).path).strip("/")
        self.requests.append((handler.command, path, handler.headers.get("Range")))
        if path not in self.files:
            handler.reply(404, {"x-ms-error-code": "BlobNotFound"})
            return
        data = self.files[path]
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if handler.headers.get("If-Match") not in (None, "*", etag):
            handler.reply(412)
            return
        headers = {**self.names(handler, data), "Accept-Ranges": "bytes", **self.extra}
        wanted = _RANGE.match(handler.headers.get("Range") or handler.headers.get("x-ms-range") or "")
        if wanted is None:
            handler.reply(200, headers, data)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            handler.reply(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        handler.reply(206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1])

    def names(self, handler: Handler, data: bytes) -> Mapping[str, str]:
        """What says which version it is."""
        return {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Last-Modified": formatdate(0, usegmt=True)}

    extra: Mapping[str, str] = {}


class BlobServer(RangeServer):
    """One container; blobs are at /ACCOUNT/CONTAINER/NAME, as with an emulator."""

    extra: Mapping[str, str] = {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2023-11-03"}

    def answer(self, handler: Handler) -> None:
        parts = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if query.get("comp") == "list":
            handler.reply(200, {"Content-Type": "application/xml"}, self._list(unquote(parts.path).strip("/"), query))
        else:
            super().answer(handler)

    def _list(self, root: str, query: Mapping[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        blobs, folders = [], set()
        for path, data in sorted(self.files.items()):
            name = path.removeprefix(f"{root}/")
            rest = name.removeprefix(prefix)
            if not path.startswith(f"{root}/") or not name.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            blobs.append(
                f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{formatdate(0, usegmt=True)}"
                f"</Last-Modified><Etag>{hashlib.md5(data).hexdigest()}</Etag>"
                f"<Content-Length>{len(data)}</Content-Length><Content-Type>application/octet-stream</Content-Type>"
                "<BlobType>BlockBlob</BlobType></Properties></Blob>"
            )
        blobs += [f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in sorted(folders)]
        body = f"<EnumerationResults><Blobs>{''.join(blobs)}</Blobs><NextMarker /></EnumerationResults>"
        return f'<?xml version="1.0" encoding="utf-8"?>{body}'.encode()


class GoogleServer(RangeServer):
    """Listing, metadata and media of a Google bucket, for those with the right token (None: all): BUCKET/NAME."""

    def __init__(self, files: Mapping[str, bytes], *, token: str | None, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(files, tls=tls)
        self.token = token

    def answer(self, handler: Handler) -> None:
        parts = urlsplit(handler.path)
        if self.token is not None and handler.headers.get("Authorization") != f"Bearer {self.token}":
            handler.reply(401, {}, b"who are you")
        elif parts.path.startswith("/storage/v1/b/"):
            self.describe(handler, [unquote(part) for part in parts.path.split("/")[4:]], parse_qs(parts.query))
        else:
            super().answer(handler)

    def describe(self, handler: Handler, path: list[str], query: Mapping[str, list[str]]) -> None:
        """[BUCKET, "o"] lists, [BUCKET, "o", NAME] is one object."""
        bucket = path[0]
        if len(path) == 2:
            prefix = f"{bucket}/{query['prefix'][0]}"
            found = {key.removeprefix(f"{bucket}/"): data for key, data in self.files.items() if key.startswith(prefix)}
            answer: Any = {"items": [self.item(name, data, listed=True) for name, data in found.items()]}
        elif (data := self.files.get(f"{bucket}/{path[2]}")) is not None:
            answer = self.item(path[2], data, listed=False)
        else:
            return handler.reply(404)
        handler.reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    extra: Mapping[str, str] = {"x-goog-generation": "1"}

    def item(self, name: str, data: bytes, *, listed: bool) -> dict[str, str]:
        """What is told of an object, in the listing or by itself."""
        checksum = base64.b64encode(crc32c(memoryview(data)).to_bytes(4, "big")).decode()
        return {"name": name, "size": str(len(data)), "generation": "1", "crc32c": checksum}


class _QuietServer(ThreadingHTTPServer):
    request_queue_size = 64  # of five, a sixth connection at once is asked for again after a second
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no error of the server."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a head and its body are two writes: the second would wait for an acknowledgement
    server_of_files: RangeServer

    def do_GET(self) -> None:
        self.server_of_files.answer(self)

    do_HEAD = do_GET

    def reply(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def program(name: str) -> str:
    """A program that a package of the dev extra brought: beside this Python, whether or not that is on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed; run: pip install 'coldstream[dev]'")
    return found


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(command: list[str], *, log: Path) -> subprocess.Popen[bytes]:
    """Start a server in the background."""
    with log.open("wb") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it, at once if need be."""
    process.terminate()
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
