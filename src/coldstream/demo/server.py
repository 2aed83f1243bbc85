"""`coldstream serve` in a process of its own, as a user starts it, and the questions put to it over HTTP."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from coldstream.bench import child
from coldstream.demo.questions import DemoAnswer, DemoQuestion
from coldstream.errors import ColdstreamError

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 15.0


class Server:
    """A context manager around one server process on 127.0.0.1.

    `arguments` follow `coldstream serve`; `environment` is added to ours. Leaving the context ends the process.
    """

    def __init__(self, arguments: tuple[str, ...], *, port: int, environment: Mapping[str, str]) -> None:
        self.port = port
        self._arguments = arguments
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Server:
        self._folder = tempfile.TemporaryDirectory(prefix="coldstream-demo-")
        command = [sys.executable, "-m", "coldstream", *self._command]
        self._process = child.spawn(command, log=self.log, environment={**os.environ, **self._environment})
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None:
            child.end(self._process, patience=_GRACE_SECONDS)
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def command_line(self) -> str:
        """What a user would type for the same."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self._environment.items()]
        return " ".join([*variables, "coldstream", shlex.join(self._command)])

    @property
    def _command(self) -> list[str]:
        return ["serve", *self._arguments, "--host", "127.0.0.1", "--port", str(self.port)]

    @property
    def log(self) -> Path:
        """What the server wrote to stdout and stderr."""
        if self._folder is None:
            raise ColdstreamError("the server has not been started; use it in a with statement")
        return Path(self._folder.name) / "serve.log"

    def wait_until_ready(self, progress: Callable[[Mapping[str, Any]], None], *, deadline: float) -> None:
        """Poll /readyz until every model is ready; `progress` gets each state of the load.

        Raises:
            ColdstreamError: the process ended (with its last lines), a model failed, or `deadline` seconds passed.
        """
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            self.check_alive()
            reply = self._get("/readyz")
            if reply is not None:
                status, state = reply
                progress(state)
                if status == 200:
                    return
                if state.get("status") in ("failed", "degraded"):
                    raise ColdstreamError(f"coldstream serve could not load {_failures(state)}")
            time.sleep(_POLL_SECONDS)
        raise ColdstreamError(f"the server was not ready after {deadline:.0f} s: {child.last_lines(self.log, 5)}")

    def ask(self, question: DemoQuestion) -> DemoAnswer:
        """Send the question as it stands, timed, and once more with `details`.

        Raises:
            ColdstreamError: the server is gone, or answers with an error.
        """
        started = time.monotonic()
        text = self._post("/generate", question.body)
        seconds = time.monotonic() - started
        details = self._post("/generate", {**question.body, "details": True})
        if not isinstance(text, str) or not isinstance(details, dict):
            raise ColdstreamError(f"{self.url}/generate answered {text!r} and {details!r}; expected text and an object")
        return DemoAnswer(text, seconds, details)

    def wait(self) -> None:
        """Return when the server ends.

        Raises:
            ColdstreamError: always, with the last lines: it was not asked to end.
        """
        if self._process is not None:
            self._process.wait()
        self.check_alive()

    def check_alive(self) -> None:
        """Raise ColdstreamError when the process is gone."""
        if self._process is not None and self._process.poll() is not None:
            lines = child.last_lines(self.log, 8)
            raise ColdstreamError(f"coldstream serve ended with code {self._process.returncode}: {lines}")

    def _get(self, path: str) -> tuple[int, Mapping[str, Any]] | None:
        try:
            with child.client(self.port, timeout=10) as client:
                reply = client.get(path)
            return reply.status_code, reply.json()
        except httpx2.HTTPError:
            return None  # not listening yet; `check_alive` tells a dead process from a young one

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            with child.client(self.port, timeout=600) as client:
                reply = client.post(path, json=body)
        except httpx2.HTTPError as exc:
            self.check_alive()
            raise ColdstreamError(f"POST {self.url}{path} failed: {exc}; {child.last_lines(self.log, 5)}") from exc
        if reply.status_code != 200:
            raise ColdstreamError(f"POST {self.url}{path} answered {reply.status_code}: {reply.text[:500]}")
        return reply.json()


def _failures(state: Mapping[str, Any]) -> str:
    failed = {name: model["error"]["message"] for name, model in state["models"].items() if "error" in model}
    return "; ".join(f"{name}: {message}" for name, message in failed.items())
