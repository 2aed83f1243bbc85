"""A checkpoint -> its packed copy: streamed, packed and uploaded in the order of a start, the manifest behind it all.

Nothing lies in memory whole: a matrix is let go as soon as it is written, and the stream waits for the upload.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version

from coldstream.backends.cpu.packed_copy import CopiedTensor, check_fits, contents
from coldstream.backends.cpu.packing import Packing
from coldstream.errors import ChecksumMismatch, CopyRefused, LocationError, TokenizerError
from coldstream.host.limits import cpu_limit
from coldstream.loading.converted_tokenizer import convert
from coldstream.model.config import ModelConfig
from coldstream.model.findings import findings
from coldstream.pack.layout import file_header
from coldstream.settings import WeightsFrom
from coldstream.weights.checkpoint.checkpoint import Checkpoint
from coldstream.weights.checkpoint.file_names import CONVERTED, TEMPLATES_BELOW, TOKENIZER
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.checkpoint.plan import MIB
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.packed.forms import CPU_INT8
from coldstream.weights.packed.manifest import CopiedFile, Manifest, SmallFile, Version, manifest_name
from coldstream.weights.packed.opening import CopyPlace, WithCopy, bound, open_with_copy
from coldstream.weights.stores.store import Pin, read
from coldstream.weights.stores.upload import Upload, WritableStore, open_writable
from coldstream.weights.transfer.checksum import crc32c
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.retry import RetryPolicy, with_retries
from coldstream.weights.transfer.stream import Landed, StreamOptions, stream

IN_FLIGHT = 128 * MIB
"""Bytes of the source that may be asked for and not yet taken."""
_STEP = 16 * MIB
"""Bytes that are read at once for a checksum that the store does not publish."""
_SMALL = 64 * 1024
"""Bytes of a tensor that is copied, to wait for its turn without the memory of its whole read."""


@dataclass(frozen=True, slots=True)
class PackReport:
    """What lies there now. `is_new`: it was written; else it was there already, made of the source as it is.

    `files` are sizes in bytes by name, the manifest among them; `source_bytes` are those of the source's tensors.
    `notes` say what is not in it, and why.
    """

    source: str
    destination: str
    form: str
    revision: str
    is_new: bool
    files: Mapping[str, int]
    source_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Of all files of the copy."""
        return sum(self.files.values())


async def pack(
    uri: str,
    destination: str | None = None,
    *,
    weights: WeightsFrom = "index",
    again: bool = False,
    progress: Progress | None = None,
) -> PackReport:
    """Write the packed copy of a checkpoint, beside it or into the folder `destination`; `again` also where one is.

    Raises:
        LocationError: the destination cannot be written to.
        UnknownArchitecture, UnsupportedConfig, ParameterMismatch: the model cannot be packed; says why.
        ObjectChanged: another writer was there meanwhile. StoreError, CheckpointError.
    """
    started = time.monotonic()
    place = _place(uri, destination)
    store = open_writable(place.location)
    progress = progress or Progress()
    found = await open_with_copy(uri, place, weights=weights, progress=progress)
    try:
        findings(found.checkpoint)
        manifest = None if again else _fitting(found)
        packer = None if manifest is not None else _Packer.of(found.checkpoint, weights, store, progress)
        written = manifest if packer is None else await packer.run()
        assert written is not None
        sizes = {name: file.size for name, file in written.files.items()}
        sizes |= {name: file.size for name, file in written.small.items()}
        return PackReport(
            source=str(found.checkpoint.location),
            destination=str(place.location),
            form=CPU_INT8,
            revision=found.checkpoint.revision,
            is_new=manifest is None,
            files={**sizes, manifest_name(CPU_INT8): len(written.text())},
            source_bytes=found.checkpoint.total_bytes,
            seconds=time.monotonic() - started,
            notes=() if packer is None else tuple(packer.notes),
        )
    finally:
        store.close_idle()
        found.checkpoint.store.close_idle()
        if found.copy is not None:
            found.copy.arriving.store.close_idle()


def _place(uri: str, destination: str | None) -> CopyPlace:
    source = Location.parse(uri)
    place = CopyPlace.of(source, CPU_INT8, destination or "auto")
    if place is None:
        raise LocationError(f"{source}: {source.scheme}:// is only read; say where the packed copy shall lie")
    if place.location == source:
        raise LocationError(
            f"{source}: the packed copy needs a folder of its own; leave it out for {source.child('packed')}"
        )
    return place


def _fitting(found: WithCopy) -> Manifest | None:
    """The manifest of a copy that is there already and needs no other one."""
    if found.copy is None:
        return None
    checkpoint = found.checkpoint
    try:
        check_fits(checkpoint.config, checkpoint.tensors.values(), found.copy.arriving.tensors)
    except CopyRefused:
        return None
    return found.copy.manifest


@dataclass(slots=True)
class _File:
    """A file of the copy on its way: what has been written of it."""

    upload: Upload
    header: bytes
    size: int
    crc: int = 0

    async def write(self, data: memoryview) -> None:
        self.crc = await asyncio.to_thread(crc32c, data, self.crc)
        await self.upload.write(data)


@dataclass(slots=True)
class _Packer:
    """One copy on its way."""

    checkpoint: Checkpoint
    weights: WeightsFrom
    store: WritableStore
    progress: Progress
    order: Sequence[CopiedTensor]
    packing: Packing
    parts: Mapping[str, frozenset[str]]
    problems: list[BaseException]
    filled: set[str] = field(default_factory=set)
    existing: Mapping[str, Pin] = field(default_factory=dict)
    files: dict[str, _File] = field(default_factory=dict)
    kept: dict[str, memoryview] = field(default_factory=dict)
    next: int = 0
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, checkpoint: Checkpoint, weights: WeightsFrom, store: WritableStore, progress: Progress) -> _Packer:
        tensors = checkpoint.tensors.values()
        order = contents(checkpoint.config, tensors)
        problems: list[BaseException] = []
        config = ModelConfig.from_json(checkpoint.config)
        packing = Packing(config, tensors, workers=cpu_limit(), failed=problems.append)
        return cls(checkpoint, weights, store, progress, order, packing, packing.parts, problems)

    async def run(self) -> Manifest:
        source = {name: await self._version(pin) for name, pin in bound(self.checkpoint.files).items()}
        self.existing = await with_retries(self.store.list, RetryPolicy(), where=str(self.store.location))
        try:
            await self._begin_files()
            await self._stream()
            for file in self.files.values():
                await file.upload.finish()
            small = {name: await self._write_small(name, data) for name, data in (await self._small()).items()}
            manifest = self._manifest(source, small)
            await self._write_small(manifest_name(CPU_INT8), manifest.text())
            return manifest
        finally:
            self.packing.stop()
            for file in self.files.values():
                await file.upload.abort()

    async def _version(self, pin: Pin) -> Version:
        """With the CRC32C of its bytes, so that a copy is known again where the model was copied to with it."""
        crc = 0
        if pin.crc32c is None:
            where = str(self.checkpoint.location.child(pin.name))
            for at in range(0, pin.size, _STEP):
                some = partial(read, self.checkpoint.store, pin, at, min(at + _STEP, pin.size))
                data = await with_retries(some, RetryPolicy(), where=where)
                crc = await asyncio.to_thread(crc32c, memoryview(data), crc)
        return Version.of(pin if pin.crc32c is not None else replace(pin, crc32c=crc))

    async def _begin_files(self) -> None:
        for name in dict.fromkeys(tensor.file for tensor in self.order):
            header, size = file_header([tensor for tensor in self.order if tensor.file == name])
            upload = await self.store.begin_upload(name, size, replaces=self.existing.get(name))
            self.files[name] = _File(upload, header, size)
            await self.files[name].write(memoryview(header))

    async def _stream(self) -> None:
        self.packing.when_filled(lambda _, tensor: self.filled.add(tensor))
        seen: set[TensorInfo] = set()
        async with aclosing(self._landing()) as landing:
            async for landed in landing:
                if landed.info in seen:
                    raise ChecksumMismatch(
                        f"{self.checkpoint.location.child(landed.info.file)}: was damaged on the way once, so what is "
                        "written of it may be; run it again"
                    )
                seen.add(landed.info)
                await self._take(landed)
                del landed
                await self._advance()
        await asyncio.to_thread(self.packing.end)
        await self._advance()
        if self.next < len(self.order):
            raise CopyRefused(f"{self.checkpoint.location}: {self.order[self.next].name} was not filled; run it again")

    def _landing(self) -> AsyncGenerator[Landed, None]:
        options = StreamOptions(max_bytes_in_flight=IN_FLIGHT)
        return stream(self.checkpoint, pieces=self.packing.pieces, options=options, progress=self.progress)

    async def _take(self, landed: Landed) -> None:
        if await asyncio.to_thread(self.packing.take, landed):
            return
        data = landed.data
        self.kept[landed.info.name] = memoryview(bytes(data)) if data.nbytes <= _SMALL else data

    async def _advance(self) -> None:
        """Write what is there, up to the first tensor that is not."""
        if self.problems:
            raise self.problems[0]
        while self.next < len(self.order):
            tensor = self.order[self.next]
            data = self._data(tensor)
            if data is None:
                return
            await self.files[tensor.file].write(data)
            del data
            self.next += 1
            following = self.order[self.next].joint if self.next < len(self.order) else None
            if tensor.joint is not None and tensor.joint != following:
                self.packing.release(tensor.joint)

    def _data(self, tensor: CopiedTensor) -> memoryview | None:
        if tensor.joint is None:
            return self.kept.pop(tensor.name, None)
        if not self.parts[tensor.joint] <= self.filled:
            return None
        matrix = self.packing.matrices[tensor.joint]
        return matrix.units if tensor.dtype == "U8" else matrix.scales

    async def _small(self) -> Mapping[str, bytes]:
        """What a start reads of the copy besides tensors: the converted tokenizer, where it is of a kind that is."""
        files = await self.checkpoint.read_files((*TOKENIZER, *TEMPLATES_BELOW))
        if "tokenizer.json" not in files:
            return {}
        try:
            made = await asyncio.to_thread(convert, files, source=str(self.checkpoint.location))
        except TokenizerError as exc:
            self.notes.append(str(exc))
            return {}
        return {CONVERTED: made}

    def _manifest(self, source: Mapping[str, Version], small: Mapping[str, SmallFile]) -> Manifest:
        files = {name: CopiedFile(file.size, file.crc, file.header) for name, file in self.files.items()}
        made_by = f"coldstream {version('coldstream')}"
        return Manifest(CPU_INT8, made_by, self.checkpoint.revision, self.weights, source, files, small)

    async def _write_small(self, name: str, data: bytes) -> SmallFile:
        upload = await self.store.begin_upload(name, len(data), replaces=self.existing.get(name))
        try:
            await upload.write(memoryview(data))
            await upload.finish()
        finally:
            await upload.abort()
        return SmallFile(len(data), crc32c(memoryview(data)))
