"""Landed bytes -> torch.Tensor, without a copy."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import torch

from coldstream.errors import HeaderError
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.transfer.checksum import pinned
from coldstream.weights.transfer.stream import Landed

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


def torch_dtype(info: TensorInfo) -> torch.dtype:
    """The torch dtype of a tensor.

    Raises:
        HeaderError: torch has none.
    """
    dtype = DTYPES.get(info.dtype)
    if dtype is None:
        raise HeaderError(
            f"{info.file}: tensor {info.name!r}: torch has no dtype for {info.dtype}; convert the checkpoint"
        )
    return dtype


def as_tensor(landed: Landed) -> torch.Tensor:
    """A tensor over the landed buffer; it keeps the buffer alive and must not be written to.

    An offset that is not a multiple of the element's size cannot be viewed and is copied.

    Raises:
        HeaderError: torch has no such dtype.
    """
    dtype = torch_dtype(landed.info)
    if not landed.info.nbytes:
        return torch.empty(landed.info.shape, dtype=dtype)
    array = _array(landed.data)
    if ctypes.addressof(array) % dtype.itemsize:
        return torch.frombuffer(array, dtype=torch.uint8).clone().view(dtype).view(landed.info.shape)
    return torch.frombuffer(array, dtype=dtype).view(landed.info.shape)


def raw_bytes(data: memoryview) -> torch.Tensor:
    """A uint8 tensor over a buffer that is not empty, which it keeps alive."""
    return torch.frombuffer(_array(data), dtype=torch.uint8)


def _array(data: memoryview) -> ctypes.Array[ctypes.c_ubyte]:
    """The same bytes; torch warns about every read-only buffer, but an array says nothing of the kind."""
    with pinned(data) as address:
        array = _bytes_type(data.nbytes).from_address(address)
    array.__dict__["owner"] = data
    return array


@cache
def _bytes_type(nbytes: int) -> type[ctypes.Array[ctypes.c_ubyte]]:
    """The ctypes array of that length. Kept, because a class is expensive to make and is garbage in a cycle."""
    return ctypes.c_ubyte * nbytes
