"""What takes the landed bytes in, packing and decoder, of numpy's arrays or of torch's; and the decoder's backend."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from coldstream.backends.device import Machine, open_device
from coldstream.host.limits import cpu_limit
from coldstream.loading.first_request import FirstForward
from coldstream.loading.run_plan import RunPlan
from coldstream.loading.torch_import import complete
from coldstream.model.config import is_native

if TYPE_CHECKING:
    from coldstream.backends.assembly import Assembly
    from coldstream.backends.cpu.decoder import CpuDecoder, CpuPrecision
    from coldstream.backends.cpu.placing import Filling
    from coldstream.backends.protocol import Backend, VisionEncoder
    from coldstream.backends.torch.decoder import Decoder
    from coldstream.backends.torch.fallback import FallbackAssembly, FallbackDecoder
    from coldstream.timeline import Timeline
    from coldstream.weights.checkpoint.checkpoint import Checkpoint
    from coldstream.weights.packed.opening import PackedCopy
    from coldstream.weights.transfer.stream import Landed

    Built: TypeAlias = tuple[CpuDecoder | Decoder, Assembly] | tuple[FallbackDecoder, FallbackAssembly]
    AnyDecoder: TypeAlias = CpuDecoder | Decoder | FallbackDecoder

_log = logging.getLogger(__name__)


def begin_packing(
    checkpoint: Checkpoint,
    plan: RunPlan,
    copy: PackedCopy | None,
    *,
    threads: int | None,
    failed: Callable[[BaseException], None],
) -> Filling | None:
    """What makes int8 weights of the landed bytes, before the decoder stands; None where they stay as they are.

    Of a packed copy's bytes they are already.

    Raises:
        UnknownArchitecture, UnsupportedConfig, ParameterMismatch: see `build_decoder`.
    """
    if plan.precision != "int8" or plan.device != "cpu" or not is_native(checkpoint.config):
        return None
    from coldstream.backends.cpu.packing import Packing
    from coldstream.model.config import ModelConfig

    config = ModelConfig.from_json(checkpoint.config)
    workers = threads or cpu_limit()
    if copy is not None:
        from coldstream.backends.cpu.placing import Placing

        arriving = copy.arriving.tensors
        return Placing(config, checkpoint.tensors.values(), arriving, workers=workers, failed=failed)
    return Packing(config, checkpoint.tensors.values(), workers=workers, failed=failed)


def stored_as(plan: RunPlan) -> Callable[[Landed], Any]:
    """What makes of landed bytes the array that the decoder takes. Its first call imports the library."""

    def as_stored(landed: Landed) -> Any:
        if plan.needs_torch:
            from coldstream.weights.tensors import as_tensor

            return as_tensor(landed)
        from coldstream.weights.arrays import as_array

        return as_array(landed)

    return as_stored


def build_decoder(checkpoint: Checkpoint, plan: RunPlan, packing: Filling | None) -> Built:
    """The decoder that the config describes, before its bytes, and what fills it, but for what `packing` does.

    Raises:
        UnknownArchitecture, UnsupportedConfig, ParameterMismatch: it cannot be made, or not from these tensors.
        DeviceUnavailable: torch cannot use the device that was chosen.
    """
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    if not plan.needs_torch:
        from coldstream.backends.cpu import choice as on_cpu

        precision = cast("CpuPrecision", plan.precision)
        return on_cpu.stand_up(checkpoint.config, shapes, precision=precision, packing=packing)
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
    return choice.stand_up(checkpoint.config, shapes, precision=plan.precision, device=device, kernels=kernels)


def build_vision(decoder: AnyDecoder, files: dict[str, bytes]) -> VisionEncoder | None:
    """What the backend looks at images with; None for a model that takes none."""
    if decoder.vision is None:
        return None
    from coldstream.backends.cpu.decoder import CpuDecoder
    from coldstream.model.image_processor import ImageProcessor

    processor = ImageProcessor.from_files(files, image_size=decoder.vision.config.image_size)
    if isinstance(decoder, CpuDecoder):
        from coldstream.backends.cpu.vision import CpuSight

        assert decoder.vision is not None
        return CpuSight(decoder.vision, processor)
    from coldstream.backends.torch.vision import Sight

    return Sight(decoder.vision, processor)


def build_backend(
    decoder: AnyDecoder, timeline: Timeline, *, vision: VisionEncoder | None, threads: int, name: str, graphs: bool
) -> Backend:
    """The backend of a decoder, which may be without its bytes yet; the timeline hears of its first step.

    `graphs`: on a GPU, steps that decode are recorded.
    """
    from coldstream.backends.cpu.decoder import CpuDecoder

    watched = FirstForward(decoder, timeline)
    if isinstance(decoder, CpuDecoder):
        from coldstream.backends.cpu.backend import CpuBackend

        blas = decoder.precision == "float32" or vision is not None
        kernels = decoder.kernels
        return CpuBackend(
            watched, decoder.config, kernels=kernels, blas=blas, vision=vision, threads=threads, name=name
        )
    from coldstream.backends.torch.backend import TorchBackend
    from coldstream.backends.torch.graphs import CudaRecorder

    return TorchBackend(
        watched,
        decoder.config,
        device=decoder.device,
        vision=vision,
        threads=threads,
        unallocated=decoder.unallocated,
        name=name,
        kernels=decoder.kernels,
        recorder=CudaRecorder if graphs and decoder.device.type == "cuda" else None,
    )
