"""One way to bring a checkpoint into memory, timed in a process of its own.

    python -m coldstream.bench.load_child NAME URI [--touch-memory]

Prints a JSON object. What is imported beforehand, torch above all, is neither in the time nor in the memory.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from coldstream.errors import ColdstreamError
from coldstream.host import process
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.client import client_options
from coldstream.weights.stores.network import Network


@dataclass(frozen=True, slots=True)
class Loaded:
    """The tensors, held so that none is let go before the end. `elsewhere`: bytes in memory that is not ours."""

    kept: Any
    nbytes: int
    elsewhere: int = 0


Prepared = Callable[[], Loaded]

# Where copies lie that are memory and yet no process's own.
SHARED = Path("/dev/shm")  # noqa: S108  memory is meant

GCS_API = "https://storage.googleapis.com"


def _coldstream(uri: str, verify: bool = True) -> Prepared:
    from coldstream.weights.load import load_state_dict
    from coldstream.weights.transfer.stream import StreamOptions

    def load() -> Loaded:
        state = load_state_dict(uri, options=StreamOptions(verify=verify))
        return Loaded(state, sum(tensor.nbytes for tensor in state.values()))

    return load


def _coldstream_unverified(uri: str) -> Prepared:
    return _coldstream(uri, verify=False)


def _obstore(uri: str, connections: int) -> Prepared:
    """What a load over obstore would be at best: its buffers kept as they come, unverified."""
    from obstore.store import GCSStore

    checkpoint = open_checkpoint(uri)
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    client: Any = client_options(Network(os.environ), emulator or GCS_API, stall=60.0)
    config: Any = {"base_url": emulator, "skip_signature": True} if emulator else {}
    store = GCSStore(checkpoint.location.bucket, config=config, client_options=client)

    def load() -> Loaded:
        kept = asyncio.run(_obstore_ranges(checkpoint, store, connections))
        return Loaded(kept, sum(len(data) for data in kept))

    return load


async def _obstore_ranges(checkpoint: Checkpoint, store: Any, connections: int) -> list[Any]:
    import obstore

    size = 32 * 1024 * 1024
    pins = [shard.pin for shard in checkpoint.shards]
    parts = iter([(pin, at, min(at + size, pin.size)) for pin in pins for at in range(0, pin.size, size)])
    kept: list[Any] = []

    async def connection() -> None:
        for pin, start, end in parts:
            path = checkpoint.location.child(pin.name).path
            options: Any = {"range": (start, end), "version": pin.generation}
            answer = await obstore.get_async(store, path, options=options)
            kept.append(await answer.bytes_async())

    await asyncio.gather(*(connection() for _ in range(connections)))
    return kept


def _runai(uri: str, concurrency: int) -> Prepared:
    os.environ["RUNAI_STREAMER_CONCURRENCY"] = str(concurrency)
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator.startswith("https:") and "SSL_CERT_FILE" in os.environ:
        raise ColdstreamError("cannot be told of another authority than the system's, so not of a throw-away one")
    if emulator:
        os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = emulator
        os.environ["RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS"] = "true"
    streamer_class = _peer("runai_model_streamer").SafetensorsStreamer
    names = [runai_name(file) for file in _files(uri)]

    def load() -> Loaded:
        state = {}
        with streamer_class() as streamer:
            streamer.stream_files(names)
            for name, tensor in streamer.get_tensors():
                state[name] = tensor.clone() if not tensor.is_contiguous() else tensor
        return Loaded(state, sum(tensor.nbytes for tensor in state.values()))

    return load


def _gcsfs(uri: str) -> Prepared:
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    gcsfs = _peer("gcsfs")
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    options = {"token": "anon", "endpoint_url": emulator} if emulator else {}
    system = gcsfs.GCSFileSystem(**options)
    names = [f"{file.bucket}/{file.path}" for file in _files(uri)]

    def load() -> Loaded:
        part = 16 * 1024 * 1024
        sizes = {name: int(system.info(name)["size"]) for name in names}
        ranges = [(name, at, min(at + part, size)) for name, size in sizes.items() for at in range(0, size, part)]
        data = []
        for index in range(0, len(ranges), 8):
            paths, starts, ends = zip(*ranges[index : index + 8], strict=True)
            data += system.cat_ranges(list(paths), list(starts), list(ends))
        return Loaded(data, sum(sizes.values()))

    return load


def _transfer_manager(uri: str) -> Prepared:
    """To /dev/shm, which is memory, as a copy on disk would be on Cloud Run; then safetensors."""
    from safetensors.torch import load_file

    anonymous_credentials = _peer("google.auth.credentials").AnonymousCredentials
    storage, transfer_manager = _peer("google.cloud.storage"), _peer("google.cloud.storage.transfer_manager")
    location = Location.parse(uri)
    anonymous = os.environ.get("STORAGE_EMULATOR_HOST")
    client = storage.Client(project="bench", credentials=anonymous_credentials()) if anonymous else storage.Client()
    bucket = client.bucket(location.bucket)
    names = [file.path for file in _files(uri)]

    def load() -> Loaded:
        state: dict[str, Any] = {}
        for number, name in enumerate(names):
            target = SHARED / f"coldstream-bench-{os.getpid()}-{number}"
            try:
                transfer_manager.download_chunks_concurrently(
                    bucket.blob(name), str(target), worker_type=transfer_manager.THREAD, max_workers=8
                )
                state |= load_file(str(target))
            finally:
                target.unlink(missing_ok=True)
        size = sum(tensor.nbytes for tensor in state.values())
        return Loaded(state, size, elsewhere=size)

    return load


def _safetensors(uri: str) -> Prepared:
    from safetensors.torch import load

    names = [file.path for file in _files(uri)]

    def read() -> Loaded:
        state: dict[str, Any] = {}
        for name in names:
            state |= load(Path(name).read_bytes())
        return Loaded(state, sum(tensor.nbytes for tensor in state.values()))

    return read


def _fastsafetensors(uri: str) -> Prepared:
    fastsafe_open = _peer("fastsafetensors").fastsafe_open
    names = [file.path for file in _files(uri)]

    def read() -> Loaded:
        with fastsafe_open(filenames=names, nogds=True, device="cpu") as opened:
            state = {name: opened.get_tensor(name).clone().detach() for name in opened.keys()}  # noqa: SIM118
        return Loaded(state, sum(tensor.nbytes for tensor in state.values()))

    return read


def _curl(uri: str) -> Prepared:
    """The limit: four curls that keep nothing."""
    checkpoint = open_checkpoint(uri)
    urls = [(_url(checkpoint, shard.name), shard.pin.size) for shard in checkpoint.shards]

    def drain() -> Loaded:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda quarter: _curl_quarter(urls, quarter), range(4)))
        return Loaded(None, sum(size for _, size in urls))

    return drain


def _curl_quarter(urls: list[tuple[str, int]], quarter: int) -> None:
    # HTTP/1.1 for a connection each: the streams of HTTP/2 wait for one another's windows.
    command = ["curl", "--http1.1", "--silent", "--show-error", "--fail"]
    for index, (url, size) in enumerate(urls):
        start, end = size * quarter // 4, size * (quarter + 1) // 4 - 1
        command += ["--next", "--http1.1", "--silent", "--fail"] if index else []
        command += ["--range", f"{start}-{end}", "--output", "/dev/null", url]
    subprocess.run(command, check=True)


def _url(checkpoint: Checkpoint, name: str) -> str:
    location = checkpoint.location.child(name)
    if location.scheme in ("http", "https"):
        return str(location)
    if location.scheme != "gs":
        raise ColdstreamError(f"{location}: curl has no address for it")
    base = os.environ.get("STORAGE_EMULATOR_HOST", GCS_API)
    return f"{base}/{location.bucket}/{location.path}"


def runai_name(file: Location) -> str:
    """How Run:ai's streamer is told of a file: it knows buckets by their scheme, and of a disk the plain path."""
    return file.path if file.scheme == "file" else str(file)


def _peer(module: str) -> Any:
    """A package of the bench extra, of which many have no types."""
    return import_module(module)


def _files(uri: str) -> list[Location]:
    checkpoint = open_checkpoint(uri)
    return [checkpoint.location.child(shard.name) for shard in checkpoint.shards]


CONTENDERS: dict[str, Callable[[str], Prepared]] = {
    "coldstream": _coldstream,
    "coldstream, unverified": _coldstream_unverified,
    "obstore x4": lambda uri: _obstore(uri, 4),
    "obstore x8": lambda uri: _obstore(uri, 8),
    "runai streamer x4": lambda uri: _runai(uri, 4),
    "runai streamer x8": lambda uri: _runai(uri, 8),
    "runai streamer x16": lambda uri: _runai(uri, 16),
    "transfer manager": _transfer_manager,
    "gcsfs": _gcsfs,
    "safetensors": _safetensors,
    "fastsafetensors": _fastsafetensors,
    "curl drain": _curl,
}


def _cpu_seconds() -> float:
    spent = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def _touch_memory(uri: str) -> None:
    """Use and free as much memory as the checkpoint needs: a virtual machine's host has then found the pages."""
    nbytes = int(open_checkpoint(uri).total_bytes * 1.1)
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, nbytes, mmap.PAGESIZE):
            memory[at] = 1


def measure(name: str, uri: str, *, touch_memory: bool = False) -> dict[str, float | int]:
    """Seconds, CPU seconds, bytes, and the memory that the load added at its peak.

    With `touch_memory`, after the same amount was used and freed.
    """
    import torch

    torch.empty(1)
    load = CONTENDERS[name](uri)
    if touch_memory:
        _touch_memory(uri)
    process.forget_peak()
    memory, cpu, faults = process.resident(), _cpu_seconds(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    began = time.perf_counter()
    loaded = load()
    seconds = time.perf_counter() - began
    result = {
        "seconds": seconds,
        "cpu_seconds": _cpu_seconds() - cpu,
        "bytes": loaded.nbytes,
        "peak_bytes": (process.status_bytes("VmHWM") or 0) - memory + loaded.elsewhere,
        "page_faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults,
    }
    del loaded
    return result


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], touch_memory="--touch-memory" in sys.argv[3:])), flush=True)
    # Some contenders do not survive the interpreter's exit; what was measured is printed.
    os._exit(0)
