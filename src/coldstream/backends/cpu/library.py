"""The compiled kernels, typed: arrays in, arrays out; ctypes and pointers stay in here.

Every call lets go of the interpreter's lock while it computes. Arrays are contiguous float32 unless said otherwise;
what is not is a mistake of the caller's.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, byref, c_double, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from coldstream.backends.cpu.address import Floats, Ints, address
from coldstream.backends.cpu.compile import SOURCE
from coldstream.backends.cpu.packed import DTYPE_CODES, Matrix, PackedMatrix, Packer, best_library, open_library
from coldstream.backends.cpu.rows import ACTIVATIONS, RowKernels
from coldstream.model.config import Activation

ATTENTION_MULTIPLE = 16
"""Of what the kernels' attention needs a head's size to be."""
_BLOCK = 48
_GROUP = 64
_DTYPES = {np.dtype(np.float32): "F32", np.dtype(bfloat16): "BF16", np.dtype(np.float16): "F16"}


class _Layer(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("heads", "kv_heads", "head_dim", "activation")),
        ("eps", c_double),
        *(
            (name, c_void_p)
            for name in ("before_attention", "q_norm", "k_norm", "after_attention", "before_mlp", "after_mlp")
        ),
        *((name, Matrix) for name in ("qkv", "output", "gate_up", "down")),
    )


class _TowerLayer(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("heads", "activation")),
        ("eps", c_double),
        *((name, c_void_p) for name in ("before_attention", "before_attention_bias", "before_mlp", "before_mlp_bias")),
        *((name, Matrix) for name in ("qkv", "output", "up", "down")),
    )


class _Workspace(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("units", "wide", "groups", "products"))


class _Step(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("spans", "size", "window")),
        *((name, c_void_p) for name in ("row", "start", "count", "first", "first_block", "blocks", "upper")),
    )


class _Shape(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("heads", "kv_heads", "d", "q_stride", "k_stride", "v_stride", "slots")),
        ("scale", c_double),
    )


STRUCTS: Mapping[str, type[Structure]] = MappingProxyType(
    {
        "Matrix": Matrix,
        "Layer": _Layer,
        "TowerLayer": _TowerLayer,
        "Workspace": _Workspace,
        "Step": _Step,
        "Shape": _Shape,
    }
)
"""What is passed to the kernels, by its name in C."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """What a layer consists of; `norms` are float32 in the order of the fields of `Layer` in kernels/layer.c.

    `struct` is what C sees: it points into the arrays, which must stay where they are.
    """

    heads: int
    kv_heads: int
    head_dim: int
    activation: Activation
    eps: float
    norms: tuple[Floats | None, ...]
    qkv: PackedMatrix
    output: PackedMatrix
    gate_up: PackedMatrix
    down: PackedMatrix

    struct: _Layer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        matrices = (self.qkv.struct, self.output.struct, self.gate_up.struct, self.down.struct)
        sizes = (self.heads, self.kv_heads, self.head_dim, ACTIVATIONS[self.activation], self.eps)
        object.__setattr__(self, "struct", _Layer(*sizes, *map(address, self.norms), *matrices))

    @property
    def widest(self) -> tuple[int, int]:
        """The most inputs and the most outputs of a matrix."""
        matrices = (self.qkv, self.output, self.gate_up, self.down)
        return max(matrix.k for matrix in matrices), max(matrix.n for matrix in matrices)


@dataclass(frozen=True, slots=True)
class TowerWeights:
    """What a layer of a vision tower consists of; `norms` are weight and bias of the first, then of the second norm.

    `struct` is what C sees: it points into the arrays, which must stay where they are.
    """

    heads: int
    activation: Activation
    eps: float
    norms: tuple[Floats, Floats, Floats, Floats]
    qkv: PackedMatrix
    output: PackedMatrix
    up: PackedMatrix
    down: PackedMatrix

    struct: _TowerLayer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        matrices = (self.qkv.struct, self.output.struct, self.up.struct, self.down.struct)
        struct = _TowerLayer(self.heads, ACTIVATIONS[self.activation], self.eps, *map(address, self.norms), *matrices)
        object.__setattr__(self, "struct", struct)

    @property
    def widest(self) -> tuple[int, int]:
        """The most inputs and the most outputs of a matrix."""
        matrices = (self.qkv, self.output, self.up, self.down)
        return max(matrix.k for matrix in matrices), max(matrix.n for matrix in matrices)


@dataclass(frozen=True, slots=True)
class Visible:
    """Who sees which keys in a step, for the layers of one window; int64 arrays, see `Step` in kernels/attention.c.

    `row`, `start`, `count`, `first`, `first_block` `[spans]`; `blocks` all tables one behind the other; `upper`
    `[tokens]`: one past the last position that a token sees. `size` is the tokens of a block.
    """

    size: int
    window: int | None
    row: Ints
    start: Ints
    count: Ints
    first: Ints
    first_block: Ints
    blocks: Ints
    upper: Ints
    struct: _Step = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        arrays = (self.row, self.start, self.count, self.first, self.first_block, self.blocks, self.upper)
        struct = _Step(len(self.row), self.size, self.window or 0, *map(address, arrays))
        object.__setattr__(self, "struct", struct)


class _Call(Protocol):
    argtypes: Sequence[object]
    restype: object

    def __call__(self, *arguments: object) -> None: ...


class Kernels:
    """One compiled variant; `of_rows` are those between products."""

    def __init__(self, path: Path) -> None:
        self.path = path
        library = open_library(path, STRUCTS)
        self.of_rows = RowKernels(library)
        self._packer = Packer(path)
        self._rows = _function(library, "rows", POINTER(Matrix), c_void_p, c_int64, c_void_p)
        self._multiply = _function(
            library, "multiply", POINTER(Matrix), c_int64, c_void_p, c_void_p, POINTER(_Workspace)
        )
        self._before = _function(
            library, "before_attention", POINTER(_Layer), c_int64, *[c_void_p] * 4, POINTER(_Workspace)
        )
        self._after = _function(
            library, "after_attention", POINTER(_Layer), c_int64, c_void_p, c_void_p, POINTER(_Workspace)
        )
        self._attention = _function(library, "attention", POINTER(_Shape), POINTER(_Step), *[c_void_p] * 6)
        self._tower_before = _function(
            library, "tower_before", POINTER(_TowerLayer), c_int64, c_void_p, c_void_p, POINTER(_Workspace)
        )
        self._tower_after = _function(
            library, "tower_after", POINTER(_TowerLayer), c_int64, c_void_p, c_void_p, POINTER(_Workspace)
        )
        self._local = _Local()

    def pack(self, matrix: PackedMatrix, weight: NDArray[Any], first: int) -> None:
        """Take `[rows, k]` of any float dtype as the matrix's rows from `first` on. One thread; any number may call."""
        weight = np.ascontiguousarray(weight, weight.dtype if weight.dtype in _DTYPES else np.float32)
        self._packer.pack(matrix, address(weight) or 0, DTYPE_CODES[_DTYPES[weight.dtype]], first, len(weight))

    def rows(self, matrix: PackedMatrix, ids: Ints) -> Floats:
        """int64 `[count]` -> float32 `[count, k]`: those rows of the matrix."""
        out = np.empty((len(ids), matrix.k), np.float32)
        self._rows(byref(matrix.struct), address(ids), len(ids), address(out))
        return out

    def multiply(self, matrix: PackedMatrix, x: Floats, *, out: Floats | None = None) -> Floats:
        """`[tokens, k]` -> `[tokens, n]`: times the matrix, plus its bias; into `out` where there is one."""
        out = np.empty((len(x), matrix.n), np.float32) if out is None else out
        workspace = self._local.workspace(matrix.k, 0)
        self._multiply(byref(matrix.struct), len(x), address(x), address(out), byref(workspace))
        return out

    def before_attention(self, layer: LayerWeights, x: Floats, cos: Floats, sin: Floats) -> Floats:
        """`[tokens, hidden]` -> q, k and v side by side, `[tokens, (heads + 2 * kv_heads) * head_dim]`."""
        out = np.empty((len(x), layer.qkv.n), np.float32)
        workspace = self._local.workspace(*layer.widest)
        self._before(
            byref(layer.struct),
            len(x),
            address(x),
            address(cos),
            address(sin),
            address(out),
            byref(workspace),
        )
        return out

    def after_attention(self, layer: LayerWeights, attended: Floats, x: Floats) -> None:
        """Add to `x [tokens, hidden]`, in place, what follows from `attended [tokens, heads * head_dim]`."""
        workspace = self._local.workspace(*layer.widest)
        self._after(byref(layer.struct), len(x), address(attended), address(x), byref(workspace))

    def tower_before(self, layer: TowerWeights, x: Floats) -> Floats:
        """`[tokens, hidden]` -> q, k and v, `[3, heads, tokens, head_dim]`."""
        out = np.empty((3, layer.heads, len(x), layer.qkv.n // (3 * layer.heads)), np.float32)
        workspace = self._local.workspace(*layer.widest)
        self._tower_before(byref(layer.struct), len(x), address(x), address(out), byref(workspace))
        return out

    def tower_after(self, layer: TowerWeights, attended: Floats, x: Floats) -> None:
        """Add to `x [tokens, hidden]`, in place, what follows from `attended [tokens, hidden]`."""
        workspace = self._local.workspace(*layer.widest)
        self._tower_after(byref(layer.struct), len(x), address(attended), address(x), byref(workspace))

    def attention(
        self, visible: Visible, q: Floats, k: Floats, v: Floats, keys: Floats, values: Floats, *, scale: float
    ) -> Floats:
        """Store k and v `[tokens, kv_heads, d]` in keys and values `[kv_heads, slots, d]`, then attend.

        q is `[tokens, heads, d]`, the result `[tokens, heads * d]`; d is a multiple of 16. A token's row may be
        followed by other things (a stride), its heads lie side by side.
        """
        tokens, heads, d = q.shape
        strides = (part.strides[0] // part.itemsize for part in (q, k, v))
        shape = _Shape(heads, k.shape[1], d, *strides, keys.shape[1], scale)
        out = np.empty((tokens, heads * d), np.float32)
        arrays = map(address, (q, k, v, keys, values))
        self._attention(byref(shape), byref(visible.struct), *arrays, address(out))
        return out


class _Local(threading.local):
    """The calling thread's workspace; it grows."""

    def __init__(self) -> None:
        self._k = self._n = -1
        self._buffers: tuple[NDArray[Any], ...] = ()
        self._struct = _Workspace()

    def workspace(self, k: int, n: int) -> _Workspace:
        if k > self._k or n > self._n:
            self._k, self._n = max(k, self._k), max(n, self._n)
            wide = -(-self._k // 16) * 16
            self._buffers = (
                np.empty((_BLOCK, wide), np.int16),
                np.empty((_BLOCK, wide), np.float32),
                np.empty((_BLOCK, -(-wide // _GROUP), 2), np.float32),
                np.empty((_BLOCK, self._n), np.float32),
            )
            self._struct = _Workspace(*map(address, self._buffers))
        return self._struct


def load(folder: Path = SOURCE.parent) -> Kernels:
    """The best variant for this CPU.

    Raises UnsupportedConfig when none was built.
    """
    return Kernels(best_library(folder))


def _function(library: ctypes.CDLL, name: str, *arguments: object) -> _Call:
    function = cast(_Call, library[f"coldstream_{name}"])
    function.argtypes, function.restype = arguments, None
    return function
