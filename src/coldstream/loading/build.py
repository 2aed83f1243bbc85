"""What takes the landed bytes in: the packing, which needs no torch, and the decoder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from coldstream.backends.device import Machine, open_device
from coldstream.host.limits import cpu_limit
from coldstream.loading.run_plan import RunPlan
from coldstream.loading.torch_import import complete
from coldstream.model.config import is_native

if TYPE_CHECKING:
    from coldstream.backends.assembly import Assembly
    from coldstream.backends.cpu.packing import Packing
    from coldstream.backends.torch.decoder import Decoder
    from coldstream.backends.torch.fallback import FallbackAssembly, FallbackDecoder
    from coldstream.weights.checkpoint.checkpoint import Checkpoint

    Built: TypeAlias = tuple[Decoder, Assembly] | tuple[FallbackDecoder, FallbackAssembly]

_log = logging.getLogger(__name__)


def begin_packing(
    checkpoint: Checkpoint,
    plan: RunPlan,
    *,
    threads: int | None,
    failed: Callable[[BaseException], None],
) -> Packing | None:
    """What makes int8 weights of the landed bytes, before torch is there; None where they stay as they are.

    Raises:
        UnknownArchitecture, UnsupportedConfig, ParameterMismatch: see `build_decoder`.
    """
    if plan.precision != "int8" or plan.device != "cpu" or not is_native(checkpoint.config):
        return None
    from coldstream.backends.cpu.packing import Packing
    from coldstream.model.config import ModelConfig

    config = ModelConfig.from_json(checkpoint.config)
    workers = threads or cpu_limit()
    return Packing(config, checkpoint.tensors.values(), workers=workers, failed=failed)


def build_decoder(checkpoint: Checkpoint, plan: RunPlan, packing: Packing | None) -> Built:
    """The decoder that the config describes, before its bytes, and what fills it, but for what `packing` does.

    Raises:
        UnknownArchitecture, UnsupportedConfig, ParameterMismatch: it cannot be made, or not from these tensors.
        DeviceUnavailable: torch cannot use the device that was chosen.
    """
    from coldstream.backends.cuda.find import find_launcher
    from coldstream.backends.torch import choice
    from coldstream.backends.torch.device_kernels import DeviceKernels

    device = open_device(plan.device, Machine.of_this_machine())
    launcher, which = find_launcher(device)
    if plan.device == "cuda":
        _log.info("%s: %s", checkpoint.location, which)
    kernels = DeviceKernels(launcher) if launcher is not None else None
    if not is_native(checkpoint.config):
        complete()  # transformers makes its models on the meta device
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return choice.stand_up(
        checkpoint.config, shapes, precision=plan.precision, device=device, packing=packing, kernels=kernels
    )
