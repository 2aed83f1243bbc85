"""Errors as HTTP replies: ours for /generate and everything else, OpenAI's shape under /v1/.

    {"error": {"type": "InvalidRequest", "message": "...", "field": "prompt", "allowed": []}}
    {"error": {"message": "...", "type": "invalid_request_error", "param": "prompt", "code": null}}

Only errors of `coldstream.errors` carry their message outside; anything else is a fault of ours and stays in the log.
Whatever refuses a request raises; `RenderErrors` alone makes a reply of it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, MutableMapping, Sequence
from reprlib import Repr
from typing import Any

from coldstream.errors import (
    ColdstreamError,
    EngineError,
    InvalidRequest,
    NotReady,
    PromptTooLong,
    RequestError,
    TooCostly,
    TooManyRequests,
    Unauthorized,
    UnknownTask,
)
from coldstream.serve.http.asgi import ASGIApp, Receive, Scope, Send, send_json
from coldstream.serve.middleware.record import SCOPE_KEY, RequestRecord
from coldstream.serve.observe import logs

logger = logging.getLogger(f"{logs.LOGGER}.http")

_SHOWN = 60


class HttpError(RequestError):
    """An error of HTTP itself: no such path, a method that the path has not, a body that is too large."""

    def __init__(self, message: str, *, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


class RenderErrors:
    """Answers a request with the error that its application raised, and says in its record which one that was.

    An error that comes when half an answer is out goes on: only closing the connection says that it is not whole.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        record: RequestRecord = scope[SCOPE_KEY]
        try:
            await self._app(scope, receive, watched)
        except Exception as exc:
            record.error = type(exc).__name__
            if not isinstance(exc, ColdstreamError):
                fields = {"fields": {"request_id": record.request_id, **record.trace_fields}}
                logger.error("unexpected %s", record.error, exc_info=exc, extra=fields)
            if has_begun:
                raise
            await send_error(send, exc if isinstance(exc, ColdstreamError) else internal(), scope["path"])


async def send_error(send: Send, error: ColdstreamError, path: str) -> None:
    """The whole reply to a request for `path` that ended in `error`."""
    more = [(name.encode(), value.encode("latin-1")) for name, value in headers(error).items()]
    await send_json(send, status(error, path), body(error, path), more)


def is_openai(path: str) -> bool:
    """Whether the path's clients expect errors in OpenAI's shape."""
    return path.startswith("/v1/")


def status(error: ColdstreamError, path: str) -> int:
    """The HTTP status. OpenAI answers 400 to everything that is wrong in a request's fields, also a long prompt."""
    if isinstance(error, HttpError):
        return error.status
    if is_openai(path) and isinstance(error, InvalidRequest | PromptTooLong):
        return 400
    return error.http_status


def headers(error: ColdstreamError) -> dict[str, str]:
    """Retry-After where the error knows when to come back, WWW-Authenticate where a key is needed (RFC 9110)."""
    if isinstance(error, TooManyRequests | NotReady):
        return {"retry-after": str(math.ceil(error.retry_after))}
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    return error.headers if isinstance(error, HttpError) else {}


def body(error: ColdstreamError, path: str) -> dict[str, Any]:
    """The JSON body, in the shape of the path."""
    return {"error": _openai(error) if is_openai(path) else _ours(error)}


def _ours(error: ColdstreamError) -> dict[str, Any]:
    field, allowed = (error.field, error.allowed) if isinstance(error, RequestError) else (None, ())
    shown = {"type": type(error).__name__, "message": str(error), "field": field, "allowed": list(allowed)}
    schema = error.schema if isinstance(error, RequestError) else None
    return shown if schema is None else shown | {"schema": dict(schema)}


def _openai(error: ColdstreamError) -> dict[str, Any]:
    kind, code = _openai_names(error)
    param = error.field if isinstance(error, RequestError) else None
    return {"message": str(error), "type": kind, "param": param, "code": code}


def _openai_names(error: ColdstreamError) -> tuple[str, str | None]:
    """OpenAI's `type` and `code`; clients switch on the code."""
    names: tuple[tuple[type[ColdstreamError], tuple[str, str | None]], ...] = (
        (PromptTooLong, ("invalid_request_error", "context_length_exceeded")),
        (UnknownTask, ("invalid_request_error", "model_not_found")),
        (Unauthorized, ("authentication_error", "invalid_api_key")),
        (TooManyRequests, ("rate_limit_error", "rate_limit_exceeded")),
        (NotReady, ("server_error", "not_ready")),
        (InvalidRequest, ("invalid_request_error", None)),
        (TooCostly, ("invalid_request_error", None)),
        (HttpError, ("invalid_request_error", None)),
    )
    return next((name for cls, name in names if isinstance(error, cls)), ("server_error", None))


def internal() -> EngineError:
    """What a caller is told about a fault whose details belong in the log only."""
    return EngineError("a fault of the server; the log has the details under this request's id")


def from_validation(
    errors: Sequence[Mapping[str, Any]], known: Sequence[str], content_type: str, sent: Any = None
) -> InvalidRequest:
    """The first of pydantic's errors about the body that was `sent`, in our words. `known` are the body's own fields.

    Values are shown shortened: a prompt is not repeated to the reply's readers.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    if not _path(first):
        return InvalidRequest(_whole_body(first, content_type))
    # Each member of a union complains; the one that got furthest is the one that was meant.
    deepest = max(
        (error for error in errors if _path(error)[0] == _path(first)[0]), key=lambda error: len(_field(error, sent))
    )
    place = _field(deepest, sent)
    field = ".".join(place)
    if deepest["type"] == "missing":
        return InvalidRequest(f"{field} is missing", field=field)
    if deepest["type"] == "extra_forbidden":
        allowed = tuple(known) if len(_path(deepest)) == 1 else ()
        hint = f"; known here: {', '.join(allowed)}" if allowed else ""
        return InvalidRequest(f"{field} is unknown{hint}", field=field, allowed=allowed)
    wanted = " or ".join(dict.fromkeys(_message(error) for error in errors if _field(error, sent) == place))
    message = f"{field}: {wanted}, not {_shown(deepest.get('input'))}"
    return InvalidRequest(message, field=field, allowed=_choices(deepest))


def _path(error: Mapping[str, Any]) -> list[str | int]:
    return [part for part in error["loc"] if part != "body"]


def _field(error: Mapping[str, Any], sent: Any) -> list[str]:
    """`messages`, `0`, `content`: the way through what was sent. What pydantic adds for the members of a union is no
    part of it. A field that is missing, or whose name is wrong, is the last on the way.
    """
    path, found, value = _path(error), [], sent
    for index, part in enumerate(path):
        is_there = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
        if is_there and part != "[key]":
            found.append(str(part))
            value = value[part]
        elif index == 0 or (error["type"] == "missing" and index == len(path) - 1):
            found.append(str(part))
    return found


def _whole_body(error: Mapping[str, Any], content_type: str) -> str:
    if error["type"] == "missing":
        return "the body is empty; send a JSON object"
    if error["type"] == "value_error":
        return f"the body must be {_message(error)}"
    if "json" not in content_type:
        return f"the body must be sent with Content-Type: application/json, not {content_type or 'without one'}"
    return f"the body must be a JSON object, not {_shown(error.get('input'))}"


def _message(error: Mapping[str, Any]) -> str:
    message = str(error["msg"])
    return message.removeprefix("Value error, ").removeprefix("Input should be ").replace("Input should ", "must ")


def _choices(error: Mapping[str, Any]) -> tuple[str, ...]:
    if error["type"] not in ("literal_error", "union_tag_invalid"):
        return ()
    context = error.get("ctx", {})
    return tuple(re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags") or "")))


def _shown(value: Any) -> str:
    """What of a value tells which one it was, whatever its size."""
    text = repr(value[: _SHOWN + 1]) if isinstance(value, str) else _BRIEF.repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class _Brief(Repr):
    """Of what is long, the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist = 4, 8, 20
        self.maxstring = self.maxlong = self.maxother = _SHOWN


_BRIEF = _Brief()
