"""Every byte of a checkpoint streamed and checked; nothing is kept. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from coldstream.timeline import Timeline
from coldstream.weights.checkpoint.checkpoint import READ_WHOLE, Checkpoint, open_checkpoint_async
from coldstream.weights.checkpoint.plan import MIB
from coldstream.weights.transfer.checksum import crc32c
from coldstream.weights.transfer.load_line import in_notebook
from coldstream.weights.transfer.own_loop import run_here
from coldstream.weights.transfer.progress import Counters, Progress
from coldstream.weights.transfer.stream import StreamOptions, stream_ranges

# Bytes in flight, which is nearly all that verify needs.
MEMORY = 128 * MIB
PART = 8 * MIB

Verdict = Literal["verified", "unverified"]


@dataclass(frozen=True, slots=True)
class FileReport:
    """`unverified`: the store publishes no CRC32C for the file; its bytes were read, its header was checked."""

    name: str
    size: int
    verdict: Verdict
    crc32c: int | None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was read, in how many seconds. Every file that is named here arrived whole."""

    uri: str
    revision: str
    files: tuple[FileReport, ...]
    seconds: float
    counters: Counters

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def verified(self) -> bool:
        """Whether every file had a checksum to hold it against."""
        return all(file.verdict == "verified" for file in self.files)


def verify(uri: str, *, progress: Callable[[Progress], None] | None = None) -> VerifyReport:
    """Stream every byte of the weights, and the small files beside them, against the store's CRC32C.

    Keeps nothing: needs about 128 MiB whatever the checkpoint's size.

    Raises:
        ChecksumMismatch: a file is damaged, or what arrives is; it was read twice.
        StoreError, CheckpointError.
    """
    return run_here(verify_async(uri, progress=Progress(on_change=progress or in_notebook())))


async def verify_async(
    uri: str | Checkpoint,
    *,
    options: StreamOptions | None = None,
    progress: Progress | None = None,
    timeline: Timeline | None = None,
) -> VerifyReport:
    """See `verify`."""
    progress = progress or Progress()
    checkpoint = uri if isinstance(uri, Checkpoint) else await open_checkpoint_async(uri, progress=progress)
    options = options or StreamOptions(max_bytes_in_flight=MEMORY, part_size=PART)
    small = [await _small(checkpoint, name) for name in sorted(_beside(checkpoint))]
    ranges = stream_ranges(checkpoint, options=replace(options, verify=True), progress=progress, timeline=timeline)
    async for _ in ranges:
        pass
    shards = [_shard(checkpoint, shard.name, progress) for shard in checkpoint.shards]
    return VerifyReport(
        str(checkpoint.location), checkpoint.revision, (*small, *shards), progress.seconds, progress.counters
    )


def _beside(checkpoint: Checkpoint) -> set[str]:
    return {name for name in checkpoint.files if name.endswith(READ_WHOLE)}


async def _small(checkpoint: Checkpoint, name: str) -> FileReport:
    pin = checkpoint.files[name]
    crc = crc32c(memoryview(await checkpoint.read_file(name)))
    return FileReport(name, pin.size, "unverified" if pin.crc32c is None else "verified", crc)


def _shard(checkpoint: Checkpoint, name: str, progress: Progress) -> FileReport:
    pin = checkpoint.shard(name).pin
    known = name not in progress.unverified_files and pin.crc32c is not None
    return FileReport(name, pin.size, "verified" if known else "unverified", pin.crc32c)
