"""Files made to exhaust their reader: each is refused by name, in bounded memory, before it is parsed at length.

Measured in a process of its own, because memory that a peak took is not given back. Nothing here is timed; a parser
that needs minutes runs into the child's timeout.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from coldstream.errors import HeaderError, IndexMismatch, NoConfig
from coldstream.weights.checkpoint import checkpoint as limits
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from coldstream.weights.checkpoint.header import MAX_HEADER, MAX_TENSORS
from coldstream.weights.stores.store import Pin
from tests.support import files
from tests.support.fault_stores import MemoryStore

MB = 1_000_000
# What parsing may add to the bytes it was given: their text, once more as Python strings, and some room.
ROOM = 300 * MB

PARSE = """
import sys
from coldstream.errors import HeaderError
from coldstream.weights.checkpoint.header import parse_header

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

text = eval(sys.argv[1])
raw = len(text).to_bytes(8, "little") + text
del text
open("/proc/self/clear_refs", "w").write("5")
before = peak()
try:
    print(len(parse_header(raw, file="f", size=len(raw), uri="gs://b/f").tensors), "tensors")
except HeaderError as error:
    print(error)
print(len(raw), peak() - before)
"""


def parsed(payload: str) -> tuple[str, int, int]:
    """What the parser says to the bytes that the expression makes; their number, and the memory that it took."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE, payload], capture_output=True, text=True, timeout=60, check=True
    )
    answer, numbers = done.stdout.splitlines()
    size, memory = map(int, numbers.split())
    return answer, size, memory


@pytest.mark.parametrize(
    ("payload", "size", "says"),
    [
        ("""b'{' + b'"":{},' * 10_000_000 + b'"":{}}'""", 60 * MB, "more than 131072 tensors"),
        ("""b'{"w":' + b'[' * 99_000_000""", 99 * MB, "more than 131072 tensors"),
        ("""b'{"w":{"shape":[' + b'-1111,' * 16_500_000 + b'0]}}'""", 99 * MB, "more than 131072 tensors"),
        ("""b'{"' + b'x' * 99_000_000 + b'":{}}'""", 99 * MB, "tensor 'xxx.*needs exactly"),
        ("""b'{"__metadata__":{"a":"' + b'\\\\u0041' * 16_000_000 + b'"}}'""", 96 * MB, "0 tensors"),
        ("""b'{' + b' ' * 99_000_000 + b'}'""", 99 * MB, "0 tensors"),
    ],
    ids=["ten million tensors", "nested", "numbers", "a name", "escapes", "spaces"],
)
def test_a_header_of_a_hundred_megabytes_ends_in_bounded_memory(payload: str, size: int, says: str) -> None:
    answer, length, memory = parsed(payload)
    assert length >= size
    assert re.search(says, answer)
    assert len(answer) < 1000
    assert memory < ROOM


def test_the_largest_header_that_is_allowed_is_read_in_bounded_memory() -> None:
    entry = '{"dtype":"BF16","shape":[0,4],"data_offsets":[0,0]}'
    answer, _, memory = parsed(
        f"""b'{{' + b','.join(b'"layers.%d":{entry}' % n for n in range({MAX_TENSORS})) + b'}}'"""
    )
    assert answer == f"{MAX_TENSORS} tensors"
    assert memory < ROOM


def test_one_tensor_more_than_the_limit_is_refused() -> None:
    answer, _, _ = parsed(f"""b'{{' + b','.join(b'"%d":0' % n for n in range({MAX_TENSORS} + 1)) + b'}}'""")
    assert f"announces {MAX_TENSORS + 1} tensors" in answer


class Announced(MemoryStore):
    """Every file ends in zeros that are not stored: `size` bytes in all."""

    def __init__(self, contents: dict[str, bytes], size: int) -> None:
        super().__init__(contents)
        self.size = size

    async def read_range(
        self, pin: Pin, start: int, end: int, *, piecewise: bool = False
    ) -> AsyncGenerator[memoryview, None]:
        stored = min(end, max(start, len(self.files[pin.name])))
        async for piece in super().read_range(pin, start, stored):
            yield piece
        yield memoryview(bytes(end - stored))

    def _pin(self, name: str) -> Pin:
        pin = super()._pin(name)
        return Pin(name, self.size, generation=pin.generation) if name.endswith(".safetensors") else pin


def folder(shards: Sequence[str], start: bytes) -> dict[str, bytes]:
    index = json.dumps({"weight_map": {f"w{n}": name for n, name in enumerate(shards)}}).encode()
    return {"config.json": b"{}", limits.INDEX: index, **dict.fromkeys(shards, start)}


async def test_long_headers_of_many_files_are_not_all_read() -> None:
    names = [f"{n}.safetensors" for n in range(50)]
    store = Announced(folder(names, (10 * MB).to_bytes(8, "little") + b"{}"), 1000 * MB)
    with pytest.raises(HeaderError, match=r"the headers so far have \d+ bytes"):
        await open_checkpoint_async(store.location, store=store)
    assert sum(request.end - request.start for request in store.requests) < 1.5 * limits.MAX_ALL_HEADERS


async def test_only_so_many_headers_are_read_at_once() -> None:
    names = [f"{n}.safetensors" for n in range(2 * limits.WAVE)]
    store = MemoryStore({**folder(names, files.header("{}")), limits.INDEX: b""})
    store.files[limits.INDEX] = json.dumps({"weight_map": {name: name for name in names}}).encode()
    with pytest.raises(IndexMismatch, match="holds none of the tensors"):
        await open_checkpoint_async(store.location, store=store)
    assert store.most_running == limits.WAVE


async def test_an_index_of_more_files_than_the_limit() -> None:
    names = [f"{n}.safetensors" for n in range(limits.MAX_SHARDS + 1)]
    store = MemoryStore({"config.json": b"{}", limits.INDEX: folder(names, b"")[limits.INDEX]})
    with pytest.raises(IndexMismatch, match="names 10001 files"):
        await open_checkpoint_async(store.location, store=store)


async def test_an_index_of_more_tensors_than_the_limit_is_not_parsed() -> None:
    entries = b",".join([b'"":"a.safetensors"'] * (2 * limits.MAX_ALL_TENSORS))
    store = MemoryStore({"config.json": b"{}", limits.INDEX: b'{"weight_map":{' + entries + b"}}"})
    with pytest.raises(IndexMismatch, match="more than 524288 tensors"):
        await open_checkpoint_async(store.location, store=store)


@pytest.mark.parametrize(
    ("name", "limit", "error"),
    [("config.json", limits.MAX_CONFIG, NoConfig), (limits.INDEX, limits.MAX_INDEX, IndexMismatch)],
)
async def test_a_file_over_its_limit_is_not_read(name: str, limit: int, error: Any) -> None:
    class Huge(MemoryStore):
        def _pin(self, wanted: str) -> Pin:
            return Pin(wanted, limit + 1, generation="1") if wanted == name else super()._pin(wanted)

    store = Huge(files.checkpoint(files.model(), shards=2))
    with pytest.raises(error, match="over the limit"):
        await open_checkpoint_async(store.location, store=store)
    assert name not in {request.name for request in store.requests}


async def test_a_header_over_the_cap_costs_one_read() -> None:
    store = MemoryStore({"config.json": b"{}", "model.safetensors": (MAX_HEADER + 1).to_bytes(8, "little") + bytes(99)})
    with pytest.raises(HeaderError, match="over the limit"):
        await open_checkpoint_async(store.location, store=store)
    assert len([request for request in store.requests if request.name == "model.safetensors"]) == 1
