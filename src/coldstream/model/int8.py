"""int8 weights and activations on x86, packed as tensors land; a row's result never depends on its batch.

Weights: 8 bits, one scale an output row. Activations: one scale a token, found on the token alone; the kernel
(FBGEMM) then quantises with a constant scale and sums integers, so neighbours in the batch cannot change anything.

What ruins int8 activations is a few outlier columns. Both sides are therefore multiplied by the same orthogonal
matrix, a Hadamard matrix of order 64 along the diagonal (QuaRot, Ashkboos et al. 2024), which changes nothing,
`x @ W.T == (x @ H) @ (W @ H).T`, and spreads an outlier over 64 columns. Measured on gemma-3-270m it brings the mean KL
from 0.058 to 0.006 nats; see docs/kernels.md.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from coldstream.errors import UnsupportedConfig
from coldstream.model.parameter import Parameter, Unit

_LARGEST_BLOCK = 64
_FEWEST_BLOCKS = 8
_CACHED_ELEMENTS = 32_768
"""Packing works on so many elements at a time: they stay in the cache, and torch starts no threads for them."""
_TABLE_ROWS = 32_768
"""Rows of the vocabulary's matrix that are packed as one: enough pieces for several threads, few for decoding."""
_ALL_LEVELS = 127
_SATURATING_LEVELS = 96
_TINY = 1e-12


class Int8Linear:
    """The `Linear` of int8 weights; takes and gives float32. `levels` is from `activation_levels`."""

    def __init__(self, in_features: int, sizes: Sequence[int], *, bias: bool, levels: int) -> None:
        self.in_features = in_features
        self.sizes = tuple(sizes)
        self._levels = levels
        self._rotation = hadamard(rotation_order(in_features))
        self._lock = threading.Lock()
        self._missing = set(range(len(self.sizes)))
        self._weight: Tensor | None = None
        self._scales = torch.ones(sum(self.sizes))
        self._packed: torch.ScriptObject | None = None
        self._bias = torch.zeros(sum(self.sizes)) if bias else None

    @property
    def has_bias(self) -> bool:
        return self._bias is not None

    def fill(self, part: int, weight: Tensor) -> None:
        start = sum(self.sizes[:part])
        rows = slice(start, start + self.sizes[part])
        into = self._buffer()
        quantise(weight, self._rotation, self._levels, into[rows], self._scales[rows])
        with self._lock:
            self._missing.discard(part)
            if not self._missing:
                self._packed, self._weight = pack(into, self._scales), None

    def fill_bias(self, part: int, bias: Tensor) -> None:
        assert self._bias is not None
        start = sum(self.sizes[:part])
        self._bias[start : start + self.sizes[part]].copy_(bias)

    def joined(self, x: Tensor) -> Tensor:
        unit, largest = unit_rows(x, self._rotation)
        y = multiply(unit, self._packed, self._levels)
        return y.mul_(largest) if self._bias is None else torch.addcmul(self._bias, y, largest)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.joined(x).split_with_sizes(self.sizes, -1))

    def _buffer(self) -> Tensor:
        """int8 `[sum(sizes), in_features]`, where parts wait for each other; of a packed one, what was packed."""
        with self._lock:
            if self._weight is None:
                shape = (sum(self.sizes), self.in_features)
                self._weight = torch.empty(shape, dtype=torch.int8) if self._packed is None else unpack(self._packed)
            return self._weight


class Int8Table:
    """The `Table` of int8 weights, in blocks of rows that are packed beside each other.

    The kernel's packed form cannot be looked up in, so a tied table holds its int8 rows twice: together they still take
    no more than the bfloat16 that they came from.
    """

    def __init__(self, features: int, rows: int, *, levels: int) -> None:
        self._shape = (rows, features)
        self._levels = levels
        self._rotation = hadamard(rotation_order(features))
        self._looked_up = self._multiplied = False
        self._weight: Tensor | None = None
        self._scales = torch.ones(rows)
        self._packed: list[torch.ScriptObject | None] = [None] * -(-rows // _TABLE_ROWS)

    def use(self, *, looked_up: bool, multiplied: bool) -> None:
        self._looked_up, self._multiplied = looked_up, multiplied
        if looked_up:
            self._weight = torch.empty(self._shape, dtype=torch.int8)

    def parameter(self, name: str, unit: Unit) -> Parameter:
        return Parameter(name, self._shape, unit, self._fill, _TABLE_ROWS, self._fill_block)

    def lookup(self, ids: Tensor) -> Tensor:
        assert self._weight is not None, "not a table to look up in"
        rows = self._weight[ids].float() * self._scales[ids, None]
        return rotate(rows, self._rotation)

    def logits(self, x: Tensor) -> Tensor:
        unit, largest = unit_rows(x, self._rotation)
        blocks = torch.cat([multiply(unit, packed, self._levels) for packed in self._packed], -1)
        return blocks.mul_(largest)

    def _fill(self, weight: Tensor) -> None:
        for index, start in enumerate(range(0, len(weight), _TABLE_ROWS)):
            self._fill_block(index, weight[start : start + _TABLE_ROWS])

    def _fill_block(self, index: int, weight: Tensor) -> None:
        rows = slice(index * _TABLE_ROWS, index * _TABLE_ROWS + len(weight))
        into = torch.empty(weight.shape, dtype=torch.int8) if self._weight is None else self._weight[rows]
        quantise(weight, self._rotation, self._levels, into, self._scales[rows])
        if self._multiplied:
            self._packed[index] = pack(into, self._scales[rows])


def rotation_order(features: int) -> int:
    """The order of the Hadamard blocks: 64, or the largest power of two that leaves at least eight whole blocks.

    Eight, because MKL multiplies up to three rows of 32 in another order, and one token would differ from a batch.
    """
    order = _LARGEST_BLOCK
    while order > 1 and (features % order or features // order < _FEWEST_BLOCKS):
        order //= 2
    return order


def hadamard(order: int) -> Tensor:
    """Sylvester's orthonormal, symmetric Hadamard matrix, float32 `[order, order]`; `order` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix.div_(math.sqrt(order))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Multiply the last dimension by `rotation`, block by block; its own inverse. Always a new tensor."""
    return (x.reshape(-1, len(rotation)) @ rotation).view(x.shape)


def unit_rows(x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate `[tokens, features]`; give it scaled to -1 ... 1 row by row, and each row's largest, `[tokens, 1]`."""
    rotated = rotate(x, rotation)
    largest = rotated.abs().amax(-1, keepdim=True).clamp_(min=_TINY)
    return rotated.div_(largest), largest


def quantise(weight: Tensor, rotation: Tensor, levels: int, into: Tensor, scales: Tensor) -> None:
    """Rotate and round `[rows, features]` of any float dtype into int8 `into`, with float32 `scales`, one a row.

    A row's scale is such that no product with activations of `levels` can saturate, see `activation_levels`.
    """
    step = max(1, _CACHED_ELEMENTS // weight.shape[1])
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        rotated = rotate(weight[rows].float(), rotation)
        scale = rotated.abs().amax(1, keepdim=True).clamp_(min=_TINY).div_(127)
        if levels < _ALL_LEVELS:
            pairs = rotated[:, 0:-1:2] + rotated[:, 1::2]
            scale = torch.maximum(scale, pairs.abs_().amax(1, keepdim=True).div_(_largest_pair(levels)))
        into[rows] = rotated.div_(scale).round_()
        scales[rows] = scale[:, 0]


def pack(weight: Tensor, scales: Tensor) -> torch.ScriptObject:
    """int8 `[out, in]` and float32 `[out]` -> what `multiply` takes; neither is kept."""
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    quantised = torch._make_per_channel_quantized_tensor(weight, scales.double(), zeros, 0)
    packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(quantised, None)
    return packed


def unpack(packed: torch.ScriptObject) -> Tensor:
    """The int8 `[out, in]` that was packed."""
    weight: Tensor = torch.ops.quantized.linear_unpack(packed)[0].int_repr()
    return weight


def multiply(unit: Tensor, packed: torch.ScriptObject | None, levels: int) -> Tensor:
    """float32 `[tokens, in]` within -1 ... 1, rounded to 1/levels, times a packed matrix -> float32 `[tokens, out]`."""
    y: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        unit, 1 / levels, _zero(levels), packed
    )
    return y


def _zero(levels: int) -> int:
    """The zero point; it makes activations unsigned, as the kernel wants them."""
    return levels + 1 if levels == _ALL_LEVELS else levels


def _largest_pair(levels: int) -> int:
    """What two neighbouring weights may sum to: each meets up to 2 * levels, and the sum must fit in 16 bits.

    One less for each of the two, which may be rounded up.
    """
    return 32_767 // (2 * levels) - 1


def is_available() -> bool:
    """Whether torch's FBGEMM kernels are there: x86 with AVX2."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def activation_levels() -> int:
    """How finely this CPU may round activations: 127 steps to either side, or 96.

    Without AVX512-VNNI, FBGEMM adds pairs of u8 x s8 products in 16 bits, which saturate. 64 steps could never; with 96
    no pair of neighbouring weights may sum to more than 169, which few rows do once they are rotated: `quantise` sees
    to it. It is tried, not read from flags: a product that would saturate is computed and looked at.

    Selects FBGEMM as torch's engine for packing, for the whole process. Raises UnsupportedConfig without FBGEMM.
    """
    if not is_available():
        raise UnsupportedConfig("precision int8 needs an x86 CPU with AVX2; use --precision float32 or bfloat16")
    torch.backends.quantized.engine = "fbgemm"
    features = 64
    with warnings.catch_warnings():
        # torch announces, once, that tensors with quantised dtypes will go; only packing makes one, for a moment
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
        packed = pack(torch.full((8, features), 127, dtype=torch.int8), torch.ones(8))
    got = multiply(torch.ones(1, features), packed, _ALL_LEVELS)
    saturates = not torch.allclose(got, torch.full_like(got, 127.0 * features), rtol=1e-3)
    return _SATURATING_LEVELS if saturates else _ALL_LEVELS
