"""Mixed requests for as long as one likes, and whether the server is afterwards what it was before.

    python bench/soak.py gs://bucket/model-or-folder [--minutes 15] [--clients 12]

Long and short prompts, streams that are read to the end, streams that are dropped half-way, seeds, several choices,
stop texts, JSON schemas, regular expressions, requests that must be refused. The first tenth warms everything up; then
memory, threads, file descriptors and blocks are noted, and again at the end, when no request is left. The exit code
is 1 if blocks or threads were left, memory grew by more than a tenth, or an answer was not what it had to be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

_READY_SECONDS = 120.0
# Blocks of ended requests stay, for the next one's prefix, until all of this is in use, which the warm-up must reach;
# by itself the server takes 40% of the machine's memory, and grows towards it for hours.
_KV_BYTES = 128 * 1024 * 1024
_SETTLE_SECONDS = 5.0
_GROWTH = 1.1
_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
_WORDS = ("the", "river", "carries", "small", "boats", "past", "an", "old", "mill", "where", "children", "count")


@dataclass(frozen=True)
class State:
    """Of the server's process, and of its engine."""

    resident_mb: float
    threads: int
    descriptors: int
    blocks_used: float
    running: float
    waiting: float


def _metric(text: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))


def state(metrics: str, pid: int) -> State:
    """What /metrics and the kernel say."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return State(
        resident_mb=int(status["VmRSS"].split()[0]) / 1000,
        threads=int(status["Threads"]),
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        blocks_used=_metric(metrics, "coldstream_blocks_used"),
        running=_metric(metrics, "coldstream_running_requests"),
        waiting=_metric(metrics, "coldstream_waiting_requests"),
    )


def request(draw: random.Random) -> tuple[str, Mapping[str, Any], int]:
    """A kind, a body, and the status that it must have."""
    words = draw.choice((3, 20, 60, 300))
    body: dict[str, Any] = {
        "model": "default",
        "prompt": " ".join(draw.choice(_WORDS) for _ in range(words)),
        "max_tokens": draw.choice((1, 8, 32, 96)),
        "temperature": draw.choice((0.0, 0.8)),
        "seed": draw.randrange(1000),
    }
    kind = draw.choice(("plain", "stream", "dropped", "choices", "stop", "schema", "regex", "refused"))
    more: Mapping[str, Mapping[str, Any]] = {
        "stream": {"stream": True},
        "dropped": {"stream": True, "max_tokens": 96, "ignore_eos": True},
        "choices": {"n": 3, "temperature": 0.8},
        "stop": {"stop": [" the", "."]},
        "schema": {"structured_outputs": {"json": _SCHEMA}},
        "regex": {"structured_outputs": {"regex": "[a-z]{1,8}"}},
        "refused": {"temperature": -1},
    }
    return kind, body | dict(more.get(kind, {})), 400 if kind == "refused" else 200


async def ask(http: httpx2.AsyncClient, draw: random.Random) -> str:
    """One request; what came of it, for counting."""
    kind, body, wanted = request(draw)
    if not body.get("stream"):
        reply = await http.post("/v1/completions", json=body)
        if reply.status_code == 429:
            return "429"
        if reply.status_code != wanted:
            return f"wrong: {kind} answered {reply.status_code}: {reply.text[:200]}"
        return kind if kind != "schema" or _fits(reply.json()) else f"wrong: {reply.text[:300]}"
    async with http.stream("POST", "/v1/completions", json=body) as stream:
        if stream.status_code == 429:
            return "429"
        last = ""
        async for line in stream.aiter_lines():
            last = line or last
            if kind == "dropped" and draw.random() < 0.1:
                return kind
    return kind if last == "data: [DONE]" else f"wrong: the stream ended with {last[:200]}"


def _fits(reply: Mapping[str, Any]) -> bool:
    choice = reply["choices"][0]
    return choice["finish_reason"] == "length" or isinstance(json.loads(choice["text"])["n"], int)


async def client(http: httpx2.AsyncClient, until: float, seed: int, count: Counter[str]) -> None:
    draw = random.Random(seed)  # noqa: S311  the same load every time
    while time.monotonic() < until:
        count[await ask(http, draw)] += 1


async def soak(url: str, pid: int, *, seconds: float, clients: int) -> int:
    """Warm up, note, load, note."""
    limits = httpx2.Limits(max_connections=clients + 1)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as http:
        _, before = await phase(http, pid, seconds=0.1 * seconds, clients=clients)
        count, now = await phase(http, pid, seconds=0.9 * seconds, clients=clients)
    wrong = [kind for kind in count if kind.startswith("wrong")]
    grown = now.resident_mb > _GROWTH * before.resident_mb
    left = now.blocks_used or now.running or now.waiting or now.threads > before.threads
    print(
        "leaked" if grown or left else "no leak", f"{sum(count.values())} requests, {len(wrong)} kinds of wrong answers"
    )
    return 1 if grown or left or wrong else 0


async def phase(http: httpx2.AsyncClient, pid: int, *, seconds: float, clients: int) -> tuple[Counter[str], State]:
    """Load, then a pause; what was asked, and the state after it."""
    count = Counter[str]()
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(http, until, seed, count) for seed in range(clients)))
    await asyncio.sleep(_SETTLE_SECONDS)
    now = state((await http.get("/metrics")).text, pid)
    print(json.dumps({"requests": dict(count), "state": asdict(now)}), flush=True)
    return count, now


async def ready(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as http:
        until = time.monotonic() + _READY_SECONDS
        while time.monotonic() < until:
            try:
                if (await http.get("/readyz")).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            await asyncio.sleep(0.2)
    raise SystemExit("the server did not get ready")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--clients", type=int, default=12)
    asked = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(f"[models.default]\nuri = {json.dumps(asked.uri)}\n[engine]\nkv_bytes = {_KV_BYTES}\n")
        config.flush()
        command = [sys.executable, "-m", "coldstream", "serve", "--config", config.name, "--port", str(port), "--quiet"]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            asyncio.run(ready(url))
            return asyncio.run(soak(url, server.pid, seconds=60 * asked.minutes, clients=asked.clients))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


if __name__ == "__main__":
    sys.exit(main())
