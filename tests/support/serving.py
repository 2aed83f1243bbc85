"""`coldstream serve` as a process, within the memory that a container might have."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from coldstream.bench.child import free_port
from tests.support import processes

MEMORY: Mapping[int, int] = {resource.RLIMIT_AS: 6 << 30}
"""Bytes of addresses: torch reserves a few times what it touches."""
_PAUSE = 0.02
"""Seconds between two looks, which leave the cores to what is looked at."""


@dataclass(frozen=True)
class Served:
    """A server that runs, and where it listens."""

    process: subprocess.Popen[str]
    url: str

    def get(self, path: str) -> httpx2.Response:
        """The answer to GET, as soon as the port is open.

        Raises:
            TransportError: the process has ended.
        """
        while True:
            try:
                return httpx2.get(f"{self.url}{path}", timeout=60)
            except httpx2.TransportError:
                if self.process.poll() is not None:
                    raise
                time.sleep(_PAUSE)

    @property
    def model(self) -> str:
        """The name of its model."""
        return str(self.get("/v1/models").json()["data"][0]["id"])

    def said(self) -> str:
        """What it wrote to its error output; waits for its end."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def is_ready(self) -> bool:
        """Whether it says so."""
        try:
            return httpx2.get(f"{self.url}/ready", timeout=60).is_success
        except httpx2.TransportError:
            return False

    def wait_until(self, seen: Callable[[], bool]) -> None:
        """Look again and again, as long as the process runs."""
        while not seen():
            assert self.process.poll() is None, self.said()
            time.sleep(_PAUSE)

    def children(self) -> list[int]:
        """Its child processes."""
        return processes.children(self.process.pid)

    def works_at(self, work: str) -> bool:
        """Whether one of its workers has this work."""
        return any(work in processes.command(child) for child in self.children())

    def resident(self) -> int:
        """Bytes of memory that the process has, without its children."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()


@contextmanager
def serving(
    *arguments: str | Path,
    ready: bool = True,
    environment: Mapping[str, str] | None = None,
    limits: Mapping[int, int] = MEMORY,
) -> Iterator[Served]:
    """Serve on a free port; with `ready`, from when it can answer. `limits` are those of setrlimit(2)."""
    port = free_port()
    command = [sys.executable, "-m", "coldstream", "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]

    def limit() -> None:
        for kind, most in limits.items():
            resource.setrlimit(kind, (most, most))

    with subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    ) as process:
        served = Served(process, f"http://127.0.0.1:{port}")
        try:
            if ready:
                served.wait_until(served.is_ready)
            yield served
        finally:
            process.kill()
