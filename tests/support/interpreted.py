"""Triton's kernels on CPU tensors: its interpreter must be asked for before it is imported, so import this first."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
pytest.importorskip("triton", reason="Triton is not installed: pip install coldstream[gpu]")

import torch
from torch import Tensor

from coldstream.backends.cuda.launchers import Argument, KernelLauncher, TritonLauncher
from coldstream.backends.cuda.variants import KernelVariant
from coldstream.backends.torch.device_kernels import DeviceKernels


class InterpretedLauncher(TritonLauncher):
    """In float32 where the arguments are bfloat16: the interpreter's products take its bits for whole numbers."""

    def launch(self, variant: KernelVariant, grid: tuple[int, int, int], arguments: Sequence[Argument]) -> None:
        halves = [item for item in arguments if isinstance(item, Tensor) and item.dtype == torch.bfloat16]
        wide = {id(item): item.float() for item in halves}
        super().launch(variant, grid, [wide.get(id(item), item) for item in arguments])
        for item in halves:
            item.copy_(wide[id(item)])


def interpreted() -> DeviceKernels:
    """The kernels, run line by line."""
    launcher: KernelLauncher = InterpretedLauncher()
    return DeviceKernels(launcher)
