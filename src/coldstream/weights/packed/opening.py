"""A folder and the packed copy beside it -> the checkpoint, and the copy if it may be used; else why not.

Both are opened at once, and the copy's manifest holds the headers of its files: with a copy no start waits longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from coldstream.errors import ColdstreamError, CopyRefused
from coldstream.timeline import Timeline
from coldstream.weights.checkpoint.checkpoint import (
    CONFIG,
    INDEX,
    Checkpoint,
    Shard,
    WeightsFrom,
    open_checkpoint_async,
    read_whole,
)
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.packed.manifest import CopiedFile, Manifest, SmallFile, manifest_name, parse_manifest
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.stores.store import Pin, Store
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.retry import RetryPolicy, with_retries

FOLDER = "packed"
"""Where a copy lies beside its source, unless another place is named."""
_BOUND = (CONFIG, INDEX, "tokenizer.json")
_IMPATIENT = RetryPolicy(attempts=3, refused_window=5.0, deadline=20.0)
"""For the copy's folder: without it a start takes longer, and is none the worse."""


@dataclass(frozen=True, slots=True)
class CopyPlace:
    """A folder that may hold a packed copy of form `form`. `is_named`: settings say so, so that its lack is told."""

    location: Location
    form: str
    is_named: bool = False
    store: Store | None = field(default=None, repr=False)

    @classmethod
    def of(cls, source: Location, form: str, named: str = "auto") -> CopyPlace | None:
        """Beside the source, or where settings name it; None where they say "off", or the source cannot be listed.

        Raises:
            LocationError: what is named is no folder.
        """
        if named == "off" or (named == "auto" and source.scheme in ("http", "https")):
            return None
        if named == "auto":
            return cls(source.child(FOLDER), form)
        return cls(Location.parse(named), form, is_named=True)


@dataclass(frozen=True, slots=True)
class PackedCopy:
    """A copy that belongs to the checkpoint beside it. `arriving` is what is streamed of it, under its own names.

    Its files that hold no tensors are `small`, pinned with the manifest's checksums.
    """

    manifest: Manifest
    arriving: Checkpoint
    small: Mapping[str, Pin]

    def around(self, checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
        """The checkpoint, with those small files of the copy that have these names among its own."""
        small = {name: pin for name, pin in self.small.items() if name in names}
        elsewhere = dict.fromkeys(small, self.arriving.store)
        files = MappingProxyType({**checkpoint.files, **small})
        return replace(checkpoint, files=files, elsewhere=MappingProxyType(elsewhere))


@dataclass(frozen=True, slots=True)
class WithCopy:
    """A checkpoint, and its packed copy or the reason why there is none to use (None: there is none at all)."""

    checkpoint: Checkpoint
    copy: PackedCopy | None = None
    why_not: str | None = None


async def open_with_copy(
    uri: str | Location,
    place: CopyPlace | None,
    *,
    store: Store | None = None,
    weights: WeightsFrom = "index",
    retry: RetryPolicy | None = None,
    progress: Progress | None = None,
    timeline: Timeline | None = None,
) -> WithCopy:
    """Open a checkpoint, and its packed copy where `place` has one that was made of it as it is now.

    Raises:
        StoreError, CheckpointError: of the source, as `open_checkpoint_async`; nothing of the copy's is an error.
    """
    looking = None if place is None else asyncio.ensure_future(_look(place))
    try:
        checkpoint = await open_checkpoint_async(
            uri, store=store, weights=weights, retry=retry, progress=progress, timeline=timeline
        )
        found = None if looking is None else await looking
    finally:
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
    return found.beside(checkpoint, weights) if isinstance(found, _Found) else WithCopy(checkpoint, why_not=found)


def bound(files: Mapping[str, Pin]) -> Mapping[str, Pin]:
    """Of a checkpoint's listing what its copy is bound to: what was read, and what would have been read instead."""
    return {name: pin for name, pin in files.items() if name in _BOUND or name.endswith(".safetensors")}


def difference(manifest: Manifest, files: Mapping[str, Pin], weights: str) -> str | None:
    """In which way a source is not what the copy was made of; None: in none."""
    if manifest.weights != weights:
        return f'it was made with weights = "{manifest.weights}", and "{weights}" is asked for'
    now = bound(files)
    for name in sorted(manifest.source.keys() | now.keys()):
        if name not in now:
            return f"{name} is gone from the source"
        if name not in manifest.source:
            return f"{name} has come to the source since"
        if not manifest.source[name].is_of(now[name]):
            return f"{name} was replaced in the source since"
    return None


@dataclass(frozen=True, slots=True)
class _Found:
    """A copy as it lies there, before it is known whether it belongs to its source."""

    store: Store
    manifest: Manifest
    files: Mapping[str, Pin]

    def beside(self, checkpoint: Checkpoint, weights: str) -> WithCopy:
        """With its source, if it was made of it."""
        different = difference(self.manifest, checkpoint.files, weights)
        try:
            if different is not None:
                raise CopyRefused(f"{self.store.location}: {different}; run coldstream pack again")
            small = {name: self._pin(name, file) for name, file in self.manifest.small.items()}
            return WithCopy(checkpoint, PackedCopy(self.manifest, self._arriving(checkpoint), small))
        except CopyRefused as exc:
            self.store.close_idle()
            return WithCopy(checkpoint, why_not=str(exc))

    def _arriving(self, checkpoint: Checkpoint) -> Checkpoint:
        """The copy's files as a checkpoint of their own, pinned as they were listed, with the manifest's checksums.

        Raises:
            CopyRefused: a file is missing, another one than the manifest's, or its header cannot be.
        """
        shards = tuple(self._shard(name, file) for name, file in self.manifest.files.items())
        infos = [info for shard in shards for info in shard.header.tensors]
        tensors = {info.name: info for info in infos}
        if len(tensors) != len(infos):
            raise CopyRefused(f"{self.store.location}: a tensor lies in two of its files; run coldstream pack again")
        return Checkpoint(
            location=self.store.location,
            store=self.store,
            files=MappingProxyType({shard.name: shard.pin for shard in shards}),
            config=checkpoint.config,
            generation_config=checkpoint.generation_config,
            shards=shards,
            tensors=MappingProxyType(tensors),
        )

    def _shard(self, name: str, file: CopiedFile) -> Shard:
        pin = self._pin(name, SmallFile(file.size, file.crc32c))
        return Shard(pin, self.manifest.header_of(name, str(self.store.location.child(name))), file.header)

    def _pin(self, name: str, file: SmallFile) -> Pin:
        """As it was listed, with the manifest's checksum."""
        uri, pin = str(self.store.location.child(name)), self.files.get(name)
        if pin is None:
            raise CopyRefused(f"{uri}: the manifest names it, but it is not there; run coldstream pack again")
        if pin.size != file.size or pin.crc32c not in (None, file.crc32c):
            raise CopyRefused(f"{uri}: is not what the manifest names (size or CRC32C); run coldstream pack again")
        return replace(pin, crc32c=file.crc32c)


async def _look(place: CopyPlace) -> _Found | str | None:
    """What lies there; else why it cannot be used, or None where there is nothing and nothing was promised."""
    try:
        store = place.store or open_store(place.location)
    except ColdstreamError as exc:
        return str(exc)
    try:
        found = await _looked(store, place)
    except ColdstreamError as exc:
        found = str(exc)
    except BaseException:
        store.close_idle()
        raise
    if not isinstance(found, _Found):
        store.close_idle()
    return found


async def _looked(store: Store, place: CopyPlace) -> _Found | str | None:
    files = await with_retries(store.list, _IMPATIENT, where=str(place.location))
    pin = files.get(manifest_name(place.form))
    if pin is None:
        absent = f"{place.location}: no packed copy of form {place.form} there; run coldstream pack"
        return absent if place.is_named else None
    where = str(place.location.child(pin.name))
    manifest = parse_manifest(await read_whole(store, pin, _IMPATIENT), uri=where)
    if manifest.form != place.form:
        raise CopyRefused(f"{where}: says that it is of form {manifest.form}; run coldstream pack again")
    return _Found(store, manifest, files)
