"""Between host and device, in a step: what goes there is only queued, what comes back is awaited once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float64]


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """The host's tensor on the device; on the CPU, itself.

    Never waits for the device: a copy out of page-locked memory is queued behind its work, one out of other memory
    would be made after it. torch keeps that memory until the copy is done.
    """
    if device.type == "cpu":
        return host
    staged = torch.empty(host.shape, dtype=host.dtype, pin_memory=True)
    return staged.copy_(host).to(device, non_blocking=True)


def into(target: Tensor, host: Tensor) -> None:
    """Queue a copy of the host's `[n]` over the first n of a device's tensor; see `to_device`."""
    if target.device.type == "cpu":
        target[: len(host)].copy_(host)
        return
    staged = torch.empty(host.shape, dtype=host.dtype, pin_memory=True)
    target[: len(host)].copy_(staged.copy_(host), non_blocking=True)


def int64(values: Sequence[int], device: torch.device) -> Tensor:
    """int64 `[len(values)]` on the device; see `to_device`."""
    return to_device(torch.tensor(values, dtype=torch.int64), device)


def float32(values: Sequence[float], device: torch.device) -> Tensor:
    """float32 `[len(values)]` on the device; see `to_device`."""
    return to_device(torch.tensor(values, dtype=torch.float32), device)


class Readback:
    """Numbers that a step leaves on the device: added as their computation is queued, fetched together by `wait`.

    This is the one place in which a step waits for the device.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._length = 0
        self._fetched: Numbers = np.empty(0)

    def add(self, values: Tensor) -> Callable[[], Numbers]:
        """What gives them after `wait`, in their shape; float64, which holds every token id and every float32."""
        start, shape = self._length, tuple(values.shape)
        self._length += math.prod(shape)
        self._parts.append(values.double().flatten())
        end = self._length
        return lambda: self._fetched[start:end].reshape(shape)

    def wait(self) -> None:
        """Return when all of it is here."""
        if self._parts:
            parts = self._parts
            self._fetched = (parts[0] if len(parts) == 1 else torch.cat(parts)).cpu().numpy()
            self._parts.clear()
