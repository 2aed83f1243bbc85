"""int8 matrices in the kernels' order, and the one kernel that makes them.

A checkpoint's bytes are packed as they land, also before the decoder stands (packing.py).
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from ctypes import Structure, byref, c_float, c_int64, c_void_p
from math import prod
from pathlib import Path
from types import MappingProxyType

from coldstream.backends.cpu.address import Floats, address
from coldstream.backends.cpu.compile import ANY, AVX2, AVX_VNNI, SOURCE, VNNI
from coldstream.errors import UnsupportedConfig
from coldstream.host.cpu import CpuFeatures
from coldstream.host.memory import allocate

DTYPE_CODES: Mapping[str, int] = MappingProxyType({"F32": 0, "BF16": 1, "F16": 2})
"""What the kernels read, by safetensors' names."""
LAYOUT_VERSION = 1
"""Of a matrix's bytes and scales: another number means that they are ordered, rotated or rounded otherwise."""
_OUTPUTS = 16
_QUAD = 4
_LARGEST_BLOCK = 64


class Matrix(Structure):
    """`Matrix` in kernels/matrix.h."""

    _fields_ = (
        *((name, c_int64) for name in ("k", "n", "order")),
        *((name, c_void_p) for name in ("packed", "scales", "bias")),
    )


class PackedMatrix:
    """int8 weights `[n, k]` in the kernels' order, a float32 scale a row, and a float32 bias `[n]` if there is one.

    Rows are rotated by Hadamard blocks (see `rotation_order`), activations alike while they are rounded. The memory is
    taken from the system as it is filled.
    """

    def __init__(self, k: int, n: int, *, bias: Floats | None = None) -> None:
        self.k, self.n = k, n
        self._packed = allocate(prod(units_shape(k, n)))
        self._scales = (c_float * prod(scales_shape(n)))()
        packed = ctypes.addressof(ctypes.c_char.from_buffer(self._packed))
        self.struct = Matrix(k, n, rotation_order(k), packed, ctypes.addressof(self._scales), None)
        self.add(bias)

    @property
    def units(self) -> memoryview:
        """The integers in the kernels' order, bytes of `units_shape`; may be written to."""
        return self._packed

    @property
    def scales(self) -> memoryview:
        """The rows' scales as bytes, float32 of `scales_shape`; may be written to."""
        return memoryview(self._scales).cast("B")

    def add(self, bias: Floats | None) -> None:
        """What is added to the products from now on."""
        self._bias = bias
        self.struct.bias = address(bias)


class Packer:
    """The packing kernel of one compiled variant."""

    def __init__(self, path: Path) -> None:
        self._pack = open_library(path, {"Matrix": Matrix}).coldstream_pack
        self._pack.argtypes = (ctypes.POINTER(Matrix), c_void_p, c_int64, c_int64, c_int64, c_void_p)
        self._pack.restype = None

    def pack(self, matrix: PackedMatrix, address: int, dtype: int, first: int, rows: int) -> None:
        """Take `[rows, k]` at an address as the matrix's rows from `first` on; `dtype` is one of DTYPE_CODES.

        One thread, without the interpreter's lock; any number may call.
        """
        row = (c_float * matrix.k)()
        self._pack(byref(matrix.struct), address, dtype, first, rows, row)


def units_shape(k: int, n: int) -> tuple[int, int]:
    """Blocks of rows, and the bytes of one: a block's bytes lie side by side."""
    return -(-n // _OUTPUTS), _OUTPUTS * -(-k // _QUAD) * _QUAD


def scales_shape(n: int) -> tuple[int]:
    """A scale a row, with those of the last block's rows that there are not."""
    return (-(-n // _OUTPUTS) * _OUTPUTS,)


def rotation_order(features: int) -> int:
    """The order of the Hadamard blocks: the largest power of two up to 64 that divides; under 8, none (1)."""
    order = _LARGEST_BLOCK
    while features % order:
        order //= 2
    return order if order >= 8 else 1


def is_built() -> bool:
    """Whether a variant lies here that this CPU can run."""
    return _choose(SOURCE.parent) is not None


def best_library(folder: Path = SOURCE.parent) -> Path:
    """The best variant for this CPU.

    Raises UnsupportedConfig when none was built.
    """
    path = _choose(folder)
    if path is None:
        raise UnsupportedConfig(
            f"coldstream's kernels were not built ({folder} has no {ANY}); reinstall coldstream where there is "
            "a C compiler"
        )
    return path


def open_library(path: Path, structs: Mapping[str, type[Structure]]) -> ctypes.CDLL:
    """A variant, on the one OpenMP of this process. `structs` are those that will be passed, by their names in C.

    Raises UnsupportedConfig when it cannot be loaded, or was compiled from other structs than these.
    """
    try:
        ctypes.CDLL(openmp_of_this_process(), mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UnsupportedConfig(
            f"coldstream's kernels cannot be loaded: {error}; they need glibc and GCC's OpenMP: "
            "apt-get install libgomp1"
        ) from error
    for name, struct in structs.items():
        _check_size(path, library, name, struct)
    return library


def openmp_of_this_process() -> str:
    """The one OpenMP of this process, as `ctypes.CDLL` takes it."""
    return openmp(_torch())


def openmp(torch: Path | None) -> str:
    """The libgomp that torch's wheel brings, by its path: by the name the loader would find the system's, a second one.

    `torch` is its package's folder. Where that brings none, it uses the one that has the name, and so do the kernels.
    """
    # Beside torch's own libraries, or where auditwheel puts what a wheel brings along.
    places = () if torch is None else (torch / "lib", torch.with_name("torch.libs"))
    brought = [str(path) for place in places for path in place.glob("libgomp*.so*")]
    return brought[0] if brought else "libgomp.so.1"


def runnable(cpu: CpuFeatures) -> tuple[str, ...]:
    """The variants that a CPU can run, by file name, the best first."""
    return (VNNI,) * cpu.avx512_vnni + (AVX_VNNI,) * cpu.avx_vnni + (AVX2,) * cpu.avx2 + (ANY,)


def _check_size(path: Path, library: ctypes.CDLL, name: str, struct: type[Structure]) -> None:
    symbol = f"coldstream_sizeof_{name}"
    size = c_int64.in_dll(library, symbol).value if hasattr(library, symbol) else "an unknown number of"
    if size != ctypes.sizeof(struct):
        raise UnsupportedConfig(
            f"{path}: compiled of another version of coldstream: its {name} has {size} bytes, here it has "
            f"{ctypes.sizeof(struct)}; reinstall coldstream, or run compile.py beside it again"
        )


def _torch() -> Path | None:
    """Its package's folder, without importing it."""
    spec = importlib.util.find_spec("torch")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _choose(folder: Path) -> Path | None:
    paths = (folder / name for name in runnable(CpuFeatures.of_this_machine()))
    return next((path for path in paths if path.exists()), None)
