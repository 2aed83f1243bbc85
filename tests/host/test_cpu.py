"""What the processor can do is read from Linux's flags, and all that a kernel needs must be there."""

from __future__ import annotations

from coldstream.host.cpu import CpuFeatures

NONE = CpuFeatures(avx2=False, avx_vnni=False, avx512_vnni=False, bfloat16=False)
ZEN3 = CpuFeatures(avx2=True, avx_vnni=False, avx512_vnni=False, bfloat16=False)
SAPPHIRE_RAPIDS = CpuFeatures(avx2=True, avx_vnni=True, avx512_vnni=True, bfloat16=True)
V3 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"})
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def test_flags_are_read_as_linux_names_them() -> None:
    assert CpuFeatures.from_flags(V3 | {"sse4_2"}) == ZEN3
    assert CpuFeatures.from_flags(V4 | {"avx512_vnni", "avx_vnni", "amx_bf16"}) == SAPPHIRE_RAPIDS
    assert not CpuFeatures.from_flags(V3 | {"avx512_vnni"}).avx512_vnni
    assert CpuFeatures.from_flags(V3 | {"avx_vnni"}).avx_vnni
    assert not CpuFeatures.from_flags(V3 - {"fma"} | {"avx_vnni"}).avx_vnni
    assert CpuFeatures.from_flags(V3 - {"fma"}) == NONE
    assert CpuFeatures.from_flags(frozenset()) == NONE
