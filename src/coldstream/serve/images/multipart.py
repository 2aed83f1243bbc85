"""POST /generate as a form (multipart/form-data, RFC 7578): the same fields as in JSON, and images as files.

    curl -F type=product -F inputs.product=Mug -F image=@mug.jpg https://.../generate

It becomes the JSON body that it stands for, so that everything behind it knows one kind of request only. Numbers and
true or false are written as in JSON; `inputs.NAME` (or `inputs` as a JSON object) are the task's inputs.
"""

from __future__ import annotations

import base64
import re
from collections.abc import MutableMapping
from typing import Any

from coldstream.errors import InvalidRequest
from coldstream.serve.http import asgi
from coldstream.serve.http.asgi import ASGIApp, Receive, Scope, Send
from coldstream.serve.middleware.json_body import PARSED, READ, LargeBodies, parsed

_TEXTS = frozenset({"type", "prompt", "image", "stop"})
_MOST_PARTS = 256
_LONGEST_NAME = 200
_LONGEST_VALUE = 4096
"""Bytes of a number, of true or false, or of a short list."""
_MOST_HEAD = 8 * 1024
"""Bytes of a part's head, and characters of the body's Content-Type."""
_PARAMETER = re.compile(r'\s*;\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))|\s*;?\s*\Z', re.DOTALL)


class Form:
    """Reads a form for `/generate` as its JSON; everything else passes. The body must be whole (see `WholeBody`)."""

    def __init__(self, app: ASGIApp, bodies: LargeBodies) -> None:
        self._app, self._bodies = app, bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = asgi.headers(scope).get("content-type", "") if scope["type"] == "http" else ""
        if (
            scope["type"] != "http"
            or scope["path"] != "/generate"
            or not kind.lower().startswith("multipart/form-data")
        ):
            await self._app(scope, receive, send)
            return
        scope[PARSED] = await self._value(await receive(), kind)
        headers = [item for item in scope["headers"] if item[0] not in (b"content-type", b"content-length")]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(READ)).encode())]
        scope["headers"] = headers  # in place: the router writes into this scope which route it took
        await self._app(scope, asgi.replay(READ), send)

    async def _value(self, message: MutableMapping[str, Any], kind: str) -> Any:
        body = message.pop("body", b"")
        return await self._bodies.read(len(body), lambda: parse(body, kind))


def parse(body: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object that a form stands for.

    Raises:
        InvalidRequest: it is not a form, or a field in it cannot be read.
    """
    fields: dict[str, Any] = {}
    images: list[str] = []
    has_inputs = False
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
        elif has_inputs if name == "inputs" else name in fields:
            raise InvalidRequest(f"{name} is in the form twice", field=name)
        elif name == "inputs":
            has_inputs = True
            fields["inputs"] = {**_json(name, value), **fields.get("inputs", {})}
        else:
            fields[name] = _text(name, is_file, value) if name in _TEXTS or is_file else _json_value(name, value)
    if images:
        fields["images"] = [fields.pop("image"), *images] if "image" in fields else images
    return fields


def _parts(body: bytes, content_type: str) -> list[tuple[str, bool, bytes]]:
    """Name, whether it is a file, and the bytes of each part."""
    boundary = _parameters(content_type).get("boundary", "")
    if not 1 <= len(boundary) <= 70:
        raise InvalidRequest("the form has no boundary in its Content-Type")
    mark = b"\r\n--" + boundary.encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(mark, _MOST_PARTS + 1)
    if len(pieces) > _MOST_PARTS + 1:
        raise InvalidRequest(f"the form has more than {_MOST_PARTS - 1} parts")
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise InvalidRequest("the form is cut off: its last boundary is missing")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> tuple[str, bool, bytes]:
    head, found, value = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    if len(head) > _MOST_HEAD:
        raise InvalidRequest(f"the head of a part of the form has more than {_MOST_HEAD} bytes")
    given: dict[str, str] = {}
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, rest = line.partition(":")
        if key.strip().lower() == "content-disposition":
            given = _parameters(rest)
    if not found or not given.get("name"):
        raise InvalidRequest("a part of the form has no name")
    if len(given["name"]) > _LONGEST_NAME:
        raise InvalidRequest(f"a part of the form has a name of more than {_LONGEST_NAME} characters")
    return given["name"], "filename" in given or "filename*" in given, value


def _parameters(field: str) -> dict[str, str]:
    """The parameters of a header's field by their names in small letters (RFC 9110, section 5.6.6), in one pass."""
    if len(field) > _MOST_HEAD:
        raise InvalidRequest(f"a field of the form's heads has more than {_MOST_HEAD} characters")
    given: dict[str, str] = {}
    place = len(field.partition(";")[0])
    while place < len(field):
        found = _PARAMETER.match(field, place)
        if found is None:
            raise InvalidRequest(
                'a field of the form\'s heads cannot be read: a parameter is name=value or name="value"'
            )
        name, quoted, plain = found.groups()
        if name is not None:
            given.setdefault(name.lower(), plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        place = found.end() if name is not None else len(field)
    return given


def _text(name: str, is_file: bool, value: bytes) -> str:
    """A text as it is, a file as base64."""
    if is_file:
        return base64.b64encode(value).decode()
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"{name} is not UTF-8 text; send files with a file name", field=name) from exc


def _json(name: str, value: bytes) -> dict[str, Any]:
    found = _json_value(name, value, longest=len(value))
    if not isinstance(found, dict):
        raise InvalidRequest(f"{name} must be a JSON object", field=name)
    return found


def _json_value(name: str, value: bytes, longest: int = _LONGEST_VALUE) -> Any:
    if len(value) > longest:
        raise InvalidRequest(f"{name} has more than {longest} bytes; what is longer is sent as a file", field=name)
    try:
        return parsed(value)
    except InvalidRequest as exc:
        raise InvalidRequest(f"{name} must be written as in JSON, not {value[:40]!r}: {exc}", field=name) from exc
