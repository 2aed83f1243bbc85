"""The public API over a folder: values, order, dtypes, devices, rows, transformers models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import coldstream
from coldstream.errors import HeaderError, ParameterMismatch, SettingsError
from coldstream.weights.checkpoint.plan import Read
from coldstream.weights.device import DeviceCopier
from coldstream.weights.transfer.stream import LandedRange, StreamOptions
from tests.support import files

DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)


@pytest.fixture
def state(tmp_path: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {f"layers.{n}.w": (torch.randn(7, 5) * 9).to(dtype) for n, dtype in enumerate(DTYPES)}
    state["scalar"], state["none"] = torch.tensor(3.0), torch.empty(0, 4)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return state


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and bytes(a.view(-1).view(torch.uint8)) == bytes(b.view(-1).view(torch.uint8))
    )


@pytest.mark.parametrize("part", [None, 16])
def test_numpys_arrays_have_the_same_bytes_and_the_dtypes_names(
    state: dict[str, torch.Tensor], tmp_path: Path, part: int | None
) -> None:
    options = StreamOptions(part_size=part)
    loaded = dict(coldstream.iter_tensors(str(tmp_path), framework="numpy", options=options))
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert str(loaded[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        assert loaded[name].shape == tuple(tensor.shape)
        assert loaded[name].tobytes() == bytes(tensor.reshape(-1).view(torch.uint8).numpy())


def test_numpys_floats_are_converted_and_nothing_else(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    loaded = dict(coldstream.iter_tensors(str(tmp_path), framework="numpy", dtype=np.float64))
    kinds = {str(array.dtype) for array in loaded.values()}
    assert kinds == {"float64", "int64", "uint8", "bool"}
    assert np.array_equal(loaded["layers.0.w"], state["layers.0.w"].double().numpy())


def test_numpy_has_the_cpu_alone_and_another_framework_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="device cuda needs framework torch"):
        next(coldstream.iter_tensors(str(tmp_path), framework="numpy", device="cuda"))  # type: ignore[call-overload]
    with pytest.raises(SettingsError, match="not 'jax'"):
        next(coldstream.iter_tensors(str(tmp_path), framework="jax"))  # type: ignore[call-overload]


@pytest.mark.parametrize("part", [None, 16])
def test_tensors_are_those_of_the_file(state: dict[str, torch.Tensor], tmp_path: Path, part: int | None) -> None:
    loaded = coldstream.load_state_dict(str(tmp_path), options=StreamOptions(part_size=part))
    assert loaded.keys() == state.keys()
    assert all(same(loaded[name], tensor) for name, tensor in state.items())


def test_dtype_converts_what_is_floating_point(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    loaded = coldstream.load_state_dict(str(tmp_path), dtype=torch.float32)
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32, torch.int64, torch.uint8, torch.bool}
    assert torch.equal(loaded["layers.0.w"], state["layers.0.w"].float())


def test_select_takes_tensors_and_rows(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    loaded = coldstream.load_state_dict(str(tmp_path), select=lambda info: "1.w" in info.name and info.rows(2, 4))
    assert list(loaded) == ["layers.1.w"]
    assert torch.equal(loaded["layers.1.w"], state["layers.1.w"][2:4])


def test_another_device_gets_every_tensor(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    loaded = coldstream.load_state_dict(str(tmp_path), device="meta")
    assert {name: (t.shape, t.dtype) for name, t in loaded.items()} == {n: (t.shape, t.dtype) for n, t in state.items()}


def test_ranges_are_copied_to_a_device_through_a_small_buffer() -> None:
    data = bytes(range(200))
    info = coldstream.TensorInfo("w", "I16", (100,), "f", 8, 208)
    copier = DeviceCopier(torch.device("cpu"), staging=7)
    found = []
    for start, end in ((100, 208), (8, 100)):
        found += copier.add(LandedRange(Read("f", start, end, (info,)), memoryview(data)[start - 8 : end - 8]))
    assert [name for name, _ in found] == ["w"]
    assert bytes(found[0][1].view(torch.uint8)) == data


def test_progress_is_reported(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    coldstream.load_state_dict(str(tmp_path), progress=lambda now: seen.append((now.phase, now.landed_bytes)))
    assert seen[0][0] == "listing"
    assert seen[-1] == ("done", sum(tensor.nbytes for tensor in state.values()))


def test_a_dtype_that_torch_has_not_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(files.safetensors({"w": ("F6_E2M3", [4], bytes(3))}))
    with pytest.raises(HeaderError, match="'w': torch has no dtype for F6_E2M3"):
        coldstream.load_state_dict(str(tmp_path))


def test_importing_coldstream_imports_neither_torch_nor_obstore() -> None:
    code = "import coldstream, sys; print({'torch', 'obstore', 'numpy', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_stream_imports_no_torch() -> None:
    code = "import coldstream.weights.transfer.stream, coldstream.weights.transfer.verify, sys; "
    code += "print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_verify_reads_everything(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    report = coldstream.verify(str(tmp_path))
    assert {file.name: file.verdict for file in report.files} == {
        "config.json": "unverified",
        "model.safetensors": "unverified",
    }
    assert not report.verified
    assert report.total_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_transformers_model_uses_the_streamed_memory(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    sizes |= {"num_key_value_heads": 2}
    config = (
        transformers.LlamaConfig(**sizes)
        if kind == "llama"
        else transformers.MixtralConfig(**sizes, num_local_experts=4)
    )
    model = (transformers.LlamaForCausalLM if kind == "llama" else transformers.MixtralForCausalLM)(config).eval()
    model.save_pretrained(tmp_path)
    loaded = coldstream.from_pretrained(str(tmp_path))
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not any(parameter.is_meta for parameter in [*loaded.parameters(), *loaded.buffers()])


def test_a_model_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    state = coldstream.load_state_dict(str(tmp_path))
    save_file({n: t.clone() for n, t in state.items() if "up_proj" not in n}, tmp_path / "model.safetensors")
    with pytest.raises(ParameterMismatch, match="up_proj"):
        coldstream.from_pretrained(str(tmp_path))
