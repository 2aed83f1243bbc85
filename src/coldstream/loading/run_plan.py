"""How a checkpoint will run on this machine: on which device, in which precision, with how many threads.

Nothing is imported at the top that is not on the way to the first byte.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldstream.backends.device import Machine, RunDevice, choose_device
from coldstream.engines.choice import choose_engine, is_vllm_installed
from coldstream.errors import OutOfMemory
from coldstream.host.cpu import CpuFeatures
from coldstream.host.limits import cpu_limit, memory_available
from coldstream.model.config import is_native
from coldstream.model.depth import refuse_more_layers_than_tensors
from coldstream.model.names import Vision, destination
from coldstream.model.precision import RunPrecision, choose_precision
from coldstream.settings import ModelSettings, RunEngine

if TYPE_CHECKING:
    from coldstream.weights.checkpoint.checkpoint import Checkpoint

_STORED = {"BF16": "bfloat16", "F32": "float32", "F16": "float16"}
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.1}
"""Bytes a parameter; int8 has a scale a row beside the weights, and the kernel's padding."""
_CACHED = 16_000_000
"""Bytes of weights that a core's caches hold, more or less."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """How a checkpoint will run here, and why. `weights`: bytes; `converts`: landed bytes are let go once converted.

    `dtype` is what engine vllm computes in, "auto" until it has said so; None on the native one. That `needs_torch`, or
    numpy and our kernels compute it.
    """

    engine: RunEngine
    engine_reason: str
    device: RunDevice
    device_reason: str
    precision: RunPrecision
    reason: str
    weights: int
    converts: bool
    dtype: str | None = None
    needs_torch: bool = False


def plan_run(checkpoint: Checkpoint, model: ModelSettings) -> RunPlan:
    """Device, precision and memory, before torch is there.

    Raises:
        DeviceUnavailable: CUDA was asked for and cannot be had.
        MissingExtra: vLLM was asked for and is not installed.
        UnsupportedConfig: the precision that was asked for is not for this device.
        OutOfMemory: the weights cannot be held in what this container may use.
        ParameterMismatch: the config names more layers than there are tensors.
    """
    refuse_more_layers_than_tensors(checkpoint.config, len(checkpoint.tensors))
    stored = stored_dtype(checkpoint)
    device, device_reason = choose_device(model.device, precision=model.precision, machine=Machine.of_this_machine())
    native = is_native(checkpoint.config)
    engine = choose_engine(model.engine, device=device, is_native=native, has_vllm=is_vllm_installed())
    if engine[0] == "vllm":
        return _on_vllm(checkpoint, model, engine[1], device, device_reason)
    precision, reason = choose_precision(
        model.precision, device=device, cpu=CpuFeatures.of_this_machine(), stored=stored, native=native
    )
    weights = round(checkpoint.total_parameters * _BYTES[precision])
    converts = device != "cpu" or precision != stored
    needs_torch = device != "cpu" or precision == "bfloat16" or not native
    plan = RunPlan(*engine, device, device_reason, precision, reason, weights, converts, needs_torch=needs_torch)
    available = memory_available()
    if device == "cpu" and available is not None and weights > available:
        advice = "" if precision == "int8" else ", or --precision int8"
        raise OutOfMemory(
            f"{checkpoint.location}: {weights / 1e9:.1f} GB of weights as {precision}, but only "
            f"{available / 1e9:.1f} GB of memory can be used here; give the container more{advice}"
        )
    return plan


def _on_vllm(
    checkpoint: Checkpoint, model: ModelSettings, reason: str, device: RunDevice, device_reason: str
) -> RunPlan:
    """vLLM chooses the dtype, and holds the memory against its own needs."""
    precision: RunPrecision = "float32" if model.precision == "float32" else "bfloat16"
    why = "vLLM's choice" if model.precision == "auto" else "asked for"
    weights = checkpoint.total_bytes
    return RunPlan("vllm", reason, device, device_reason, precision, why, weights, converts=True, dtype=model.precision)


def text_files(checkpoint: Checkpoint, arriving: Checkpoint) -> frozenset[str]:
    """The files that text rests on: those that hold anything but the vision tower. Empty where those are all.

    `arriving` is what is streamed: the checkpoint itself, or its packed copy, whose own tensors are the text model's.
    Raises ParameterMismatch for tensors that can be loaded into no model, as `build_decoder` would.
    """
    if not is_native(checkpoint.config):
        return frozenset()
    filled = [info for info in arriving.tensors.values() if info.nbytes]
    tower = {name for name in checkpoint.tensors if isinstance(destination(name), Vision)}
    of_text = frozenset(info.file for info in filled if info.name not in tower)
    return of_text if of_text < {info.file for info in filled} else frozenset()


def stored_dtype(checkpoint: Checkpoint) -> str | None:
    """The dtype of most parameters, by torch's name."""
    counts = Counter[str]()
    for info in checkpoint.tensors.values():
        counts[info.dtype] += info.numel
    most = counts.most_common(1)
    return _STORED.get(most[0][0]) if most else None


def threads_for(plan: RunPlan, wanted: int | None) -> int:
    """How many threads the engine computes with: what the container has, but one where there is little to share out.

    A model that fits in a core's caches is computed sooner than a second thread is woken for each of its matrices.
    """
    return wanted or (1 if plan.weights < _CACHED else cpu_limit())
