"""The compiled kernels, typed: tensors in, tensors out; ctypes and pointers stay in here.

Every call lets go of the interpreter's lock while it computes. Tensors are contiguous float32 on the CPU unless said
otherwise; what is not is a mistake of the caller's.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, byref, c_double, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, cast

import torch
from torch import Tensor

from coldstream.backends.cpu.compile import SOURCE
from coldstream.backends.cpu.packed import DTYPE_CODES, Matrix, PackedMatrix, Packer, best_library, open_library
from coldstream.model.config import Activation

ATTENTION_MULTIPLE = 16
"""Of what the kernels' attention needs a head's size to be."""
_BLOCK = 48
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


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
    _fields_ = tuple((name, c_void_p) for name in ("units", "wide", "steps", "products"))


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

    `struct` is what C sees: it points into the tensors, which must stay where they are.
    """

    heads: int
    kv_heads: int
    head_dim: int
    activation: Activation
    eps: float
    norms: tuple[Tensor | None, ...]
    qkv: PackedMatrix
    output: PackedMatrix
    gate_up: PackedMatrix
    down: PackedMatrix

    struct: _Layer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        matrices = (self.qkv.struct, self.output.struct, self.gate_up.struct, self.down.struct)
        sizes = (self.heads, self.kv_heads, self.head_dim, _ACTIVATIONS[self.activation], self.eps)
        object.__setattr__(self, "struct", _Layer(*sizes, *map(_pointer, self.norms), *matrices))

    @property
    def widest(self) -> tuple[int, int]:
        """The most inputs and the most outputs of a matrix."""
        matrices = (self.qkv, self.output, self.gate_up, self.down)
        return max(matrix.k for matrix in matrices), max(matrix.n for matrix in matrices)


@dataclass(frozen=True, slots=True)
class TowerWeights:
    """What a layer of a vision tower consists of; `norms` are weight and bias of the first, then of the second norm.

    `struct` is what C sees: it points into the tensors, which must stay where they are.
    """

    heads: int
    activation: Activation
    eps: float
    norms: tuple[Tensor, Tensor, Tensor, Tensor]
    qkv: PackedMatrix
    output: PackedMatrix
    up: PackedMatrix
    down: PackedMatrix

    struct: _TowerLayer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        matrices = (self.qkv.struct, self.output.struct, self.up.struct, self.down.struct)
        struct = _TowerLayer(self.heads, _ACTIVATIONS[self.activation], self.eps, *map(_pointer, self.norms), *matrices)
        object.__setattr__(self, "struct", struct)

    @property
    def widest(self) -> tuple[int, int]:
        """The most inputs and the most outputs of a matrix."""
        matrices = (self.qkv, self.output, self.up, self.down)
        return max(matrix.k for matrix in matrices), max(matrix.n for matrix in matrices)


@dataclass(frozen=True, slots=True)
class Visible:
    """Who sees which keys in a step, for the layers of one window; int64 tensors, see `Step` in kernels/attention.c.

    `row`, `start`, `count`, `first`, `first_block` `[spans]`; `blocks` all tables one behind the other; `upper`
    `[tokens]`: one past the last position that a token sees. `size` is the tokens of a block.
    """

    size: int
    window: int | None
    row: Tensor
    start: Tensor
    count: Tensor
    first: Tensor
    first_block: Tensor
    blocks: Tensor
    upper: Tensor
    struct: _Step = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        arrays = (self.row, self.start, self.count, self.first, self.first_block, self.blocks, self.upper)
        struct = _Step(len(self.row), self.size, self.window or 0, *map(_pointer, arrays))
        object.__setattr__(self, "struct", struct)


class _Call(Protocol):
    argtypes: Sequence[object]
    restype: object

    def __call__(self, *arguments: object) -> None: ...


class Kernels:
    """One compiled variant."""

    def __init__(self, path: Path) -> None:
        self.path = path
        library = open_library(path, STRUCTS)
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

    def pack(self, matrix: PackedMatrix, weight: Tensor, first: int) -> None:
        """Take `[rows, k]` of any float dtype as the matrix's rows from `first` on. One thread; any number may call."""
        weight = weight.to("cpu", weight.dtype if weight.dtype in _DTYPES else torch.float32).contiguous()
        self._packer.pack(matrix, weight.data_ptr(), DTYPE_CODES[_DTYPES[weight.dtype]], first, len(weight))

    def rows(self, matrix: PackedMatrix, ids: Tensor) -> Tensor:
        """int64 `[count]` -> float32 `[count, k]`: those rows of the matrix."""
        ids = ids.contiguous()
        out = torch.empty(len(ids), matrix.k)
        self._rows(byref(matrix.struct), ids.data_ptr(), len(ids), out.data_ptr())
        return out

    def multiply(self, matrix: PackedMatrix, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """`[tokens, k]` -> `[tokens, n]`: times the matrix, plus its bias; into `out` where there is one."""
        x = x.contiguous()
        out = torch.empty(len(x), matrix.n) if out is None else out
        workspace = self._local.workspace(matrix.k, 0)
        self._multiply(byref(matrix.struct), len(x), x.data_ptr(), out.data_ptr(), byref(workspace))
        return out

    def before_attention(self, layer: LayerWeights, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`[tokens, hidden]` -> q, k and v side by side, `[tokens, (heads + 2 * kv_heads) * head_dim]`."""
        out = torch.empty(len(x), layer.qkv.n)
        workspace = self._local.workspace(*layer.widest)
        self._before(
            byref(layer.struct),
            len(x),
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            out.data_ptr(),
            byref(workspace),
        )
        return out

    def after_attention(self, layer: LayerWeights, attended: Tensor, x: Tensor) -> None:
        """Add to `x [tokens, hidden]`, in place, what follows from `attended [tokens, heads * head_dim]`."""
        workspace = self._local.workspace(*layer.widest)
        self._after(byref(layer.struct), len(x), attended.data_ptr(), x.data_ptr(), byref(workspace))

    def tower_before(self, layer: TowerWeights, x: Tensor) -> Tensor:
        """`[tokens, hidden]` -> q, k and v, `[3, heads, tokens, head_dim]`."""
        out = torch.empty(3, layer.heads, len(x), layer.qkv.n // (3 * layer.heads))
        workspace = self._local.workspace(*layer.widest)
        self._tower_before(byref(layer.struct), len(x), x.data_ptr(), out.data_ptr(), byref(workspace))
        return out

    def tower_after(self, layer: TowerWeights, attended: Tensor, x: Tensor) -> None:
        """Add to `x [tokens, hidden]`, in place, what follows from `attended [tokens, hidden]`."""
        workspace = self._local.workspace(*layer.widest)
        self._tower_after(byref(layer.struct), len(x), attended.data_ptr(), x.data_ptr(), byref(workspace))

    def attention(
        self, visible: Visible, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, *, scale: float
    ) -> Tensor:
        """Store k and v `[tokens, kv_heads, d]` in keys and values `[kv_heads, slots, d]`, then attend.

        q is `[tokens, heads, d]`, the result `[tokens, heads * d]`; d is a multiple of 16. A token's row may be
        followed by other things (a stride), its heads lie side by side.
        """
        tokens, heads, d = q.shape
        shape = _Shape(heads, k.shape[1], d, q.stride(0), k.stride(0), v.stride(0), keys.shape[1], scale)
        out = torch.empty(tokens, heads * d)
        self._attention(byref(shape), byref(visible.struct), *map(_pointer, (q, k, v, keys, values)), out.data_ptr())
        return out


class _Local(threading.local):
    """The calling thread's workspace; it grows."""

    def __init__(self) -> None:
        self._k = self._n = -1
        self._buffers: tuple[Tensor, ...] = ()
        self._struct = _Workspace()

    def workspace(self, k: int, n: int) -> _Workspace:
        if k > self._k or n > self._n:
            self._k, self._n = max(k, self._k), max(n, self._n)
            wide = -(-self._k // 16) * 16
            self._buffers = (
                torch.empty(_BLOCK, wide, dtype=torch.int16),
                torch.empty(_BLOCK, wide),
                torch.empty(_BLOCK),
                torch.empty(_BLOCK, self._n),
            )
            self._struct = _Workspace(*map(_pointer, self._buffers))
        return self._struct


def load(folder: Path = SOURCE.parent) -> Kernels:
    """The best variant for this CPU.

    Raises UnsupportedConfig when none was built.
    """
    return Kernels(best_library(folder))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _function(library: ctypes.CDLL, name: str, *arguments: object) -> _Call:
    function = cast(_Call, library[f"coldstream_{name}"])
    function.argtypes, function.restype = arguments, None
    return function
