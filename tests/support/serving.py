"""`coldstream serve` as a process, within the memory that a container might have."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from coldstream.bench.child import free_port

_MEMORY = 6 << 30
"""Bytes of addresses: torch reserves a few times what it touches."""


@dataclass(frozen=True)
class Served:
    """A server that runs, and where it listens."""

    process: subprocess.Popen[bytes]
    url: str

    @property
    def model(self) -> str:
        """The name of its model."""
        return str(httpx2.get(f"{self.url}/v1/models", timeout=60).json()["data"][0]["id"])

    def children(self) -> str:
        """The command lines of its child processes."""
        listed = ["ps", "-ww", "--ppid", str(self.process.pid), "-o", "args="]
        return subprocess.run(listed, capture_output=True, text=True, check=False).stdout

    def resident(self) -> int:
        """Bytes of memory that the process has, without its children."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()


@contextmanager
def serving(model: Path, *options: str, ready: bool = True) -> Iterator[Served]:
    """Serve a checkpoint; with `ready`, from when it can answer."""
    port = free_port()
    command = [sys.executable, "-m", "coldstream", "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        [*command, "-q", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY)),
    ) as process:
        served = Served(process, f"http://127.0.0.1:{port}")
        try:
            while ready and not _is_ready(served.url):
                assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            yield served
        finally:
            process.kill()


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/ready", timeout=5).is_success
    except httpx2.HTTPError:
        return False
