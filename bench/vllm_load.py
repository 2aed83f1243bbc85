"""vLLM's own seconds of weight loading: through our loader, and through Run:ai's, into the same model in one process.

    python bench/vllm_load.py FOLDER --runs 3 --shape rate=1GB/s,ttfb=60ms
    python bench/vllm_load.py FOLDER --runs 0 --faults 20            # seeded schedules of a bucket that errs

In an environment with vllm. FOLDER is put into a local bucket (fake-gcs-server); both loaders are vLLM's registered
classes, asked as vLLM asks them. A faulty bucket breaks off answers, says 503, or waits, seeded, behind both alike; in
every fourth schedule one answer has a bit turned over.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import socket
import statistics
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coldstream.bench.shape import BucketShape, ShapedProxy
from coldstream.demo.bucket import LocalBucket

LOADERS = ("coldstream", "runai")
_DATA = re.compile(rb"^GET [^\r\n]*(?:\.|%2E)safetensors", re.MULTILINE)
"""A request for weights, as either client writes the name."""


class Model:
    """A vLLM model on the CPU, without an engine, that is loaded into again and again."""

    def __init__(self, folder: Path, uri: str) -> None:
        from vllm.config import set_current_vllm_config
        from vllm.distributed import init_distributed_environment, initialize_model_parallel
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.model_loader.runai_streamer_loader import RunaiModelStreamerLoader
        from vllm.model_executor.model_loader.utils import initialize_model
        from vllm.utils.torch_utils import set_default_torch_dtype

        arguments = EngineArgs(model=uri, load_format="runai_streamer", max_model_len=512, enforce_eager=True)
        self.config = arguments.create_engine_config()
        with set_current_vllm_config(self.config):
            place = f"file:///tmp/coldstream-bench-{os.getpid()}"
            init_distributed_environment(1, 0, place, 0, backend="gloo")
            initialize_model_parallel(1, 1)
            with set_default_torch_dtype(self.config.model_config.dtype):
                self.model = initialize_model(vllm_config=self.config)
        from coldstream.engines.vllm.loader import ColdstreamModelLoader

        load = self.config.load_config
        self.loaders = {"coldstream": ColdstreamModelLoader(load), "runai": RunaiModelStreamerLoader(load)}

    def seconds(self, loader: str) -> float:
        """Of one load; raises what the loader raises."""
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.config):
            began = time.perf_counter()
            self.loaders[loader].load_weights(self.model, self.config.model_config)
            return time.perf_counter() - began

    def digest(self) -> int:
        """A number that tells loaded weights from others, if only by a bit."""
        import torch

        found = 0
        for item in self.model.parameters():
            found = zlib.crc32(item.detach().contiguous().view(torch.uint8).numpy().data, found)
        return found

    def spoil(self) -> None:
        """Other weights than any checkpoint's, so that what is not loaded is seen."""
        import torch

        with torch.no_grad():
            for item in self.model.parameters():
                item.fill_(0.125)


class FaultyProxy:
    """Passes connections on to a bucket; at times it breaks off, refuses, delays or damages an answer with weights."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._draw, self._chance, self._lock = random.Random(0), 0.0, threading.Lock()  # noqa: S311
        self.met, self._damaged = 0, -1
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def reseed(self, seed: int) -> None:
        """The next schedule: how often an answer meets a fault, from 2 % to 30 %; and which one is damaged, if any."""
        with self._lock:
            self._draw = random.Random(seed)  # noqa: S311
            self._chance, self.met = self._draw.choice([0.02, 0.05, 0.1, 0.3]), 0
            self._damaged = self._draw.randrange(8) if seed % 4 == 0 else -1

    def _fault(self) -> tuple[str, int] | None:
        with self._lock:
            self._damaged -= 1
            if self._damaged == -1:
                self.met += 1
                return "damaged", self._draw.randrange(1 << 16)
            if self._draw.random() >= self._chance:
                return None
            self.met += 1
            return self._draw.choice(["reset", "unavailable", "late"]), self._draw.randrange(1 << 21)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._upstream)
            while request := self._read_request(client):
                fault = self._fault() if _DATA.search(request) else None
                if fault is not None and fault[0] == "unavailable":
                    client.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
                    continue
                if fault is not None and fault[0] == "late":
                    time.sleep(0.5)
                server.sendall(request)
                kind, place = fault or ("none", 0)
                self._answer(server, client, place if kind == "reset" else None, place if kind == "damaged" else None)
        except OSError:
            pass
        finally:
            client.close()

    def _read_request(self, client: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            more = client.recv(65536)
            if not more:
                return b""
            head += more
        host = f"Host: {self._upstream[0]}:{self._upstream[1]}".encode()
        return re.sub(rb"(?im)^host: [^\r\n]*", host, head)

    def _received(self, server: socket.socket, most: int) -> bytes:
        piece = server.recv(most)
        if not piece:
            raise OSError("the bucket broke off")
        return piece

    def _answer(
        self, server: socket.socket, client: socket.socket, cut: int | None = None, flip: int | None = None
    ) -> None:
        """Pass an answer on; `cut` bytes of its content and no more, or with a bit of byte `flip` turned over."""
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._received(server, 65536)
        at = head.index(b"\r\n\r\n") + 4
        length = re.search(rb"(?i)content-length: (\d+)", head[:at])
        left = (int(length[1]) if length else 0) - (len(head) - at)
        client.sendall(head)
        while left > 0:
            if cut is not None and cut <= 0:
                raise OSError("broken off")
            piece = bytearray(self._received(server, min(left, 1 << 18)))
            if flip is not None and flip < len(piece):
                piece[flip] ^= 1
            flip = None if flip is None or flip < len(piece) else flip - len(piece)
            client.sendall(piece)
            left -= len(piece)
            cut = None if cut is None else cut - len(piece)


@contextmanager
def environment(url: str) -> Iterator[None]:
    """Both clients know of the bucket."""
    os.environ["STORAGE_EMULATOR_HOST"] = url
    os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = url
    os.environ["RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS"] = "true"
    yield


def measure(model: Model, runs: int) -> dict[str, Any]:
    """Alternating runs of both, the first of each to warm up; medians and every run."""
    taken: dict[str, list[float]] = {name: [] for name in LOADERS}
    for number in range(runs + 1):
        for name in LOADERS if number % 2 else LOADERS[::-1]:
            model.spoil()
            used = time.process_time()
            seconds = model.seconds(name)
            used = time.process_time() - used
            print(f"{name}: {seconds:.2f} s, {used:.2f} s of processors, digest {model.digest():08x}", flush=True)
            if number:
                taken[name].append(seconds)
    return {name: {"median": statistics.median(found), "runs": found} for name, found in taken.items() if found}


def survive(model: Model, proxy: FaultyProxy, seeds: range) -> dict[str, Any]:
    """How each ends under each schedule: whole, an error, or other weights without one."""
    proxy.reseed(-1)
    right = model.digest()
    ends: dict[str, list[str]] = {name: [] for name in LOADERS}
    for seed in seeds:
        for name in LOADERS:
            proxy.reseed(seed)
            model.spoil()
            try:
                model.seconds(name)
                end = "whole" if model.digest() == right else "WRONG"
            except Exception as exc:
                end = type(exc).__name__
            ends[name].append(end)
            print(f"schedule {seed}: {name}: {end}, {proxy.met} faults met", flush=True)
    return {name: {end: found.count(end) for end in sorted(set(found))} for name, found in ends.items()}


def main() -> None:
    """Measure, and print one object of JSON at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--faults", type=int, default=0)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--shape", default="rate=1GB/s,ttfb=60ms")
    asked = parser.parse_args()
    found: dict[str, Any] = {"folder": str(asked.folder), "load": os.getloadavg()[0]}
    with LocalBucket() as bucket:
        uri = bucket.add("bench", "model", asked.folder)
        host, _, port = bucket.url.removeprefix("http://").partition(":")
        with environment(bucket.url):
            model = Model(asked.folder, uri)
        if asked.runs:
            with ShapedProxy(host, int(port), BucketShape.parse(asked.shape)) as proxy, environment(proxy.url):
                found["seconds"] = measure(model, asked.runs)
        if asked.faults:
            with environment(bucket.url):
                model.spoil()
                model.seconds("coldstream")
            faulty = FaultyProxy(host, int(port))
            with environment(faulty.url):
                found["ends"] = survive(model, faulty, range(asked.first_seed, asked.first_seed + asked.faults))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
