"""OpenTelemetry spans, where the extra is installed and OTEL_EXPORTER_OTLP_ENDPOINT says where they go.

A request's spans are made when it has ended, from times that were measured anyway, so that tracing costs nothing while
tokens are on their way: the request, and within it queue, prefill and decode of its first sequence.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from coldstream.errors import MissingExtra
from coldstream.serve.middleware.record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""The variables that switch tracing on; the exporter reads them, and its other settings, itself."""


# TRACE/SPAN;o=OPTIONS, the span in decimal (https://cloud.google.com/trace/docs/trace-context).
_CLOUD_PARENT = re.compile(r"([0-9a-f]{32})/([0-9]{1,20})(?:;o=([0-9]+))?", re.IGNORECASE)


def carrier(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with a `traceparent`, made from Google's own header where that is all that a caller sent."""
    found = _CLOUD_PARENT.fullmatch(headers.get("x-cloud-trace-context", ""))
    if found is None or "traceparent" in headers:
        return dict(headers)
    trace, span, options = found.groups(default="1")
    return {**headers, "traceparent": f"00-{trace.lower()}-{int(span):016x}-{int(options) % 2:02x}"}


class Tracing:
    """Writes the spans of finished requests."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer: Tracer = provider.get_tracer("coldstream")

    def write(self, headers: Mapping[str, str], method: str, route: str, status: int, record: RequestRecord) -> None:
        """One request that ended now and took `record.seconds`; the caller's span is its parent."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        end = time.time_ns()
        span = self._tracer.start_span(
            f"{method} {route}",
            context=TraceContextTextMapPropagator().extract(carrier(headers)),
            kind=SpanKind.SERVER,
            start_time=end - _ns(record.seconds),
            attributes=_attributes(method, route, status, record),
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR, record.error or ""))
        self._phases(span, record)
        span.end(end)

    def _phases(self, parent: Span, record: RequestRecord) -> None:
        from opentelemetry.trace import set_span_in_context

        if record.submitted is None:
            return
        context = set_span_in_context(parent)
        start = record.submitted
        for name, until in (
            ("queue", record.queued_seconds),
            ("prefill", record.first_token_seconds),
            ("decode", record.total_seconds),
        ):
            if until is None:
                return
            span = self._tracer.start_span(name, context=context, start_time=start)
            start = max(start, record.submitted + _ns(until))
            span.end(start)


def from_environment(environ: Mapping[str, str]) -> Tracing | None:
    """Tracing to the collector that the environment names; None where it names none.

    Raises:
        MissingExtra: it names one, and the packages are not installed.
    """
    if not any(environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise MissingExtra(
            f"{ENDPOINTS[0]} is set, but OpenTelemetry is not installed: pip install 'coldstream[otel]', or unset it"
        ) from exc
    provider = TracerProvider(
        resource=Resource.create({"service.name": environ.get("OTEL_SERVICE_NAME", "coldstream")})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _attributes(method: str, route: str, status: int, record: RequestRecord) -> dict[str, str | int]:
    """As the semantic conventions for HTTP and generative AI name them."""
    found: dict[str, str | int | None] = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "coldstream.request_id": record.request_id,
        "coldstream.task": record.task,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens or None,
        "gen_ai.usage.output_tokens": record.completion_tokens or None,
        "error.type": record.error,
    }
    return {name: value for name, value in found.items() if value is not None}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
