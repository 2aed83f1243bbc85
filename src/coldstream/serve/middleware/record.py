"""What became of one HTTP request: an id, a line in the log and a count for every one, refused ones included.

The record is made before anything else looks at the request, filled while it is answered, and written when it ends.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coldstream.serve.http.asgi import ASGIApp, Receive, Scope, Send, headers
from coldstream.serve.observe import logs

if TYPE_CHECKING:
    from coldstream.engine.request import TokenEvent
    from coldstream.serve.observe.metrics import Metrics
    from coldstream.serve.observe.tracing import Tracing
    from coldstream.serve.state import Lifecycle

SCOPE_KEY = "coldstream.record"

logger = logging.getLogger(logs.REQUESTS)


@dataclass(slots=True)
class RequestRecord:
    """`request_id` is the caller's own (X-Request-Id) where it sent one that is fit to be logged.

    `caller` tells its sender from others: the digest of the key, or where there are no keys the peer's address. Never
    logged. `trace_fields` join its log lines to a trace. `error` is the type of what it was refused with, or broke on.
    `submitted` is when its sequences went to the engine, in nanoseconds of Unix time; the times after it are those of
    the sequence that ended first, in seconds from there. `seconds` is the whole request.
    """

    request_id: str
    caller: bytes = field(default=b"", repr=False)
    trace_fields: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    task: str | None = None
    prompt: str | None = None
    finish_reasons: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    submitted: int | None = None
    queued_seconds: float | None = None
    first_token_seconds: float | None = None
    total_seconds: float | None = None
    seconds: float = 0.0
    error: str | None = None

    def end(self, event: TokenEvent) -> None:
        """Count a sequence's terminal event."""
        self.finish_reasons.append(str(event.finish_reason))
        usage = event.usage
        if usage is None:
            return
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.completion_tokens += usage.completion_tokens
        if self.total_seconds is None:
            self.queued_seconds, self.first_token_seconds = usage.queued_seconds, usage.first_token_seconds
            self.total_seconds = usage.total_seconds

    def fields(self) -> dict[str, Any]:
        """The fields that are known, for a log line."""
        names = ("model", "task", "prompt", "finish_reasons", "prompt_tokens", "cached_tokens", "completion_tokens")
        found = {name: getattr(self, name) for name in (*names, "first_token_seconds", "error")}
        return {name: value for name, value in found.items() if value}


class KeepRecord:
    """Outermost: gives each request its record, and says what became of it in the log, the metrics and the traces.

    `unlogged` are paths that are asked every few seconds: they have a line only when they are refused. `project` is the
    Google Cloud project of the logs' traces.
    """

    def __init__(
        self, app: ASGIApp, *, lifecycle: Lifecycle, metrics: Metrics, unlogged: frozenset[str], project: str | None
    ) -> None:
        self._app = app
        self._lifecycle, self._metrics, self._unlogged, self._project = lifecycle, metrics, unlogged, project
        self.tracing: Tracing | None = None
        """Where spans go; set by the thread that imports what it needs, when that is done."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = headers(scope)
        request_id = logs.request_id(given.get("x-request-id")) or _new_id()
        trace = logs.trace_field(logs.trace_id(given), self._project)
        record = scope[SCOPE_KEY] = RequestRecord(request_id, trace_fields=trace)
        sent = _Sent(send, request_id)
        start = time.monotonic()
        self._lifecycle.enter()
        try:
            await self._app(scope, receive, sent)
        except BaseException as exc:
            record.error = record.error or type(exc).__name__
            raise
        finally:
            self._lifecycle.leave()
            record.seconds = time.monotonic() - start
            self._write(scope, given, sent.status, record)

    def refused(self, status: int, error: str) -> str:
        """Write the record of what could not be read as a request; its id."""
        record = RequestRecord(_new_id(), error=error)
        self._metrics.requests.labels("other", str(status)).inc()
        fields = {"request_id": record.request_id, "httpRequest": {"status": status}, **record.fields()}
        logger.log(logs.severity(status), "no request: %s", status, extra={"fields": fields})
        return record.request_id

    def _write(self, scope: Scope, given: dict[str, str], status: int, record: RequestRecord) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(record.seconds)
        if scope["path"] in self._unlogged and record.error is None:
            return
        if self.tracing is not None:
            self.tracing.write(given, scope["method"], route, status, record)
        level = logs.severity(status) if status else logging.INFO
        if logger.isEnabledFor(level):
            http = {
                "requestMethod": scope["method"],
                "requestUrl": scope["path"],
                "status": status,
                "latency": f"{record.seconds:.6f}s",
            }
            fields = {
                "request_id": record.request_id,
                **record.trace_fields,
                "httpRequest": http,
                **record.fields(),
            }
            message = f"{scope['method']} {scope['path']} {status or 'client gone'}"
            logger.log(level, message, extra={"fields": fields})


def _new_id() -> str:
    return f"req-{secrets.token_hex(12)}"


class _Sent:
    """A `send` that adds the request id and remembers the status; 0 until a response has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._id = (b"x-request-id", request_id.encode())
        self.status = 0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), self._id]
        await self._send(message)
