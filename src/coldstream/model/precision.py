"""Which precision a machine should run, and why. Pure, but for `CpuFeatures.of_this_machine`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coldstream.errors import UnsupportedConfig
from coldstream.settings import Precision

RunPrecision = Literal["float32", "bfloat16", "int8"]

_X86_64_V3 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"})
"""Of the x86-64 psABI, as Linux names them; `abm` has lzcnt."""
_VNNI = _X86_64_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """What decides: our int8 kernels want AVX2, and bfloat16 is only fast where the CPU multiplies it.

    `avx2` stands for all that came with it (x86-64-v3), `avx512_vnni` for x86-64-v4 and VNNI: what the kernels are
    compiled for.
    """

    avx2: bool
    avx512_vnni: bool
    bfloat16: bool

    @classmethod
    def from_flags(cls, flags: frozenset[str]) -> CpuFeatures:
        """Read the flags as Linux names them in /proc/cpuinfo."""
        return cls(
            avx2=flags >= _X86_64_V3,
            avx512_vnni=flags >= _VNNI,
            bfloat16=bool(flags & {"amx_bf16", "avx512_bf16"}),
        )

    @classmethod
    def of_this_machine(cls) -> CpuFeatures:
        """No feature at all where there is no /proc/cpuinfo, or none with flags (Arm)."""
        try:
            lines = _CPUINFO.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return cls.from_flags(frozenset())
        flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
        return cls.from_flags(frozenset(flags.split()))


def choose_precision(
    wanted: Precision, *, device: str, cpu: CpuFeatures, stored: str | None, native: bool = True
) -> tuple[RunPrecision, str]:
    """The precision to run in and the reason, in words for a person. `stored` is the checkpoint's dtype, by its name;
    `native` False means the fallback, which has no int8.

    int8 is held to a mean KL of 0.02 nats to float32 (see docs/kernels.md), so auto takes it wherever it is fastest.

    Raises:
        UnsupportedConfig: int8 was asked for on another device than the CPU.
    """
    if wanted == "int8" and device != "cpu":
        raise UnsupportedConfig(f"precision int8 runs on the CPU; on {device} use bfloat16")
    if wanted != "auto":
        return wanted, "asked for"
    if device == "cpu" and not native:
        return "float32", "transformers' own layers run in float32 on a CPU"
    if device != "cpu":
        return "bfloat16", f"{device} multiplies bfloat16"
    if cpu.avx2:
        return "int8", "8-bit weights are half of bfloat16's bytes, and AVX2 multiplies them fastest"
    if cpu.bfloat16 and stored == "bfloat16":
        return "bfloat16", "the CPU multiplies bfloat16, and int8 is for x86 with AVX2"
    return "float32", "int8 is for x86 with AVX2, and bfloat16 is slow on this CPU"
