"""One decoder for Gemma 3 text and the Llama family on numpy and our kernels, driven by ModelConfig.

It stands before its bytes. All tokens of a step go through the matrices as one flat `[tokens, features]` array; only
attention knows sequences. Every unit (embedding, each layer, norm, head) has a gate on which `forward` waits until its
bytes are there. All activations are float32, and matrices are float32 or int8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from coldstream.backends.cpu.address import Floats, Ints
from coldstream.backends.cpu.layer import Attend, CpuLayer, Making
from coldstream.backends.cpu.library import Kernels, load
from coldstream.backends.cpu.linear import FloatMatrices, FloatTable, PackedMatrices, PackedTable
from coldstream.backends.cpu.norms import RmsNorm, RotaryTable
from coldstream.backends.cpu.packed import PackedMatrix
from coldstream.backends.cpu.vision import CpuTower
from coldstream.backends.gate import Gate
from coldstream.backends.parameter import Parameter, Unit
from coldstream.model.config import ModelConfig
from coldstream.model.matrices import EMBEDDING, HEAD
from coldstream.model.vision_config import VisionConfig

CpuPrecision = Literal["float32", "int8"]


@dataclass(frozen=True, slots=True, eq=False)
class ImageEmbeds:
    """Vectors in place of token embeddings (images).

    `vectors`, float32 `[len(rows), hidden]`, stand at `rows`, int64, of the step; the embedding scale is not applied.
    """

    rows: Ints
    vectors: Floats


def _making(precision: CpuPrecision, kernels: Kernels) -> Making:
    if precision == "float32":
        return Making(kernels, FloatMatrices, FloatTable, is_packed=False)
    return Making(
        kernels, partial(PackedMatrices, kernels=kernels), partial(PackedTable, kernels=kernels), is_packed=True
    )


class CpuDecoder:
    """Token ids to logits. Filled through `parameters()` (see `Assembly`); holds no keys, values or sequences.

    With a VisionConfig there is a tower beside it (`vision`), filled with it, whose vectors come in as `embeds`.
    Raises UnsupportedConfig when the kernels were not built.
    """

    def __init__(
        self, config: ModelConfig, *, precision: CpuPrecision = "float32", vision: VisionConfig | None = None
    ) -> None:
        self.config, self.precision = config, precision
        self.kernels = load()
        making = _making(precision, self.kernels)
        self._gates = {name: Gate(name) for name in ("embedding", "norm", "head")}
        self.layers = tuple(CpuLayer(config, index, making) for index in range(len(config.layers)))
        self.norm = RmsNorm(config.hidden_size, offset=config.norm_offset)
        self._table = making.table(config.hidden_size, config.vocab_size)
        self._untied = making.table(config.hidden_size, config.vocab_size)
        self._head = self._untied
        self._ropes = {rope: RotaryTable(rope, config.head_dim) for rope in config.ropes}
        self._scale = np.float32(config.embedding_scale)
        self.vision = CpuTower(vision, making) if vision is not None else None

    def gate(self, unit: Unit) -> Gate:
        """The gate that holds `forward` back until the unit's parameters are filled."""
        if isinstance(unit, int):
            return self.layers[unit].gate
        if unit == "vision":
            assert self.vision is not None
            return self.vision.gate
        return self._gates[unit]

    def gates(self) -> Iterator[Gate]:
        """All gates."""
        yield from self._gates.values()
        yield from (layer.gate for layer in self.layers)
        if self.vision is not None:
            yield self.vision.gate

    def parameters(self) -> Iterator[Parameter]:
        """Everything that can be filled, in order of execution; `lm_head.weight` is not needed by a tied model."""
        yield self._table.parameter(EMBEDDING, "embedding")
        for layer in self.layers:
            yield from layer.parameters()
        yield Parameter("norm.weight", (self.config.hidden_size,), "norm", self.norm.fill)
        yield self._untied.parameter(HEAD, "head")

    def tie(self, tied: bool) -> None:
        """Use the embedding's matrix as the head, or the head's own. The file decides, before the gate opens."""
        self._head = self._table if tied else self._untied
        self._table.use(looked_up=True, multiplied=tied)
        self._untied.use(looked_up=False, multiplied=not tied)

    def landed(self) -> None:
        """See `Fillable.landed`: what was taken in is where it is computed with."""

    def adopt(self, packed: Mapping[str, PackedMatrix]) -> None:
        """Run on int8 matrices that are packed elsewhere, by the names of joints; before any gate is open."""
        for layer in self.layers:
            layer.adopt(packed)
        for name, table in ((EMBEDDING, self._table), (HEAD, self._untied)):
            matrix = packed.get(name.removesuffix(".weight"))
            if matrix is not None and isinstance(table, PackedTable):
                table.adopt(matrix)

    def forward(
        self, ids: Ints, positions: Ints, attend: Attend, rows: Ints, *, embeds: ImageEmbeds | None = None
    ) -> Floats:
        """Logits, float32 `[len(rows), vocab]`, of the tokens at `rows` (int64, indices into the step).

        They are the caller's until the next call, which may write its own in their place.

        `ids`, `positions` int64 `[tokens]`: all sequences of the step one behind the other, no padding. Waits for
        units whose bytes have not landed; raises what the load failed with.
        """
        return self.logits(self.hidden_states(ids, positions, attend, rows, embeds=embeds))

    def hidden_states(
        self, ids: Ints, positions: Ints, attend: Attend, rows: Ints, *, embeds: ImageEmbeds | None = None
    ) -> Floats:
        """The last layer's output after the final norm, float32 `[len(rows), hidden]`; arguments as for `forward`."""
        self._gates["embedding"].wait()
        x = self._embed(ids, embeds)
        turns = {rope: table(positions) for rope, table in self._ropes.items()}
        last = len(self.layers) - 1
        for layer, layer_config in zip(self.layers, self.config.layers, strict=True):
            layer.gate.wait()
            x = layer(x, attend, turns[layer_config.rope], rows if layer.index == last else None)
        self._gates["norm"].wait()
        return self.kernels.of_rows.normalise(x, self.norm.weight, self.config.norm_eps)

    def logits(self, hidden: Floats) -> Floats:
        """float32 `[rows, hidden]` from `hidden_states` -> float32 `[rows, vocab]`, until the next call."""
        self._gates["head"].wait()
        logits = self._head.logits(hidden)
        cap = self.config.logit_softcap
        if cap is not None:
            logits /= np.float32(cap)
            np.tanh(logits, out=logits)
            logits *= np.float32(cap)
        return logits

    def _embed(self, ids: Ints, embeds: ImageEmbeds | None) -> Floats:
        x = self._table.lookup(ids)
        x *= self._scale
        if embeds is not None:
            x[embeds.rows] = embeds.vectors
        return x
