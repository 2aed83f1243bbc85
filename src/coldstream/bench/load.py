"""`coldstream bench load URI`: ours beside every installed peer, alternating, medians."""

from __future__ import annotations

import html
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import gcd
from statistics import median
from typing import Any

from coldstream.errors import SettingsError
from coldstream.weights.checkpoint.uri import Location

# What each contender needs: a module, or a program for curl.
_NEEDS = {
    "coldstream": "torch",
    "coldstream, unverified": "torch",
    "obstore x4": "obstore",
    "obstore x8": "obstore",
    "runai streamer x4": "runai_model_streamer",
    "runai streamer x8": "runai_model_streamer",
    "runai streamer x16": "runai_model_streamer",
    "transfer manager": "google.cloud.storage",
    "gcsfs": "gcsfs",
    "safetensors": "safetensors",
    "fastsafetensors": "fastsafetensors",
    "curl drain": "curl",
}
_SCHEMES = {
    "obstore x4": ("gs",),
    "obstore x8": ("gs",),
    "transfer manager": ("gs",),
    "gcsfs": ("gs",),
    "safetensors": ("file",),
    "fastsafetensors": ("file",),
    "curl drain": ("gs", "http", "https"),
    "runai streamer x4": ("gs", "s3", "az", "file"),
    "runai streamer x8": ("gs", "s3", "az", "file"),
    "runai streamer x16": ("gs", "s3", "az", "file"),
}
TIMEOUT = 900.0
# A virtual machine's host takes pages back some two seconds after they were freed. Without a rest a contender uses
# those that the one before it has paid for, unless that was one that keeps nothing.
REST = 4.0


@dataclass(frozen=True, slots=True)
class Round:
    """One load by one contender. `error` says why there are no figures."""

    contender: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    bytes: int = 0
    peak_bytes: int = 0
    page_faults: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """Medians over a contender's rounds; rates in GB (10^9 bytes) a second, memory relative to the checkpoint."""

    contender: str
    rounds: int
    gb_per_second: float
    seconds: float
    cpu_seconds_per_gb: float
    peak_bytes: int
    peak_ratio: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LoadBench:
    """All rounds, and what they come to."""

    uri: str
    machine: str
    rounds: tuple[Round, ...]

    @property
    def summaries(self) -> tuple[LoadSummary, ...]:
        """One a contender, fastest first."""
        names = dict.fromkeys(item.contender for item in self.rounds)
        found = [_summary(name, [item for item in self.rounds if item.contender == name]) for name in names]
        return tuple(sorted(found, key=lambda item: -item.gb_per_second))

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {**asdict(self), "summaries": [asdict(item) for item in self.summaries]}

    def to_svg(self) -> str:
        """A bar chart of the rates."""
        return _chart(self)


def contenders_for(uri: str) -> tuple[str, ...]:
    """Those that are installed and can read this kind of URI."""
    scheme = Location.parse(uri).scheme
    return tuple(name for name in _NEEDS if scheme in _SCHEMES.get(name, (scheme,)) and _installed(_NEEDS[name]))


def check_contenders(names: Sequence[str]) -> tuple[str, ...]:
    """The names, as they are known.

    Raises:
        SettingsError: there is no contender of that name.
    """
    for name in names:
        if name not in _NEEDS:
            raise SettingsError(f"--only {name!r}: no such contender; there are: {', '.join(_NEEDS)}")
    return tuple(names)


def run_load_bench(
    uri: str,
    *,
    rounds: int = 5,
    contenders: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    touch_memory: bool = False,
    rest: float = REST,
    title: str | None = None,
    report: Callable[[Round], None] | None = None,
) -> LoadBench:
    """Every contender once a round, each in a fresh process, in another order each time, so that noise meets all alike.

    Args:
        contenders: only these, by name.
        environment: added to every contender's own: which bucket, whose certificates.
        touch_memory: before each load, use and free as much memory: pages that a virtual machine's host has to find
            first, for the contender that comes first, are then not what is measured.
        rest: seconds of nothing before each load, so that memory is as cold for all as on an instance that just began.
        title: what stands in the report instead of the URI.
        report: called after each load.

    Raises:
        LocationError: no such kind of URI.
    """
    chosen = tuple(contenders) if contenders is not None else contenders_for(uri)
    results = []
    for number in range(rounds):
        for name in _order(chosen, number):
            time.sleep(0.0 if touch_memory else rest)
            results.append(_once(name, uri, environment or {}, touch_memory))
            if report is not None:
                report(results[-1])
    return LoadBench(title or uri, _machine(), tuple(results))


def _order(contenders: Sequence[str], number: int) -> list[str]:
    """That of a round; the first is as they stand. What a load leaves behind is what the next one finds: memory that a
    virtual machine's host has not yet taken back. In one order, the contender after `curl` would never find any.
    """
    count = len(contenders)
    strides = [stride for stride in range(1, count) if gcd(stride, count) == 1] or [1]
    stride = strides[number % len(strides)]
    return [contenders[index * stride % count] for index in range(count)]


def _once(name: str, uri: str, environment: Mapping[str, str], touch_memory: bool) -> Round:
    command = [sys.executable, "-m", "coldstream.bench.load_child", name, uri]
    command += ["--touch-memory"] if touch_memory else []
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, check=True, env={**os.environ, **environment}
        )
        return Round(name, **json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Round(name, error=f"took longer than {TIMEOUT:g} s")
    except subprocess.CalledProcessError as failure:
        last = [line for line in failure.stderr.splitlines() if line.strip()][-1:]
        reason = last[0].removeprefix("coldstream.errors.ColdstreamError: ") if last else ""
        return Round(name, error=reason[:300] or f"exit code {failure.returncode}")


def _summary(name: str, rounds: list[Round]) -> LoadSummary:
    good = [item for item in rounds if item.error is None]
    if not good:
        return LoadSummary(name, 0, 0.0, 0.0, 0.0, 0, 0.0, rounds[0].error)
    size = good[0].bytes
    seconds = median(item.seconds for item in good)
    peak = int(median(item.peak_bytes for item in good))
    cpu = median(item.cpu_seconds for item in good) / (size / 1e9)
    return LoadSummary(name, len(good), size / 1e9 / seconds, seconds, cpu, peak, peak / size)


def _installed(need: str) -> bool:
    if need == "curl":
        return shutil.which(need) is not None
    try:
        return importlib.util.find_spec(need) is not None
    except ModuleNotFoundError:
        return False


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
    )


_BAR, _LEFT, _WIDTH = 26, 190, 420


def _chart(bench: LoadBench) -> str:
    bars = [item for item in bench.summaries if item.error is None]
    scale = _WIDTH / max((item.gb_per_second for item in bars), default=1.0)
    lines = [_bar(item, index, scale) for index, item in enumerate(bars)]
    height = 60 + _BAR * len(bars)
    title = html.escape(f"{bench.uri} to tensors in memory, GB/s (CPU s/GB)")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 150} {height}"'
        ' font-family="sans-serif" font-size="13" fill="#222">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n<text x="12" y="24" font-size="15">{title}</text>\n'
        + "\n".join(lines)
        + f'\n<text x="12" y="{height - 6}" fill="#777" font-size="11">{html.escape(bench.machine)}; medians</text>'
        + "\n</svg>\n"
    )


def _bar(item: LoadSummary, index: int, scale: float) -> str:
    y = 40 + _BAR * index
    width = item.gb_per_second * scale
    color = "#1f6feb" if item.contender.startswith("coldstream") else "#b0b7c3"
    label = f"{item.gb_per_second:.2f} ({item.cpu_seconds_per_gb:.2f})"
    return (
        f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{html.escape(item.contender)}</text>'
        f'<rect x="{_LEFT}" y="{y}" width="{width:.0f}" height="{_BAR - 6}" fill="{color}"/>'
        f'<text x="{_LEFT + width + 6:.0f}" y="{y + 15}">{label}</text>'
    )
