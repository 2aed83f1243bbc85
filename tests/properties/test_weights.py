"""Invariants of the weights room, for any input."""

from __future__ import annotations

import asyncio
import json
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream.errors import LocationError
from coldstream.weights.checkpoint.checkpoint import open_checkpoint_async
from coldstream.weights.checkpoint.header import DTYPE_BITS, TensorInfo, parse_header
from coldstream.weights.checkpoint.plan import execution_order, plan, rank
from coldstream.weights.checkpoint.uri import Location
from coldstream.weights.transfer.checksum import Fold, combine, crc32c
from coldstream.weights.transfer.concurrency import Bounds, Concurrency
from coldstream.weights.transfer.retry import RetryPolicy
from coldstream.weights.transfer.stream import StreamOptions, stream
from tests.support import files
from tests.support.fault_stores import MemoryStore

FUZZED = runpy.run_path(str(Path(__file__).parents[2] / "fuzz/header.py"))

NAMES = st.sampled_from(
    ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "vision_tower.encoder.layers.3.w", "x"]
    + [f"model.layers.{n}.{part}" for n in range(12) for part in ("mlp", "self_attn")]
)


@st.composite
def tensors(draw: st.DrawFn) -> list[TensorInfo]:
    """Tensors of a few files, each file filled without a gap."""
    found = []
    for file in range(draw(st.integers(1, 3))):
        position = draw(st.integers(8, 100))
        names = draw(st.lists(NAMES, unique=True, max_size=12))
        for name in names:
            size = draw(st.integers(0, 300))
            found.append(TensorInfo(f"{name}@{file}", "U8", (size,), f"{file}.safetensors", position, position + size))
            position += size
    return found


@given(tensors(), st.integers(1, 400))
def test_a_plan_covers_every_byte_exactly_once_in_reads_no_larger_than_a_part(
    found: list[TensorInfo], part: int
) -> None:
    planned = plan(found, part_size=part, max_read=part)
    covered = sorted((read.file, byte) for read in planned.reads for byte in range(read.start, read.end))
    wanted = sorted((info.file, byte) for info in found for byte in range(info.start, info.end))
    assert covered == wanted
    assert all(0 < read.nbytes <= part for read in planned.reads)
    assert {info.name for info in planned.empty} == {info.name for info in found if not info.nbytes}


@given(tensors(), st.integers(1, 400))
def test_a_read_holds_whole_tensors_or_a_cut_of_one(found: list[TensorInfo], part: int) -> None:
    for read in plan(found, part_size=part).reads:
        if read.whole:
            assert (read.tensors[0].start, read.tensors[-1].end) == (read.start, read.end)
        else:
            (info,) = read.tensors
            assert read.nbytes <= part
            assert info.start <= read.start < read.end <= info.end


@given(tensors(), st.integers(1, 400))
def test_reads_follow_the_order_of_execution(found: list[TensorInfo], part: int) -> None:
    ranks = [rank(info.name) for read in plan(found, part_size=part).reads for info in read.tensors]
    assert ranks == sorted(ranks)


@given(st.lists(NAMES, unique=True), st.randoms())
def test_the_execution_order_does_not_depend_on_the_order_of_the_names(names: list[str], draw: Any) -> None:
    shuffled = draw.sample(names, len(names))
    assert execution_order(shuffled) == execution_order(names)


@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=20), st.randoms())
def test_pieces_in_any_order_fold_to_the_checksum_of_the_whole(data: bytes, cuts: list[int], draw: Any) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = list(pairwise(edges))
    fold = Fold(len(data))
    for start, end in draw.sample(pieces, len(pieces)):
        assert fold.value is None
        fold.add(start, end, crc32c(memoryview(data)[start:end]))
    assert fold.value == google_crc32c.value(data)


@given(st.binary(), st.binary())
def test_combining_is_appending(first: bytes, second: bytes) -> None:
    assert combine(google_crc32c.value(first), google_crc32c.value(second), len(second)) == google_crc32c.value(
        first + second
    )


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.integers(0, 2**40))
def test_combining_is_associative_at_any_length(first: int, second: int, length: int, more: int) -> None:
    third = 0x1234ABCD
    left = combine(combine(first, second, length), third, more)
    assert left == combine(first, combine(second, third, more), length + more)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(list(DTYPE_BITS)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*DTYPE_BITS, "BF17"]) | JSON},
    optional={
        "shape": st.lists(st.integers(-1, 2**64) | st.integers(0, 3), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40) | st.integers(), max_size=3) | JSON,
    },
)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_header_or_an_error_of_ours(raw: bytes) -> None:
    _parse(raw)
    _parse(len(raw).to_bytes(8, "little") + raw)


@settings(max_examples=300)
@given(st.dictionaries(st.text(max_size=5), ENTRY, max_size=4), st.integers(0, 60))
def test_any_json_is_a_header_or_an_error_of_ours(table: dict[str, Any], data: int) -> None:
    _parse(files.header(table) + bytes(data))


def _parse(raw: bytes) -> None:
    FUZZED["parse"](raw, len(raw))


@given(st.text(max_size=40))
def test_any_text_is_a_location_that_survives_printing_or_an_error_of_ours(text: str) -> None:
    try:
        location = Location.parse(text)
    except LocationError:
        return
    assert Location.parse(str(location)) == location


@given(st.text(max_size=20), st.sampled_from(["gs", "s3", "az", "http", "https"]))
def test_any_path_in_a_bucket_survives_printing(path: str, scheme: str) -> None:
    test_any_text_is_a_location_that_survives_printing_or_an_error_of_ours.hypothesis.inner_test(  # type: ignore[attr-defined]
        f"{scheme}://bucket/{path}"
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1000),
    layers=st.integers(0, 5),
    shards=st.integers(1, 4),
    part=st.integers(1, 3000),
    budget=st.none() | st.integers(200, 3000),
    connections=st.integers(1, 8),
    rows=st.none() | st.integers(1, 5),
)
def test_what_is_streamed_is_what_lies_in_the_file(
    seed: int, layers: int, shards: int, part: int, budget: int | None, connections: int, rows: int | None
) -> None:
    model = files.model(seed, layers=layers)
    store = MemoryStore(files.checkpoint(model, shards=min(shards, len(model))))
    options = StreamOptions(
        max_bytes_in_flight=budget, part_size=max(part, 30), concurrency=connections, retry=RetryPolicy(deadline=30.0)
    )

    def pieces(info: TensorInfo) -> list[TensorInfo]:
        if rows is None or not info.nbytes:
            return [info]
        return [info.rows(row, min(row + rows, info.shape[0])) for row in range(0, info.shape[0], rows)]

    async def load() -> dict[str, bytes]:
        checkpoint = await open_checkpoint_async(store.location, store=store)
        store.most_running = 0
        landed = [item async for item in stream(checkpoint, pieces=pieces, options=options)]
        found: dict[str, bytes] = {}
        for item in sorted(landed, key=lambda item: item.info.start):
            found[item.info.name] = found.get(item.info.name, b"") + bytes(item.data)
        return found

    assert asyncio.run(load()) == {name: data for name, (_, _, data) in model.items()}
    assert store.most_running <= connections


@given(
    st.integers(1, 8),
    st.integers(0, 8),
    st.integers(0, 40),
    st.lists(st.tuples(st.booleans(), st.integers(1, 10**8), st.floats(0, 2)), max_size=200),
)
def test_the_limit_of_reads_stays_within_its_bounds(
    low: int, start: int, high: int, events: list[tuple[bool, int, float]]
) -> None:
    bounds = Bounds(low, low + start, low + start + high)
    control = Concurrency(bounds, now=0.0)
    now = 0.0
    for refused, nbytes, seconds in events:
        now += seconds
        if refused:
            before = control.limit
            control.throttled(now=now)
            assert control.limit <= before
        else:
            control.completed(nbytes, now=now)
        assert bounds.low <= control.limit <= bounds.high


def test_a_valid_header_survives_json_dump() -> None:
    raw = files.safetensors(files.model())
    end = parse_header(raw, file="f", size=len(raw), uri="f").data_start
    assert json.loads(raw[8:end])["__metadata__"] == {"format": "pt"}
