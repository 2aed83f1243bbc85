"""What the load of a second model costs the first one: A generates without an end while B, the same checkpoint, loads.

Both are in one server, A first. Requests to A run one after the other from the moment it is ready until some seconds
after B is; its tokens of both spans are counted by the times at which they arrived.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from coldstream.bench import child
from coldstream.bench.coldstart import running, shaped
from coldstream.bench.contenders import Contender
from coldstream.bench.shape import BucketShape
from coldstream.errors import ColdstreamError

_ALONE_SECONDS = 4.0
_ALONE_TOKENS = 16
_PAUSE = 0.1
_TOKENS = 256
_SHORTEST = 0.2
"""Seconds; over a shorter load there is nothing to say."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Tokens a second of A while B loaded, for `seconds`, and afterwards, when it was alone."""

    seconds: float
    during: float
    alone: float

    @property
    def slower(self) -> float:
        """By which part of its pace A was slower while B loaded; 0.2 is the bound."""
        return 1.0 - self.during / self.alone

    @classmethod
    def of(cls, arrivals: list[float], *, begin: float, ready: float, end: float) -> Beside:
        """From the times of A's tokens: it answered from `begin`, B was ready at `ready`, A was watched until `end`."""
        during = sum(begin <= at < ready for at in arrivals)
        alone = sum(ready <= at < end for at in arrivals)
        return cls(ready - begin, during / (ready - begin), alone / (end - ready))

    def as_json(self) -> dict[str, Any]:
        """With `slower`."""
        return {**asdict(self), "slower": self.slower}


def run_beside(uri: str, *, precision: str | None = None, shape: BucketShape | None = None) -> Beside:
    """Start a server with the checkpoint as A and as B and count A's tokens; `shape` makes the load last longer.

    Raises:
        SettingsError: `shape` without an emulator.
        ColdstreamError: the server ended or refused, or B was ready before A had answered.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="coldstream-bench-"))
        slow = {"STORAGE_EMULATOR_HOST": stack.enter_context(shaped(shape)).url} if shape is not None else {}
        config = Path(folder, "coldstream.toml")
        wanted = f"precision = {json.dumps(precision)}\n" if precision else ""
        text = "".join(f"[models.{name}]\nuri = {json.dumps(uri)}\n{wanted}" for name in ("a", "b"))
        config.write_text(text, encoding="utf-8")
        command = (sys.executable, "-m", "coldstream", "serve", "--config", str(config))
        place = ("--host", "127.0.0.1", "--port", "{port}", "--quiet")
        body = {"model": "a", "prompt": "Once upon a time", "stream": True, "max_tokens": _TOKENS}
        body |= {"ignore_eos": True, "temperature": 0.0}
        path = "/v1/completions"
        a = Contender("a", command + place, path, body, _has_text, uri, slow, watched=True)
        with running(a, Path(folder, "log")) as server:
            server.wait_for_port()
            return _measure(a, server.port, server.started)


def _measure(a: Contender, port: int, started: float) -> Beside:
    arrivals: list[float] = []
    over = threading.Event()
    failed: list[BaseException] = []

    def generate() -> None:
        try:
            while not over.is_set():
                _count(a, port, arrivals, over)
        except (httpx2.HTTPError, ColdstreamError) as exc:
            failed.append(exc)

    asking = threading.Thread(target=generate, name="a", daemon=True)
    asking.start()
    ready = _ready_at(port, "b", asking) + started
    while asking.is_alive() and not _is_enough(arrivals, ready):
        time.sleep(_PAUSE)
    end = time.monotonic()
    over.set()
    asking.join()
    if failed or not arrivals:
        raise ColdstreamError(f"the first model gave no tokens to count: {failed[0] if failed else 'none came'}")
    if ready - arrivals[0] < _SHORTEST:
        raise ColdstreamError("the second model was ready when the first one began; slow its load with --shape")
    return Beside.of(arrivals, begin=arrivals[0], ready=ready, end=end)


def _is_enough(arrivals: list[float], ready: float) -> bool:
    """Whether A was alone for long enough to know its pace."""
    return time.monotonic() - ready > _ALONE_SECONDS and sum(at >= ready for at in arrivals) >= _ALONE_TOKENS


def _count(a: Contender, port: int, arrivals: list[float], over: threading.Event) -> None:
    with child.client(port, timeout=600) as client, client.stream("POST", a.path, json=dict(a.body)) as reply:
        if reply.status_code != 200:
            text = reply.read()[:300].decode("utf-8", "replace")
            raise ColdstreamError(f"{a.path} answered {reply.status_code}: {text}")
        for line in reply.iter_lines():
            if a.token(line):
                arrivals.append(time.monotonic())
            if over.is_set():
                return


def _ready_at(port: int, model: str, asking: threading.Thread) -> float:
    """When the model was ready, in seconds since exec."""
    with child.client(port, timeout=600) as client:
        while asking.is_alive():
            state = client.get("/readyz").json()
            if state["status"] != "loading":
                spans = client.get("/startup").json()["timeline"]
                found = [span["end"] for span in spans if span["name"] == f"{model} ready"]
                if not found:
                    raise ColdstreamError(f"the second model did not load: {state['models'][model].get('error')}")
                return float(found[0])
            time.sleep(_PAUSE)
    return 0.0


def _has_text(line: str) -> bool:
    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
    return data.startswith("{") and bool(json.loads(data).get("choices"))
