"""The waterfall: readable without a legend, safe to show, and a trace that Perfetto opens."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from coldstream.serve.observe.waterfall import perfetto, rows, svg, text
from coldstream.timeline import Span

SPANS = (
    Span("import torch", 0.3, 2.0, "model default"),
    Span("range", 0.4, 0.6, "stream", {"lane": 1, "bytes": 4096}),
    Span("range", 0.6, 0.9, "stream", {"lane": 1, "bytes": 4096}),
    Span("range", 0.4, 0.8, "stream", {"lane": 2, "bytes": 4096}),
    Span("port open", 0.25, 0.25, "MainThread"),
)


def test_each_connection_has_a_row_under_one_name_and_everything_else_a_row_of_its_own() -> None:
    assert [(row.name, len(row.spans)) for row in rows(SPANS)] == [
        ("import torch", 1),
        ("bytes, 2 connections", 2),
        ("", 1),
    ]


def test_several_models_are_told_apart() -> None:
    spans = [Span("tokenizer", 0.0, 1.0, "t", {"model": name}) for name in ("a", "b")]
    assert [row.name for row in rows(spans)] == ["tokenizer, a", "tokenizer, b"]


def test_the_picture_names_every_bar_and_its_duration() -> None:
    picture = svg(SPANS, now=2.0)
    words = " ".join(ET.fromstring(picture).itertext())
    for expected in ("import torch", "1.70 s", "bytes, 2 connections", "port open 0.25 s", "From exec to now: 2.00 s"):
        assert expected in words


def test_a_name_cannot_leave_its_element() -> None:
    hostile = Span("<script>alert(1)</script>", 0.0, 1.0, "a&b", {"uri": '"><x'})
    root = ET.fromstring(svg([hostile], now=1.0))
    assert not [element for element in root.iter() if element.tag.endswith("script")]


def test_the_terminal_gets_one_line_a_row_no_wider_than_it_is() -> None:
    lines = text(SPANS, width=80)
    assert len(lines) == 3
    assert all(len(line) <= 80 for line in lines)


def test_perfetto_gets_microseconds_one_track_a_thread_and_instants() -> None:
    trace = perfetto(SPANS)
    events = {event["name"]: event for event in trace["traceEvents"] if event["ph"] in "Xi"}
    assert events["import torch"]["ts"] == 0.3e6
    assert events["import torch"]["dur"] == 1.7e6
    assert events["port open"]["ph"] == "i"
    assert len({event["tid"] for event in trace["traceEvents"] if event["name"] == "thread_name"}) == 3


times = st.floats(0, 1e4)


@given(st.lists(st.builds(lambda n, a, b: Span(n, min(a, b), max(a, b), "t"), st.text(max_size=60), times, times)))
def test_any_spans_make_a_well_formed_picture(spans: list[Span]) -> None:
    try:
        picture = svg(spans, now=1.0)
    except ValueError:
        raise AssertionError("no spans may break it") from None
    if all(character.isprintable() for span in spans for character in span.name):
        ET.fromstring(picture)
