"""The seam to whatever starts kernels, and the way through Triton itself, which compiles what it is first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from coldstream.backends.cuda.variants import KernelVariant

if TYPE_CHECKING:
    from torch import Tensor

Argument: TypeAlias = "Tensor | int | float"


class KernelLauncher(Protocol):
    """Starts kernels on torch's current stream; never waits for them."""

    def has(self, variant: KernelVariant) -> bool:
        """Whether there is code of it for this GPU."""
        ...

    def launch(self, variant: KernelVariant, grid: tuple[int, int, int], arguments: Sequence[Argument]) -> None:
        """Queue one that it `has`; `arguments` are of the variant's types, tensors on the launcher's device."""
        ...


class TritonLauncher:
    """Through `triton.jit`; on CPU tensors where TRITON_INTERPRET=1 was set before Triton was imported."""

    def __init__(self) -> None:
        from coldstream.backends.cuda import kernels

        self._kernels: Any = kernels

    def has(self, variant: KernelVariant) -> bool:
        """See `KernelLauncher.has`: what is not compiled yet will be."""
        return True

    def launch(self, variant: KernelVariant, grid: tuple[int, int, int], arguments: Sequence[Argument]) -> None:
        """See `KernelLauncher.launch`."""
        constants = dict(variant.constants)
        function = getattr(self._kernels, variant.kernel)
        function[grid](*arguments, **constants, num_warps=variant.warps, num_stages=variant.stages)
