"""Which precision a machine should run, and why. Pure."""

from __future__ import annotations

from typing import Literal

from coldstream.errors import UnsupportedConfig
from coldstream.host.cpu import CpuFeatures
from coldstream.settings import Precision

RunPrecision = Literal["float32", "bfloat16", "int8"]


def choose_precision(
    wanted: Precision, *, device: str, cpu: CpuFeatures, stored: str | None, native: bool = True
) -> tuple[RunPrecision, str]:
    """The precision to run in and the reason, in words for a person. `stored` is the checkpoint's dtype, by its name;
    `native` False means the fallback, which has no int8.

    int8 is held to a mean KL of 0.02 nats to float32, so auto takes it wherever it is fastest.

    Raises:
        UnsupportedConfig: int8 was asked for on a GPU, for a model that transformers' layers compute.
    """
    if wanted == "int8" and device != "cpu" and not native:
        raise UnsupportedConfig(f"precision int8 is for our own decoders; on {device} use bfloat16")
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
