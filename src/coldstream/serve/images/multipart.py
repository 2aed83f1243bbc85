"""POST /generate as a form (multipart/form-data, RFC 7578): the same fields as in JSON, and images as files.

    curl -F type=product -F inputs.product=Mug -F image=@mug.jpg https://.../generate

It becomes the JSON body that it stands for, so that everything behind it knows one kind of request only. Numbers and
true or false are written as in JSON; `inputs.NAME` (or `inputs` as a JSON object) are the task's inputs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import MutableMapping
from email.message import Message as Headers
from typing import Any

from coldstream.errors import InvalidRequest
from coldstream.serve.http import asgi
from coldstream.serve.http.asgi import ASGIApp, Receive, Scope, Send

_TEXTS = frozenset({"type", "prompt", "image", "stop"})
_MOST_PARTS = 256


class Form:
    """Turns a form for `/generate` into JSON; everything else passes. The body must be whole (see `WholeBody`)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = asgi.headers(scope).get("content-type", "") if scope["type"] == "http" else ""
        if (
            scope["type"] != "http"
            or scope["path"] != "/generate"
            or not kind.lower().startswith("multipart/form-data")
        ):
            await self._app(scope, receive, send)
            return
        message = await receive()
        body = json.dumps(parse(message.get("body", b""), kind)).encode()
        headers = [item for item in scope["headers"] if item[0] not in (b"content-type", b"content-length")]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope["headers"] = headers  # in place: the router writes into this scope which route it took
        await self._app(scope, _once(body, receive), send)


def parse(body: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object that a form stands for.

    Raises:
        InvalidRequest: it is not a form, or a field in it cannot be read.
    """
    fields: dict[str, Any] = {}
    images: list[str] = []
    for name, is_file, value in _parts(body, content_type):
        if name == "images" or (name == "image" and "image" in fields):
            images.append(_text(name, is_file, value))
        elif name.startswith("inputs."):
            inputs = fields.setdefault("inputs", {})
            if not isinstance(inputs, dict):
                raise InvalidRequest("inputs is not a JSON object", field="inputs")
            inputs[name.removeprefix("inputs.")] = _text(name, is_file, value)
        elif name == "stop" and name in fields:
            fields[name] = [
                *([fields[name]] if isinstance(fields[name], str) else fields[name]),
                _text(name, False, value),
            ]
        elif name in fields and name != "inputs":
            raise InvalidRequest(f"{name} is in the form twice", field=name)
        elif name == "inputs":
            fields["inputs"] = {**_json(name, value), **fields.get("inputs", {})}
        else:
            fields[name] = _text(name, is_file, value) if name in _TEXTS or is_file else _json_value(name, value)
    if images:
        fields["images"] = [fields.pop("image"), *images] if "image" in fields else images
    return fields


def _parts(body: bytes, content_type: str) -> list[tuple[str, bool, bytes]]:
    """Name, whether it is a file, and the bytes of each part."""
    header = Headers()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= 70:
        raise InvalidRequest("the form has no boundary in its Content-Type")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise InvalidRequest("the form is cut off: its last boundary is missing")
    if len(pieces) > _MOST_PARTS:
        raise InvalidRequest(f"the form has more than {_MOST_PARTS} parts")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> tuple[str, bool, bytes]:
    head, found, value = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    header = Headers()
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, rest = line.partition(":")
        header[key.strip()] = rest.strip()
    name = header.get_param("name", header="content-disposition")
    if not found or not isinstance(name, str) or not name:
        raise InvalidRequest("a part of the form has no name")
    return name, header.get_param("filename", header="content-disposition") is not None, value


def _text(name: str, is_file: bool, value: bytes) -> str:
    """A text as it is, a file as base64."""
    if is_file:
        return base64.b64encode(value).decode()
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"{name} is not UTF-8 text; send files with a file name", field=name) from exc


def _json(name: str, value: bytes) -> dict[str, Any]:
    found = _json_value(name, value)
    if not isinstance(found, dict):
        raise InvalidRequest(f"{name} must be a JSON object", field=name)
    return found


def _json_value(name: str, value: bytes) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"{name} must be written as in JSON, not {value[:40]!r}", field=name) from exc


def _once(body: bytes, receive: Receive) -> Receive:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return replayed
