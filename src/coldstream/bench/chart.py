"""A bar chart of medians as SVG, readable in light and dark, without a library. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LABELS, _RIGHT = 760, 190, 90
_ROW, _BAR, _TOP = 34, 18, 58


@dataclass(frozen=True, slots=True)
class Bar:
    """A median with every measurement behind it, in seconds."""

    name: str
    median: float
    values: tuple[float, ...]
    note: str = ""


def bars_svg(title: str, subtitle: str, bars: Sequence[Bar]) -> str:
    """One bar a row, shortest first; dots are the single runs."""
    rows = sorted(bars, key=lambda bar: bar.median)
    longest = max((max(bar.values) for bar in rows), default=1.0)
    scale = (_WIDTH - _LABELS - _RIGHT) / longest
    height = _TOP + _ROW * len(rows) + 16
    body = "".join(_row(bar, _TOP + index * _ROW, scale) for index, bar in enumerate(rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
        f' role="img" aria-label="{escape(title)}">'
        "<style>text{font:13px system-ui,sans-serif;fill:#222}.s{fill:#666;font-size:11px}.t{font-size:15px}"
        "rect{fill:#4878a8}circle{fill:#b5502d}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.s{fill:#999}rect{fill:#7aa6d6}circle{fill:#f0936b}}</style>"
        f'<text class="t" x="12" y="22">{escape(title)}</text><text class="s" x="12" y="40">{escape(subtitle)}</text>'
        f"{body}</svg>\n"
    )


def _row(bar: Bar, top: int, scale: float) -> str:
    middle = top + _BAR / 2
    end = _LABELS + max(bar.values) * scale
    dots = "".join(f'<circle cx="{_LABELS + v * scale:.1f}" cy="{middle}" r="2.5"/>' for v in bar.values)
    note = f'<text class="s" x="12" y="{middle + 15}">{escape(bar.note)}</text>' if bar.note else ""
    return (
        f'<text x="12" y="{middle + 3}">{escape(bar.name)}</text>{note}'
        f'<rect x="{_LABELS}" y="{top}" width="{max(bar.median * scale, 1):.1f}" height="{_BAR}" rx="3"/>{dots}'
        f'<text x="{end + 8:.1f}" y="{middle + 4}">{bar.median:.2f} s</text>'
    )
