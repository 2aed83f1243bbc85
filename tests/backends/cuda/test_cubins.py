"""Our launcher over compiled kernels: what the driver's library is asked, and what is refused by name."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coldstream.backends.cuda import variants
from coldstream.backends.cuda.cubins import CubinLauncher, packed, read_manifest
from coldstream.backends.cuda.find import FOLDER_VARIABLE, find_launcher
from coldstream.backends.cuda.variants import KernelVariant, every_variant
from coldstream.errors import DeviceUnavailable, EngineError

VARIANT = KernelVariant("tried", ("*fp32", "i32:16", "fp32"), (("WIDTH", 64),))
SOURCE = Path(__file__).with_name("fake_libcuda.c")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """libcuda's five calls that are used, in C, so that arguments cross as they do in production."""
    made = tmp_path_factory.mktemp("libcuda") / "libcuda.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(made), str(SOURCE)], check=True)
    return ctypes.CDLL(str(made))


def folder(place: Path, archs: tuple[int, ...] = (89,), shared: int = 65536) -> Path:
    """As compile.py writes it."""
    entries = {}
    for arch in archs:
        (place / f"sm_{arch}").mkdir(exist_ok=True)
        (place / f"sm_{arch}" / f"{VARIANT.name}.cubin").write_bytes(b"ELF!machine code")
        entries[f"sm_{arch}/{VARIANT.name}"] = {
            "function": "tried",
            "types": list(VARIANT.types),
            "shared": shared,
            "threads": 128,
            "scratch": 1,
        }
    (place / "manifest.json").write_text(json.dumps(entries))
    return place


Made = Callable[..., CubinLauncher]


@pytest.fixture
def made(library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setenv("FAKE_LIBCUDA", str(tmp_path / "asked"))

    def launcher(**given: int) -> CubinLauncher:
        return CubinLauncher(read_manifest(folder(tmp_path, **given), 89), library=library, stream=lambda: 0x77)

    return launcher


def test_the_driver_gets_the_code_once_and_every_argument_in_order(made: Made, tmp_path: Path) -> None:
    launcher, tensor = made(), torch.zeros(64)
    assert launcher.has(VARIANT)
    for scale in (0.5, 0.25):
        launcher.launch(VARIANT, (3, 2, 1), (tensor, 48, scale))
    pointer = f"{tensor.data_ptr():x}"
    assert (tmp_path / "asked").read_text().splitlines() == [
        "load ELF!",
        "function 1000 tried",
        "attribute 2000 8 65536",
        f"launch 2000 3,2,1 128,1,1 65536 77 {pointer} 48 0.5 0 0",
        f"launch 2000 3,2,1 128,1,1 65536 77 {pointer} 48 0.25 0 0",
    ]


@pytest.mark.parametrize(("call", "error"), [("load", DeviceUnavailable), ("launch", EngineError)])
def test_what_the_driver_refuses_is_an_error_with_its_words(
    made: Made, monkeypatch: pytest.MonkeyPatch, call: str, error: type[Exception]
) -> None:
    monkeypatch.setenv("FAKE_LIBCUDA_FAILS", call)
    with pytest.raises(error, match="no kernel image is available"):
        made().launch(VARIANT, (1, 1, 1), (torch.zeros(64), 16, 1.0))


def test_arguments_that_the_code_does_not_expect_are_refused() -> None:
    with pytest.raises(EngineError, match="argument 1 of a kernel is 17"):
        packed(VARIANT.types, (torch.zeros(64), 17, 1.0), 0)
    with pytest.raises(EngineError, match="argument 0 of a kernel begins"):
        packed(VARIANT.types, (torch.zeros(64)[1:], 16, 1.0), 0)


@pytest.mark.parametrize(("capability", "arch"), [(80, 80), (86, 80), (89, 89), (90, None), (75, None)])
def test_the_nearest_code_of_the_same_major_version_is_taken(tmp_path: Path, capability: int, arch: int | None) -> None:
    found = read_manifest(folder(tmp_path, (80, 89)), capability)
    assert [item.path.parent.name for item in found.values()] == ([] if arch is None else [f"sm_{arch}"])


def test_a_variant_with_other_types_is_not_had(made: Made) -> None:
    assert not made().has(KernelVariant("tried", ("*fp32", "i32", "fp32"), (("WIDTH", 64),)))
    assert not made().has(variants.gated("bf16", "silu"))


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    assert read_manifest(tmp_path, 89) == {}
    for text in ("{", "[]", '{"sm_89/x": {}}', '{"other": {}}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DeviceUnavailable, match=r"manifest\.json is no manifest"):
            read_manifest(tmp_path, 89)


def test_a_cpu_has_no_launcher(tmp_path: Path) -> None:
    assert find_launcher(torch.device("cpu"), {FOLDER_VARIABLE: str(tmp_path)}) == (None, "not a GPU")


def test_no_two_variants_have_one_name() -> None:
    names = [variant.name for variant in every_variant()]
    assert len(names) == len(set(names))


def test_what_models_ask_for_is_what_an_image_brings_along() -> None:
    """The shapes of Gemma 3 and of the Llama family, as `DeviceKernels` asks."""
    brought = {variant.name: variant.types for variant in every_variant()}
    for hidden, head_dim, group in ((640, 256, 4), (1152, 256, 4), (2560, 256, 2), (3840, 256, 2), (4096, 128, 4)):
        wanted = [
            variants.place("bf16", head_dim, normed=True),
            variants.add_norm("bf16", hidden, adds=True, sandwich=True),
            variants.gated("bf16", "gelu_tanh"),
            variants.multiply8("bf16", 1, biased=False),
            variants.multiply8("bf16", 64, biased=False, out="fp32"),
        ]
        rows = [variants.tile_rows("bf16", group, decodes=decodes) for decodes in (True, False)]
        wanted += [variants.attend("bf16", head_dim, rows=each) for each in rows if each is not None]
        assert {item.name for item in wanted} <= brought.keys()
        assert all(brought[item.name] == item.types for item in wanted)
