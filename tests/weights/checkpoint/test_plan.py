"""The sizes of reads; that they cover every byte in order is a property (tests/properties)."""

from __future__ import annotations

from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.checkpoint.plan import MIB, PART_SIZE, RAMP, SMALLEST_PART, TAIL_CUT, part_size_for, plan


def layers(*sizes: int, file: str = "model.safetensors") -> list[TensorInfo]:
    found, position = [], 100
    for number, size in enumerate(sizes):
        found.append(TensorInfo(f"layers.{number}.w", "U8", (size,), file, position, position + size))
        position += size
    return found


def test_the_first_reads_are_of_growing_size() -> None:
    reads = plan(layers(*[MIB] * 2000)).reads
    first = [read.nbytes for read in reads[:RAMP]]
    assert first == sorted(first)
    assert first[0] == SMALLEST_PART
    assert first[-1] == PART_SIZE
    assert len(set(first)) > RAMP / 2


def test_a_large_first_tensor_is_cut_into_growing_pieces() -> None:
    reads = plan(layers(700 * MIB, *[MIB] * 100)).reads
    first = [read.nbytes for read in reads[:RAMP]]
    assert first == sorted(first)
    assert first[0] <= SMALLEST_PART < 10 * MIB < first[-1] <= PART_SIZE


def test_a_tensor_of_up_to_a_part_stays_whole() -> None:
    reads = plan(layers(*[PART_SIZE] * 20)).reads
    assert [read.nbytes for read in reads[:17]] == [PART_SIZE] * 17
    assert all(read.whole for read in reads[:17])


def test_the_last_reads_are_small() -> None:
    reads = plan(layers(*[MIB] * 1000)).reads
    tail = [read.nbytes for read in reads if read.tensors[0].start > 900 * MIB]
    assert max(tail) == PART_SIZE // TAIL_CUT


def test_neighbours_in_different_files_are_never_one_read() -> None:
    infos = [*layers(10, 10), TensorInfo("layers.1.x", "U8", (10,), "other.safetensors", 120, 130)]
    assert {frozenset(info.file for info in read.tensors) for read in plan(infos).reads} == {
        frozenset({"model.safetensors"}),
        frozenset({"other.safetensors"}),
    }


def test_a_part_is_small_enough_for_every_connection_to_get_several() -> None:
    assert part_size_for(100, connections=16) == SMALLEST_PART
    assert part_size_for(640 * MIB, connections=16) == 10 * MIB
    assert part_size_for(1 << 40, connections=16) == PART_SIZE
