"""Our GPU kernels without Triton: what each is to do, in torch, on CPU tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coldstream.backends.cuda.launchers import Argument
from coldstream.backends.cuda.variants import BLOCK, KernelVariant
from coldstream.backends.torch.graphs import Scored
from coldstream.backends.torch.layers import rotate


class TorchLauncher:
    """A `KernelLauncher` of everything but products in 8 bits. Counts launches by kernel."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()

    def has(self, variant: KernelVariant) -> bool:
        return variant.kernel != "multiply8"

    def launch(self, variant: KernelVariant, grid: tuple[int, int, int], arguments: Sequence[Argument]) -> None:
        kernels: dict[str, Any] = {"place": _place, "attend": _attend, "add_norm": _add_norm, "gated": _gated}
        kernels[variant.kernel](dict(variant.constants), grid, *arguments)
        self.launches[variant.kernel] += 1


class ReplayingRecorder:
    """A `Recorder` whose recordings compute again, from what lies where it was recorded."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.recorded = 0
        self.played = 0

    def record(self, work: Callable[[], Scored]) -> tuple[Callable[[], object], Scored]:
        result = work()
        for tensor in (result.logits, result.best):
            tensor.fill_(float("nan"))  # on a GPU nothing is computed by recording
        self.recorded += 1

        def play() -> None:
            self.played += 1
            again = work()
            result.logits.copy_(again.logits)
            result.best.copy_(again.best)

        return play, result


def _place(
    constants: Any,
    grid: Any,
    q_out: Tensor,
    keys: Tensor,
    values: Tensor,
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    heads: int,
    kv_heads: int,
    capacity: int,
    eps: float,
) -> None:
    q, k, v = qkv.float().split_with_sizes((heads, kv_heads, kv_heads), 1)
    if constants["NORMED"]:
        q, k = (F.rms_norm(x, x.shape[-1:], weight, eps) for x, weight in ((q, q_weight), (k, k_weight)))
    q_out.copy_(rotate(q, cos, sin))
    k = rotate(k, cos, sin)
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            keys[:, slot], values[:, slot] = k[row].to(keys.dtype), v[row].to(values.dtype)


def _attend(
    constants: Any,
    grid: tuple[int, int, int],
    out: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    seen: Tensor,
    tiles: Tensor,
    blocks: Tensor,
    partial: Tensor,
    arrived: Tensor,
    scale: float,
    window: int,
    part: int,
    *more: int,
) -> None:
    out.fill_(float("nan"))  # rows of no tile hold whatever lay there
    for row, count, begin, first in tiles[: grid[0]].tolist():
        for at in range(row, row + count):
            position, end = int(positions[at]), int(seen[at])
            low = max(0, position + 1 - window) if window else 0
            assert grid[2] >= ((end - 1) // part - low // part + 1 if count == 1 else 1)
            slots = [int(blocks[begin + n // BLOCK - first]) * BLOCK + n % BLOCK for n in range(low, end)]
            k, v = (x[:, slots].float() for x in (keys, values))
            query = q[at].float().view(k.shape[0], -1, q.shape[-1])
            weights = torch.softmax(query @ k.transpose(1, 2) * scale, -1)
            out[at] = (weights @ v).view(-1, q.shape[-1]).to(out.dtype)


def _add_norm(
    constants: Any,
    grid: Any,
    y: Tensor,
    x: Tensor,
    out: Tensor,
    after: Tensor,
    before: Tensor,
    hidden: int,
    eps: float,
) -> None:
    if constants["ADDS"]:
        added = out.float()
        x += F.rms_norm(added, (hidden,), after, eps) if constants["SANDWICH"] else added
    y.copy_(F.rms_norm(x, (hidden,), before, eps))


def _gated(constants: Any, grid: Any, y: Tensor, gate_up: Tensor, inner: int) -> None:
    gate, up = gate_up.float().split(inner, -1)
    approximate = "tanh" if constants["ACTIVATION"] == "gelu_tanh" else "none"
    kinds: dict[str, Any] = {"silu": F.silu, "relu": F.relu}
    made = kinds.get(constants["ACTIVATION"], lambda x: F.gelu(x, approximate=approximate))(gate)
    y.copy_(made * up)
