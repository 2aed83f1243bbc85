"""`coldstream bench serve`: the same load on us and on others, one after the other, on this machine.

report = run_serve_bench({"coldstream": "gs://bucket/model", "llama.cpp": "model.gguf"}, load=Load())
print("\\n".join(report.table())); Path("serve.svg").write_text(report.svg())
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

from coldstream.bench.made_of import made_of
from coldstream.bench.serve_load import (
    Api,
    ClientsSummary,
    Endpoint,
    TimedAnswer,
    beside,
    closed_loop,
    open_loop,
    prompts,
    summarize,
)
from coldstream.bench.serve_peers import PeerPlan, running, server
from coldstream.bench.served_quality import BEST, Positions, ServedQuality, measure
from coldstream.errors import SettingsError
from coldstream.host import cpu
from coldstream.settings import EngineName, Precision

Say = Callable[[str], None]

_HEAD = (
    f"{'':20} {'load':>10} {'tokens/s':>9} {'TTFT ms p50':>12} {'p99':>8} {'inter ms p50':>13} {'p99':>8} {'errors':>7}"
)


# "12: " and 26 words are 32 tokens of Gemma's, with its first one.
_SHORT_WORDS = 26
_SHORT_PROMPTS = 30
_OTHERS_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Load:
    """What everybody is asked: answers of exactly `max_tokens`, since only equal work can be compared.

    `clients` are closed loops, one after another; `rates` (requests a second) open ones.

    `beside` others are answered while short prompts come, for their time to first token, which is also taken alone.
    """

    clients: tuple[int, ...] = (1, 4, 8, 16)
    rates: tuple[float, ...] = ()
    beside: int = 0
    requests_per_client: int = 4
    max_tokens: int = 64
    prompt_words: int = 48
    api: Api = "completions"
    seed: int = 0
    seconds: float = 30.0

    @property
    def context(self) -> int:
        """Tokens that a sequence may need: words have at most a few tokens each."""
        most = max(self.max_tokens, _OTHERS_TOKENS if self.beside else 0)
        return 1 << (self.prompt_words * 4 + most + 64).bit_length()


@dataclass(frozen=True, slots=True)
class Run:
    """One load on one server; `load` is "8 clients", "2/s", or for `is_short` prompts "short" or "short +8"."""

    server: str
    load: str
    summary: ClientsSummary
    is_short: bool = False


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server: what it served, converted how and at which settings; its quality, or why that is not known."""

    server: str
    model: str
    made_of: str
    settings: str
    quality: ServedQuality | None = None
    no_quality: str | None = None

    @property
    def worth(self) -> str:
        """Its quality in a word or two; empty where none was asked for."""
        return f"KL {self.quality.mean_kl:.4f}" if self.quality is not None else ""


@dataclass(frozen=True, slots=True)
class ServeReport:
    """Everything that was measured, and who was left out and why."""

    machine: str
    load: Load
    runs: tuple[Run, ...]
    skipped: Mapping[str, str]
    servers: tuple[Contestant, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain data; seconds."""
        return asdict(self)

    def table(self) -> list[str]:
        """Lines for a terminal."""
        lines = [self.machine, _HEAD]
        for run in self.runs:
            first, gap = run.summary.first_token, run.summary.inter_token
            lines.append(
                f"{run.server:20} {run.load:>10} {run.summary.tokens_per_second:9.1f} {first.p50 * 1e3:12.0f} "
                f"{first.p99 * 1e3:8.0f} {gap.p50 * 1e3:13.1f} {gap.p99 * 1e3:8.1f} {run.summary.errors:7}"
            )
            if run.summary.first_error:
                lines.append(f"{'':20} {run.summary.first_error}")
        lines += [line for served in self.servers for line in _described(served)]
        return [*lines, *(f"{name}: left out, {why}" for name, why in self.skipped.items())]

    def svg(self) -> str:
        """Tokens a second by load, a group of bars each, every bar with its own name and figure."""
        worth = {served.server: served.worth for served in self.servers}
        return _chart([run for run in self.runs if not run.is_short], self.machine, worth)


def run_serve_bench(
    servers: Mapping[str, str],
    *,
    load: Load | None = None,
    endpoints: Mapping[str, Endpoint] | None = None,
    engine: EngineName | None = None,
    pythons: Mapping[str, str] | None = None,
    asked: Positions | None = None,
    vllm_args: tuple[str, ...] = (),
    precision: Precision = "auto",
    say: Say = lambda line: None,
) -> ServeReport:
    """Start each server in turn, load it, end it; `endpoints` run already. `servers`: name -> model, see `SERVERS`.

    `engine` is our own server's, `precision` its and vLLM's; `vllm_args` are options of `vllm serve`, for it and for
    our own server on engine vllm. `pythons` are peers' own by their kind. Quality is measured at the places `asked`.

    Raises:
        SettingsError: a name that is not known, or our own server did not start. A peer that does not is left out.
    """
    wanted = load or Load()
    sequences = max([1, wanted.beside + 1, *wanted.clients])
    plan = PeerPlan(sequences, wanted.context, os.cpu_count() or 1, engine, pythons or {}, vllm_args, precision)
    chosen = [(server(name, model, plan), model) for name, model in servers.items()]
    runs: list[Run] = []
    served: list[Contestant] = []
    skipped: dict[str, str] = {}
    for name, endpoint in (endpoints or {}).items():
        served.append(_judged(Contestant(name, endpoint.model, "", "runs already"), endpoint, asked, say))
        runs += _load(name, endpoint, wanted, say)
    for item, model in chosen:
        if item.needs is not None:
            skipped[item.name] = f"not installed ({item.needs})"
            continue
        say(f"starting {item.name}")
        try:
            with running(item, api=wanted.api) as endpoint:
                judged = _judged(Contestant(item.name, model, made_of(model), item.settings), endpoint, asked, say)
                runs += _load(item.name, endpoint, wanted, say)
                served.append(judged)
        except SettingsError as exc:
            if item.name.startswith("coldstream"):
                raise
            skipped[item.name] = str(exc)
    return ServeReport(machine(), wanted, tuple(runs), skipped, tuple(served))


def _judged(served: Contestant, endpoint: Endpoint, asked: Positions | None, say: Say) -> Contestant:
    if asked is None:
        return served
    try:
        quality = measure(endpoint, asked)
    except SettingsError as exc:
        say(f"{served.server}: {exc}")
        return replace(served, no_quality=str(exc))
    say(f"{served.server}: KL {quality.mean_kl:.4f} nats, best token as float32's {quality.top1_agreement:.3f}")
    return replace(served, quality=quality)


def _described(served: Contestant) -> list[str]:
    lines = [f"{served.server}: {', '.join(filter(None, (served.model, served.made_of, served.settings)))}"]
    if served.no_quality is not None:
        lines.append(f"{'':20} {served.no_quality}")
    if (found := served.quality) is not None:
        lines.append(
            f"{'':20} KL to float32 {found.mean_kl:.4f} nats (the best {BEST} and the rest as one), "
            f"best token as float32's {found.top1_agreement:.3f}, {found.positions} positions"
        )
    return lines


def machine() -> str:
    """What the figures were measured on, in a line."""
    name = cpu.model_name() or platform.machine()
    return f"{os.cpu_count()} CPUs, {name}, {platform.system()}, load {os.getloadavg()[0]:.1f}"


def _load(name: str, endpoint: Endpoint, load: Load, say: Say) -> list[Run]:
    """One request to warm up, then every load."""
    asyncio.run(closed_loop(endpoint, prompts(1, words=load.prompt_words, seed=-1), max_tokens=8, clients=1))
    runs = []
    for clients in load.clients:
        asked = prompts(clients * load.requests_per_client, words=load.prompt_words, seed=load.seed + clients)
        answers = asyncio.run(closed_loop(endpoint, asked, max_tokens=load.max_tokens, clients=clients))
        runs.append(_ran(name, f"{clients} client{'s' if clients > 1 else ''}", answers, say))
    for rate in load.rates:
        asked = prompts(max(2, int(rate * load.seconds)), words=load.prompt_words, seed=load.seed + 10_000)
        answers = asyncio.run(open_loop(endpoint, asked, max_tokens=load.max_tokens, rate=rate, seed=load.seed))
        runs.append(_ran(name, f"{rate:g}/s", answers, say))
    if load.beside:
        runs += _short(name, endpoint, load, say)
    return runs


def _short(name: str, endpoint: Endpoint, load: Load, say: Say) -> list[Run]:
    """The time to first token of short prompts, alone and beside others."""
    asked = prompts(2 * _SHORT_PROMPTS, words=_SHORT_WORDS, seed=load.seed + 20_000)
    alone = asyncio.run(closed_loop(endpoint, asked[:_SHORT_PROMPTS], max_tokens=1, clients=1))
    others = prompts(load.beside, words=load.prompt_words, seed=load.seed + 30_000)
    besides = beside(endpoint, asked[_SHORT_PROMPTS:], others=others, max_tokens=_OTHERS_TOKENS, seed=load.seed)
    found = {"short": summarize(alone), f"short +{load.beside}": summarize(asyncio.run(besides))}
    first, second = (summary.first_token.p50 * 1e3 for summary in found.values())
    say(f"{name}, a short prompt's first token: {first:.0f} ms alone, {second:.0f} ms beside {load.beside} others")
    return [Run(name, label, summary, is_short=True) for label, summary in found.items()]


def _ran(name: str, load: str, answers: Sequence[TimedAnswer], say: Say) -> Run:
    run = Run(name, load, summarize(answers))
    say(f"{name}, {load}: {run.summary.tokens_per_second:.1f} tokens/s")
    return run


_WIDTH, _LEFT, _BAR = 760, 210, 22
_COLOURS = ("#0f766e", "#9333ea", "#c2410c", "#1d4ed8", "#4d7c0f", "#be185d")


def _chart(runs: Sequence[Run], title: str, worth: Mapping[str, str]) -> str:
    loads = list(dict.fromkeys(run.load for run in runs))
    names = list(dict.fromkeys(run.server for run in runs))
    most = max([run.summary.tokens_per_second for run in runs], default=1.0) or 1.0
    parts, y = [], 58
    for load in loads:
        parts.append(f'<text x="16" y="{y + 15}" font-weight="600">{escape(load)}</text>')
        for run in (run for run in runs if run.load == load):
            width = max(1.0, run.summary.tokens_per_second / most * (_WIDTH - _LEFT - 140))
            figure = f"{run.summary.tokens_per_second:.1f}"
            beside = f"{figure}, {worth[run.server]}" if worth.get(run.server) else figure
            colour = _COLOURS[names.index(run.server) % len(_COLOURS)]
            parts.append(
                f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(run.server)}</text>'
                f'<rect x="{_LEFT}" y="{y + 2}" width="{width:.1f}" height="{_BAR - 5}" rx="2" fill="{colour}"/>'
                f'<text x="{_LEFT + width + 6:.1f}" y="{y + 15}">{escape(beside)}</text>'
            )
            y += _BAR
        y += 10
    style = "text{font:13px system-ui,sans-serif;fill:#1f2933}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 10}" width="{_WIDTH}" '
            f'height="{y + 10}" role="img" aria-label="Tokens a second by load"><style>{style}</style>',
            f'<rect width="{_WIDTH}" height="{y + 10}" fill="#ffffff"/>',
            '<text x="16" y="24" font-weight="600">Tokens a second, all clients together</text>',
            f'<text x="16" y="42" fill="#61707f">{escape(title)}</text>',
            *parts,
            "</svg>",
        ]
    )
