"""All attacks in turn, several times, beside one honest stream and a probe: what they cost the honest.

    python tools/siege.py MODEL [--rounds 2] [--only NAME ...] [--memory 1536] [--kv-bytes N --fill TOKENS]

Starts `coldstream serve MODEL` on 127.0.0.1 with two keys and a bound of memory: a cgroup's where one can be made, else
RLIMIT_DATA. The honest client is a process of its own with the other key; the attacker, who would be on another
machine, is nice to both. Keys and values have a bound of their own and stay: `--fill` has prompts of so many tokens
read before anything is measured. Prints, for each attack, the longest wait for /ready, the longest gap in the stream,
how honest requests ended, and the memory of the server with its children (PSS).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread

from siege_attacks import ATTACKS, Target

_KEYS = ("attacker-key", "honest-key")
_PERIOD = 0.02
_QUIET = 5.0
_SETTLED = 60.0
_START = 300.0
_PROMPT = 1900
"""Tokens of a prompt that fills the cache."""
_NICENESS = 10


@dataclass
class Seen:
    """What the honest client saw in a while; seconds."""

    ready: float = 0.0
    gap: float = 0.0
    ended: dict[str, int] = field(default_factory=dict)


def connected(port: int, seconds: float) -> contextlib.closing[http.client.HTTPConnection]:
    """A connection for a block, whose waits give up after so many seconds."""
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=seconds))


def honest(port: int, line: Connection) -> None:
    """Ask /ready every 20 ms and read one stream after the other, until told to end; every message is answered by what
    was seen since the last one.
    """
    seen, stop = Seen(), Event()
    threads = [Thread(target=_probe, args=(port, seen, stop)), Thread(target=_read_streams, args=(port, seen, stop))]
    for thread in threads:
        thread.start()
    while line.recv():
        line.send(Seen(seen.ready, seen.gap, dict(seen.ended)))
        seen.ready, seen.gap = 0.0, 0.0
        seen.ended.clear()
    stop.set()
    for thread in threads:
        thread.join()


def _probe(port: int, seen: Seen, stop: Event) -> None:
    while not stop.is_set():
        began = time.monotonic()
        try:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            while not stop.wait(_PERIOD):
                began = time.monotonic()
                client.request("GET", "/ready")
                client.getresponse().read()
                seen.ready = max(seen.ready, time.monotonic() - began)
        except (OSError, http.client.HTTPException):
            # A connection that waits between two requests may be closed; one that cannot be made again is a fault.
            seen.ended["probe again"] = seen.ended.get("probe again", 0) + 1


def _read_streams(port: int, seen: Seen, stop: Event) -> None:
    while not stop.is_set():
        try:
            ended = _read_stream(port, seen, stop)
        except (OSError, http.client.HTTPException) as exc:
            ended = type(exc).__name__
        seen.ended[ended] = seen.ended.get(ended, 0) + 1
        stop.wait(0.05)


def _read_stream(port: int, seen: Seen, stop: Event) -> str:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = json.dumps({"model": "default", "prompt": "The", "stream": True, "max_tokens": 100, "ignore_eos": True})
    headers = {"content-type": "application/json", "authorization": f"Bearer {_KEYS[1]}"}
    client.request("POST", "/v1/completions", body, headers)
    answer = client.getresponse()
    if answer.status != 200:
        answer.read()
        after = answer.headers.get("retry-after")
        return f"{answer.status}{'' if after else ' without Retry-After'}"
    last = None
    while piece := answer.readline():
        if piece.startswith(b"data:"):
            now = time.monotonic()
            seen.gap = max(seen.gap, now - (last or now))
            last = now
    client.close()
    return "whole" if last is not None else "empty"


@contextlib.contextmanager
def bounded(megabytes: int) -> Iterator[tuple[str, Path | None]]:
    """How memory is bounded, and the file that a process joins the bound with."""
    name = f"siege-{os.getpid()}"
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        folder = root / name
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(megabytes * 2**20))
        except OSError:
            folder.rmdir()
            continue
        try:
            yield f"cgroup {folder}", folder / "cgroup.procs"
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()
        return
    yield "RLIMIT_DATA", None


@contextlib.contextmanager
def serving(model: str, megabytes: int, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int, str]]:
    """A server that is ready, its port, and how its memory is bounded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder, bounded(megabytes) as (how, join):
        (Path(folder) / "keys").write_text("\n".join(_KEYS))
        config = Path(folder) / "coldstream.toml"
        config.write_text(
            f'[models.default]\nuri = "{model}"\n[tasks.text]\n[server]\nhost = "127.0.0.1"\n'
            f'port = {port}\napi_keys_file = "{folder}/keys"\n' + "\n".join(options) + "\n"
        )

        def begin() -> None:
            if join is not None:
                join.write_text(str(os.getpid()))
            else:
                resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 2**20,) * 2)

        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "coldstream", "serve", "--config", str(config), "-q"],
                stdout=output,
                stderr=output,
                preexec_fn=begin,
            )
        try:
            _wait_until_ready(process, port, log)
            yield process, port, how
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _START
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException), connected(port, 5) as client:
            client.request("GET", "/ready")
            if client.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"the server did not become ready: {log.read_text()[-2000:]}")


def memory(pid: int) -> float:
    """MB of the process and its children, what they share counted once (PSS)."""
    return sum(_pss(child) for child in (pid, *_descendants(pid)))


def _pss(pid: int) -> float:
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def by_process(pid: int) -> str:
    """The same of each: what runs in it, and MB."""
    return ", ".join(f"{_what(child)} {_pss(child):.0f}" for child in (pid, *_descendants(pid)))


def _what(pid: int) -> str:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_text()
        names = re.findall(r"[:.](\w+)'?\)$", command.rstrip("\0"))
        return names[0] if names else "server"
    return "ended"


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def deaths(port: int) -> str:
    """Of workers, from the metrics."""
    with connected(port, 60) as client:
        client.request("GET", "/metrics", headers={"authorization": f"Bearer {_KEYS[1]}"})
        text = client.getresponse().read().decode()
    found = re.findall(r'^coldstream_worker_deaths_total\{work="(\w+)"\} (\d+)', text, re.MULTILINE)
    return ", ".join(f"{name} {count}" for name, count in found) or "none"


class Peak:
    """The most memory while the block runs."""

    def __init__(self, pid: int) -> None:
        self.megabytes, self._pid, self._stop = 0.0, pid, Event()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.megabytes = max(self.megabytes, memory(self._pid))
            self._stop.wait(0.25)


def main() -> None:
    """Print a line an attack; exit 1 where the server ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=sorted(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--memory", type=int, default=1536, help="MiB that the server may have")
    parser.add_argument("--kv-bytes", type=int, help="of keys and values; left out: the server's choice")
    parser.add_argument("--fill", type=int, default=0, help="tokens of prompts that are read first")
    given = parser.parse_args()
    options = [] if given.kv_bytes is None else ["[engine]", f"kv_bytes = {given.kv_bytes}"]
    with serving(given.model, given.memory, *options) as (server, port, how):
        for number in range(given.fill // _PROMPT):
            Target(port, _KEYS[1]).ask("/v1/completions", {"prompt": [number + 1] * _PROMPT, "max_tokens": 1})
        print(f"{given.model}, {given.memory} MiB by {how}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        client = multiprocessing.get_context("spawn").Process(target=honest, args=(port, theirs), daemon=True)
        client.start()
        os.nice(_NICENESS)

        def seen() -> Seen:
            ours.send(True)
            found: Seen = ours.recv()
            return found

        seen()
        time.sleep(2 * _QUIET)
        before = memory(server.pid)
        _line("no attack", seen(), before, before, 2 * _QUIET)
        for number in range(given.rounds):
            for name in given.only:
                began = time.monotonic()
                with Peak(server.pid) as peak:
                    ATTACKS[name](Target(port, _KEYS[0]))
                _line(f"{number + 1} {name}", seen(), peak.megabytes, memory(server.pid), time.monotonic() - began)
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with {server.returncode}")
                time.sleep(1)
                seen()
        print(f"memory before {before:.0f} MB, after {memory(server.pid):.0f} MB ({by_process(server.pid)})")
        time.sleep(_SETTLED)
        print(f"a minute later {memory(server.pid):.0f} MB ({by_process(server.pid)}); workers' deaths: {deaths(port)}")
        ours.send(False)
        client.join(30)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        print(f"SIGTERM: ended with {server.wait(60)} after {time.monotonic() - began:.1f} s")


def _line(name: str, seen: Seen, peak: float, after: float, seconds: float) -> None:
    ended = ", ".join(f"{count} {what}" for what, count in seen.ended.items()) or "-"
    print(
        f"{name:18} {seconds:5.1f} s  /ready {1000 * seen.ready:5.0f} ms  stream {1000 * seen.gap:5.0f} ms  "
        f"peak {peak:5.0f} MB  after {after:5.0f} MB  {ended}",
        flush=True,
    )


if __name__ == "__main__":
    main()
