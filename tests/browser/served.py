"""`coldstream serve` in a process of its own, as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType


class Served:
    """A context manager around a server on a free port; it is listening, and may still be loading."""

    def __init__(self, config: Path, environment: Mapping[str, str]) -> None:
        self._config = config
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._log = config.with_suffix(".log")
        self.url = ""

    def __enter__(self) -> Served:
        command = [sys.executable, "-m", "coldstream", "serve", "--config", str(self._config), "--port", "0"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, env=self._environment, stderr=log, stdout=log)
        self.url = f"http://127.0.0.1:{self._port()}/"
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _port(self) -> int:
        """From its first line of JSON, which it writes when it listens."""
        while self.process.poll() is None:
            for line in self.log.splitlines():
                if '"listening"' in line and line.endswith("}"):
                    return int(json.loads(line)["port"])
        raise AssertionError(f"the server ended at once: {self.log}")
