"""What a checkpoint becomes on this machine: which precision, how much memory, which decoder.

Nothing is imported at the top that is not on the way to the first byte; torch comes with `TorchImport`.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coldstream.errors import OutOfMemory
from coldstream.model.config import is_native
from coldstream.model.names import Vision, destination
from coldstream.model.precision import CpuFeatures, RunPrecision, choose_precision
from coldstream.serve import lean_torch
from coldstream.settings import ModelSettings
from coldstream.timeline import Timeline

if TYPE_CHECKING:
    from coldstream.model.build import Assembly
    from coldstream.model.decoder import Decoder
    from coldstream.model.fallback import FallbackAssembly, FallbackDecoder
    from coldstream.model.packing import Packing
    from coldstream.weights.checkpoint import Checkpoint


_STORED = {"BF16": "bfloat16", "F32": "float32", "F16": "float16"}
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.1}
"""Bytes a parameter; int8 has a scale a row beside the weights, and the kernel's padding."""
_NVIDIA = Path("/dev/nvidiactl")
_CACHED = 16_000_000
"""Bytes of weights that a core's caches hold, more or less."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """How a checkpoint will run here, and why. `weights`: bytes; `converts`: landed bytes are let go once converted."""

    device: str
    precision: RunPrecision
    reason: str
    weights: int
    converts: bool


class TorchImport:
    """torch, imported once for all models, in the order that keeps other threads alive."""

    def __init__(self, threads: int | None, timeline: Timeline) -> None:
        self._threads, self._timeline = threads, timeline
        self._lock = threading.Lock()
        self._is_done = False

    def finish(self) -> None:
        """Return when torch is there and has the CPUs of this container; on any thread, any number of times."""
        with self._lock:
            if not self._is_done:
                self._import()
                self._is_done = True

    def _import(self) -> None:
        if "torch" not in sys.modules:
            from coldstream.serve.libtorch import preload

            with self._timeline.span("map libtorch"):
                preload()
        with self._timeline.span("import torch"):
            lean_torch.import_torch()
            import torch

            from coldstream.engine.memory import cpu_limit

            torch.set_num_threads(self._threads or cpu_limit())


def plan_run(checkpoint: Checkpoint, model: ModelSettings) -> RunPlan:
    """Device, precision and memory, before torch is there.

    Raises:
        OutOfMemory: the weights cannot be held in what this container may use.
    """
    from coldstream.engine.memory import memory_available

    stored = stored_dtype(checkpoint)
    device = "cuda" if _NVIDIA.exists() else "cpu"
    precision, reason = choose_precision(
        model.precision,
        device=device,
        cpu=CpuFeatures.of_this_machine(),
        stored=stored,
        native=is_native(checkpoint.config),
    )
    weights = round(checkpoint.total_parameters * _BYTES[precision])
    plan = RunPlan(device, precision, reason, weights, converts=device != "cpu" or precision != stored)
    available = memory_available()
    if device == "cpu" and available is not None and weights > available:
        advice = "" if precision == "int8" else ", or --precision int8"
        raise OutOfMemory(
            f"{checkpoint.location}: {weights / 1e9:.1f} GB of weights as {precision}, but only "
            f"{available / 1e9:.1f} GB of memory can be used here; give the container more{advice}"
        )
    return plan


def text_files(checkpoint: Checkpoint) -> frozenset[str]:
    """The files that text rests on: those that hold anything but the vision tower. Empty where those are all.

    Raises ParameterMismatch for tensors that can be loaded into no model, as `stand_up` would.
    """
    if not is_native(checkpoint.config):
        return frozenset()
    filled = [info for info in checkpoint.tensors.values() if info.nbytes]
    of_text = frozenset(info.file for info in filled if not isinstance(destination(info.name), Vision))
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
    from coldstream.engine.memory import cpu_limit

    return wanted or (1 if plan.weights < _CACHED else cpu_limit())


def begin_packing(
    checkpoint: Checkpoint,
    plan: RunPlan,
    *,
    threads: int | None,
    failed: Callable[[BaseException], None],
) -> Packing | None:
    """What makes int8 weights of the landed bytes, before torch is there; None where they stay as they are.

    Raises:
        UnknownArchitecture, UnsupportedConfig, ParameterMismatch: see `stand_up`.
    """
    if plan.precision != "int8" or not is_native(checkpoint.config):
        return None
    from coldstream.engine.memory import cpu_limit
    from coldstream.model.config import ModelConfig
    from coldstream.model.packing import Packing

    config = ModelConfig.from_json(checkpoint.config)
    workers = threads or cpu_limit()
    return Packing(config, checkpoint.tensors.values(), workers=workers, failed=failed)


def stand_up(
    checkpoint: Checkpoint, plan: RunPlan, packing: Packing | None
) -> tuple[Decoder, Assembly] | tuple[FallbackDecoder, FallbackAssembly]:
    """The decoder that the config describes, before its bytes, and what fills it, but for what `packing` does.

    Raises:
        UnknownArchitecture, UnsupportedConfig, ParameterMismatch: it cannot be made, or not from these tensors.
    """
    from coldstream.model import choice

    if not is_native(checkpoint.config):
        lean_torch.complete()  # transformers makes its models on the meta device
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return choice.stand_up(checkpoint.config, shapes, precision=plan.precision, device=plan.device, packing=packing)
