"""A folder -> Checkpoint: config, index and headers read, every object pinned, nothing else touched.

`model.safetensors.index.json` decides which files are read, unless the caller chooses the file. Without one,
`model.safetensors` is the whole checkpoint; any other single `*.safetensors` will do when it is the only one. Whatever
else lies there and could have been meant is said in `Checkpoint.warnings`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from coldstream.errors import (
    BadResponse,
    ChecksumMismatch,
    HeaderError,
    IndexMismatch,
    NoConfig,
    NoWeights,
    ObjectNotFound,
    ShardMissing,
    UnsafeName,
)
from coldstream.timeline import Timeline
from coldstream.weights.checkpoint.header import Header, TensorInfo, header_end, marks, parse_header, quoted
from coldstream.weights.checkpoint.uri import Location, how_to_get, hub_id
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.stores.store import Pin, Store, read
from coldstream.weights.transfer.checksum import crc32c
from coldstream.weights.transfer.own_loop import run_here
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.retry import RetryPolicy, with_retries

WeightsFrom = Literal["index", "file"]

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# One request for most headers (a 26-layer model has some 40 KB); a longer one costs a second request.
FIRST_READ = 256 * 1024
# Everything but weights is read whole into memory; the largest tokenizer.json known has 34 MB.
MAX_SMALL_FILE = 256 * 1024 * 1024
# The largest config.json known, with all its label names, has some 5 MB.
MAX_CONFIG = 16 * 1024 * 1024
# Against an index made to exhaust this process: models have at most some hundred files and 150,000 tensors in all.
MAX_INDEX = 100_000_000
MAX_SHARDS = 10_000
MAX_ALL_TENSORS = 1 << 19
MAX_ALL_HEADERS = 256 * 1024 * 1024
# Headers that are read at once, 256 KiB each: one wave for every real checkpoint.
WAVE = 256
# Cloud Storage's limit for a name, in bytes of UTF-8; S3's and Azure's are the same.
MAX_NAME = 1024
# Configuration, tokenizer, template: what serving reads besides the weights.
READ_WHOLE = (".json", ".jinja")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_CHOOSE = 'choose the file (weights = "file" for the model in coldstream.toml, or --weights file)'
_ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Shard:
    """A pinned safetensors file and its header; `header_bytes` are kept for the object's checksum."""

    pin: Pin
    header: Header
    header_bytes: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The file's name in the folder."""
        return self.pin.name


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What lies in the bucket, pinned. `files` are all objects of the folder, `tensors` only what the index names.

    `warnings` are sentences for people: what else lies there, and what the index names and no file holds. `elsewhere`
    are the stores of those of `files` that lie in another folder: a packed copy's.
    """

    location: Location
    store: Store = field(repr=False)
    files: Mapping[str, Pin] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    generation_config: Mapping[str, Any] | None = field(repr=False)
    shards: tuple[Shard, ...] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    warnings: tuple[str, ...] = ()
    elsewhere: Mapping[str, Store] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def total_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(info.numel for info in self.tensors.values())

    @property
    def revision(self) -> str:
        """Sixteen hex digits that change when config, index or any shard was replaced."""
        digest = hashlib.sha256()
        names = {CONFIG, INDEX, *(shard.name for shard in self.shards)} & self.files.keys()
        for name in sorted(names):
            digest.update(f"{name}\0{self.files[name].version}\0".encode())
        return digest.hexdigest()[:16]

    def shard(self, file: str) -> Shard:
        """The shard of that name."""
        return next(shard for shard in self.shards if shard.name == file)

    async def read_file(self, name: str) -> bytes:
        """A small file of the folder (tokenizer.json, chat_template.jinja, ...), whole, verified like the weights.

        Raises:
            ObjectNotFound: there is none of that name; look in `files` first.
            StoreError: see `coldstream.errors`.
        """
        if name not in self.files:
            raise ObjectNotFound(f"{self.location.child(name)}: no such file in the checkpoint; upload it")
        return await read_whole(self.elsewhere.get(name, self.store), self.files[name], RetryPolicy())

    async def read_files(self, names: Iterable[str]) -> dict[str, bytes]:
        """Those of these small files that there are, whole, by name; names may lie in folders below this one.

        Raises:
            StoreError: see `coldstream.errors`.
        """
        names = tuple(names)
        contents = await asyncio.gather(*map(self._read_optional, names))
        return {name: data for name, data in zip(names, contents, strict=True) if data is not None}

    async def _read_optional(self, name: str) -> bytes | None:
        retry = RetryPolicy()
        pin = self.files.get(name)
        if pin is None and "/" in name:  # a listing shows one folder
            pin = await with_retries(lambda: self.store.pin(name), retry, where=str(self.location.child(name)))
        return None if pin is None else await read_whole(self.elsewhere.get(name, self.store), pin, retry)


async def open_checkpoint_async(
    uri: str | Location,
    *,
    store: Store | None = None,
    weights: WeightsFrom = "index",
    retry: RetryPolicy | None = None,
    progress: Progress | None = None,
    timeline: Timeline | None = None,
) -> Checkpoint:
    """List the folder once, pin every object, read config, index and all headers in one wave.

    Args:
        uri: the checkpoint's folder.
        store: another way to it than `open_store(uri)`; tests use this.
        weights: "file" takes model.safetensors where an index lies beside it.

    Raises:
        StoreError, CheckpointError: each with the URI and the next step.
    """
    location = Location.parse(uri) if isinstance(uri, str) else uri
    opener = _Opener(
        location,
        store or open_store(location),
        weights,
        retry or RetryPolicy(),
        progress or Progress(),
        timeline or Timeline(),
    )
    try:
        return await opener.open()
    except BaseException:  # without a checkpoint nothing would end the store's threads
        opener.store.close_idle()
        raise


def open_checkpoint(
    uri: str | Location, *, weights: WeightsFrom = "index", timeline: Timeline | None = None
) -> Checkpoint:
    """`open_checkpoint_async` for people."""
    return run_here(_opened(uri, weights, timeline))


async def _opened(uri: str | Location, weights: WeightsFrom, timeline: Timeline | None) -> Checkpoint:
    checkpoint = await open_checkpoint_async(uri, weights=weights, timeline=timeline)
    # Here, not when the last reference goes: a Ctrl-C that comes then would be lost.
    checkpoint.store.close_idle()
    return checkpoint


@dataclass(slots=True)
class _Opener:
    location: Location
    store: Store
    weights: WeightsFrom
    retry: RetryPolicy
    progress: Progress
    timeline: Timeline
    warnings: list[str] = field(default_factory=list)
    wave: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(WAVE))
    header_bytes: int = 0
    tensor_count: int = 0

    async def open(self) -> Checkpoint:
        self.progress.enter("listing")
        with self.timeline.span("listing"):
            files = dict(await with_retries(self.store.list, self.retry, where=str(self.location)))
        if not files:
            model = hub_id(self.location)
            hint = f"if you mean the model on the Hugging Face Hub, {how_to_get(model)}" if model else "check the URI"
            raise ObjectNotFound(f"{self.location}: the folder is empty or does not exist; {hint}")
        if CONFIG not in files:
            raise NoConfig(f"{self.location}: no {CONFIG} in it (it has {_some(files)}); is this the model's folder?")
        self.progress.enter("headers")
        with self.timeline.span("headers"):
            config, generation, shards = await _all(
                self._json(files[CONFIG]), self._optional_json(files.get(GENERATION_CONFIG)), self._shards(files)
            )
        return Checkpoint(
            location=self.location,
            store=self.store,
            files=MappingProxyType(files),
            config=config,
            generation_config=generation,
            shards=shards,
            tensors=MappingProxyType({info.name: info for shard in shards for info in shard.header.tensors}),
            warnings=(*self.warnings, *_beside(files, {shard.name for shard in shards}, self.location)),
        )

    async def _json(self, pin: Pin) -> Mapping[str, Any]:
        where = self.location.child(pin.name)
        if pin.size > MAX_CONFIG:
            raise NoConfig(f"{where}: {pin.size} bytes are over the limit of {MAX_CONFIG}; is it a configuration?")
        try:
            value = json.loads(await read_whole(self.store, pin, self.retry))
        except (ValueError, RecursionError) as exc:
            raise NoConfig(f"{where}: is not valid JSON ({exc}); upload it again") from exc
        if not isinstance(value, dict):
            raise NoConfig(f"{where}: is not a JSON object; upload it again")
        return MappingProxyType(value)

    async def _optional_json(self, pin: Pin | None) -> Mapping[str, Any] | None:
        return None if pin is None else await self._json(pin)

    async def _shards(self, files: dict[str, Pin]) -> tuple[Shard, ...]:
        if self.weights == "file" and SINGLE not in files:
            raise NoWeights(f'{self.location}: weights = "file", but there is no {SINGLE} (it has {_some(files)})')
        if self.weights == "file" or INDEX not in files:
            name = _single(files, self.location)
            return (await self._shard(files[name]),)
        try:
            return await self._indexed(files)
        except (IndexMismatch, ShardMissing) as exc:
            raise type(exc)(f"{exc}{_way_out(files)}") from exc

    async def _indexed(self, files: dict[str, Pin]) -> tuple[Shard, ...]:
        weight_map = await self._weight_map(files[INDEX])
        pins = await _all(*(self._locate(name, files) for name in dict.fromkeys(weight_map.values())))
        shards: tuple[Shard, ...] = await _all(*(self._shard(pin) for pin in pins))
        absent = _check_index(weight_map, shards, self.location.child(INDEX))
        if absent:
            self.warnings.append(f"{self.location.child(INDEX)}: names {_some(absent)}, which no file holds")
        return shards

    async def _weight_map(self, pin: Pin) -> dict[str, str]:
        where = self.location.child(INDEX)
        index = await self._index(pin)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise IndexMismatch(f"{where}: has no weight_map; upload it again")
        for tensor, file in weight_map.items():
            if not isinstance(file, str) or not _safe(file):
                raise UnsafeName(
                    f"{where}: tensor {quoted(tensor)} lies in {quoted(file)}, which is not a file of this folder"
                )
            if not file.endswith(".safetensors"):
                raise NoWeights(
                    f"{where}: tensor {quoted(tensor)} lies in {quoted(file)}; convert the model to safetensors"
                )
        shards = len(set(weight_map.values()))
        if shards > MAX_SHARDS:
            raise IndexMismatch(f"{where}: names {shards} files, over the limit of {MAX_SHARDS}")
        return weight_map

    async def _index(self, pin: Pin) -> Any:
        where = self.location.child(INDEX)
        if pin.size > MAX_INDEX:
            raise IndexMismatch(f"{where}: {pin.size} bytes are over the limit of {MAX_INDEX}")
        text = await read_whole(self.store, pin, self.retry)
        if marks(text) > MAX_ALL_TENSORS * 3:  # a comma and a colon each, and some in names
            raise IndexMismatch(f"{where}: names more than {MAX_ALL_TENSORS} tensors, over the limit")
        try:
            return json.loads(text, object_pairs_hook=_no_twins)
        except (ValueError, RecursionError) as exc:
            raise IndexMismatch(f"{where}: is not valid JSON ({exc}); upload it again") from exc

    async def _locate(self, name: str, files: dict[str, Pin]) -> Pin:
        if name not in files:
            async with self.wave:
                pin = await with_retries(lambda: self.store.pin(name), self.retry, where=str(self.location.child(name)))
            if pin is None:
                raise ShardMissing(f"{self.location.child(name)}: {INDEX} names it, but it is not there; upload it")
            files[name] = pin
        return files[name]

    async def _shard(self, pin: Pin) -> Shard:
        uri = str(self.location.child(pin.name))
        async with self.wave:
            raw = await self._read(pin, 0, min(pin.size, FIRST_READ))
            end = header_end(raw[:8], size=pin.size, uri=uri)
            self.header_bytes += end
            if self.header_bytes > MAX_ALL_HEADERS:
                raise HeaderError(f"{uri}: the headers so far have {self.header_bytes} bytes, over {MAX_ALL_HEADERS}")
            if end > len(raw):
                raw += await self._read(pin, len(raw), end)
        header = parse_header(raw, file=pin.name, size=pin.size, uri=uri)
        self.tensor_count += len(header.tensors)
        if self.tensor_count > MAX_ALL_TENSORS:
            raise HeaderError(f"{uri}: the files so far have {self.tensor_count} tensors, over {MAX_ALL_TENSORS}")
        return Shard(pin, header, raw[:end])

    async def _read(self, pin: Pin, start: int, end: int) -> bytes:
        return await _read_bytes(self.store, pin, start, end, self.retry)


def _single(files: Mapping[str, Pin], location: Location) -> str:
    if SINGLE in files:
        return SINGLE
    names = [
        name for name in files if name.endswith(".safetensors") and not name.startswith(("adapter", "consolidated"))
    ]
    if len(names) == 1:
        return names[0]
    if names:
        raise NoWeights(f"{location}: {len(names)} safetensors files ({_some(names)}) but no {INDEX}; upload the index")
    pickles = [name for name in files if name.endswith(_PICKLES)]
    if pickles:
        raise NoWeights(
            f"{location}: only pickled weights ({_some(pickles)}), which are never loaded; convert them:"
            " model.save_pretrained(folder, safe_serialization=True)"
        )
    if any(name.startswith("adapter") for name in files):
        raise NoWeights(
            f"{location}: only a LoRA adapter; merge it into its base model (merge_and_unload) and save that"
        )
    raise NoWeights(f"{location}: no safetensors files (it has {_some(files)}); upload {SINGLE}")


def _way_out(files: Mapping[str, Pin]) -> str:
    """What to do about an index that cannot be followed, where the whole model lies beside it."""
    if SINGLE not in files:
        return ""
    return f". A whole {SINGLE} lies beside it: delete {INDEX}, or {_CHOOSE}"


def _beside(files: Mapping[str, Pin], read: set[str], location: Location) -> Iterator[str]:
    """What lies in the folder, is not read, and could be what was meant."""
    if SINGLE in files and INDEX in files and SINGLE not in read:
        yield (
            f"{location}: both {INDEX} and {SINGLE} are there. The index decides: {_some(read)} are read, {SINGLE} is "
            f"not. Delete the older one, or {_CHOOSE}"
        )
    elif SINGLE in read and INDEX in files and len(read) == 1:
        yield f'{location}: {SINGLE} is read, as weights = "file" asks for; {INDEX} is left alone'
    if _ADAPTER in files:
        yield f"{location}: {_ADAPTER} lies beside the model, and is not applied; merge it in if it should be"


def _check_index(weight_map: Mapping[str, str], shards: tuple[Shard, ...], where: Location) -> list[str]:
    """The names that no file holds; whether they are needed is for the model's assembly to say."""
    found: dict[str, str] = {}
    for shard in shards:
        for info in shard.header.tensors:
            if info.name in found:
                raise IndexMismatch(f"{where}: tensor {info.name!r} lies in {found[info.name]} and in {shard.name}")
            found[info.name] = shard.name
    for name, file in weight_map.items():
        if found.get(name, file) != file:
            raise IndexMismatch(
                f"{where}: tensor {name!r} should lie in {file}, but lies in {found[name]}; upload both again"
            )
    absent = [name for name in weight_map if name not in found]
    extra = found.keys() - weight_map.keys()
    if extra:
        others = f", and names {_some(absent)}, which they do not" if absent else ""
        raise IndexMismatch(
            f"{where}: does not name {_some(extra)}, but the shards hold them{others}; upload both again"
        )
    hollow = set(weight_map.values()) - set(found.values())
    if hollow:
        raise IndexMismatch(f"{where}: {_some(hollow)} holds none of the tensors named for it; upload both again")
    return absent


def _safe(name: str) -> bool:
    """Whether it is a file of this folder or one below, whatever becomes of it: a path, a URL, an object's name."""
    if not name.isprintable() or "\\" in name or ":" in name or {"", ".", ".."} & set(name.split("/")):
        return False
    return len(name.encode()) <= MAX_NAME


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table


async def read_whole(store: Store, pin: Pin, retry: RetryPolicy) -> bytes:
    """A small object, held against its CRC32C where it has one.

    Raises:
        BadResponse: it is too large. ChecksumMismatch: it arrives damaged. StoreError: see `coldstream.errors`.
    """
    if pin.size > MAX_SMALL_FILE:
        raise BadResponse(f"{store.location.child(pin.name)}: {pin.size} bytes is too large for a file of its kind")
    for _ in range(2):
        data = await _read_bytes(store, pin, 0, pin.size, retry)
        crc = crc32c(memoryview(data))
        if pin.crc32c in (None, crc):
            return data
    raise ChecksumMismatch(
        f"{store.location.child(pin.name)}: what arrived, twice, has CRC32C {crc:08x}, the object's is"
        f" {pin.crc32c:08x}; something between here and the store changes bytes"
    )


async def _read_bytes(store: Store, pin: Pin, start: int, end: int, retry: RetryPolicy) -> bytes:
    if start == end:
        return b""
    where = f"{store.location.child(pin.name)}, bytes {start}-{end}"
    return bytes(await with_retries(lambda: read(store, pin, start, end), retry, where=where))


_T = TypeVar("_T")


async def _all(*awaitables: Any) -> Any:
    """All of them at once; when one fails, the others are cancelled and gone before its error is raised."""
    tasks = [asyncio.ensure_future(item) for item in awaitables]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
