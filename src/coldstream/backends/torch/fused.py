"""A decoder layer in nine launches: four matrix products, and five of our kernels for all that lies between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coldstream.backends.torch.device_kernels import DeviceKernels
from coldstream.backends.torch.layers import Attention, Norm, PendingTurn
from coldstream.backends.torch.linear import Linear
from coldstream.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Carried:
    """The residual stream between layers: float32 `x`, to which `out` is still to be added, through the norm `after`.

    The next kernel does it; that is the next layer's first one, which may have to wait for its own weights.
    """

    x: Tensor
    out: Tensor | None = None
    after: Norm | None = None

    def normed(self, norm: Norm, kernels: DeviceKernels, dtype: torch.dtype) -> Tensor:
        """Add what is to be added, and the norm of it all, `[rows, hidden]` of `dtype`."""
        after = None if self.after is None else self.after.weight
        return kernels.add_norm(self.x, norm.weight, norm.eps, dtype=dtype, out=self.out, after=after)

    def kept(self, rows: Tensor) -> Tensor:
        """`x` at these rows."""
        return self.x.index_select(0, rows)


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """As `decoder.Layer` has them; those of one family only are None in the other."""

    before_attention: Norm
    before_mlp: Norm
    after_attention: Norm | None
    after_mlp: Norm | None
    q: Norm | None
    k: Norm | None


class FusedLayer:
    """Norm, attention, norm, MLP, with residuals, as `decoder.Layer` computes them.

    `matrices` are q, k and v's, attention's output, gate and up's, and the MLP's output.
    """

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        kernels: DeviceKernels,
        norms: LayerNorms,
        matrices: tuple[Linear, Linear, Linear, Linear],
    ) -> None:
        self._config, self._index, self._kernels = config, index, kernels
        self._norms, self._matrices = norms, matrices

    def __call__(
        self,
        carried: Carried,
        attend: Attention,
        turn: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        keep: Tensor | None,
    ) -> Carried:
        """The stream behind this layer; with `keep`, of those rows alone."""
        norms, (qkv, output, gate_up, down) = self._norms, self._matrices
        y = carried.normed(norms.before_attention, self._kernels, dtype)
        attended = self._attend(qkv.joined(y), attend, turn)
        x = carried.x
        if keep is not None:
            x, attended = carried.kept(keep), attended.index_select(0, keep)
        middle = Carried(x, output.joined(attended), norms.after_attention)
        y = middle.normed(norms.before_mlp, self._kernels, dtype)
        inner = self._kernels.gated(gate_up.joined(y), self._config.activation)
        return Carried(x, down.joined(inner), norms.after_mlp)

    def _attend(self, joined: Tensor, attend: Attention, turn: tuple[Tensor, Tensor]) -> Tensor:
        config, norms = self._config, self._norms
        qkv = joined.view(len(joined), -1, config.head_dim)
        weights = (None if norms.q is None else norms.q.weight, None if norms.k is None else norms.k.weight)
        pending = PendingTurn(qkv, *weights, config.norm_eps, *turn)
        q, k, v = qkv.split_with_sizes((config.heads, config.kv_heads, config.kv_heads), 1)
        return attend(self._index, q, k, v, pending)
