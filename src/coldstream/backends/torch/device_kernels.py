"""Our GPU kernels on tensors: shapes to grids, dtypes to variants. One launch each."""

from __future__ import annotations

import torch
from torch import Tensor

from coldstream.backends.cuda import variants
from coldstream.backends.cuda.launchers import KernelLauncher
from coldstream.backends.cuda.variants import BLOCK, KernelDtype
from coldstream.backends.torch.layers import PendingTurn
from coldstream.model.config import ModelConfig

_DTYPES: dict[torch.dtype, KernelDtype] = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_GATED = 1024


class DeviceKernels:
    """What a model runs on a GPU beside torch's matrix products. Tensors are contiguous unless it is said."""

    def __init__(self, launcher: KernelLauncher) -> None:
        self._launcher = launcher

    def can_attend(self, dtype: torch.dtype, head_dim: int, group: int, block: int) -> bool:
        """Whether `attend` takes keys of this dtype, so many heads a key head, and blocks of so many tokens."""
        kind = _DTYPES.get(dtype)
        if kind is None or block != BLOCK:
            return False
        tiles = [variants.tile_rows(kind, group, decodes=decodes) for decodes in (True, False)]
        return all(
            rows is not None and self._launcher.has(variants.attend(kind, head_dim, rows=rows)) for rows in tiles
        )

    def can_run(self, config: ModelConfig, dtype: torch.dtype) -> bool:
        """Whether all of a layer's norms, rotations and products can be these."""
        kind, hidden, inner = _DTYPES.get(dtype), config.hidden_size, config.intermediate_size
        if kind is None or hidden % 16 or inner % 16:
            return False
        wanted = [
            variants.place(kind, config.head_dim, normed=config.qk_norm),
            variants.add_norm(kind, hidden, adds=False, sandwich=False),
            variants.add_norm(kind, hidden, adds=True, sandwich=config.sandwich_norms),
            variants.gated(kind, config.activation),
        ]
        return all(self._launcher.has(variant) for variant in wanted) and self.can_attend(
            dtype, config.head_dim, config.heads // config.kv_heads, BLOCK
        )

    def tile_tokens(self, dtype: torch.dtype, group: int, *, decodes: bool) -> int:
        """The most tokens of one sequence in a tile of `attend`."""
        return self._rows(dtype, group, decodes=decodes) // group

    def place(self, pending: PendingTurn, q_out: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Norm and turn q and k of `pending`, write q out, and keys and values to int32 `slots`; -1 stores nothing.

        `q_out [tokens, heads, head_dim]`; keys and values `[kv_heads, capacity, head_dim]`.
        """
        tokens, heads, head_dim = q_out.shape
        normed = pending.q_weight is not None
        variant = variants.place(_DTYPES[q_out.dtype], head_dim, normed=normed)
        # Without norms nothing reads the weights; any tensor stands for them.
        q_weight = pending.cos if pending.q_weight is None else pending.q_weight
        k_weight = pending.cos if pending.k_weight is None else pending.k_weight
        arguments = (q_out, keys, values, pending.qkv, q_weight, k_weight, pending.cos, pending.sin, slots)
        numbers = (heads, keys.shape[0], keys.shape[1], pending.eps)
        self._launcher.launch(variant, (tokens, pending.qkv.shape[1], 1), (*arguments, *numbers))

    def attend(
        self,
        out: Tensor,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        tables: tuple[Tensor, Tensor, Tensor, Tensor],
        scratch: tuple[Tensor, Tensor],
        *,
        scale: float,
        window: int | None,
        part: int,
        parts: int,
        decodes: bool,
    ) -> None:
        """Attention of all sequences; q and out `[tokens, heads, head_dim]`. See `cuda.kernels.attend`.

        `tables`: positions, seen, tiles, blocks; `scratch`: partial results and who arrived. `parts`: the most that a
        tile of one token has.
        """
        kv_heads, capacity, head_dim = keys.shape
        heads, tiles = q.shape[1], tables[2]
        group = heads // kv_heads
        variant = variants.attend(_DTYPES[q.dtype], head_dim, rows=self._rows(q.dtype, group, decodes=decodes))
        numbers = (scale, window or 0, part, heads, group, capacity)
        arguments = (out, q, keys, values, *tables, *scratch, *numbers)
        self._launcher.launch(variant, (len(tiles), kv_heads, parts), arguments)

    def add_norm(
        self, x: Tensor, before: Tensor, eps: float, *, dtype: torch.dtype, out: Tensor | None, after: Tensor | None
    ) -> Tensor:
        """`x += out`, where there is one, through the norm `after` where there is one; the norm `before` of x.

        x float32 `[rows, hidden]`, changed; `out` and the result are of `dtype`.
        """
        rows, hidden = x.shape
        y = torch.empty(rows, hidden, dtype=dtype, device=x.device)
        variant = variants.add_norm(_DTYPES[dtype], hidden, adds=out is not None, sandwich=after is not None)
        arguments = (y, x, y if out is None else out, before if after is None else after, before, hidden, eps)
        self._launcher.launch(variant, (rows, 1, 1), arguments)
        return y

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """`[rows, 2 * inner]`, gate before up -> `activation(gate) * up`."""
        rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
        y = torch.empty(rows, inner, dtype=gate_up.dtype, device=gate_up.device)
        variant = variants.gated(_DTYPES[gate_up.dtype], activation)
        self._launcher.launch(variant, (rows, -(-inner // _GATED), 1), (y, gate_up, inner))
        return y

    def multiply8(
        self, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, *, dtype: torch.dtype
    ) -> Tensor:
        """x `[rows, inner]` by int8 `[outs, inner]` with float32 scales `[outs]` -> `[rows, outs]` of `dtype`."""
        rows, (outs, inner) = x.shape[0], weight.shape
        y = torch.empty(rows, outs, dtype=dtype, device=x.device)
        out = None if dtype == x.dtype else _DTYPES[dtype]
        variant = variants.multiply8(_DTYPES[x.dtype], rows, biased=bias is not None, out=out)
        constants = dict(variant.constants)
        grid = (-(-outs // int(constants["OUTS"])), -(-rows // int(constants["ROWS"])), 1)
        self._launcher.launch(variant, grid, (y, x, weight, scales, x if bias is None else bias, rows, outs, inner))
        return y

    def _rows(self, dtype: torch.dtype, group: int, *, decodes: bool) -> int:
        rows = variants.tile_rows(_DTYPES[dtype], group, decodes=decodes)
        assert rows is not None, "asked of what can_attend refused"
        return rows
