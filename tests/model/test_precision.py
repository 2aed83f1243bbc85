"""auto picks from what the CPU can do, and says why."""

from __future__ import annotations

import pytest

from coldstream.errors import UnsupportedConfig
from coldstream.host.cpu import CpuFeatures
from coldstream.model.precision import choose_precision
from coldstream.settings import Precision

NONE = CpuFeatures(avx2=False, avx_vnni=False, avx512_vnni=False, bfloat16=False)
ZEN3 = CpuFeatures(avx2=True, avx_vnni=False, avx512_vnni=False, bfloat16=False)
SAPPHIRE_RAPIDS = CpuFeatures(avx2=True, avx_vnni=True, avx512_vnni=True, bfloat16=True)


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "int8"])
def test_what_was_asked_for_is_what_runs(wanted: Precision) -> None:
    assert choose_precision(wanted, device="cpu", cpu=NONE, stored=None) == (wanted, "asked for")


@pytest.mark.parametrize(
    ("cpu", "device", "chosen", "word"),
    [
        (ZEN3, "cpu", "int8", "AVX2"),
        (SAPPHIRE_RAPIDS, "cpu", "int8", "AVX2"),
        (NONE, "cpu", "float32", "AVX2"),
        (CpuFeatures(avx2=False, avx_vnni=False, avx512_vnni=False, bfloat16=True), "cpu", "bfloat16", "bfloat16"),
        (ZEN3, "cuda", "bfloat16", "cuda"),
    ],
)
def test_auto_takes_what_the_machine_is_fastest_at_and_gives_the_reason(
    cpu: CpuFeatures, device: str, chosen: str, word: str
) -> None:
    precision, reason = choose_precision("auto", device=device, cpu=cpu, stored="bfloat16")
    assert precision == chosen
    assert word in reason


def test_auto_gives_the_fallback_no_int8() -> None:
    assert choose_precision("auto", device="cpu", cpu=ZEN3, stored=None, native=False)[0] == "float32"


def test_int8_on_a_gpu_is_for_native_models_and_refused_to_others_before_a_byte_is_fetched() -> None:
    assert choose_precision("int8", device="cuda", cpu=ZEN3, stored="bfloat16") == ("int8", "asked for")
    with pytest.raises(UnsupportedConfig, match="int8 is for our own decoders; on cuda"):
        choose_precision("int8", device="cuda", cpu=ZEN3, stored="bfloat16", native=False)
