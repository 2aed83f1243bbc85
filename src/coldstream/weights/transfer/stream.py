"""Runs a plan: bytes in flight bounded, every byte verified -> tensors as they land. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from coldstream.errors import BadResponse, ChecksumMismatch
from coldstream.host.memory import allocate
from coldstream.timeline import Span, Timeline
from coldstream.weights.checkpoint.checkpoint import READ_WHOLE, Checkpoint, Shard
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.checkpoint.plan import Read, ReadPlan, part_size_for, plan
from coldstream.weights.transfer.budget import ByteBudget
from coldstream.weights.transfer.checksum import Fold, copy, crc32c
from coldstream.weights.transfer.concurrency import Bounds, Concurrency
from coldstream.weights.transfer.fetch import Fetcher, HedgeBudget
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.retry import RetryPolicy, now

# True: fetch it. A TensorInfo from `info.rows(...)`: fetch only these rows.
Select = Callable[[TensorInfo], "bool | TensorInfo"]
# What a tensor is delivered in: `info.rows(...)`, one behind the other, each as a tensor of its own.
Pieces = Callable[[TensorInfo], Sequence[TensorInfo]]

DEFAULT_BYTES_IN_FLIGHT = 1024 * 1024 * 1024
# Threads that check what has landed; each does several gigabytes a second.
_CHECKERS = 2


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How bytes are fetched. Sizes in bytes; None lets the plan choose.

    `max_bytes_in_flight` bounds what was asked for and not yet taken from the iterator; where a tensor is larger, its
    parts are put into the tensor's own memory as they land. `hedge_fraction` of the bytes may be read a second time to
    cut off the slowest tail. `concurrency` adapts between its bounds; a number keeps it there. `verify`: True checks
    what can be checked, "required" refuses what cannot before the first byte.
    """

    max_bytes_in_flight: int | None = None
    concurrency: Bounds | int | None = None
    part_size: int | None = None
    verify: bool | Literal["required"] = True
    hedge_fraction: float = 0.06
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    @property
    def bounds(self) -> Bounds:
        """How many reads may run at once."""
        if isinstance(self.concurrency, int):
            return Bounds.fixed(self.concurrency)
        return self.concurrency or Bounds()


@dataclass(frozen=True, slots=True)
class LandedRange:
    """The bytes of one read."""

    read: Read
    data: memoryview
    # The tensor that is larger than a read, when these were the last of its bytes.
    tensor: memoryview | None = None


@dataclass(frozen=True, slots=True)
class Landed:
    """A tensor's bytes; the view keeps the buffer of its range alive. Not to be written to."""

    info: TensorInfo
    data: memoryview


async def stream(
    checkpoint: Checkpoint,
    *,
    select: Select | None = None,
    pieces: Pieces | None = None,
    options: StreamOptions | None = None,
    progress: Progress | None = None,
    timeline: Timeline | None = None,
) -> AsyncGenerator[Landed, None]:
    """The chosen tensors, about in execution order, as they land; whole, or in `pieces`.

    A tensor may come twice, when its file failed its checksum and was fetched again: the later one counts.
    When the iterator ends, every byte was verified or its file is in `progress.unverified_files`.

    Raises:
        StoreError: see `coldstream.errors`; then nothing that was yielded may be used.
    """
    groups = stream_groups(
        checkpoint, select=select, pieces=pieces, options=options, progress=progress, timeline=timeline
    )
    async with contextlib.aclosing(groups):
        async for group in groups:
            group.reverse()
            while group:
                yield group.pop()


async def stream_groups(
    checkpoint: Checkpoint,
    *,
    select: Select | None = None,
    pieces: Pieces | None = None,
    options: StreamOptions | None = None,
    progress: Progress | None = None,
    timeline: Timeline | None = None,
) -> AsyncGenerator[list[Landed], None]:
    """Like `stream`, but what one read brought at once: for a consumer that carries it to another thread.

    A group holds its part of `max_bytes_in_flight` until the next one is asked for.
    """
    tensors = chosen(checkpoint, select)
    if pieces is not None:
        tensors = [piece for info in tensors for piece in pieces(info)]
    run = _Run(checkpoint, tensors, options, progress, timeline, assembly=_Assembly())
    if run.plan.empty:
        yield [Landed(info, memoryview(b"")) for info in run.plan.empty]
    async with contextlib.aclosing(run.ranges()) as ranges:
        async for landed in ranges:
            nbytes = landed.read.nbytes
            groups = [_group(landed)]
            del landed  # a name that outlives its use here would keep a whole tensor's bytes in memory
            if groups[0]:
                yield groups.pop()
            run.budget.release(nbytes)


async def stream_ranges(
    checkpoint: Checkpoint,
    *,
    select: Select | None = None,
    options: StreamOptions | None = None,
    progress: Progress | None = None,
    timeline: Timeline | None = None,
) -> AsyncGenerator[LandedRange, None]:
    """Like `stream`, but each read as it came: for consumers that keep nothing, or copy at once to a device.

    Empty tensors do not occur. A read may come twice, as in `stream`.
    """
    run = _Run(checkpoint, chosen(checkpoint, select), options, progress, timeline)
    async with contextlib.aclosing(run.ranges()) as ranges:
        async for landed in ranges:
            run.budget.release(landed.read.nbytes)
            yield landed


def chosen(checkpoint: Checkpoint, select: Select | None) -> list[TensorInfo]:
    """The tensors, or rows of them, that `select` wants."""
    if select is None:
        return list(checkpoint.tensors.values())
    answers = ((info, select(info)) for info in checkpoint.tensors.values())
    return [info if answer is True else answer for info, answer in answers if answer]


def refuse_unchecked_files(checkpoint: Checkpoint) -> None:
    """Return where every small file of a checkpoint that is read has a checksum.

    Raises:
        BadResponse: one has none.
    """
    files = checkpoint.files
    names = [name for name in files if name.endswith(READ_WHOLE) and files[name].crc32c is None]
    if names:
        raise _unverifiable(checkpoint, names)


def _unverifiable(checkpoint: Checkpoint, names: Sequence[str]) -> BadResponse:
    return BadResponse(
        f"{checkpoint.location.child(min(names))}: cannot be verified: its store publishes no CRC32C for"
        ' it, or only a part of it is read. verify = "required" refuses that; "published" allows it'
    )


def _group(landed: LandedRange) -> list[Landed]:
    """The tensors that are whole now."""
    read, base = landed.read, landed.read.start
    if read.whole:
        return [Landed(info, landed.data[info.start - base : info.end - base]) for info in read.tensors]
    return [] if landed.tensor is None else [Landed(read.tensors[0], landed.tensor)]


class _Assembly:
    """Tensors that are larger than a read: each cut lands in its place."""

    def __init__(self) -> None:
        self._buffers: dict[TensorInfo, memoryview] = {}
        self._missing: dict[TensorInfo, int] = {}

    def place(self, read: Read) -> memoryview:
        """Where a cut belongs."""
        info = read.tensors[0]
        if info not in self._buffers:
            self._buffers[info] = allocate(info.nbytes)
            self._missing[info] = info.nbytes
        return self._buffers[info][read.start - info.start : read.end - info.start]

    def landed(self, read: Read) -> memoryview | None:
        """The tensor, when this was the last of its cuts."""
        info = read.tensors[0]
        self._missing[info] -= read.nbytes
        return None if self._missing[info] else self._buffers.pop(info).toreadonly()


def _land(pieces: list[memoryview], target: memoryview | None, nbytes: int, checked: bool) -> tuple[memoryview, int]:
    """A read's bytes in one buffer, and their CRC32C (0 if not `checked`).

    That is the buffer that they came in, unless they belong into `target`, or came in several: then they are copied.
    """
    if target is None and len(pieces) == 1:
        return pieces[0].toreadonly(), crc32c(pieces[0]) if checked else 0
    target = allocate(nbytes) if target is None else target
    at = crc = 0
    for piece in pieces:
        crc = copy(piece, target[at : at + piece.nbytes], crc, checked=checked)
        at += piece.nbytes
    return target.toreadonly(), crc


@dataclass(slots=True)
class _File:
    """What has landed of a shard. `complete`: all of its bytes are read, so its checksum can be known."""

    shard: Shard
    reads: list[Read]
    complete: bool
    fold: Fold
    left: int = 0
    refetched: bool = False

    @property
    def verifiable(self) -> bool:
        return self.complete and self.shard.pin.crc32c is not None

    def begin(self) -> None:
        """Nothing has landed."""
        self.left = len(self.reads)
        header = memoryview(self.shard.header_bytes)
        self.fold = Fold(self.shard.pin.size)
        self.fold.add(0, header.nbytes, crc32c(header))


class _Run:
    """One load: its plan, its limits, and what has landed of each file."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tensors: list[TensorInfo],
        options: StreamOptions | None,
        progress: Progress | None,
        timeline: Timeline | None,
        *,
        assembly: _Assembly | None = None,
    ) -> None:
        self._assembly = assembly
        self.checkpoint = checkpoint
        self.options = options or StreamOptions()
        self.progress = progress or Progress()
        self.timeline = timeline or Timeline()
        self.budget = ByteBudget(self.options.max_bytes_in_flight or DEFAULT_BYTES_IN_FLIGHT)
        # At least two reads fit into the budget, so that one lands while another is being taken.
        self.plan: ReadPlan = plan(tensors, part_size=self._part_size(tensors), max_read=max(1, self.budget.limit // 2))
        self._files = {file.shard.name: file for file in self._begin_files(tensors)}
        if self.options.verify == "required":
            self._refuse_unverifiable()
        self._concurrency = Concurrency(self.options.bounds, now=now())
        self._fetcher = self._new_fetcher()
        self._pending = deque(self.plan.reads)
        self._open_reads = len(self.plan.reads)
        self._ready: asyncio.Queue[LandedRange | _File | Exception | None] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = list(range(self.options.bounds.high))
        self._checkers = ThreadPoolExecutor(_CHECKERS, thread_name_prefix="coldstream-check")

    async def ranges(self) -> AsyncGenerator[LandedRange, None]:
        """The reads as they land; what is yielded holds its part of the budget until the caller releases it."""
        self.progress.total_bytes = self.plan.total_bytes
        self.progress.enter("streaming")
        dispatcher = asyncio.create_task(self._dispatch())
        try:
            if not self._open_reads:
                self._ready.put_nowait(None)
            while (item := await self._ready.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, _File):
                    self._settle(item)
                else:
                    yield item
            self._finish()
        except (GeneratorExit, asyncio.CancelledError):
            self.progress.enter("cancelled")
            raise
        except BaseException:
            self.progress.enter("failed")
            raise
        finally:
            await self._close(dispatcher)

    def _part_size(self, tensors: list[TensorInfo]) -> int:
        total = sum(info.nbytes for info in tensors)
        return self.options.part_size or part_size_for(total, connections=self.options.bounds.start)

    def _begin_files(self, tensors: list[TensorInfo]) -> Iterator[_File]:
        for shard in self.checkpoint.shards:
            mine = [info for info in tensors if info.file == shard.name]
            if mine:
                reads = [read for read in self.plan.reads if read.file == shard.name]
                complete = sum(info.nbytes for info in mine) == shard.pin.size - shard.header.data_start
                file = _File(shard, reads, complete, Fold(0))
                file.begin()
                yield file

    def _refuse_unverifiable(self) -> None:
        names = [file.shard.name for file in self._files.values() if not file.verifiable]
        if names:
            raise _unverifiable(self.checkpoint, names)
        refuse_unchecked_files(self.checkpoint)

    def _new_fetcher(self) -> Fetcher:
        share = self.options.hedge_fraction
        spare = max(int(self.plan.total_bytes * share), self.plan.part_size) if share > 0 else 0
        return Fetcher(
            self.checkpoint.store,
            policy=self.options.retry,
            counters=self.progress.counters,
            deadline=now() + self.options.retry.deadline,
            hedges=HedgeBudget(spare),
            reserve=self.budget.try_reserve,
            release=self.budget.release,
            throttled=lambda: self._concurrency.throttled(now=now()),
            is_tail=lambda: not self._pending,
        )

    async def _dispatch(self) -> None:
        """Start reads in the plan's order, as budget and concurrency allow."""
        while True:
            while not self._pending or self._running >= self._concurrency.limit:
                self._changed.clear()
                await self._changed.wait()
            await self.budget.reserve(self._pending[0].nbytes)
            read = self._pending.popleft()
            task = asyncio.create_task(self._one(read, self._idle.pop(0)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @property
    def _running(self) -> int:
        return self.options.bounds.high - len(self._idle)

    async def _one(self, read: Read, connection: int) -> None:
        try:
            data = await self._on_connection(read, connection)
            self.progress.landed(read.nbytes)
            tensor = self._assembly.landed(read) if self._assembly is not None and not read.whole else None
            self._ready.put_nowait(LandedRange(read, data, tensor))
            del data, tensor  # the consumer's alone: this task has still to wait for others
            await self._landed(self._files[read.file])
        except Exception as exc:  # handed to the consumer, who raises it
            self._ready.put_nowait(exc)

    async def _on_connection(self, read: Read, connection: int) -> memoryview:
        start, file = self.timeline.now(), self._files[read.file]
        try:
            pieces = await self._fetcher.read(file.shard.pin, read.start, read.end)
        finally:
            self._idle.append(connection)
            self._changed.set()
        end = self.timeline.now()
        details: dict[str, str | int | float] = {"file": read.file, "start": read.start, "bytes": read.nbytes}
        self.timeline.record(Span("range", start, end, f"connection {connection}", details))
        self._concurrency.completed(read.nbytes, now=now())
        return await self._taken(read, file, pieces)

    async def _taken(self, read: Read, file: _File, pieces: list[memoryview]) -> memoryview:
        """The bytes of a read where they stay, checked off the event loop."""
        is_cut = self._assembly is not None and not read.whole
        target = self._assembly.place(read) if self._assembly is not None and is_cut else None
        checked = self._is_checked(file)
        if target is None and len(pieces) == 1 and not checked:
            return pieces[0].toreadonly()
        loop = asyncio.get_running_loop()
        data, crc = await loop.run_in_executor(self._checkers, _land, pieces, target, read.nbytes, checked)
        if checked:
            file.fold.add(read.start, read.end, crc)
        return data

    async def _landed(self, file: _File) -> None:
        file.left -= 1
        if not file.left and (not self._is_checked(file) or await self._verify(file)):
            self._ready.put_nowait(file)  # behind the last of its bytes
        self._open_reads -= 1
        if not self._open_reads:
            self._ready.put_nowait(None)

    def _is_checked(self, file: _File) -> bool:
        return self.options.verify and file.verifiable

    def _settle(self, file: _File) -> None:
        if self._is_checked(file):
            self.progress.verified += (file.shard.name,)
        else:
            self.progress.unverified_files += (file.shard.name,)
        self.progress.notify()

    async def _verify(self, file: _File) -> bool:
        """Whether the file's bytes are the object's; when they are not, they are fetched again, once."""
        pin = file.shard.pin
        if file.fold.value == pin.crc32c:
            return True
        uri = self.checkpoint.location.child(pin.name)
        if file.refetched:
            raise ChecksumMismatch(
                f"{uri}: what arrived, twice, has CRC32C {file.fold.value:08x}, the object's is {pin.crc32c:08x};"
                " something between here and the store changes bytes"
            )
        header = b"".join(await self._fetcher.read(pin, 0, len(file.shard.header_bytes)))
        if header != file.shard.header_bytes:
            raise ChecksumMismatch(f"{uri}: its header arrived damaged, so every tensor is in doubt; start again")
        self._refetch(file)
        return False

    def _refetch(self, file: _File) -> None:
        size = sum(read.nbytes for read in file.reads)
        file.refetched = True
        file.begin()
        self.progress.counters.refetches += 1
        self.progress.counters.wasted_bytes += size
        self.progress.landed(-size)
        self._pending.extend(file.reads)
        self._open_reads += len(file.reads)
        self._changed.set()

    def _finish(self) -> None:
        files = self._files.values()
        checked = {file.shard.name for file in files if self._is_checked(file)}
        self.progress.unverified_files = tuple(name for name in self._files if name not in checked)
        self.progress.enter("done")

    async def _close(self, dispatcher: asyncio.Task[None]) -> None:
        """Nothing is left behind: no task, no request in flight, no thread."""
        running = [dispatcher, *self._tasks]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self.checkpoint.store.close_idle()
        self._checkers.shutdown(wait=True)
