"""Where a copy's tensors lie in their file: a plain safetensors file. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod

from coldstream.backends.cpu.packed_copy import CopiedTensor
from coldstream.weights.checkpoint.header import DTYPE_BITS, PREFIX

_ALIGNMENT = 8
"""Of the header's end, by trailing spaces, as safetensors asks for."""


def file_header(tensors: Sequence[CopiedTensor]) -> tuple[bytes, int]:
    """The header of a file that holds these tensors one behind the other, length included, and the file's size."""
    table, position = {}, 0
    for tensor in tensors:
        nbytes = prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8
        offsets = [position, position + nbytes]
        table[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        position += nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(PREFIX + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(PREFIX, "little") + text, PREFIX + len(text) + position
