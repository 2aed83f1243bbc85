"""safetensors headers: what is valid, and one test an attack."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coldstream.errors import HeaderError
from coldstream.weights.checkpoint.header import DTYPE_BITS, MAX_HEADER, Header, header_end, parse_header
from tests.support import files

URI = "gs://bucket/model.safetensors"


def parse(raw: bytes, size: int | None = None) -> Header:
    return parse_header(raw, file="model.safetensors", size=len(raw) if size is None else size, uri=URI)


def table(**entry: Any) -> bytes:
    """A file with one tensor `w` of four bytes, but for what `entry` changes."""
    return files.header({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **entry}}) + bytes(4)


def test_a_valid_header_gives_places_in_the_file() -> None:
    raw = files.safetensors({"b": ("F32", [2, 3], bytes(24)), "a": ("BF16", [], bytes(2)), "none": ("I8", [0, 9], b"")})
    header = parse(raw)
    assert [info.name for info in header.tensors] == ["b", "a", "none"] or header.tensors[0].name == "b"
    places = {info.name: (info.shape, info.start - header.data_start, info.nbytes) for info in header.tensors}
    assert places == {"b": ((2, 3), 0, 24), "a": ((), 24, 2), "none": ((0, 9), 26, 0)}
    assert header.metadata == {"format": "pt"}
    assert header.data_start + 26 == len(raw)


def test_a_file_without_tensors_is_valid() -> None:
    assert parse(files.header({})).tensors == ()


def test_spaces_behind_the_json_are_padding() -> None:
    assert parse(files.header("{}     ")).data_start == 15


@pytest.mark.parametrize("dtype", list(DTYPE_BITS))
def test_every_dtype_of_the_format_is_known(dtype: str) -> None:
    count = DTYPE_BITS[dtype]  # that many bytes hold eight elements
    assert parse(files.safetensors({"w": (dtype, [8], bytes(count))})).tensors[0].nbytes == count


def refused(raw: bytes, says: str, size: int | None = None) -> None:
    with pytest.raises(HeaderError, match=says) as error:
        parse(raw, size)
    assert URI in str(error.value)


def test_a_file_shorter_than_the_length() -> None:
    refused(b"\x01\x00", "too short")


def test_a_length_of_two_to_the_63() -> None:
    refused((2**63).to_bytes(8, "little") + b"{}", "over the limit")


def test_a_length_over_the_cap_is_refused_before_anything_is_read() -> None:
    with pytest.raises(HeaderError, match="over the limit"):
        header_end((MAX_HEADER + 1).to_bytes(8, "little"), size=1 << 40, uri=URI)


def test_a_length_beyond_the_file() -> None:
    refused((100).to_bytes(8, "little") + b"{}", "truncated")


def test_a_header_that_ends_early() -> None:
    refused((100).to_bytes(8, "little") + b"{}", "ends early", size=500)


def test_bytes_that_are_not_utf_8() -> None:
    refused(files.header(b'{"\xff": 1}'), "not UTF-8")


@pytest.mark.parametrize("text", ["", "[]", " {}", "null", '{"a": ', "{]", "{'a': 1}", '{"a": NaN}', '{"a": 1e999}'])
def test_text_that_is_not_a_json_object(text: str) -> None:
    refused(files.header(text), "JSON|begin with|dtype")


def test_json_nested_a_million_deep() -> None:
    refused(files.header('{"a":' + "[" * 1_000_000), "not valid JSON")


def test_one_name_twice() -> None:
    entry = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    refused(files.header(f'{{"w":{entry},"w":{entry}}}') + b"\0", "'w' occurs twice")


def test_one_field_twice() -> None:
    text = '{"w":{"dtype":"U8","shape":[9],"shape":[1],"data_offsets":[0,1]}}'
    refused(files.header(text) + b"\0", "'shape' occurs twice")


@pytest.mark.parametrize("dtype", ["", "BF17", "bf16", None, 4, ["BF16"], {"a": 1}])
def test_an_unknown_dtype(dtype: Any) -> None:
    refused(table(dtype=dtype), "tensor 'w': unknown dtype")


@pytest.mark.parametrize("shape", [[-4], [4.0], ["4"], [True], [None], [[4]], 4, None, {"0": 4}, [2**63]])
def test_a_shape_that_is_not_a_list_of_sizes(shape: Any) -> None:
    refused(table(shape=shape), "tensor 'w': shape")


def test_a_shape_that_overflows() -> None:
    refused(table(shape=[2**62, 2**62]), "overflows")


def test_a_shape_of_many_sizes() -> None:
    refused(table(shape=[2**62] * 64), "overflows")
    refused(table(shape=[1] * 65), "65 dimensions, over the limit of 64")


def test_a_zero_among_huge_sizes_is_no_bytes() -> None:
    refused(table(shape=[2**62, 2**62, 0]), "takes 0 bytes")


@pytest.mark.parametrize(
    "offsets", [[0], [0, 4, 8], [4, 0], [-4, 0], [0, 2**63], [0.0, 4.0], ["0", "4"], [True, 4], None, "04", {}]
)
def test_offsets_that_are_not_a_begin_and_an_end(offsets: Any) -> None:
    refused(table(data_offsets=offsets), "tensor 'w'.*data_offsets")


@pytest.mark.parametrize("change", [{"shape": [5]}, {"shape": [3]}, {"dtype": "U16"}, {"dtype": "F4", "shape": [7]}])
def test_a_size_that_is_not_shape_times_dtype(change: dict[str, Any]) -> None:
    refused(table(**change), "tensor 'w'.*takes")


def test_a_shape_of_half_bytes() -> None:
    refused(table(dtype="F4", shape=[9]), "takes")


def test_unknown_fields_and_missing_fields() -> None:
    refused(table(extra=1), "needs exactly")
    refused(files.header({"w": {"dtype": "U8", "shape": []}}), "needs exactly")
    refused(files.header({"w": 3}), "needs exactly")


@pytest.mark.parametrize("metadata", [3, [], {"a": 1}, {"a": None}, "x"])
def test_metadata_that_is_not_text(metadata: Any) -> None:
    refused(files.header({"__metadata__": metadata}), "__metadata__")


def two(first: list[int], second: list[int], size: int) -> bytes:
    entries = {
        name: {"dtype": "U8", "shape": [span[1] - span[0]], "data_offsets": span}
        for name, span in (("first", first), ("second", second))
    }
    return files.header(entries) + bytes(size)


def test_tensors_that_overlap() -> None:
    refused(two([0, 4], [2, 6], 6), "tensor 'second': an overlap at byte")


def test_tensors_with_a_gap_between_them() -> None:
    refused(two([0, 4], [6, 8], 8), "tensor 'second': a gap at byte")


def test_bytes_behind_the_last_tensor() -> None:
    refused(two([0, 4], [4, 6], 9), "the file has")


def test_a_file_cut_inside_a_tensor() -> None:
    refused(two([0, 4], [4, 6], 5), "truncated")


def test_rows_of_a_tensor_are_a_tensor() -> None:
    info = parse(files.safetensors({"w": ("F32", [10, 3], bytes(120))})).tensors[0]
    rows = info.rows(2, 5)
    assert (rows.shape, rows.start - info.start, rows.nbytes) == ((3, 3), 24, 36)
    with pytest.raises(ValueError, match="no rows 2 to 11"):
        info.rows(2, 11)


def test_json_numbers_of_a_million_digits_end_soon() -> None:
    refused(files.header('{"w":{"dtype":"U8","shape":[' + "9" * 1_000_000 + '],"data_offsets":[0,1]}}') + b"\0", "JSON")


def test_a_json_of_a_hundred_megabytes_is_only_read_when_the_file_has_it() -> None:
    with pytest.raises(HeaderError, match="truncated"):
        header_end((99_999_999).to_bytes(8, "little"), size=5_000, uri=URI)


def test_a_large_header_of_one_long_string_is_refused_without_a_crash() -> None:
    refused(files.header(json.dumps({"w": "x" * 20_000_000})), "needs exactly")
