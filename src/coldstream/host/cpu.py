"""What this machine's processor can do, by the features that kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_X86_64_V3 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"})
"""Of the x86-64 psABI, as Linux names them; `abm` has lzcnt."""
_VNNI = _X86_64_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}
_AVX_VNNI = _X86_64_V3 | {"avx_vnni"}
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """What decides: our int8 kernels want AVX2, and bfloat16 is only fast where the CPU multiplies it.

    `avx2` stands for all that came with it (x86-64-v3), `avx512_vnni` for x86-64-v4 and VNNI, `avx_vnni` for x86-64-v3
    and VNNI of 256 bits: what the kernels are compiled for.
    """

    avx2: bool
    avx_vnni: bool
    avx512_vnni: bool
    bfloat16: bool

    @classmethod
    def from_flags(cls, flags: frozenset[str]) -> CpuFeatures:
        """Read the flags as Linux names them in /proc/cpuinfo."""
        return cls(
            avx2=flags >= _X86_64_V3,
            avx_vnni=flags >= _AVX_VNNI,
            avx512_vnni=flags >= _VNNI,
            bfloat16=bool(flags & {"amx_bf16", "avx512_bf16"}),
        )

    @classmethod
    def of_this_machine(cls) -> CpuFeatures:
        """No feature at all where there is no /proc/cpuinfo, or none with flags (Arm)."""
        return cls.from_flags(frozenset(_first("flags").split()))


def model_name() -> str:
    """What the processor calls itself; empty where the system does not say (Arm)."""
    return _first("model name")


def _first(field: str) -> str:
    try:
        lines = _CPUINFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
