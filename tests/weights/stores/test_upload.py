"""Uploads to Cloud Storage: whole or not at all, whatever a network does, and only in place of what was seen."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.errors import LocationError, ObjectChanged, StoreUnavailable
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.google import google_store
from coldstream.weights.stores.google_upload import GoogleUpload
from coldstream.weights.stores.network import Network
from coldstream.weights.stores.store import Pin
from coldstream.weights.stores.upload import open_writable
from coldstream.weights.transfer.retry import RetryPolicy
from tests.support.upload_server import SECRET, UploadServer

FOLDER = Location.parse("gs://bucket/model/packed")
CHUNK = 256 * 1024


async def put(server: UploadServer, data: bytes, *, pieces: int = 1, replaces: Pin | None = None) -> Pin:
    store = google_store(FOLDER, {"STORAGE_EMULATOR_HOST": server.url}, stall=5)
    upload = await store.begin_upload("x", len(data), replaces=replaces)
    upload = GoogleUpload(FOLDER.child("x"), upload._session, len(data), Network({}), upload._pinned, chunk=CHUNK)
    step = -(-len(data) // pieces)
    try:
        for at in range(0, len(data), step):
            await upload.write(memoryview(data)[at : at + step])
        return await upload.finish()
    finally:
        await upload.abort()


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 5 * CHUNK),
    pieces=st.integers(1, 9),
    troubles=st.lists(st.sampled_from([None, "lost", "half"]), max_size=6),
)
def test_an_object_arrives_whole_through_any_troubles(size: int, pieces: int, troubles: list[str | None]) -> None:
    data = random.Random(size).randbytes(size)
    with UploadServer(lambda number: troubles[number - 1] if number <= len(troubles) else None) as server:
        pin = asyncio.run(put(server, data, pieces=pieces))
        assert server.objects["model/packed/x"] == (1, data)
    assert (pin.size, pin.generation) == (size, "1")


@pytest.mark.parametrize("trouble", ["cut", "busy"])
def test_a_chunk_that_was_lost_is_sent_again(trouble: str) -> None:
    with UploadServer(lambda number: trouble if number == 2 else None) as server:
        asyncio.run(put(server, bytes(3 * CHUNK)))
        assert server.objects["model/packed/x"][1] == bytes(3 * CHUNK)


def test_another_writer_is_refused() -> None:
    with UploadServer() as server:
        first = asyncio.run(put(server, b"1"))
        with pytest.raises(ObjectChanged):
            asyncio.run(put(server, b"2"))
        assert asyncio.run(put(server, b"3", replaces=first)).generation == "2"
        with pytest.raises(ObjectChanged):
            asyncio.run(put(server, b"4", replaces=first))
        assert server.objects["model/packed/x"] == (2, b"3")


def test_what_was_begun_and_given_up_leaves_nothing() -> None:
    async def half(server: UploadServer) -> None:
        store = google_store(FOLDER, {"STORAGE_EMULATOR_HOST": server.url}, stall=5)
        upload = await store.begin_upload("x", 10, replaces=None)
        await upload.write(memoryview(b"12345"))
        with pytest.raises(ValueError, match="5 bytes of 10"):
            await upload.finish()
        await upload.abort()

    with UploadServer() as server:
        asyncio.run(half(server))
        assert (server.objects, server.sessions) == ({}, {})


def test_no_message_has_the_url_of_an_upload() -> None:
    """It is leave to write: what fails says the object's URI."""

    async def gone() -> None:
        policy = RetryPolicy(attempts=1, refused_window=0)
        session = f"http://127.0.0.1:9/{SECRET}"
        upload = GoogleUpload(FOLDER.child("x"), session, 1, Network({}), failing, retry=policy)
        await upload.write(memoryview(b"1"))
        await upload.finish()

    def failing(body: bytes) -> Pin:
        raise AssertionError

    with pytest.raises(StoreUnavailable) as caught:
        asyncio.run(gone())
    assert SECRET not in f"{caught.value} {caught.value.__cause__}"
    assert str(FOLDER) in str(caught.value)


def test_what_can_only_be_read_is_refused_by_name() -> None:
    with pytest.raises(LocationError, match="only read"):
        open_writable(Location.parse("az://container/model"))
