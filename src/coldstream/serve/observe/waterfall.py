"""The start of the process as a picture (SVG), as lines for a terminal, and as a trace for Perfetto. Pure.

Every bar carries its own name and duration, so that no legend is needed. Reads of ranges are many: each connection has
a thin row of its own, under one name. Instants (port open, ready, first token) are vertical lines across all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from coldstream.timeline import Span

_WIDTH, _LEFT, _RIGHT, _TOP = 1000, 250, 110, 56
_ROW, _THIN = 20, 5
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1f2933}.t{font-weight:600;font-size:15px}.q{fill:#61707f}"
    "rect.b{fill:#3b82c4}rect.r{fill:#7fb3de}rect.bg{fill:#ffffff}line.g{stroke:#e3e8ed}line.m{stroke:#c2410c}"
    "text.m{fill:#c2410c}@media(prefers-color-scheme:dark){text{fill:#e5e9f0}.q{fill:#9aa7b5}rect.bg{fill:#14181d}"
    "line.g{stroke:#2a323b}rect.b{fill:#5aa0e0}rect.r{fill:#35618a}line.m{stroke:#fb923c}text.m{fill:#fb923c}}"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the picture: a name and the spans drawn on it, left to right. A thin row has no name of its own."""

    name: str
    spans: tuple[Span, ...]
    shared: bool = False
    height: int = _ROW

    @property
    def busy(self) -> float:
        """Seconds in which something happened on this row."""
        return sum(span.end - span.start for span in self.spans)


def rows(spans: Iterable[Span]) -> tuple[Row, ...]:
    """One row a span, in order of start; the ranges of a connection share a thin one, the layers of the prefill one."""
    lasting = [span for span in spans if span.start != span.end]
    models = {span.details["model"] for span in lasting if "model" in span.details}
    shared: dict[tuple[str, str], list[Span]] = {}
    single: list[Row] = []
    for span in lasting:
        if span.name in ("range", "prefill layer"):
            shared.setdefault((span.name, str(span.details.get("lane", span.thread))), []).append(span)
        else:
            model = f", {span.details['model']}" if len(models) > 1 and "model" in span.details else ""
            single.append(Row(span.name + model, (span,)))
    ordered = sorted(shared.items(), key=lambda item: item[1][0].start)
    layers = [Row("layer by layer", tuple(group), shared=True) for (name, _), group in ordered if name != "range"]
    lanes = [tuple(group) for (name, _), group in ordered if name == "range"]
    head = [Row(f"bytes, {len(lanes)} connection{'s' * (len(lanes) > 1)}", lanes[0], shared=True)] if lanes else []
    first = sorted([*single, *layers, *head], key=lambda row: row.spans[0].start)
    at = first.index(head[0]) + 1 if head else 0
    return (*first[:at], *(Row("", lane, shared=True, height=_THIN) for lane in lanes[1:]), *first[at:])


def svg(spans: Sequence[Span], *, now: float) -> str:
    """The waterfall as a standalone SVG document; it follows the reader's dark or light preference."""
    lines = rows(spans)
    end = max([span.end for span in spans], default=now)
    scale = (_WIDTH - _LEFT - _RIGHT) / max(end, 0.001)
    marks = [span for span in spans if span.start == span.end]
    tops = [_TOP + sum(row.height for row in lines[:index]) for index in range(len(lines) + 1)]
    height = tops[-1] + 18 * len(marks) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="Waterfall of the start, {end:.2f} seconds"><style>{_STYLE}</style>',
        f'<rect class="bg" width="{_WIDTH}" height="{height}"/>',
        f'<text class="t" x="16" y="24">From exec to now: {end:.2f} s</text>',
        *_axis(end, scale, height),
        *(part for row, top in zip(lines, tops, strict=False) for part in _row(row, top, scale)),
        *(part for index, mark in enumerate(marks) for part in _mark(mark, tops[-1] + 18 * (index + 1), scale)),
        "</svg>",
    ]
    return "\n".join(parts)


def _axis(end: float, scale: float, height: int) -> list[str]:
    step = next(step for step in (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1e9) if end / step <= 10)
    parts = []
    for index in range(int(end / step) + 1):
        x = _LEFT + index * step * scale
        parts.append(f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 14}" y2="{height - 8}"/>')
        parts.append(f'<text class="q" x="{x:.1f}" y="{_TOP - 18}" text-anchor="middle">{index * step:g} s</text>')
    return parts


def _row(row: Row, top: float, scale: float) -> list[str]:
    kind = "r" if row.shared else "b"
    parts = [f'<text x="{_LEFT - 10}" y="{top + 14}" text-anchor="end">{escape(_short(row.name))}</text>']
    bar = 14 if row.height == _ROW else _THIN - 1
    for span in row.spans:
        width = max((span.end - span.start) * scale, 1.0)
        x = _LEFT + span.start * scale
        parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{top + (row.height - bar) / 2:.1f}" width="{width:.1f}" '
            f'height="{bar}" rx="2"><title>{escape(_describe(span))}</title></rect>'
        )
    if row.name:
        last = _LEFT + max(span.end for span in row.spans) * scale
        parts.append(f'<text class="q" x="{last + 6:.1f}" y="{top + 14}">{_seconds(row.busy)}</text>')
    return parts


def _mark(mark: Span, y: float, scale: float) -> list[str]:
    x = _LEFT + mark.start * scale
    left = x > _WIDTH * 0.75
    anchor, dx = ("end", -5) if left else ("start", 5)
    return [
        f'<line class="m" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{y}" stroke-dasharray="3 3"/>',
        f'<text class="m" x="{x + dx:.1f}" y="{y}" text-anchor="{anchor}">'
        f"{escape(mark.name)} {mark.start:.2f} s</text>",
    ]


def _short(name: str, longest: int = 38) -> str:
    return name if len(name) <= longest else f"{name[: longest // 2]}…{name[-longest // 2 + 1 :]}"


def _describe(span: Span) -> str:
    details = "".join(f"; {key} {value}" for key, value in span.details.items())
    return f"{span.name}: {span.start:.3f} s to {span.end:.3f} s on {span.thread}{details}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def text(spans: Sequence[Span], *, width: int = 100) -> list[str]:
    """The waterfall in short, one line a named row, for a terminal of `width` columns."""
    lines = [row for row in rows(spans) if row.name]
    end = max([span.end for span in spans], default=0.0)
    label = max([len(row.name) for row in lines], default=0)
    room = max(width - label - 12, 10)
    drawn = []
    for row in lines:
        cells = [" "] * room
        for span in row.spans:
            first = int(span.start / max(end, 0.001) * (room - 1))
            last = int(span.end / max(end, 0.001) * (room - 1))
            cells[first : last + 1] = "█" * (last + 1 - first)
        drawn.append(f"{row.name:>{label}} {''.join(cells)} {_seconds(row.busy):>8}")
    marks = [f"{span.name} at {span.start:.2f} s" for span in spans if span.start == span.end]
    return [*drawn, *marks]


def perfetto(spans: Sequence[Span], *, process: str = "coldstream") -> dict[str, Any]:
    """The spans as Trace Event Format JSON, which ui.perfetto.dev and chrome://tracing open; times in microseconds."""
    threads = {name: index + 1 for index, name in enumerate(dict.fromkeys(span.thread for span in spans))}
    events: list[dict[str, Any]] = [{"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": process}}]
    events += [
        {"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": name}}
        for name, number in threads.items()
    ]
    for span in spans:
        event: dict[str, Any] = {"name": span.name, "pid": 1, "tid": threads[span.thread], "ts": span.start * 1e6}
        event |= {"args": span.details}
        event |= {"ph": "i", "s": "p"} if span.start == span.end else {"ph": "X", "dur": (span.end - span.start) * 1e6}
        events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ms"}
