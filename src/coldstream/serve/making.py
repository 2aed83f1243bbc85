"""What a checkpoint becomes on this machine: which precision, how much memory, which decoder.

Nothing is imported at the top that is not on the way to the first byte; torch comes with `import_torch`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldstream.errors import OutOfMemory
from coldstream.serve import lean_torch
from coldstream.settings import ModelSettings
from coldstream.timeline import Timeline

if TYPE_CHECKING:
    from coldstream.model.decoder import Decoder
    from coldstream.weights.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """`weights` are the bytes that the model's matrices will take; `converts` says that landed bytes are let go."""

    precision: str
    weights: int
    converts: bool


def import_torch(threads: int | None, timeline: Timeline) -> None:
    """Import torch, in the order that keeps other threads alive, and give it the CPUs that this container has."""
    if "torch" not in sys.modules:
        from coldstream.serve.libtorch import preload

        with timeline.span("map libtorch"):
            preload()
    with timeline.span("import torch"):
        lean_torch.import_torch()
        import torch

        from coldstream.engine.memory import cpu_limit

        torch.set_num_threads(threads or cpu_limit())


def plan_memory(checkpoint: Checkpoint, model: ModelSettings) -> MemoryPlan:
    """How the weights will lie in memory.

    Raises:
        OutOfMemory: they cannot, in what this container may use.
    """
    from coldstream.engine.memory import memory_available

    precision = "float32"
    stored = checkpoint.total_bytes
    weights = checkpoint.total_parameters * 4
    available = memory_available()
    if available is not None and weights > available:
        raise OutOfMemory(
            f"{checkpoint.location}: {stored / 1e9:.1f} GB in the bucket become {weights / 1e9:.1f} GB as {precision}, "
            f"but only {available / 1e9:.1f} GB can be used here; give the container more memory, or --precision int8"
        )
    return MemoryPlan(precision, weights, converts=weights != stored)


def build_decoder(checkpoint: Checkpoint, model: ModelSettings) -> Decoder:
    """The decoder that the config describes, before its bytes."""
    from coldstream.model.config import ModelConfig
    from coldstream.model.decoder import Decoder
    from coldstream.model.vision_config import VisionConfig

    vision = VisionConfig.from_json(checkpoint.config)
    return Decoder(ModelConfig.from_json(checkpoint.config), precision="float32", vision=vision)
