"""Landed bytes -> numpy arrays, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coldstream.errors import HeaderError
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.transfer.stream import Landed

_OWN = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "C64": np.complex64,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}
_OF_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


def numpy_dtype(info: TensorInfo) -> np.dtype[Any]:
    """The numpy dtype of a tensor; what numpy itself has not is ml_dtypes'.

    Raises:
        HeaderError: there is none.
    """
    if info.dtype in _OWN:
        return np.dtype(_OWN[info.dtype])
    if info.dtype not in _OF_ML_DTYPES:
        raise HeaderError(
            f"{info.file}: tensor {info.name!r}: numpy has no dtype for {info.dtype}; convert the checkpoint"
        )
    import ml_dtypes  # only where it is needed: it is on the way to the first token

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _OF_ML_DTYPES[info.dtype]))
    return found


def as_array(landed: Landed) -> NDArray[Any]:
    """An array over the landed buffer; it keeps the buffer alive and must not be written to.

    An offset that is not a multiple of the element's size is copied: products would copy it each time.

    Raises:
        HeaderError: numpy has no such dtype.
    """
    dtype, shape = numpy_dtype(landed.info), landed.info.shape
    if not landed.info.nbytes:
        return np.empty(shape, dtype)
    array = np.frombuffer(landed.data, np.uint8).view(dtype).reshape(shape)
    array.flags.writeable = False
    return array if array.flags.aligned else array.copy()
