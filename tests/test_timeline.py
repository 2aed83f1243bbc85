"""The timeline: spans since exec, from any thread."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from coldstream.timeline import Span, Timeline


def test_a_span_is_recorded_with_its_thread_and_details() -> None:
    timeline = Timeline()
    with timeline.span("listing", objects=3):
        pass
    (span,) = timeline.spans()
    assert (span.name, span.thread, span.details) == ("listing", "MainThread", {"objects": 3})
    assert 0 <= span.start <= span.end


def test_a_span_is_recorded_also_when_its_body_raises() -> None:
    timeline = Timeline()
    with pytest.raises(ValueError, match="boom"), timeline.span("headers"):
        raise ValueError("boom")
    assert [span.name for span in timeline.spans()] == ["headers"]


def test_spans_come_ordered_by_start_whoever_recorded_them() -> None:
    timeline = Timeline(origin=0.0)
    timeline.record(Span("late", 2.0, 3.0, "a"))
    worker = threading.Thread(target=lambda: timeline.record(Span("early", 1.0, 1.5, "b")))
    worker.start()
    worker.join()
    assert [span.name for span in timeline.spans()] == ["early", "late"]


def test_time_counts_from_exec_and_so_includes_the_interpreters_own_start() -> None:
    code = (
        "import time\n"
        "begun = time.monotonic()\n"
        "from coldstream.timeline import Timeline\n"
        "print(Timeline().now() > time.monotonic() - begun)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "True\n"
