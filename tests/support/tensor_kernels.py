"""The kernels with torch's tensors for arrays, so that tests can say what torch makes of the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from coldstream.backends.cpu.library import Kernels
from tests.support.cpu_models import as_stored


class TensorKernels:
    """Every call of `Kernels`, then of `RowKernels`, on the tensors' own memory."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._kernels, name, None) or getattr(self._kernels.of_rows, name)

        def on_arrays(*arguments: Any, **more: Any) -> Any:
            return _tensor(call(*map(_array, arguments), **{key: _array(value) for key, value in more.items()}))

        return on_arrays


def _array(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_array, value))
    return as_stored(value) if isinstance(value, torch.Tensor) else value


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
