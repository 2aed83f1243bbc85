"""CRC32C against its published values; a buffer is checked where it lies."""

from __future__ import annotations

import ctypes
import mmap
import random

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.weights.transfer.checksum import Fold, combine, copy, crc32c, pinned

DATA = random.Random(1).randbytes(700_000)
# RFC 3720, appendix B.4.
VECTORS = {
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
    b"123456789": 0xE3069283,
    b"": 0,
}


@pytest.mark.parametrize(("data", "value"), list(VECTORS.items()))
def test_published_values(data: bytes, value: int) -> None:
    assert crc32c(memoryview(data)) == value


@pytest.mark.parametrize("data", [data for data in VECTORS if data])
def test_published_values_from_pieces(data: bytes) -> None:
    for cut in range(len(data) + 1):
        first, second = memoryview(data)[:cut], memoryview(data)[cut:]
        assert combine(crc32c(first), crc32c(second), len(second)) == VECTORS[data]


def test_nothing_appended_changes_nothing() -> None:
    assert combine(0xE3069283, 0, 0) == 0xE3069283


def test_terabytes_of_zeros_are_combined_without_being_there() -> None:
    once = combine(0x1234, 0, 1 << 41)
    halves = combine(combine(0x1234, 0, 1 << 40), 0, 1 << 40)
    assert once == halves


@pytest.mark.parametrize("buffer", [bytearray(b"123456789"), b"123456789"])
def test_writable_and_read_only_buffers_are_both_read_in_place(buffer: bytes | bytearray) -> None:
    with pinned(memoryview(buffer)) as address:
        assert ctypes.string_at(address, 9) == b"123456789"
        if isinstance(buffer, bytearray):
            buffer[0] = 0
            assert ctypes.string_at(address, 1) == b"\0"
            with pytest.raises(BufferError):  # it cannot move while it is pinned
                buffer.append(1)


def test_a_buffer_is_free_again_afterwards() -> None:
    memory = mmap.mmap(-1, 4096)
    assert crc32c(memoryview(memory)) == google_crc32c.value(bytes(4096))
    memory.close()  # BufferError if anything still held it


def test_a_fold_knows_nothing_while_bytes_are_missing() -> None:
    fold = Fold(9)
    fold.add(5, 9, crc32c(memoryview(b"6789")))
    assert fold.value is None
    fold.add(0, 5, crc32c(memoryview(b"12345")))
    assert fold.value == 0xE3069283


def test_a_fold_of_nothing_is_zero() -> None:
    fold = Fold(0)
    fold.add(0, 0, 123)
    assert fold.value == 0


@pytest.mark.parametrize("span", [(-1, 3), (5, 4), (8, 10)])
def test_a_piece_outside_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        Fold(9).add(*span, 0)


def test_a_byte_that_came_twice_is_refused() -> None:
    fold = Fold(9)
    fold.add(0, 5, 1)
    with pytest.raises(ValueError, match="two pieces begin at 0"):
        fold.add(0, 9, 1)
    fold.add(4, 9, 1)
    with pytest.raises(ValueError, match="overlap at 4"):
        assert fold.value


@given(st.integers(0, 700_000), st.integers(0, 0xFFFFFFFF), st.booleans())
def test_a_copy_is_the_source_and_has_its_checksum(size: int, before: int, checked: bool) -> None:
    source = DATA[:size]
    target = memoryview(bytearray(size + 2))
    crc = copy(memoryview(source), target[1:-1], before, checked=checked)
    assert bytes(target) == b"\0" + source + b"\0"
    assert crc == (google_crc32c.extend(before, source) if checked and size else before if not size else 0)
