"""A server may name its versions well, badly or not at all: what is read is one version, or an error."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from time import time
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.errors import BadResponse, ColdstreamError, ObjectChanged
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.stores.open_store import open_store
from coldstream.weights.transfer.retry import RetryPolicy
from coldstream.weights.transfer.stream import StreamOptions, stream
from tests.support import files
from tests.support.servers import GoogleServer, Handler, RangeServer

BEFORE = files.model(layers=2)
AFTER = {name: (dtype, shape, data[::-1]) for name, (dtype, shape, data) in BEFORE.items()}
FAST = RetryPolicy(attempts=2, first_delay=0.001)


@dataclass(frozen=True)
class Manners:
    """How a server names versions: where it says what, how old its files are, and whether it obeys If-Match."""

    etag: str  # strong, weak, none
    etag_in: str  # all, head, get
    dated: str  # old, young, none
    dated_in: str
    obeys: bool

    @property
    def can_be_pinned(self) -> bool:
        return (self.etag, self.etag_in) == ("strong", "all") or (self.dated, self.dated_in) == ("old", "all")


def folder(tensors: files.Tensors) -> dict[str, bytes]:
    return {f"model/{name}": data for name, data in files.checkpoint(tensors).items()}


class Fickle(RangeServer):
    """Replaces its files after so many reads of weights; None: never."""

    def __init__(self, manners: Manners, *, after: int | None) -> None:
        super().__init__(folder(BEFORE))
        self._manners, self._after = manners, after
        self._reads = self._version = 0

    def answer(self, handler: Handler) -> None:
        if handler.command == "GET" and handler.path.endswith(".safetensors"):
            if self._reads == self._after:
                self.files, self._version = folder(AFTER), 1
            self._reads += 1
        if not self._manners.obeys:
            del handler.headers["If-Match"]
        super().answer(handler)

    def names(self, handler: Handler, data: bytes) -> Mapping[str, str]:
        manners, where = self._manners, handler.command.lower()
        found = {}
        if manners.etag != "none" and manners.etag_in in ("all", where):
            # A weak one is allowed to stay the same.
            found["ETag"] = 'W/"same"' if manners.etag == "weak" else f'"{hashlib.md5(data).hexdigest()}"'
        if manners.dated != "none" and manners.dated_in in ("all", where):
            moment = (1 + self._version) * 1000 if manners.dated == "old" else time()
            found["Last-Modified"] = formatdate(moment, usegmt=True)
        return found


async def load(uri: str, environ: Mapping[str, str]) -> dict[str, bytes]:
    store = open_store(Location.parse(uri), environ=environ)
    checkpoint = await open_checkpoint_async(uri, store=store, retry=FAST)
    landed = stream(checkpoint, options=StreamOptions(part_size=128, concurrency=2, retry=FAST))
    return {item.info.name: bytes(item.data) async for item in landed}


def bytes_of(tensors: files.Tensors) -> dict[str, bytes]:
    return {name: data for name, (_, _, data) in tensors.items()}


where = st.sampled_from(["all", "head", "get"])
manners = st.builds(
    Manners,
    etag=st.sampled_from(["strong", "weak", "none"]),
    etag_in=where,
    dated=st.sampled_from(["old", "young", "none"]),
    dated_in=where,
    obeys=st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(manners, st.integers(0, 12))
def test_two_versions_are_never_mixed(manners: Manners, after: int) -> None:
    with Fickle(manners, after=after) as server:
        try:
            loaded = asyncio.run(load(f"{server.url}/model", {}))
        except ColdstreamError:
            return
    assert loaded in (bytes_of(BEFORE), bytes_of(AFTER))


@settings(max_examples=25, deadline=None)
@given(manners)
def test_what_can_be_pinned_is_read_and_the_rest_is_refused_by_name(manners: Manners) -> None:
    with Fickle(manners, after=None) as server:
        if manners.can_be_pinned:
            assert asyncio.run(load(f"{server.url}/model", {})) == bytes_of(BEFORE)
            return
        with pytest.raises(BadResponse, match=r"model/(config\.json|model\.safetensors): cannot be pinned.*ETag"):
            asyncio.run(load(f"{server.url}/model", {}))


async def test_a_weak_etag_is_not_asked_for() -> None:
    seen: list[str | None] = []

    class Asked(Fickle):
        def answer(self, handler: Handler) -> None:
            seen.append(handler.headers.get("If-Match"))
            super().answer(handler)

    with Asked(Manners("weak", "all", "old", "all", obeys=True), after=None) as server:
        assert await load(f"{server.url}/model", {}) == bytes_of(BEFORE)
    assert set(seen) == {None}


class FickleGoogle(GoogleServer):
    """Like an emulator that knows no generations when it is read: it obeys none, and perhaps names none."""

    def __init__(self, *, names: bool) -> None:
        super().__init__({f"models/{path}": data for path, data in folder(BEFORE).items()}, token=None)
        self.extra = {"x-goog-generation": "1"} if names else {}
        self._names, self._reads = names, 0

    def answer(self, handler: Handler) -> None:
        if ".safetensors" in unquote(handler.path) and "/storage/v1/" not in handler.path:
            if self._reads == 4:
                self.files = {f"models/{path}": data for path, data in folder(AFTER).items()}
                self.extra = {"x-goog-generation": "2"} if self._names else {}
            self._reads += 1
        super().answer(handler)


@pytest.mark.parametrize(("names", "error"), [(True, ObjectChanged), (False, BadResponse)])
async def test_a_bucket_that_ignores_generations_is_not_mixed(names: bool, error: type[Exception]) -> None:
    with FickleGoogle(names=names) as server, pytest.raises(error, match="gs://models/model"):
        await load("gs://models/model", {"STORAGE_EMULATOR_HOST": server.url})
