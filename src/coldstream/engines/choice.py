"""Which engine a model gets, and why: the one place that decides. No engine is imported here."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from coldstream.errors import MissingExtra
from coldstream.settings import EngineName, RunEngine

NATIVE_PROVEN_ON_CUDA: str | None = None
"""The file of docs/lab that holds a green `make gpu` of the native engine; None: there is none."""

PIP_LINE = "pip install 'coldstream[vllm]'"


def is_vllm_installed() -> bool:
    """Whether the `vllm` extra is there; vllm is not imported for that."""
    return find_spec("vllm") is not None


def choose_engine(
    wanted: EngineName, *, device: Literal["cpu", "cuda"], is_native: bool, has_vllm: bool
) -> tuple[RunEngine, str]:
    """The engine to run on and the reason, in words for a person. `is_native`: the decoder of our own takes the config.

    Raises:
        MissingExtra: vLLM was asked for and is not installed.
    """
    if wanted == "vllm" and not has_vllm:
        raise MissingExtra(f"engine vllm was asked for, but vllm is not installed; run: {PIP_LINE}")
    if wanted != "auto":
        return wanted, "asked for"
    if device == "cpu":
        return "native", "on a CPU" if is_native else "on a CPU, through transformers: no decoder of our own takes it"
    why = _why_vllm(is_native)
    if why is None:
        return "native", f"on a GPU, where {NATIVE_PROVEN_ON_CUDA} has its measurements"
    if has_vllm:
        return "vllm", why
    return "native", f"vllm is not installed, though it would be chosen here ({why}); {PIP_LINE}"


def _why_vllm(is_native: bool) -> str | None:
    if not is_native:
        return "no decoder of our own takes this architecture"
    if NATIVE_PROVEN_ON_CUDA is None:
        return "the native engine was not measured on a GPU yet"
    return None
