"""Processes that never outlive the one that started them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2

# PR_SET_PDEATHSIG (prctl(2), option 1) survives execve, so a child ends with us however we end. It is set in a small
# interpreter of its own because `preexec_fn` may deadlock in a process that already has threads.
_LAUNCHER = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
    "if os.getppid() == int(sys.argv[1]): os.execv(sys.argv[2], sys.argv[2:])\n"
)


def spawn(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program by its path; its output goes to `log`.

    It is killed when the thread that started it ends. It has a session of its own, so that Ctrl-C on the terminal
    reaches us alone and we end it in order.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*launcher, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes], *, patience: float) -> None:
    """SIGTERM, then after `patience` seconds SIGKILL; returns when the process is gone."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def last_lines(log: Path, count: int) -> str:
    """The end of what a program wrote, in one line."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return " / ".join(text.splitlines()[-count:]) or "it said nothing"


def client(port: int, *, timeout: float) -> httpx2.Client:
    """For plain HTTP on 127.0.0.1, reading no proxy's settings and no certificates; `timeout` in seconds."""
    return httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=timeout, trust_env=False, verify=False)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
