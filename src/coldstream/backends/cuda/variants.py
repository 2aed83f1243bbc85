"""Which kernels there are: each with the types of its arguments and the constants that are compiled into it. No Triton.

A variant is the unit that is compiled, listed in the manifest and launched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

KernelDtype = Literal["bf16", "fp32"]
BLOCK = 32
"""Tokens of a block of keys and values."""

_LARGEST_TILE: Mapping[KernelDtype, int] = MappingProxyType({"bf16": 64, "fp32": 16})
HEAD_DIMS = (64, 80, 96, 128, 256)
WIDTHS = (512, 1024, 2048, 4096, 8192)
"""Of a row that a norm reads at once."""
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")
SMALL_ROWS = 16
"""The most rows that are multiplied as a vector is; also the least that a tensor core takes."""


@dataclass(frozen=True, slots=True)
class KernelVariant:
    """`types` as Triton writes them: "*bf16", "*fp32", "*i8", "*i32", "i32", "fp32"; "i32:16" is a multiple of 16."""

    kernel: str
    types: tuple[str, ...]
    constants: tuple[tuple[str, int | str], ...]
    warps: int = 4
    stages: int = 2

    @property
    def name(self) -> str:
        """Unique; the name of its file."""
        given = "-".join(str(value) for _, value in self.constants)
        kinds = "-".join(dict.fromkeys(kind.strip("*") for kind in self.types if kind in ("*bf16", "*fp32")))
        return f"{self.kernel}-{kinds}-{given}"


def width(size: int) -> int:
    """The least power of two that holds so many, 16 at least: what a kernel reads at once."""
    return max(16, 1 << (size - 1).bit_length())


def place(dtype: KernelDtype, head_dim: int, *, normed: bool) -> KernelVariant:
    """Norm, rotary embedding, and keys and values into their slots."""
    types = (*[f"*{dtype}"] * 4, *["*fp32"] * 4, "*i32", *["i32"] * 3, "fp32")
    constants = (("HEAD_DIM", head_dim), ("WIDTH", width(head_dim)), ("NORMED", int(normed)))
    return KernelVariant("place", types, constants, warps=1, stages=1)


def attend(dtype: KernelDtype, head_dim: int, *, rows: int) -> KernelVariant:
    """Attention over blocks; `rows`: heads that share a key head times tokens of a tile, at most."""
    types = (*[f"*{dtype}"] * 4, *["*i32"] * 4, "*fp32", "*i32", "fp32", *["i32"] * 5)
    wide = head_dim > 128
    constants = (
        ("HEAD_DIM", head_dim),
        ("WIDTH", width(head_dim)),
        ("BLOCK", BLOCK),
        ("ROWS", rows),
        ("KEYS", 16 if dtype == "fp32" else 32 if (head_dim > 64 and rows > SMALL_ROWS) or wide else 64),
        ("PRECISION", "ieee"),
    )
    return KernelVariant("attend", types, constants, warps=8 if wide and rows > SMALL_ROWS else 4, stages=2)


def tile_rows(dtype: KernelDtype, group: int, *, decodes: bool) -> int | None:
    """How many rows a tile has, for `group` heads a key head; None where no kernel is that large."""
    least = max(SMALL_ROWS, width(group))
    largest = _LARGEST_TILE[dtype]
    if least > largest:
        return None
    return least if decodes else largest


def add_norm(dtype: KernelDtype, hidden: int, *, adds: bool, sandwich: bool) -> KernelVariant:
    """Residual and norms of a row."""
    types = (f"*{dtype}", "*fp32", f"*{dtype}", "*fp32", "*fp32", "i32:16", "fp32")
    wide = max(WIDTHS[0], width(hidden))
    constants = (("WIDTH", wide), ("ADDS", int(adds)), ("SANDWICH", int(sandwich)))
    return KernelVariant("add_norm", types, constants, warps=4 if wide <= 2048 else 8, stages=1)


def gated(dtype: KernelDtype, activation: str) -> KernelVariant:
    """The MLP's product of gate and up."""
    types = (f"*{dtype}", f"*{dtype}", "i32:16")
    return KernelVariant("gated", types, (("ACTIVATION", activation), ("WIDTH", 1024)), stages=1)


def multiply8(dtype: KernelDtype, rows: int, *, biased: bool, out: KernelDtype | None = None) -> KernelVariant:
    """A product with 8-bit weights, for so many rows; `out` is the result's dtype where it is not x's."""
    types = (f"*{out or dtype}", f"*{dtype}", "*i8", "*fp32", f"*{dtype}", "i32", "i32", "i32:16")
    small = rows <= SMALL_ROWS or dtype == "fp32"
    constants = (
        ("BIASED", int(biased)),
        ("ROWS", SMALL_ROWS if small else 64),
        ("OUTS", 32 if small else 64),
        ("INNER", (32 if dtype == "fp32" else 256) if small else 64),
        ("PRECISION", "ieee"),
    )
    return KernelVariant("multiply8", types, constants, warps=4, stages=3 if dtype == "bf16" else 2)


def every_variant() -> Iterator[KernelVariant]:
    """All that an image brings along: what models of the supported families ask for."""
    dtypes: tuple[KernelDtype, ...] = ("bf16", "fp32")
    for dtype in dtypes:
        for head_dim in HEAD_DIMS:
            yield from (place(dtype, head_dim, normed=normed) for normed in (True, False))
            sizes = dict.fromkeys((SMALL_ROWS, 32, _LARGEST_TILE[dtype]))
            yield from (attend(dtype, head_dim, rows=rows) for rows in sizes if rows <= _LARGEST_TILE[dtype])
        for wide in WIDTHS:
            yield add_norm(dtype, wide, adds=False, sandwich=False)
            yield from (add_norm(dtype, wide, adds=True, sandwich=sandwich) for sandwich in (True, False))
        yield from (gated(dtype, activation) for activation in ACTIVATIONS)
    for rows in (SMALL_ROWS, 64):
        yield from (multiply8("bf16", rows, biased=biased) for biased in (True, False))
        yield multiply8("bf16", rows, biased=False, out="fp32")
