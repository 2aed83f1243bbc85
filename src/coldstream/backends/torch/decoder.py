"""One decoder for Gemma 3 text and the Llama family, driven by ModelConfig; it stands before its bytes.

The residual stream, the norms and the rotary embedding are float32; matrices and attention run in the decoder's
precision. All tokens of a step go through the matrices as one flat `[tokens, features]` tensor; only attention knows
sequences. Every unit (embedding, each layer, norm, head) has a gate on which `forward` waits until its bytes are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from coldstream.backends.gate import Gate
from coldstream.backends.parameter import Parameter, Unit
from coldstream.backends.torch.device_kernels import DeviceKernels
from coldstream.backends.torch.fused import Carried, FusedLayer, LayerNorms
from coldstream.backends.torch.layers import Attention, Norm, Rope, activation, rotate
from coldstream.backends.torch.linear import DenseLinear, DenseTable, Linear, LinearFactory, VocabularyTable
from coldstream.backends.torch.staging import CopyQueue, CudaCopies, Staging
from coldstream.backends.torch.vision import VisionTower
from coldstream.backends.torch.weight_only import WeightOnlyTable, weight_only
from coldstream.errors import UnsupportedConfig
from coldstream.model.config import ModelConfig
from coldstream.model.matrices import EMBEDDING, HEAD, joints_of_layer
from coldstream.model.rope_config import RopeConfig
from coldstream.model.vision_config import VisionConfig

DecoderPrecision = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, slots=True)
class Embeds:
    """Vectors in place of token embeddings (images).

    `vectors`, float `[len(rows), hidden]`, stand at `rows`, int64, of the step; the embedding scale is not applied.
    """

    rows: Tensor
    vectors: Tensor


class TableFactory(Protocol):
    """Makes the vocabulary's matrix in the decoder's precision."""

    def __call__(self, features: int, rows: int) -> VocabularyTable: ...


@dataclass(frozen=True, slots=True)
class _Making:
    """What a precision makes matrices with."""

    linear: LinearFactory
    table: TableFactory


def _making(
    precision: DecoderPrecision,
    dtype: torch.dtype,
    device: torch.device,
    gpu: DeviceKernels | None,
    staging: Staging | None,
) -> _Making:
    if precision != "int8":
        return _Making(
            partial(DenseLinear, dtype=dtype, device=device, staging=staging),
            partial(DenseTable, dtype=dtype, device=device, staging=staging),
        )
    if gpu is None:
        raise UnsupportedConfig(f"precision int8 on {device} needs kernels that are not here; use --precision bfloat16")
    return _Making(
        partial(weight_only, kernels=gpu, dtype=dtype, device=device, staging=staging),
        partial(WeightOnlyTable, kernels=gpu, dtype=dtype, device=device, staging=staging),
    )


class Layer:
    """Norm, attention, norm, MLP, with residuals; and Gemma's norms behind attention and MLP where there are any."""

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        making: _Making,
        device: torch.device,
        gpu: DeviceKernels | None,
        gate: Gate,
    ) -> None:
        hidden = config.hidden_size
        norm = partial(Norm, eps=config.norm_eps, offset=config.norm_offset, device=device)
        self.index = index
        self.gate = gate
        self._joints = joints_of_layer(config, index)
        self.qkv, self.output, self.gate_up, self.down = (
            making.linear(joint.in_features, joint.sizes, bias=joint.bias) for joint in self._joints
        )
        self.before_attention, self.before_mlp = norm(hidden), norm(hidden)
        self.after_attention = norm(hidden) if config.sandwich_norms else None
        self.after_mlp = norm(hidden) if config.sandwich_norms else None
        self.q_norm = norm(config.head_dim) if config.qk_norm else None
        self.k_norm = norm(config.head_dim) if config.qk_norm else None
        self._heads, self._kv_heads, self._head_dim = config.heads, config.kv_heads, config.head_dim
        self._activation = activation(config.activation)
        self._config = config
        self.fused = self._fused(gpu) if gpu is not None else None

    def __call__(
        self, x: Tensor, attend: Attention, turn: tuple[Tensor, Tensor], dtype: torch.dtype, keep: Tensor | None
    ) -> Tensor:
        """float32 `[tokens, hidden]` -> the same, or `[len(keep), hidden]`: rows outside `keep` end here."""
        attended = self._attend(self.before_attention(x).to(dtype), attend, turn)
        if keep is not None:
            x, attended = x[keep], attended[keep]
        out = self.output.joined(attended).float()
        x = x + (out if self.after_attention is None else self.after_attention(out))
        gate, up = self.gate_up.split(self.before_mlp(x).to(dtype))
        out = self.down.joined(self._activation(gate) * up).float()
        return x + (out if self.after_mlp is None else self.after_mlp(out))

    def _fused(self, kernels: DeviceKernels) -> FusedLayer:
        norms = LayerNorms(
            self.before_attention, self.before_mlp, self.after_attention, self.after_mlp, self.q_norm, self.k_norm
        )
        matrices = (self.qkv, self.output, self.gate_up, self.down)
        return FusedLayer(self._config, self.index, kernels, norms, matrices)

    def _attend(self, y: Tensor, attend: Attention, turn: tuple[Tensor, Tensor]) -> Tensor:
        qkv = self.qkv.joined(y).view(len(y), -1, self._head_dim)
        q, k, v = qkv.split_with_sizes((self._heads, self._kv_heads, self._kv_heads), 1)
        q, k = q.float(), k.float()
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return attend(self.index, rotate(q, *turn).to(y.dtype), rotate(k, *turn).to(y.dtype), v)

    def parameters(self) -> Iterator[Parameter]:
        """In order of execution."""
        prefix = f"layers.{self.index}."
        for name, norm in self._norms().items():
            yield Parameter(f"{prefix}{name}.weight", tuple(norm.weight.shape), self.index, norm.fill)
        for linear, joint in zip(self._linears(), self._joints, strict=True):
            for part, name in enumerate(joint.parts):
                shape = (joint.sizes[part], joint.in_features)
                yield Parameter(f"{name}.weight", shape, self.index, partial(linear.fill, part))
                if joint.bias:
                    yield Parameter(f"{name}.bias", shape[:1], self.index, partial(linear.fill_bias, part))

    def _norms(self) -> Mapping[str, Norm]:
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

    def _linears(self) -> tuple[Linear, ...]:
        return self.qkv, self.output, self.gate_up, self.down


class Decoder:
    """Token ids to logits. Filled through `parameters()` (see build.Assembly); holds no keys, values or sequences.

    With a VisionConfig there is a tower beside it (`vision`), filled with it, whose vectors come in as `embeds`.
    `kernels` for a GPU do what lies between its matrices, and multiply with those of 8 bits, which take bfloat16;
    `copies` makes the order in which bytes get there.

    Raises:
        UnsupportedConfig: int8 on a GPU without kernels for it, or for this shape.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str = "cpu",
        precision: DecoderPrecision = "float32",
        vision: VisionConfig | None = None,
        kernels: DeviceKernels | None = None,
        copies: Callable[[torch.device], CopyQueue] = CudaCopies,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.precision = precision
        halves = precision == "bfloat16" or (precision == "int8" and kernels is not None)
        self.dtype = torch.bfloat16 if halves else torch.float32
        self.kernels = kernels if kernels is not None and kernels.can_run(config, self.dtype) else None
        self._staging = Staging(partial(copies, self.device)) if self.device.type == "cuda" else None
        making = _making(precision, self.dtype, self.device, self.kernels, self._staging)
        gate = partial(Gate, passed=None if self._staging is None else self._staging.join)
        self.embedding_gate, self.norm_gate, self.head_gate = gate("embedding"), gate("norm"), gate("head")
        self.layers = tuple(
            Layer(config, index, making, self.device, self.kernels, gate(f"layer {index}"))
            for index in range(len(config.layers))
        )
        self.norm = Norm(config.hidden_size, eps=config.norm_eps, offset=config.norm_offset, device=self.device)
        self._table = making.table(config.hidden_size, config.vocab_size)
        self._untied = making.table(config.hidden_size, config.vocab_size)
        self._head = self._untied
        self._has_landed = False
        self._ropes = {rope: Rope(rope, config.head_dim, self.device) for rope in config.ropes}
        self._scale = torch.tensor(config.embedding_scale, dtype=self.dtype).item()
        tower = partial(
            VisionTower, linear=making.linear, dtype=self.dtype, device=self.device, gate=gate("vision tower")
        )
        self.vision = tower(vision) if vision is not None else None

    @property
    def attention_dtype(self) -> torch.dtype:
        """The dtype of q, k and v; what keys and values should be stored in."""
        return self.dtype

    @property
    def unallocated(self) -> int:
        """Bytes that the weights will yet take on a GPU: none, since matrices stand before their bytes there."""
        return 0

    def gate(self, unit: Unit) -> Gate:
        """The gate that holds `forward` back until the unit's parameters are filled."""
        if isinstance(unit, int):
            return self.layers[unit].gate
        if unit == "vision":
            assert self.vision is not None
            return self.vision.gate
        return {"embedding": self.embedding_gate, "norm": self.norm_gate, "head": self.head_gate}[unit]

    def gates(self) -> Iterator[Gate]:
        """All gates, in order of execution."""
        yield self.embedding_gate
        yield from (layer.gate for layer in self.layers)
        yield from (self.norm_gate, self.head_gate)
        if self.vision is not None:
            yield self.vision.gate

    def parameters(self) -> Iterator[Parameter]:
        """Everything that can be filled, in order of execution; `lm_head.weight` is not needed by a tied model."""
        yield self._table.parameter(EMBEDDING, "embedding")
        for layer in self.layers:
            yield from layer.parameters()
        yield Parameter("norm.weight", (self.config.hidden_size,), "norm", self.norm.fill)
        yield self._untied.parameter(HEAD, "head")

    def landed(self) -> None:
        """Nothing more comes: return when all is on the device; what brought it there is given back."""
        if self._staging is not None:
            self._staging.end()
        self._has_landed = True

    @property
    def has_landed(self) -> bool:
        """Whether no step waits for weights any more."""
        return self._has_landed

    def tie(self, tied: bool) -> None:
        """Use the embedding's matrix as the head, or the head's own. The file decides, before the gate opens."""
        self._head = self._table if tied else self._untied
        self._table.use(looked_up=True, multiplied=tied)
        self._untied.use(looked_up=False, multiplied=not tied)

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, positions: Tensor, attend: Attention, rows: Tensor, *, embeds: Embeds | None = None
    ) -> Tensor:
        """Logits, float32 `[len(rows), vocab]`, of the tokens at `rows` (int64, indices into the step).

        They are the caller's until the next call, which may write its own in their place.

        `ids`, `positions` int64 `[tokens]`: all sequences of the step one behind the other, no padding. Waits for
        units whose bytes have not landed; raises what the load failed with.
        """
        return self.logits(self.hidden_states(ids, positions, attend, rows, embeds=embeds))

    @torch.inference_mode()
    def hidden_states(
        self, ids: Tensor, positions: Tensor, attend: Attention, rows: Tensor, *, embeds: Embeds | None = None
    ) -> Tensor:
        """The last layer's output after the final norm, `[len(rows), hidden]`; arguments as for `forward`.

        float32, or of `dtype` where kernels for a GPU made it.
        """
        self.embedding_gate.wait()
        x = self._embed(ids, embeds)
        turns = {rope: table(positions) for rope, table in self._ropes.items()}
        if self.kernels is not None:
            return self._fused(self.kernels, x, turns, attend, rows)
        last = len(self.layers) - 1
        for layer, layer_config in zip(self.layers, self.config.layers, strict=True):
            layer.gate.wait()
            x = layer(x, attend, turns[layer_config.rope], self.dtype, rows if layer.index == last else None)
        self.norm_gate.wait()
        return self.norm(x)

    def _fused(
        self,
        kernels: DeviceKernels,
        x: Tensor,
        turns: Mapping[RopeConfig, tuple[Tensor, Tensor]],
        attend: Attention,
        rows: Tensor,
    ) -> Tensor:
        carried, last = Carried(x), len(self.layers) - 1
        keep = rows if len(rows) < len(x) else None
        for layer, layer_config in zip(self.layers, self.config.layers, strict=True):
            assert layer.fused is not None
            layer.gate.wait()
            kept = keep if layer.index == last else None
            carried = layer.fused(carried, attend, turns[layer_config.rope], self.dtype, kept)
        self.norm_gate.wait()
        return carried.normed(self.norm, kernels, self.dtype)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """`[rows, hidden]` from `hidden_states` -> float32 `[rows, vocab]`, until the next call."""
        self.head_gate.wait()
        logits = self._head.logits(hidden.to(self.dtype))
        cap = self.config.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _embed(self, ids: Tensor, embeds: Embeds | None) -> Tensor:
        x = self._table.lookup(ids) * self._scale
        if embeds is not None:
            x[embeds.rows] = embeds.vectors.to(x.device, x.dtype)
        return x
