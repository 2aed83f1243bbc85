"""What a layer is made of: norm, rotary embedding, activation, and the seam to attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from coldstream.backends.rope import inverse_frequencies
from coldstream.model.config import Activation, ModelConfig
from coldstream.model.rope_config import RopeConfig


class Attention(Protocol):
    """The seam to keys and values: stores them and attends. The caller of `forward` supplies it.

    `q [tokens, heads, head_dim]`, `k`, `v [tokens, kv_heads, head_dim]`, after rope unless that is `pending`, in the
    decoder's `attention_dtype`; all sequences of the step one behind the other. The result is
    `[tokens, heads * head_dim]` of the same dtype. Window and scale of layer `layer` are in the ModelConfig.
    """

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, pending: PendingTurn | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class PendingTurn:
    """Norms of q and k (None: there are none) and the rotary embedding, which are still to be applied to them.

    `qkv [tokens, heads + 2 * kv_heads, head_dim]` is what q, k and v are views of, so that a kernel may do it all while
    it stores keys and values; `cos` and `sin` are `Rope`'s.
    """

    qkv: Tensor
    q_weight: Tensor | None
    k_weight: Tensor | None
    eps: float
    cos: Tensor
    sin: Tensor

    def applied(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q and k as attention without such a kernel takes them."""
        turned = []
        for x, weight in ((q, self.q_weight), (k, self.k_weight)):
            y = x.float() if weight is None else F.rms_norm(x.float(), x.shape[-1:], weight, self.eps)
            turned.append(rotate(y, self.cos, self.sin).to(x.dtype))
        return turned[0], turned[1]


class Norm:
    """RMS norm (Zhang and Sennrich 2019) over the last dimension, in float32; scales by `offset + weight`."""

    def __init__(self, size: int, *, eps: float, offset: float, device: torch.device) -> None:
        self._size = (size,)
        self.eps = eps
        self._offset = offset
        self.weight = torch.ones(size, dtype=torch.float32, device=device)

    def fill(self, weight: Tensor) -> None:
        """Take `[size]` of any float dtype; the tensor stays where it is, since kernels point to it."""
        self.weight.copy_(weight).add_(self._offset)

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self._size, self.weight, self.eps)


class Rope:
    """cos and sin of one step's positions, computed once a step for all layers that share the embedding."""

    def __init__(self, rope: RopeConfig, head_dim: int, device: torch.device) -> None:
        self._frequencies = torch.from_numpy(inverse_frequencies(rope, head_dim)).to(device)
        self._factor = rope.attention_factor

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """int64 `[tokens]` -> cos and sin, float32 `[tokens, 1, head_dim]`; the first half of sin is negated."""
        angles = (positions[:, None].float() * self._frequencies)[:, None]
        cos, sin = angles.cos() * self._factor, angles.sin() * self._factor
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `[tokens, heads, head_dim]`, halves paired as in GPT-NeoX and all models here."""
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat((second, first), -1), sin)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def activation(name: Activation) -> Callable[[Tensor], Tensor]:
    """The MLP's nonlinearity."""
    known: Mapping[Activation, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": _gelu_tanh,
        "relu": F.relu,
    }
    return known[name]


@dataclass(slots=True)
class DenseSequence:
    """Keys and values of one sequence, a `[kv_heads, capacity, head_dim]` pair a layer, and how many are valid."""

    length: int = 0
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class DenseAttention:
    """Attention over whole, private keys and values: exact and simple. For parity, benches and the quality check.

    It keeps every position of every layer, sliding ones included, and works one sequence after the other. The engine
    has its own, over blocks. Call `begin` before each forward pass.
    """

    def __init__(self, config: ModelConfig, device: torch.device | str = "cpu") -> None:
        self._config, self._device = config, device
        self._spans: Sequence[tuple[DenseSequence, int]] = ()

    def begin(self, spans: Sequence[tuple[DenseSequence, int]]) -> Tensor:
        """Say which sequences' tokens come next, and how many of each; returns their positions, int64 `[tokens]`."""
        self._spans = spans
        return torch.cat([torch.arange(item.length, item.length + n, device=self._device) for item, n in spans])

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, pending: PendingTurn | None = None) -> Tensor:
        if pending is not None:
            q, k = pending.applied(q, k)
        outs, start = [], 0
        for sequence, count in self._spans:
            span = slice(start, start + count)
            outs.append(self._attend(sequence, layer, q[span], k[span], v[span]))
            start += count
            if layer == len(self._config.layers) - 1:
                sequence.length += count
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _attend(self, sequence: DenseSequence, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count, past = q.shape[0], sequence.length
        keys, values = _append(sequence, layer, k, v)
        window = self._config.layers[layer].window
        mask = None
        if count > 1 or (window is not None and past + count > window):
            places = torch.arange(past + count, device=q.device)
            distance = places[past:, None] - places
            mask = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=mask,
            scale=self._config.attention_scale,
            enable_gqa=self._config.heads != self._config.kv_heads,
        )
        return out[0].transpose(0, 1).reshape(count, -1)


def _append(sequence: DenseSequence, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Store the new keys and values behind the old ones; the buffers double when they are full."""
    past, end = sequence.length, sequence.length + k.shape[0]
    if layer == len(sequence.keys):
        sequence.keys.append(k.new_empty(k.shape[1], max(64, end), k.shape[2]))
        sequence.values.append(v.new_empty(v.shape[1], max(64, end), v.shape[2]))
    for buffers, new in ((sequence.keys, k), (sequence.values, v)):
        if buffers[layer].shape[1] < end:
            old = buffers[layer]
            buffers[layer] = old.new_empty(old.shape[0], max(2 * old.shape[1], end), old.shape[2])
            buffers[layer][:, :past] = old[:, :past]
        buffers[layer][:, past:end] = new.transpose(0, 1)
    return sequence.keys[layer][:, :end], sequence.values[layer][:, :end]
