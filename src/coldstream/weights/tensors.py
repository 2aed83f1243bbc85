"""Landed bytes -> torch.Tensor, without a copy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType

import torch

from coldstream.errors import HeaderError
from coldstream.weights.stream import Landed

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E8M0": torch.float8_e8m0fnu,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "I16": torch.int16,
        "U16": torch.uint16,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I32": torch.int32,
        "U32": torch.uint32,
        "F32": torch.float32,
        "C64": torch.complex64,
        "F64": torch.float64,
        "I64": torch.int64,
        "U64": torch.uint64,
    }
)


def as_tensor(landed: Landed) -> torch.Tensor:
    """A tensor over the landed buffer; it keeps the buffer alive and must not be written to.

    An offset that is not a multiple of the element's size cannot be viewed and is copied.

    Raises:
        HeaderError: torch has no such dtype.
    """
    info = landed.info
    dtype = DTYPES.get(info.dtype)
    if dtype is None:
        raise HeaderError(f"{info.file}: tensor {info.name!r}: torch has no dtype for {info.dtype}")
    if not info.nbytes:
        return torch.empty(info.shape, dtype=dtype)
    with warnings.catch_warnings():
        # The buffer is read-only and so is the tensor's use.
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        raw = torch.frombuffer(landed.data, dtype=torch.uint8)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(info.shape)
