"""Whatever the store does while a checkpoint is read: the right bytes, or an error with a name."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from itertools import pairwise

import pytest

from coldstream.errors import (
    AccessDenied,
    BadResponse,
    ChecksumMismatch,
    ColdstreamError,
    ObjectChanged,
    StoreUnavailable,
)
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from coldstream.weights.stores.store import Pin, Store
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.retry import RetryPolicy
from coldstream.weights.transfer.stream import Landed, StreamOptions, stream, stream_ranges
from tests.faults.shaped import VirtualLoop
from tests.support import files
from tests.support.fault_stores import Choose, Fault, FaultStore, MemoryStore, Request, damaged, once, times

FAST = RetryPolicy(attempts=4, first_delay=0.001, max_delay=0.005, refused_window=0.05, deadline=20.0)
SMALL = StreamOptions(part_size=256, retry=FAST)


async def load(store: Store, options: StreamOptions = SMALL) -> tuple[dict[str, bytes], Progress]:
    progress = Progress()
    checkpoint = await open_checkpoint_async(store.location, store=store, retry=options.retry)
    landed = stream(checkpoint, options=options, progress=progress)
    return {item.info.name: bytes(item.data) async for item in landed}, progress


async def load_with(fault: Choose, options: StreamOptions = SMALL) -> tuple[Progress, FaultStore]:
    """Load a model through a fault, and hold it against the truth."""
    tensors = files.model()
    store = FaultStore(MemoryStore(files.checkpoint(tensors, shards=2)), fault)
    loaded, progress = await load(store, options)
    assert loaded == {name: data for name, (_, _, data) in tensors.items()}
    return progress, store


async def test_without_faults_every_byte_is_read_once_and_verified() -> None:
    progress, store = await load_with(lambda request: None)
    assert progress.phase == "done"
    assert progress.landed_bytes == progress.total_bytes
    assert progress.verified_files == 2
    assert progress.unverified_files == ()
    assert progress.counters.retries == 0
    assert store.inner.listings == 1


async def test_a_reset_is_resumed_from_the_last_good_byte() -> None:
    progress, store = await load_with(once("reset", after=2, at=100))
    broken = store.met[0][0]
    assert Request(broken.name, broken.start + 100, broken.end) in store.inner.requests
    assert progress.counters.resumes == 1


async def test_a_reset_that_loses_what_had_landed_is_read_again() -> None:
    progress, store = await load_with(once("lost", after=2, at=100))
    assert store.inner.requests.count(store.met[0][0]) == 2
    assert progress.counters.retries == 1


async def test_a_connection_that_breaks_after_every_few_bytes_still_ends() -> None:
    progress, _ = await load_with(times(40, "reset", after=2, at=20))
    assert progress.counters.resumes == 40 > FAST.attempts


async def test_a_short_body_is_resumed() -> None:
    progress, _ = await load_with(once("short", after=3, at=10))
    assert progress.counters.retries == 1


async def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(BadResponse, match=r"gs://memory/model/model-0000.*257 are sent"):
        await load_with(times(99, "long", after=2))


@pytest.mark.parametrize("kind", ["wrong", "repeated"])
async def test_damaged_bytes_are_fetched_again_once(kind: str) -> None:
    progress, _ = await load_with(once(kind, after=4, at=50))
    assert progress.counters.refetches == 1
    assert progress.verified_files == 2


async def test_bytes_damaged_twice_are_an_error_with_the_objects_name() -> None:
    store = damaged(MemoryStore(files.checkpoint(files.model())), "model.safetensors")
    with pytest.raises(ChecksumMismatch, match=r"gs://memory/model/model\.safetensors.*twice.*CRC32C"):
        await load(store)


async def test_a_header_damaged_on_the_way_is_an_error() -> None:
    """Its tensors would have the wrong names or places, so fetching them again would not help."""
    at = 40  # inside of the first tensor's name or metadata
    with pytest.raises(ColdstreamError, match=r"model-0000"):
        await load_with(once("wrong", at=at))


async def test_a_store_without_checksums_is_reported_as_unverified() -> None:
    store = MemoryStore(files.checkpoint(files.model()), checksums=False)
    _, progress = await load(store)
    assert progress.unverified_files == ("model.safetensors",)
    assert progress.verified_files == 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
async def test_where_verification_is_required_a_file_without_a_checksum_is_refused(name: str) -> None:
    class OneWithout(MemoryStore):
        def _pin(self, wanted: str) -> Pin:
            pin = super()._pin(wanted)
            return replace(pin, crc32c=None) if wanted == name else pin

    store = OneWithout(files.checkpoint(files.model()))
    with pytest.raises(BadResponse, match=rf"{name}: cannot be verified.*required"):
        await load(store, replace(SMALL, verify="required"))
    assert not [request for request in store.requests if request.start]


async def test_where_verification_is_required_a_part_of_a_file_is_refused() -> None:
    store = MemoryStore(files.checkpoint(files.model()))
    checkpoint = await open_checkpoint_async(store.location, store=store)
    options = replace(SMALL, verify="required")
    with pytest.raises(BadResponse, match="only a part of it"):
        async for _ in stream(checkpoint, select=lambda info: "norm" in info.name, options=options):
            pass
    assert len([item async for item in stream(checkpoint, options=options)]) == len(files.model())


async def test_a_small_file_that_is_damaged_on_the_way_is_read_again() -> None:
    tensors = files.model()
    contents = files.checkpoint(tensors) | {"tokenizer.json": b'{"a": 1}'}
    store = FaultStore(MemoryStore(contents), once("wrong", at=3, name="tokenizer.json"))
    checkpoint = await open_checkpoint_async(store.location, store=store)
    assert await checkpoint.read_file("tokenizer.json") == contents["tokenizer.json"]
    assert len(store.met) == 1


async def test_a_small_file_that_is_not_the_objects_is_refused() -> None:
    store = damaged(MemoryStore(files.checkpoint(files.model())), "config.json")
    with pytest.raises(ChecksumMismatch, match=r"config\.json: what arrived, twice"):
        await open_checkpoint_async(store.location, store=store)


async def test_access_denied_fails_at_once() -> None:
    store = FaultStore(MemoryStore(files.checkpoint(files.model())), once("denied", after=3))
    with pytest.raises(AccessDenied):
        await load(store, StreamOptions(part_size=256, concurrency=1, retry=FAST))
    assert len(store.met) == 1


async def test_retry_after_is_obeyed() -> None:
    """No read may begin in the meantime, also none of the other connections."""
    began: list[float] = []
    inner = once("throttled", after=6, seconds=0.3)
    loop = asyncio.get_running_loop()

    def choose(request: Request) -> Fault | None:
        began.append(loop.time())
        return inner(request)

    progress, store = await load_with(choose, StreamOptions(part_size=256, concurrency=2, retry=FAST))
    assert progress.counters.throttles == 1
    gaps = [later - earlier for earlier, later in pairwise(began)]
    assert max(gaps) >= 0.3
    assert len(store.met) == 1


async def test_unavailable_for_ever_is_an_error_after_the_attempts() -> None:
    with pytest.raises(StoreUnavailable, match="gave up after 4 attempts"):
        await load_with(times(10_000, "unavailable", after=2))


async def test_refused_connections_are_waited_out() -> None:
    """More refusals than attempts: a new instance's network may come up later than the instance."""
    slow = RetryPolicy(attempts=2, first_delay=0.001, max_delay=0.002, refused_window=30.0)
    progress, _ = await load_with(times(50, "refused", after=2), StreamOptions(part_size=256, retry=slow))
    assert progress.counters.retries == 50


async def test_refused_for_longer_than_the_window_is_an_error() -> None:
    with pytest.raises(StoreUnavailable, match="connection refused"):
        await load_with(times(10_000, "refused", after=2))


async def test_an_object_that_was_replaced_is_never_mixed() -> None:
    with pytest.raises(ObjectChanged):
        await load_with(once("replaced", after=4))


async def test_everything_ends_within_the_deadline() -> None:
    policy = RetryPolicy(first_delay=0.001, deadline=0.4)
    with pytest.raises(StoreUnavailable, match="deadline"):
        await load_with(times(10_000, "stall", after=2, seconds=3600), StreamOptions(part_size=256, retry=policy))


async def test_a_late_read_is_overtaken_by_a_second_one() -> None:
    tensors = {f"model.layers.{n}.w": ("U8", (256,), bytes([n]) * 256) for n in range(40)}
    store = FaultStore(MemoryStore(files.checkpoint(tensors)), once("slow", after=20, seconds=60.0))
    loaded, progress = await load(store)
    assert len(loaded) == 40
    assert progress.counters.hedges == 1
    assert progress.counters.hedged_bytes == progress.counters.wasted_bytes == 256


async def test_a_second_read_fetches_only_what_is_left() -> None:
    tensors = {f"model.layers.{n}.w": ("U8", (256,), bytes([n]) * 256) for n in range(40)}
    store = FaultStore(MemoryStore(files.checkpoint(tensors)), once("paused", after=20, at=200, seconds=60.0))
    loaded, progress = await load(store)
    assert loaded == {name: data for name, (_, _, data) in tensors.items()}
    assert progress.counters.hedged_bytes == progress.counters.wasted_bytes == 56
    assert progress.verified_files == 1
    assert store.inner.requests[-1].end - store.inner.requests[-1].start == 56


def test_a_read_that_was_cut_for_its_time_goes_on_where_it_was() -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        patient = RetryPolicy(attempts=2, deadline=600.0)
        options = StreamOptions(part_size=256, retry=patient, hedge_fraction=0)
        progress, store = runner.run(load_with(once("paused", after=2, at=100, seconds=300.0), options))
    cut = store.met[0][0]
    assert Request(cut.name, cut.start + 100, cut.end) in store.inner.requests
    assert (progress.counters.stalls, progress.counters.resumes) == (1, 1)
    assert progress.verified_files == 2


async def test_hedging_stops_at_its_share_of_the_bytes() -> None:
    tensors = {f"model.layers.{n}.w": ("U8", (256,), bytes([n]) * 256) for n in range(40)}
    store = FaultStore(MemoryStore(files.checkpoint(tensors)), times(20, "slow", after=20, seconds=0.6))
    _, progress = await load(store, StreamOptions(part_size=256, retry=FAST, hedge_fraction=0.05))
    assert 0 < progress.counters.hedged_bytes <= 0.05 * progress.total_bytes


@pytest.mark.parametrize("budget", [1, 7, 100, 1000])
async def test_bytes_in_flight_never_exceed_the_budget_even_where_a_tensor_is_larger(budget: int) -> None:
    """Counted by the store and the consumer, not by the stream: asked for, and not yet taken."""
    tensors = files.model()
    outstanding = 0
    most = 0

    def choose(request: Request) -> None:
        nonlocal outstanding, most
        if request.start >= data_start:
            outstanding += request.end - request.start
            most = max(most, outstanding)

    store = FaultStore(MemoryStore(files.checkpoint(tensors)), choose)
    data_start = len(store.inner.files["model.safetensors"])
    checkpoint = await open_checkpoint_async(store.location, store=store)
    data_start = checkpoint.shards[0].header.data_start
    options = StreamOptions(max_bytes_in_flight=budget, part_size=512, retry=FAST, hedge_fraction=0)
    async for landed in stream_ranges(checkpoint, options=options):
        outstanding -= landed.read.nbytes
        await asyncio.sleep(0)
    assert outstanding == 0
    assert 0 < most <= budget
    loaded, _ = await load(store, options)
    assert loaded == {name: data for name, (_, _, data) in tensors.items()}


@pytest.mark.parametrize("taken", [0, 1, 5])
async def test_a_consumer_that_stops_leaves_no_task_no_thread_and_no_read(taken: int) -> None:
    store = MemoryStore(files.checkpoint(files.model()))
    checkpoint = await open_checkpoint_async(store.location, store=store)
    threads, tasks = threading.active_count(), len(asyncio.all_tasks())
    progress = Progress()
    landed = stream(checkpoint, options=SMALL, progress=progress)
    got: list[Landed] = [await anext(landed) for _ in range(taken)]
    await landed.aclose()
    assert len(got) == taken
    assert threading.active_count() == threads
    assert len(asyncio.all_tasks()) == tasks
    assert store.running == 0


async def test_a_cancelled_load_leaves_nothing_behind() -> None:
    store = FaultStore(MemoryStore(files.checkpoint(files.model())), times(99, "stall", after=3, seconds=3600))
    threads = threading.active_count()
    task = asyncio.create_task(load(store))
    await store.hit.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert threading.active_count() == threads
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_only_the_chosen_tensors_are_read() -> None:
    store = MemoryStore(files.checkpoint(files.model(), shards=2))
    checkpoint = await open_checkpoint_async(store.location, store=store)
    store.requests.clear()
    progress = Progress()
    chosen = stream(checkpoint, select=lambda info: ".layers.1." in info.name, options=SMALL, progress=progress)
    names = {landed.info.name async for landed in chosen}
    assert names == {name for name in files.model() if ".layers.1." in name}
    assert sum(r.end - r.start for r in store.requests) == sum(checkpoint.tensors[name].nbytes for name in names)
    assert progress.unverified_files != ()


async def test_rows_of_a_tensor_are_read_alone() -> None:
    tensors = files.model(width=8)
    store = MemoryStore(files.checkpoint(tensors))
    checkpoint = await open_checkpoint_async(store.location, store=store)
    name = "model.embed_tokens.weight"
    rows = stream(checkpoint, select=lambda info: info.name == name and info.rows(16, 32), options=SMALL)
    landed = [item async for item in rows]
    assert landed[0].info.shape == (16, 8)
    assert bytes(landed[0].data) == tensors[name][2][16 * 16 : 32 * 16]
