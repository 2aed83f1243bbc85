"""From exec to the first token over HTTP: Coldstream, the floor and installed peers, one after the other, in turns.

The floor is what no server in this language can undercut: one process that imports torch, then loads the checkpoint's
tokenizer, and serves nothing. The clock starts just before the process is created and stops when the first text of a
streamed reply has arrived; the request is sent as soon as the port takes connections, and again when it is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2

from coldstream.bench import child
from coldstream.bench.chart import Bar, bars_svg
from coldstream.bench.contenders import Contender, Skipped, coldstream, llama_server, ollama, transformers_serve, vllm
from coldstream.bench.shape import BucketShape, ShapedProxy
from coldstream.errors import ColdstreamError, SettingsError
from coldstream.host import cpu, memory, process
from coldstream.settings import check_precision
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint_async
from coldstream.weights.transfer.stream import stream_ranges

PageCache = Literal["warm", "cold"]

FLOOR = "torch, then tokenizer"
_FLOOR_CODE = (
    "import sys, torch\nfrom tokenizers import Tokenizer\nTokenizer.from_file(sys.argv[1])\nprint('done', flush=True)"
)
_DEADLINE = 600.0
_CONNECT_PAUSE = 0.001
_RETRY_PAUSE = 0.01
_WATCH_PERIOD = 0.01
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Start:
    """One cold start. Seconds since exec; `last_byte` is when the last byte of a shaped bucket left for the server."""

    first_token: float
    port_open: float | None = None
    last_byte: float | None = None
    peak_memory: int | None = None


@dataclass(frozen=True, slots=True)
class StartWatch:
    """How /readyz answered one more load, asked every 10 ms from exec to the first token, always on a new connection.

    `first_answer`: seconds from exec to the first answer. The others: seconds from connecting to the answer, of the
    polls behind it: the first one was accepted by the kernel, and its time is that of the first answer again.
    """

    polls: int
    first_answer: float
    longest: float
    p99: float
    median: float

    @classmethod
    def of(cls, polls: Sequence[tuple[float, float]]) -> StartWatch:
        """From when each poll was answered, in seconds since exec, and how long that took; at least one."""
        (first_answer, _), *later = polls
        ordered = sorted(seconds for _, seconds in later) or [0.0]
        p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
        return cls(len(polls), first_answer, ordered[-1], p99, statistics.median(ordered))


@dataclass(frozen=True, slots=True)
class StartResult:
    """All starts of one contender, in the order in which they ran."""

    name: str
    reads: str
    starts: tuple[Start, ...]
    watch: StartWatch | None = None

    @property
    def median(self) -> float:
        """Seconds to the first token."""
        return statistics.median(start.first_token for start in self.starts)

    @property
    def after_last_byte(self) -> float | None:
        """Seconds from the last byte out of a shaped bucket to the first token, the median; None without one."""
        gaps = [start.first_token - start.last_byte for start in self.starts if start.last_byte is not None]
        return statistics.median(gaps) if gaps else None


@dataclass(frozen=True, slots=True)
class ColdstartReport:
    """The whole bench, as data."""

    uri: str
    bytes: int
    runs: int
    page_cache: PageCache
    shape: str | None
    results: tuple[StartResult, ...]
    skipped: tuple[Skipped, ...]
    machine: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """With the medians, and each as a multiple of the floor's."""
        floor = next(result.median for result in self.results if result.name == FLOOR)
        results = [
            {
                **asdict(result),
                "median": result.median,
                "of_floor": result.median / floor,
                "after_last_byte": result.after_last_byte,
            }
            for result in self.results
        ]
        return {**asdict(self), "results": results}

    def as_svg(self) -> str:
        """Medians as bars, single runs as dots."""
        bucket = f"bucket shaped to {self.shape}" if self.shape else "local bucket"
        size = f"{self.bytes / 1e6:.0f} MB"
        return bars_svg(
            "exec to first token over HTTP",
            f"{self.uri} ({size}), {bucket}, {self.page_cache} page cache, medians of {self.runs}",
            [Bar(r.name, r.median, tuple(start.first_token for start in r.starts)) for r in self.results],
        )


def run_coldstart_bench(
    uri: str,
    *,
    runs: int = 5,
    shape: BucketShape | None = None,
    peers: bool = True,
    page_cache: PageCache = "warm",
    precisions: Sequence[str] = (),
    unpacked: bool = False,
    gguf: Path | None = None,
    ollama_model: str | None = None,
    vllm_command: Path | None = None,
    told: Callable[[str, Start], None] = lambda name, start: None,
) -> ColdstartReport:
    """Time `runs` starts of everybody, in turns; `told` hears of each.

    `page_cache` "warm" starts everybody once before, uncounted; "cold" drops the kernel's page cache before each start,
    which only root may do. `shape` puts a slower bucket in front, and needs STORAGE_EMULATOR_HOST. Each of `precisions`
    is a contender of its own; without any there is one, which chooses. `unpacked` lets each start without the model's
    packed copy as well. A peer that does not start is left out.

    Raises:
        SettingsError: `shape` without an emulator, an unknown precision, or "cold" without the right to it.
        ColdstreamError: our own server ended, or gave no token within ten minutes.
    """
    known: list[str | None] = [check_precision(precision) for precision in precisions]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coldstream-bench-")))
        (folder / "copy").mkdir()
        rivals, skipped = _peers(folder / "copy", gguf, ollama_model, vllm_command) if peers else ([], [])
        copies = any(rival.reads == "local copy" for rival in rivals)
        size = asyncio.run(_copy(uri, folder / "copy", weights=copies))
        proxy = stack.enter_context(shaped(shape)) if shape is not None else None
        place = {"STORAGE_EMULATOR_HOST": proxy.url} if proxy else {}
        ours = [
            coldstream(uri, environment=place, precision=precision, unpacked=without)
            for precision in known or [None]
            for without in ((False, True) if unpacked else (False,))
        ]
        bench = Bench(folder, page_cache, proxy, told)
        results = bench.measure([*ours, *rivals], folder / "copy" / "tokenizer.json", runs)
    return ColdstartReport(
        uri=uri,
        bytes=size,
        runs=runs,
        page_cache=page_cache,
        shape=str(shape) if shape else None,
        results=tuple(results),
        skipped=(*skipped, *bench.failed),
        machine=_machine(),
    )


def _peers(
    copy: Path, gguf: Path | None, ollama_model: str | None, vllm_command: Path | None
) -> tuple[list[Contender], list[Skipped]]:
    found = [transformers_serve(copy), vllm(copy, vllm_command), llama_server(gguf), ollama(ollama_model)]
    return [f for f in found if isinstance(f, Contender)], [f for f in found if isinstance(f, Skipped)]


def _machine() -> dict[str, Any]:
    return {"cpu": cpu.model_name(), "cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()[0]}


def shaped(shape: BucketShape) -> ShapedProxy:
    """A slower bucket before the local one; enter it.

    Raises:
        SettingsError: there is no local bucket.
    """
    emulator = urlsplit(os.environ.get("STORAGE_EMULATOR_HOST", ""))
    if emulator.scheme != "http" or not emulator.hostname:
        raise SettingsError("--shape puts a proxy before a local bucket: set STORAGE_EMULATOR_HOST=http://HOST:PORT")
    return ShapedProxy(emulator.hostname, emulator.port or 80, shape)


async def _copy(uri: str, folder: Path, *, weights: bool) -> int:
    """Bring the checkpoint's small files, and its weights if a start reads them there; the bytes of its tensors."""
    checkpoint = await open_checkpoint_async(uri)
    for name in checkpoint.files:
        if name.endswith((".json", ".jinja", ".model", ".txt")):
            (folder / name).write_bytes(await checkpoint.read_file(name))
    if not (folder / "tokenizer.json").exists():
        raise ColdstreamError(f"{uri}: no tokenizer.json in it, so there is no floor to measure")
    _forget_processor(folder)
    if weights:
        await _copy_weights(checkpoint, folder)
    return checkpoint.total_bytes


def _forget_processor(folder: Path) -> None:
    """A text-only Gemma's tokenizer names a processor of images that it came without; peers would not start over it."""
    file = folder / "tokenizer_config.json"
    if not file.exists() or any(
        (folder / f"{name}.json").exists() for name in ("preprocessor_config", "processor_config")
    ):
        return
    settings = json.loads(file.read_bytes())
    if settings.pop("processor_class", None) is not None:
        file.write_text(json.dumps(settings), encoding="utf-8")


async def _copy_weights(checkpoint: Checkpoint, folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        files = {shard.name: stack.enter_context((folder / shard.name).open("wb")) for shard in checkpoint.shards}
        for shard in checkpoint.shards:
            files[shard.name].write(shard.header_bytes)
        async for landed in stream_ranges(checkpoint):
            file = files[landed.read.file]
            file.seek(landed.read.start)
            file.write(landed.data)


class Bench:
    """Everybody in turns; `failed` are the peers that did not start."""

    def __init__(
        self, folder: Path, page_cache: PageCache, proxy: ShapedProxy | None, told: Callable[[str, Start], None]
    ) -> None:
        self._log = folder / "contender.log"
        self._page_cache = page_cache
        self._proxy = proxy
        self._told = told
        self.failed: list[Skipped] = []

    def measure(self, contenders: list[Contender], tokenizer: Path, runs: int) -> list[StartResult]:
        """`runs` starts of each contender and of the floor; one more of ours, watched.

        Raises:
            ColdstreamError: one of ours failed.
        """
        turns: dict[str, Callable[[], Start]] = {
            c.name: partial(time_start, c, log=self._log, proxy=self._proxy) for c in contenders
        }
        turns[FLOOR] = partial(self._floor, tokenizer)
        ours = {contender.name for contender in contenders if contender.watched} | {FLOOR}
        starts: dict[str, list[Start]] = {name: [] for name in turns}
        for run in range(-1 if self._page_cache == "warm" else 0, runs):
            for name in tuple(starts):
                if self._page_cache == "cold":
                    _drop_page_cache()
                try:
                    start = turns[name]()
                except ColdstreamError as exc:
                    if name in ours:
                        raise
                    self.failed.append(Skipped(name, str(exc)))
                    del starts[name]
                    continue
                if run >= 0:
                    starts[name].append(start)
                    self._told(name, start)
        reads = {contender.name: contender.reads for contender in contenders}
        watches = {c.name: watch_start(c, log=self._log) for c in contenders if c.watched}
        return [StartResult(n, reads.get(n, "tokenizer.json"), tuple(s), watches.get(n)) for n, s in starts.items()]

    def _floor(self, tokenizer: Path) -> Start:
        started = time.monotonic()
        command = [sys.executable, "-c", _FLOOR_CODE, str(tokenizer)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
            line = process.stdout.readline() if process.stdout else ""
            seconds = time.monotonic() - started
        if line != "done\n":
            raise ColdstreamError(f"importing torch and loading {tokenizer} ended with code {process.returncode}")
        return Start(first_token=seconds)


def time_start(contender: Contender, *, log: Path, proxy: ShapedProxy | None = None) -> Start:
    """Start the contender once, take its first token, end it. Its output goes to `log`.

    Raises:
        ColdstreamError: it ended, refused the request for good, or gave no token within ten minutes.
    """
    with running(contender, log) as server:
        server.wait_for_port()
        opened = time.monotonic() - server.started
        server.wait_for_token()
        token = time.monotonic() - server.started
        last = proxy.last_byte - server.started if proxy is not None and contender.watched else None
        return Start(token, opened, last, server.peak_memory())


def watch_start(contender: Contender, *, log: Path) -> StartWatch:
    """Start the contender once more and time GET /readyz from exec to its first token.

    Raises:
        ColdstreamError: as `time_start`; also where /readyz does not answer at all.
    """
    with running(contender, log) as server:
        with ThreadPoolExecutor(max_workers=1) as pool:
            token = pool.submit(server.wait_for_token)
            polls = list(server.polls(until=token.done))
            token.result()
        if not polls:
            raise ColdstreamError(f"{contender.name} gave a token, but never answered GET /readyz")
        return StartWatch.of(polls)


@contextlib.contextmanager
def running(contender: Contender, log: Path) -> Iterator[StartedServer]:
    server = StartedServer(contender, log)
    try:
        yield server
    finally:
        server.end()


class StartedServer:
    """A contender's process, its clock started."""

    def __init__(self, contender: Contender, log: Path) -> None:
        self._contender = contender
        self._log = log
        self.port = child.free_port()
        environment = {k: v.replace("{port}", str(self.port)) for k, v in contender.environment.items()}
        command = [part.replace("{port}", str(self.port)) for part in contender.command]
        with log.open("wb") as output:
            self.started = time.monotonic()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def end(self) -> None:
        """Also of the processes that it started: vLLM's engine is one of its own."""
        child.end(self._process, patience=10.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait_for_port(self) -> None:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            self._check()
            time.sleep(_CONNECT_PAUSE)

    def wait_for_token(self) -> None:
        """Ask until an answer has text; a server that is not ready refuses or says 4xx or 503."""
        body = json.dumps(self._contender.body).encode()
        while not self._token(body):
            self._check()
            time.sleep(_RETRY_PAUSE)

    def _token(self, body: bytes) -> bool:
        headers = {"content-type": "application/json"}
        try:
            with (
                child.client(self.port, timeout=_DEADLINE) as client,
                client.stream("POST", self._contender.path, content=body, headers=headers) as reply,
            ):
                if reply.status_code == 200:
                    return any(self._contender.token(line) for line in reply.iter_lines())
                self._refused(reply.status_code, reply.read())
        except httpx2.HTTPError:
            return False
        return False

    def _refused(self, status: int, body: bytes) -> None:
        if status in (400, 422, 500):
            text = body.decode("utf-8", "replace")[:300]
            raise ColdstreamError(f"{self._contender.name} answered {status} to {self._contender.path}: {text}")

    def polls(self, *, until: Callable[[], bool]) -> Iterator[tuple[float, float]]:
        """When GET /readyz was answered, in seconds since exec, and how long that took; one attempt every 10 ms."""
        over = False
        while not over:
            over = until()  # once more after the end, so that a quick start has an answer, too
            asked = time.monotonic()
            with contextlib.suppress(OSError):
                _get_readyz(self.port)
                answered = time.monotonic()
                yield answered - self.started, answered - asked
            time.sleep(max(0.0, asked + _WATCH_PERIOD - time.monotonic()))

    def peak_memory(self) -> int | None:
        """Bytes; of the process that was started, not of its children."""
        return process.status_bytes("VmHWM", self._process.pid)

    def _check(self) -> None:
        if self._process.poll() is not None:
            lines = child.last_lines(self._log, 5)
            raise ColdstreamError(f"{self._contender.name} ended with code {self._process.returncode}: {lines}")
        if time.monotonic() - self.started > _DEADLINE:
            raise ColdstreamError(f"{self._contender.name} gave no token in {_DEADLINE:.0f} s")


def _get_readyz(port: int) -> None:
    """On a socket of its own: a library's client would be the slower part of it."""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        if not connection.recv(1 << 16).startswith(b"HTTP/1."):
            raise ConnectionResetError("not an answer")


def _drop_page_cache() -> None:
    try:
        memory.drop_page_cache()
    except OSError as exc:
        raise SettingsError(f"a cold page cache needs root ({exc.strerror}); measure with a warm one") from exc
