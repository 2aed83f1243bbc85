"""Runs a plan: bytes in flight bounded, retry, verification -> tensors as they land. Imports no torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from coldstream.errors import ChecksumMismatch
from coldstream.timeline import Span, Timeline
from coldstream.weights.checkpoint import Checkpoint
from coldstream.weights.checksum import Fold, crc32c
from coldstream.weights.header import TensorInfo
from coldstream.weights.plan import Read, ReadPlan, part_size_for, plan
from coldstream.weights.progress import Progress
from coldstream.weights.retry import RetryPolicy, with_retries

Select = Callable[[TensorInfo], bool]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How bytes are fetched. Sizes in bytes; None lets the plan choose.

    `max_bytes_in_flight` bounds what was asked for and not yet taken from the iterator.
    """

    max_bytes_in_flight: int | None = None
    concurrency: int | None = None
    part_size: int | None = None
    verify: bool = True
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, slots=True)
class Landed:
    """A tensor's bytes, read-only; the view keeps the buffer of its range alive."""

    info: TensorInfo
    data: memoryview


async def stream(
    checkpoint: Checkpoint,
    *,
    select: Select | None = None,
    options: StreamOptions | None = None,
    progress: Progress | None = None,
    timeline: Timeline | None = None,
) -> AsyncIterator[Landed]:
    """The chosen tensors, about in execution order, as they land.

    A tensor may come twice, when its file failed its checksum and was fetched again: the later one counts.
    When the iterator ends, every byte was verified or its file is in `progress.unverified_files`.

    Raises:
        StoreError: see `coldstream.errors`; then nothing that was yielded may be used.
    """
    run = _Run(checkpoint, select, options or StreamOptions(), progress or Progress(), timeline or Timeline())
    async for landed in run.tensors():
        yield landed


class _Run:
    def __init__(
        self,
        checkpoint: Checkpoint,
        select: Select | None,
        options: StreamOptions,
        progress: Progress,
        timeline: Timeline,
    ) -> None:
        self.checkpoint = checkpoint
        self.options = options
        self.progress = progress
        self.timeline = timeline
        tensors = [info for info in checkpoint.tensors.values() if select is None or select(info)]
        total = sum(info.nbytes for info in tensors)
        self.concurrency = options.concurrency or 8
        part = options.part_size or part_size_for(total, connections=self.concurrency)
        self.plan: ReadPlan = plan(tensors, part_size=part)
        self.whole = len(tensors) == len(checkpoint.tensors)
        self.folds = {shard.name: Fold(shard.pin.size) for shard in checkpoint.shards}
        for shard in checkpoint.shards:
            header = memoryview(shard.header_bytes)
            self.folds[shard.name].add(0, len(header), crc32c(header))
        self.buffers: dict[str, bytearray] = {}
        self.missing: dict[str, int] = {}
        self.workers = ThreadPoolExecutor(2, thread_name_prefix="crc32c")

    async def tensors(self) -> AsyncIterator[Landed]:
        self.progress.total_bytes = self.plan.total_bytes
        self.progress.enter("streaming")
        for info in self.plan.empty:
            yield Landed(info, memoryview(b""))
        gate = asyncio.Semaphore(self.concurrency)
        tasks = [asyncio.create_task(self._fetch(read, gate)) for read in self.plan.reads]
        try:
            for task in asyncio.as_completed(tasks):
                for landed in await task:
                    yield landed
            self.progress.enter("verifying")
            self._verify()
            self.progress.enter("done")
        except BaseException:
            self.progress.enter("failed")
            raise
        finally:
            for item in tasks:
                item.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.workers.shutdown(wait=True)

    async def _fetch(self, read: Read, gate: asyncio.Semaphore) -> list[Landed]:
        pin = self.checkpoint.shard(read.file).pin
        where = f"{self.checkpoint.location.child(read.file)}, bytes {read.start}-{read.end}"
        async with gate:
            start = self.timeline.now()
            self.progress.counters.requests += 1
            data = await with_retries(
                lambda: self.checkpoint.store.read(pin, read.start, read.end), self.options.retry, where=where
            )
            self.timeline.record(Span("range", start, self.timeline.now(), read.file, {"bytes": read.nbytes}))
        if self.options.verify and pin.crc32c is not None:
            crc = await asyncio.get_running_loop().run_in_executor(self.workers, crc32c, data)
            self.folds[read.file].add(read.start, read.end, crc)
        self.progress.landed(read.nbytes)
        return self._land(read, data)

    def _land(self, read: Read, data: memoryview) -> list[Landed]:
        if read.whole:
            return [Landed(info, data[info.start - read.start : info.end - read.start]) for info in read.tensors]
        info = read.tensors[0]
        buffer = self.buffers.setdefault(info.name, bytearray(info.nbytes))
        buffer[read.start - info.start : read.end - info.start] = data
        self.missing[info.name] = self.missing.get(info.name, info.nbytes) - read.nbytes
        if self.missing[info.name]:
            return []
        return [Landed(info, memoryview(self.buffers.pop(info.name)).toreadonly())]

    def _verify(self) -> None:
        unverified = []
        for shard in self.checkpoint.shards:
            if shard.pin.crc32c is None or not self.whole or not self.options.verify:
                unverified.append(shard.name)
            elif self.folds[shard.name].value != shard.pin.crc32c:
                where = self.checkpoint.location.child(shard.name)
                raise ChecksumMismatch(f"{where}: the bytes do not match its CRC32C; upload it again")
            else:
                self.progress.verified_files += 1
        self.progress.unverified_files = tuple(unverified)
