"""A decoder's layer on the CPU: norm, attention, norm, MLP, with residuals, and Gemma's norms behind both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from coldstream.backends.cpu.address import Floats, Ints
from coldstream.backends.cpu.library import Kernels, LayerWeights
from coldstream.backends.cpu.linear import Matrices, MatricesFactory, PackedMatrices, TokenTable
from coldstream.backends.cpu.norms import RmsNorm
from coldstream.backends.cpu.packed import PackedMatrix
from coldstream.backends.gate import Gate
from coldstream.backends.parameter import Parameter
from coldstream.model.config import ModelConfig
from coldstream.model.matrices import joints_of_layer

Turn: TypeAlias = tuple[Floats, Floats]
"""cos and sin of a step's positions."""
Attend: TypeAlias = Callable[[int, Floats, Floats, Floats], Floats]
"""The seam to keys and values: `attend(layer, q, k, v)` stores them and attends.

q `[tokens, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]`, after rope -> `[tokens, heads * head_dim]`.
"""


class TokenTableFactory(Protocol):
    """Makes the vocabulary's matrix in the decoder's precision."""

    def __call__(self, features: int, rows: int) -> TokenTable: ...


@dataclass(frozen=True, slots=True)
class Making:
    """What a precision makes matrices with. `is_packed`: a layer is two calls of the kernels, and not their parts."""

    kernels: Kernels
    matrices: MatricesFactory
    table: TokenTableFactory
    is_packed: bool


class CpuLayer:
    """One layer; `gate` holds a step back until its bytes are there."""

    def __init__(self, config: ModelConfig, index: int, making: Making) -> None:
        norm = partial(RmsNorm, offset=config.norm_offset)
        hidden, head = config.hidden_size, config.head_dim
        self.index = index
        self.gate = Gate(f"layer {index}")
        self._config, self._kernels = config, making.kernels
        self._joints = joints_of_layer(config, index)
        self.matrices: tuple[Matrices, ...] = tuple(
            making.matrices(joint.in_features, joint.sizes, bias=joint.bias) for joint in self._joints
        )
        self.before_attention, self.before_mlp = norm(hidden), norm(hidden)
        self.after_attention = norm(hidden) if config.sandwich_norms else None
        self.after_mlp = norm(hidden) if config.sandwich_norms else None
        self.q_norm = norm(head) if config.qk_norm else None
        self.k_norm = norm(head) if config.qk_norm else None
        self._is_packed = making.is_packed
        self._built: LayerWeights | None = None

    def __call__(self, x: Floats, attend: Attend, turn: Turn, keep: Ints | None) -> Floats:
        """float32 `[tokens, hidden]`, which it may write to -> the same, or `[len(keep), hidden]`: rows that are not
        asked for end here."""
        qkv = self._before(x, turn).reshape(len(x), -1, self._config.head_dim)
        heads, keys = self._config.heads, self._config.heads + self._config.kv_heads
        attended = attend(self.index, qkv[:, :heads], qkv[:, heads:keys], qkv[:, keys:])
        if keep is not None:
            x, attended = x[keep], attended[keep]
        self._after(x, attended)
        return x

    def _before(self, x: Floats, turn: Turn) -> Floats:
        """q, k and v side by side, `[tokens, (heads + 2 * kv_heads) * head_dim]`, q and k after norm and rope."""
        if self._is_packed:
            return self._kernels.before_attention(self._weights(), x, *turn)
        kernels, config = self._kernels, self._config
        qkv = self.matrices[0].product(kernels.of_rows.normalise(x, self.before_attention.weight, config.norm_eps))
        for norm, first, heads in (
            (self.q_norm, 0, config.heads),
            (self.k_norm, config.heads, config.kv_heads),
        ):
            weight = None if norm is None else norm.weight
            kernels.of_rows.turn(qkv, first, heads, config.head_dim, turn, weight, config.norm_eps)
        return qkv

    def _after(self, x: Floats, attended: Floats) -> None:
        """Add to x, in place, what follows from what attention gave."""
        if self._is_packed:
            self._kernels.after_attention(self._weights(), attended, x)
            return
        kernels, config = self._kernels, self._config
        _, output, gate_up, down = self.matrices
        kernels.of_rows.residual(x, output.product(attended), _weight(self.after_attention), config.norm_eps)
        both = gate_up.product(kernels.of_rows.normalise(x, self.before_mlp.weight, config.norm_eps))
        inner = kernels.of_rows.gated(both, config.activation)
        kernels.of_rows.residual(x, down.product(inner), _weight(self.after_mlp), config.norm_eps)

    def _weights(self) -> LayerWeights:
        """The layer as the kernels take it, once its gate is open; its arrays stay where they are from then on."""
        if self._built is None:
            config = self._config
            around = (self.before_attention, self.q_norm, self.k_norm, self.after_attention)
            packed = (item.matrix for item in self.matrices if isinstance(item, PackedMatrices))
            self._built = LayerWeights(
                config.heads,
                config.kv_heads,
                config.head_dim,
                config.activation,
                config.norm_eps,
                tuple(_weight(norm) for norm in (*around, self.before_mlp, self.after_mlp)),
                *packed,
            )
        return self._built

    def parameters(self) -> Iterator[Parameter]:
        """In order of execution."""
        prefix = f"layers.{self.index}."
        for name, norm in self._norms().items():
            yield Parameter(f"{prefix}{name}.weight", norm.weight.shape, self.index, norm.fill)
        for matrices, joint in zip(self.matrices, self._joints, strict=True):
            for part, name in enumerate(joint.parts):
                shape = (joint.sizes[part], joint.in_features)
                yield Parameter(f"{name}.weight", shape, self.index, partial(matrices.fill, part))
                if joint.bias:
                    yield Parameter(f"{name}.bias", shape[:1], self.index, partial(matrices.fill_bias, part))

    def adopt(self, packed: Mapping[str, PackedMatrix]) -> None:
        """Run on these matrices, by the names of joints, where they are of this layer."""
        for matrices, joint in zip(self.matrices, self._joints, strict=True):
            if joint.name in packed and isinstance(matrices, PackedMatrices):
                matrices.adopt(packed[joint.name])

    def _norms(self) -> Mapping[str, RmsNorm]:
        # Gemma calls "post attention" what it is; the Llama family means the norm before the MLP by it
        sandwich = self.after_attention is not None
        named = {
            "input_layernorm": self.before_attention,
            "post_attention_layernorm": self.after_attention if sandwich else self.before_mlp,
            "pre_feedforward_layernorm": self.before_mlp if sandwich else None,
            "post_feedforward_layernorm": self.after_mlp,
            "self_attn.q_norm": self.q_norm,
            "self_attn.k_norm": self.k_norm,
        }
        return {name: norm for name, norm in named.items() if norm is not None}


def _weight(norm: RmsNorm | None) -> Floats | None:
    return None if norm is None else norm.weight
