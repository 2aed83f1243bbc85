"""Native decoder or fallback: one place that decides, and gives the pair that belongs together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from coldstream.backends.assembly import Assembly
from coldstream.backends.torch.decoder import Decoder
from coldstream.backends.torch.device_kernels import DeviceKernels
from coldstream.errors import MissingExtra, UnknownArchitecture, UnsupportedConfig
from coldstream.model.config import ModelConfig
from coldstream.model.findings import holds_vision
from coldstream.model.precision import RunPrecision
from coldstream.model.vision_config import VisionConfig

if TYPE_CHECKING:
    from coldstream.backends.torch.fallback import FallbackAssembly, FallbackDecoder


def stand_up(
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    *,
    precision: RunPrecision,
    device: torch.device | str = "cpu",
    kernels: DeviceKernels | None = None,
) -> tuple[Decoder, Assembly] | tuple[FallbackDecoder, FallbackAssembly]:
    """A decoder that stands before its bytes, and what fills it; native, with its vision tower, where that is possible.

    Without tensors of the tower an image-text config makes a text model. `kernels` are a GPU's, where there are
    any; int8 needs them.
    Raises what ModelConfig, Assembly and FallbackDecoder raise. Without the `[transformers]` extra the error is the
    native decoder's, which says what it does not know.
    """
    try:
        native = ModelConfig.from_json(config)
    except (UnknownArchitecture, UnsupportedConfig) as refusal:
        return _fallback(config, shapes, precision, device, refusal)
    # without the tower's tensors it is a text model, as a trainer saves one that never saw an image
    vision = VisionConfig.from_json(config) if holds_vision(shapes) else None
    decoder = Decoder(native, precision=precision, device=device, vision=vision, kernels=kernels)
    return decoder, Assembly(decoder, shapes)


def _fallback(
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    precision: RunPrecision,
    device: torch.device | str,
    refusal: UnknownArchitecture | UnsupportedConfig,
) -> tuple[FallbackDecoder, FallbackAssembly]:
    if precision == "int8":
        raise UnsupportedConfig(f"--precision int8 is for the native decoder only; {refusal}") from refusal
    from coldstream.backends.torch.fallback import FallbackAssembly, FallbackDecoder

    try:
        decoder = FallbackDecoder(config, device=device, precision=precision)
    except MissingExtra:
        raise refusal from None
    except (UnknownArchitecture, UnsupportedConfig) as exc:
        if isinstance(refusal, UnknownArchitecture):
            raise
        raise UnsupportedConfig(f"{refusal}; and through transformers: {exc}") from exc
    return decoder, FallbackAssembly(decoder, shapes)
