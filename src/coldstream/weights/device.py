"""Landed ranges -> tensors on a device, through one small staging buffer; the host never holds more than a range."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.checkpoint.plan import MIB
from coldstream.weights.tensors import raw_bytes, torch_dtype
from coldstream.weights.transfer.stream import LandedRange

STAGING = 16 * MIB


def empty(info: TensorInfo, device: torch.device) -> torch.Tensor:
    """The tensor's place on the device."""
    return torch.empty(info.shape, dtype=torch_dtype(info), device=device)


class DeviceCopier:
    """Copies ranges as they land. The staging buffer is page-locked for CUDA, which other memory would be copied to."""

    def __init__(self, device: torch.device, *, staging: int = STAGING) -> None:
        self._device = device
        self._staging = torch.empty(staging, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._targets: dict[str, torch.Tensor] = {}
        self._missing: dict[str, int] = {}

    def add(self, landed: LandedRange) -> Iterator[tuple[str, torch.Tensor]]:
        """Copy a range; the tensors that became whole."""
        source = raw_bytes(landed.data)
        base = landed.read.start
        for info in landed.read.tensors:
            start, end = max(info.start, base), min(info.end, landed.read.end)
            self._copy(info, start - info.start, source[start - base : end - base])
            if not self._missing[info.name]:
                del self._missing[info.name]
                yield info.name, self._targets.pop(info.name)

    def _copy(self, info: TensorInfo, offset: int, source: torch.Tensor) -> None:
        if info.name not in self._targets:
            self._targets[info.name] = empty(info, self._device)
            self._missing[info.name] = info.nbytes
        target = self._targets[info.name].view(-1).view(torch.uint8)[offset : offset + source.numel()]
        size = self._staging.numel()
        for begin in range(0, source.numel(), size):
            piece = source[begin : begin + size]
            staged = self._staging[: piece.numel()]
            staged.copy_(piece)
            # Blocking: the staging buffer is written again right after.
            target[begin : begin + size].copy_(staged)
        self._missing[info.name] -= source.numel()
