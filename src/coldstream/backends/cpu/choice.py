"""A model of a checkpoint's config and headers on the CPU: the decoder before its bytes, and what fills it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coldstream.backends.assembly import Assembly
from coldstream.backends.cpu.decoder import CpuDecoder, CpuPrecision
from coldstream.backends.cpu.placing import Filling
from coldstream.host.limits import cpu_limit
from coldstream.model.config import ModelConfig
from coldstream.model.findings import holds_vision
from coldstream.model.vision_config import VisionConfig


def stand_up(
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    *,
    precision: CpuPrecision,
    packing: Filling | None = None,
) -> tuple[CpuDecoder, Assembly]:
    """A native decoder, with its vision tower where there are tensors of one, and what fills it.

    Without tensors of the tower an image-text config makes a text model. What `packing` has begun to fill it goes on
    filling.
    Raises what ModelConfig, VisionConfig, Assembly and CpuDecoder raise.
    """
    # without the tower's tensors it is a text model, as a trainer saves one that never saw an image
    vision = VisionConfig.from_json(config) if holds_vision(shapes) else None
    decoder = CpuDecoder(ModelConfig.from_json(config), precision=precision, vision=vision)
    assembly = Assembly(decoder, shapes, workers=cpu_limit() if precision == "int8" else 0)
    if packing is not None:
        decoder.adopt(packing.matrices)
        assembly.follow(packing)
    return decoder, assembly
