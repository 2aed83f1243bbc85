"""What every store has to keep. A subclass says how files get into the store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import pytest

from coldstream.errors import ObjectChanged, ObjectNotFound
from coldstream.weights.checkpoint import file_names
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.stores.store import Pin, Store, read
from coldstream.weights.transfer.progress import Progress
from coldstream.weights.transfer.stream import StreamOptions, stream
from tests.support import files

DATA = bytes(range(256)) * 4096  # a megabyte: more than a socket holds


class Shelf(ABC):
    """A place for folders."""

    @abstractmethod
    def folder(self, name: str, contents: Mapping[str, bytes]) -> str:
        """Put the files there; the folder's URI."""

    @abstractmethod
    def replace(self, uri: str, name: str, data: bytes) -> None:
        """Write a file of the folder again."""


def store_at(uri: str) -> Store:
    return open_store(Location.parse(uri))


class StoreContract:
    """Inherit, and give a fixture `shelf`."""

    has_checksums = False
    can_list = True

    async def test_the_listing_has_the_files_of_the_folder_with_their_sizes(self, shelf: Shelf) -> None:
        uri = shelf.folder("listed", {"config.json": b"{}", "model.safetensors": DATA, "below/other.bin": b"x"})
        pins = await store_at(uri).list()
        assert {name: pin.size for name, pin in pins.items()} == {"config.json": 2, "model.safetensors": len(DATA)}
        assert all(pin.generation or pin.etag for pin in pins.values())
        assert all((pin.crc32c is not None) is self.has_checksums for pin in pins.values())

    async def test_every_file_that_makes_a_tokenizer_is_found(self, shelf: Shelf) -> None:
        names = (*file_names.TOKENIZER, *file_names.TEMPLATES_BELOW)
        small = {name: name.encode() for name in names if name not in ("config.json", "generation_config.json")}
        uri = shelf.folder("named", {**files.checkpoint(files.model()), **small})
        checkpoint = await open_checkpoint_async(uri)
        found = await checkpoint.read_files(names)
        assert found == {**small, "config.json": files.checkpoint(files.model())["config.json"]}

    async def test_a_folder_that_is_not_there_has_no_files(self, shelf: Shelf) -> None:
        uri = shelf.folder("there", {"config.json": b"{}"})
        assert await store_at(uri + "-not").list() == {}

    async def test_a_name_is_pinned_like_the_listing_pins_it(self, shelf: Shelf) -> None:
        uri = shelf.folder("pinned", {"config.json": b"{}", "below/other.safetensors": b"12345"})
        store = store_at(uri)
        listed = (await store.list())["config.json"]
        pin = await store.pin("config.json")
        assert pin is not None
        assert (pin.size, pin.version) == (listed.size, listed.version)
        below = await store.pin("below/other.safetensors")
        assert below is not None
        assert below.size == 5
        assert await store.pin("none.json") is None

    async def test_any_range_is_read_exactly(self, shelf: Shelf) -> None:
        uri = shelf.folder("ranges", {"config.json": DATA})
        store = store_at(uri)
        pin = (await store.list())["config.json"]
        for start, end in ((0, 1), (0, len(DATA)), (len(DATA) - 1, len(DATA)), (1000, 700_001)):
            assert bytes(await read(store, pin, start, end)) == DATA[start:end]

    async def test_a_file_that_was_replaced_is_never_read_in_its_place(self, shelf: Shelf) -> None:
        uri = shelf.folder("replaced", {"config.json": DATA})
        store = store_at(uri)
        pin = (await store.list())["config.json"]
        shelf.replace(uri, "config.json", DATA[::-1])
        with pytest.raises(ObjectChanged, match=r"config\.json"):
            await read(store, pin, 0, 1000)

    @pytest.mark.parametrize("piecewise", [False, True])
    async def test_a_read_brings_every_byte_once_and_in_order(self, shelf: Shelf, piecewise: bool) -> None:
        data = bytes(range(256)) * 20_000
        store = store_at(shelf.folder("told", {"config.json": data}))
        pin = (await store.list())["config.json"]
        pieces = [bytes(piece) async for piece in store.read_range(pin, 1000, len(data), piecewise=piecewise)]
        assert b"".join(pieces) == data[1000:]

    async def test_a_file_that_is_gone_is_named(self, shelf: Shelf) -> None:
        uri = shelf.folder("gone", {"config.json": b"{}"})
        with pytest.raises(ObjectNotFound, match=r"gone/none\.safetensors"):
            await read(store_at(uri), Pin("none.safetensors", 10, generation="1"), 0, 10)

    async def test_a_checkpoint_streams_as_it_lies_there(self, shelf: Shelf) -> None:
        tensors = files.model(layers=5, width=64)
        uri = shelf.folder("gemma-3 한국어", files.checkpoint(tensors, shards=3))
        progress = Progress()
        checkpoint = await open_checkpoint_async(uri)
        streamed = stream(checkpoint, options=StreamOptions(part_size=5000), progress=progress)
        assert {item.info.name: bytes(item.data) async for item in streamed} == {
            name: data for name, (_, _, data) in tensors.items()
        }
        assert progress.verified_files == (3 if self.has_checksums else 0)

    async def test_names_with_strange_characters(self, shelf: Shelf) -> None:
        name = "a b+c%20&d=é.json"
        if not self.can_list:
            name = "chat_template.jinja"
        uri = shelf.folder("strange %41 names", {name: b"12345"})
        store = store_at(uri)
        pin = (await store.list())[name]
        assert bytes(await read(store, pin, 1, 3)) == b"23"
