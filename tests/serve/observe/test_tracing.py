"""OpenTelemetry spans of a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("opentelemetry.sdk", reason="the otel extra is not installed")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from coldstream.serve.observe.tracing import Tracing, carrier, from_environment
from tests.support.scripted import ScriptedModel


@pytest.fixture
def spans():
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter, Tracing(provider)
    provider.shutdown()


async def test_a_requests_spans_hang_under_the_callers_and_hold_no_prompt(serve, engine, spans) -> None:
    exporter, tracing = spans
    served = await serve(ScriptedModel(engine("hello")), tracing=tracing)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    await served.client.post("/generate", json={"prompt": "secret"}, headers={"traceparent": f"00-{trace}-{parent}-01"})
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert set(found) == {"POST /generate", "queue", "prefill", "decode"}
    whole = found.pop("POST /generate")
    assert (format(whole.context.trace_id, "032x"), format(whole.parent.span_id, "016x")) == (trace, parent)
    assert whole.attributes["gen_ai.usage.output_tokens"] == 5
    assert whole.attributes["http.response.status_code"] == 200
    for span in found.values():
        assert span.parent.span_id == whole.context.span_id
        assert whole.start_time <= span.start_time <= span.end_time <= whole.end_time
    assert found["queue"].end_time == found["prefill"].start_time
    assert "secret" not in str([span.attributes for span in exporter.get_finished_spans()])


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        ("0AF7651916cd43dd8448eb211c80319c/13245611870463652657;o=1", "b7d1ddd163aef331"),
        ("0af7651916cd43dd8448eb211c80319c/1", "0000000000000001"),
    ],
)
async def test_googles_own_header_is_a_parent_too(serve, engine, spans, header: str, parent: str) -> None:
    """Cloud Run's front end sends it; `traceparent` goes before."""
    exporter, tracing = spans
    served = await serve(ScriptedModel(engine("hello")), tracing=tracing)
    await served.client.post("/generate", json={"prompt": "x"}, headers={"X-Cloud-Trace-Context": header})
    (whole,) = (span for span in exporter.get_finished_spans() if span.name == "POST /generate")
    found = (format(whole.context.trace_id, "032x"), format(whole.parent.span_id, "016x"))
    assert found == ("0af7651916cd43dd8448eb211c80319c", parent)


@given(header=st.text("0123456789abcdefG/;o=-", max_size=60))
def test_any_header_is_a_parent_or_none(header: str) -> None:
    assert carrier({"traceparent": "a", "x-cloud-trace-context": header})["traceparent"] == "a"
    made = carrier({"x-cloud-trace-context": header}).get("traceparent", "")
    assert not made or len(made) >= 55


async def test_a_failure_is_a_span_in_error_and_probes_leave_none(serve, engine, spans) -> None:
    exporter, tracing = spans
    served = await serve(ScriptedModel(engine(lambda request: ["<error>"])), tracing=tracing)
    await served.client.get("/healthz")
    await served.client.post("/generate", json={"prompt": "x"})
    whole = exporter.get_finished_spans()[-1]
    assert {span.name for span in exporter.get_finished_spans()} >= {"POST /generate"}
    assert not any("healthz" in span.name for span in exporter.get_finished_spans())
    assert (whole.status.is_ok, whole.attributes["error.type"]) == (False, "EngineError")


def test_without_a_collector_there_is_no_tracing() -> None:
    assert from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) is None
