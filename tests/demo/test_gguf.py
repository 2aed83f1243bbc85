"""GGUF files are read as the specification says, and bfloat16 is rounded as torch rounds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream.demo.gguf import read_gguf, to_bfloat16
from coldstream.errors import CheckpointError
from tests.support.gguf_files import F32, Q4_1, Q8_0, write_gguf

METADATA = {"text": "한글", "whole": 7, "real": 0.5, "yes": True, "names": ["a", "b c"], "kinds": [1, 3]}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bits(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()


def test_metadata_of_every_kind_is_read(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", METADATA, {})
    assert read_gguf(tmp_path / "a.gguf").metadata == METADATA


@pytest.mark.parametrize("encoding", [F32, Q8_0, Q4_1])
def test_every_encoding_decodes_to_the_bits_that_torch_would_round_to(tmp_path: Path, encoding: int) -> None:
    tensors = {"a": (numbers(3, 64), encoding), "b": (numbers(2, 32, seed=1), encoding)}
    expected = write_gguf(tmp_path / "a.gguf", METADATA, tensors)
    found = read_gguf(tmp_path / "a.gguf").tensors
    for name, values in expected.items():
        assert found[name].shape == values.shape
        np.testing.assert_array_equal(to_bfloat16(found[name]), bits(values))


def test_a_tensor_of_many_chunks_is_decoded_whole(tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "a.gguf", {}, {"a": (numbers(700, 416), F32)})
    found = read_gguf(tmp_path / "a.gguf").tensors["a"]
    np.testing.assert_array_equal(to_bfloat16(found), bits(expected["a"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_rounding_is_torchs_for_every_float(tmp_path: Path, values: list[float]) -> None:
    array = np.array(values, np.float32)
    write_gguf(tmp_path / "a.gguf", {}, {"a": (array, F32)})
    np.testing.assert_array_equal(to_bfloat16(read_gguf(tmp_path / "a.gguf").tensors["a"]), bits(array))


@pytest.mark.parametrize("keep", [2, 20, 60, 200, -30])
def test_a_file_that_is_cut_short_is_refused_with_its_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, METADATA, {"a": (numbers(4, 32), Q8_0)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"a\.gguf"):
        read_gguf(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        read_gguf(tmp_path / "a.gguf")


def test_an_unknown_encoding_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, {}, {"odd": (numbers(1, 32), F32)})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"odd") + 3 + 4 + 16
    raw[at] = 99
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="odd is in encoding 99"):
        read_gguf(path)
