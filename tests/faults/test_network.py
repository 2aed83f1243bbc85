"""Each kind of trouble once, on real connections to a real storage server."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from coldstream.demo.bucket import LocalBucket
from coldstream.errors import AccessDenied, ChecksumMismatch, ObjectChanged, StoreUnavailable
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.stores.ranges import PIECE
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.retry import RetryPolicy
from coldstream.weights.transfer.stream import StreamOptions, stream
from tests.support import files
from tests.support.proxy import ChaosProxy, Trouble
from tests.support.servers import free_port

PART = 1 << 18
URI = "gs://models/chaos"
POLICY = RetryPolicy(attempts=6, first_delay=0.01, max_delay=0.1, deadline=60.0)
OPTIONS = StreamOptions(part_size=PART, concurrency=4, retry=POLICY, hedge_fraction=0.0)
TENSORS = {f"model.layers.{n}.w": ("U8", (300_000,), random.Random(n).randbytes(300_000)) for n in range(12)}


@pytest.fixture(scope="module")
def bucket() -> Iterator[LocalBucket]:
    with LocalBucket() as bucket:
        fill(bucket)
        yield bucket


def fill(bucket: LocalBucket) -> None:
    for name, data in files.checkpoint(TENSORS, shards=2).items():
        bucket.put("models", f"chaos/{name}", data)


class On:
    """The trouble at `count` reads of weights, from number `after` on; headers do not count."""

    def __init__(self, trouble: Trouble, *, count: int = 1, after: int = 2) -> None:
        self.trouble, self.count, self.after, self.number = trouble, count, after, 0

    def __call__(self, path: str, span: tuple[int, int] | None) -> Trouble | None:
        if not path.split("?")[0].endswith(".safetensors") or span is None or span[0] == 0:
            return None
        self.number += 1
        return self.trouble if self.after < self.number <= self.after + self.count else None


async def load(proxy: ChaosProxy, options: StreamOptions = OPTIONS, *, stall: float = 5.0) -> Progress:
    """Load through the proxy; the bytes must be right."""
    progress = Progress()
    store = open_store(Location.parse(URI), environ={"STORAGE_EMULATOR_HOST": proxy.url}, stall=stall)
    checkpoint = await open_checkpoint_async(URI, store=store, retry=options.retry)
    loaded = {item.info.name: bytes(item.data) async for item in stream(checkpoint, options=options, progress=progress)}
    assert loaded == {name: data for name, (_, _, data) in TENSORS.items()}
    assert progress.verified_files == 2
    return progress


@pytest.mark.parametrize("kind", ["reset", "close"])
async def test_a_connection_that_breaks_in_a_body(bucket: LocalBucket, kind: str) -> None:
    with ChaosProxy(bucket.url, On(Trouble(kind, at=100_000))) as proxy:
        progress = await load(proxy)
    assert len(proxy.met) == 1
    assert progress.counters.retries == 1


async def test_reads_that_broke_go_on_in_pieces(bucket: LocalBucket) -> None:
    """The first break loses its read; each one after it no more than a piece."""
    big = replace(OPTIONS, part_size=1 << 22, concurrency=1)
    tensors = {"model.embed_tokens.weight": ("U8", (4_000_000,), random.Random(1).randbytes(4_000_000))}
    for name, data in files.checkpoint(tensors).items():
        bucket.put("models", f"large/{name}", data)
    progress = Progress()
    with ChaosProxy(bucket.url, On(Trouble("close", at=1_500_000), count=3, after=0)) as proxy:
        store = open_store(Location.parse("gs://models/large"), environ={"STORAGE_EMULATOR_HOST": proxy.url})
        checkpoint = await open_checkpoint_async("gs://models/large", store=store, retry=POLICY)
        loaded = [bytes(item.data) async for item in stream(checkpoint, options=big, progress=progress)]
    assert loaded == [tensors["model.embed_tokens.weight"][2]]
    assert progress.counters.resumes == 2
    first, whole, resumed, again = [span for _, _, span in proxy.seen if span is not None and span[0] > 0]
    assert first == whole
    for before, after in ((whole, resumed), (resumed, again)):
        assert after[1] == first[1]
        assert 0 <= before[0] + 1_500_000 - after[0] < 2 * PIECE


async def test_a_connection_that_falls_silent_is_cut(bucket: LocalBucket) -> None:
    with ChaosProxy(bucket.url, On(Trouble("stall", at=50_000, seconds=60.0))) as proxy:
        await load(proxy, stall=0.5)
        assert proxy.hung_up.wait(30)


async def test_bytes_that_change_on_the_way_are_fetched_again(bucket: LocalBucket) -> None:
    with ChaosProxy(bucket.url, On(Trouble("corrupt", at=1000))) as proxy:
        progress = await load(proxy)
    assert progress.counters.refetches == 1


async def test_bytes_that_change_every_time_are_an_error(bucket: LocalBucket) -> None:
    always = On(Trouble("corrupt", at=1000), count=1000)
    says = "gs://models/chaos/model-0000"
    with ChaosProxy(bucket.url, always) as proxy, pytest.raises(ChecksumMismatch, match=says):
        await load(proxy)


class ThrottledFor:
    """429 to every read for some seconds, with the rest of them as Retry-After."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.until, self.number = seconds, 0.0, 0

    def __call__(self, path: str, span: tuple[int, int] | None) -> Trouble | None:
        if ".safetensors" not in path:
            return None
        self.number += 1
        now = time.monotonic()
        if self.number == 4:
            self.until = now + self.seconds
        return Trouble("status", status=429, seconds=self.seconds) if now < self.until else None


async def test_too_many_requests_with_retry_after(bucket: LocalBucket) -> None:
    """What is refused may still be asked for by those who have not heard it; then there is quiet until the time."""
    chosen = ThrottledFor(1.0)
    with ChaosProxy(bucket.url, chosen) as proxy:
        progress = await load(proxy)
    assert progress.counters.throttles >= 1
    refused = [when for when, _, _ in proxy.seen if chosen.until - 0.5 < when < chosen.until]
    assert refused == []


async def test_unavailable_for_a_while(bucket: LocalBucket) -> None:
    with ChaosProxy(bucket.url, On(Trouble("status", status=503), count=5)) as proxy:
        progress = await load(proxy)
    assert progress.counters.retries >= 2


async def test_forbidden_fails_at_once(bucket: LocalBucket) -> None:
    says = r"gs://models/chaos.*objectViewer"
    always = On(Trouble("status", status=403), count=1000)
    with ChaosProxy(bucket.url, always) as proxy, pytest.raises(AccessDenied, match=says):
        await load(proxy)


async def test_an_object_that_is_replaced_while_it_loads(bucket: LocalBucket) -> None:
    other = files.checkpoint({name: (d, s, data[::-1]) for name, (d, s, data) in TENSORS.items()}, shards=2)
    name = "model-00002-of-00002.safetensors"

    def replace_it() -> None:
        bucket.put("models", f"chaos/{name}", other[name])

    try:
        chosen = On(Trouble("call", action=replace_it))
        with ChaosProxy(bucket.url, chosen) as proxy, pytest.raises(ObjectChanged, match=name):
            await load(proxy)
    finally:
        fill(bucket)


async def test_a_network_that_comes_up_late(bucket: LocalBucket) -> None:
    port = free_port()
    started = threading.Event()
    proxies: list[ChaosProxy] = []

    def come_up() -> None:
        started.wait()
        proxy = ChaosProxy(bucket.url, lambda path, span: None, port=port)
        proxies.append(proxy.__enter__())

    timer = threading.Thread(target=come_up)
    timer.start()
    asyncio.get_running_loop().call_later(0.5, started.set)
    store = open_store(Location.parse(URI), environ={"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"})
    checkpoint = await open_checkpoint_async(URI, store=store, retry=RetryPolicy(attempts=2, first_delay=0.01))
    timer.join()
    proxies[0].__exit__(None, None, None)
    assert len(checkpoint.tensors) == len(TENSORS)


async def test_nobody_listens_for_longer_than_the_window() -> None:
    store = open_store(Location.parse(URI), environ={"STORAGE_EMULATOR_HOST": "http://127.0.0.1:1"})
    short = RetryPolicy(attempts=2, first_delay=0.01, refused_window=0.2)
    with pytest.raises(StoreUnavailable, match=r"gs://models/chaos.*refused"):
        await open_checkpoint_async(URI, store=store, retry=short)


async def test_stopping_leaves_no_request_in_flight(bucket: LocalBucket) -> None:
    """The proxy sees the client hang up on every body that it still waited for."""
    always = On(Trouble("stall", at=10, seconds=600.0), count=1000, after=0)
    with ChaosProxy(bucket.url, always) as proxy:
        task = asyncio.create_task(load(proxy, stall=600.0))
        assert await asyncio.to_thread(proxy.stalled.wait, 30.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(proxy.hung_up.wait, 30.0)


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_an_open_that_does_not_succeed_leaves_no_thread(bucket: LocalBucket, how: str) -> None:
    def trouble(path: str, span: tuple[int, int] | None) -> Trouble | None:
        if not path.split("?")[0].endswith(".safetensors"):
            return None
        return Trouble("stall", at=10, seconds=600.0) if how == "cancelled" else Trouble("status", status=403)

    before = set(threading.enumerate())  # other tests' servers
    with ChaosProxy(bucket.url, trouble) as proxy:
        store = open_store(Location.parse(URI), environ={"STORAGE_EMULATOR_HOST": proxy.url}, stall=600.0)
        task = asyncio.create_task(open_checkpoint_async(URI, store=store, retry=POLICY))
        if how == "cancelled":
            assert await asyncio.to_thread(proxy.stalled.wait, 30.0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else AccessDenied):
            await task
        left = set(threading.enumerate()) - before
        assert not [thread for thread in left if thread.name.startswith("coldstream")]


# Without torch, whose import would be most of the time; what iter_tensors adds to this is a view of each buffer.
START = """
import signal, threading
import coldstream
from coldstream.weights.transfer.background import BackgroundIterator
from coldstream.weights.checkpoint.checkpoint import open_checkpoint
from coldstream.weights.transfer.stream import stream
def load():
    return BackgroundIterator(stream(open_checkpoint(uri)), name="load")
"""
SCRIPTS: dict[str, str] = {
    "abandoned": "it = load(); next(it)",
    "closed": "it = load(); next(it); it.close(); assert list(it) == []",
    "exhausted": "assert len(list(load())) == 12; coldstream.verify(uri)\n"
    "assert [t.name for t in threading.enumerate()] == ['MainThread'], threading.enumerate()",
    "interrupted": "it = load()\nnext(it)\n"
    "try:\n    signal.raise_signal(signal.SIGINT)\n    list(it)\nexcept KeyboardInterrupt:\n    it.close()\n"
    "assert [t.name for t in threading.enumerate()] == ['MainThread'], threading.enumerate()",
    "with torch": "it = coldstream.iter_tensors(uri); next(it)",
}


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_the_interpreter_exits_cleanly_whatever_was_going_on(bucket: LocalBucket, name: str) -> None:
    script = f"uri = {URI!r}\n{START}\n{SCRIPTS[name]}"
    environment: dict[str, Any] = {"PATH": "/usr/bin", "OMP_NUM_THREADS": "1", **bucket.environment}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr.decode()) == (0, "")
