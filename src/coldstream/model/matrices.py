"""Which matrices a decoder has, and which parameters lie in each: parts that share their input, one below the other.

Pure: int8 packing needs it before the decoder stands.
"""

from __future__ import annotations

from dataclasses import dataclass

from coldstream.model.config import ModelConfig

HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Joint:
    """`parts` are the parameters' names without `.weight` and `.bias`, `sizes` the rows of each."""

    name: str
    in_features: int
    parts: tuple[str, ...]
    sizes: tuple[int, ...]
    bias: bool = False

    @property
    def rows(self) -> int:
        """Of all parts."""
        return sum(self.sizes)


def joints_of_layer(config: ModelConfig, index: int) -> tuple[Joint, Joint, Joint, Joint]:
    """q, k and v; output; gate and up; down."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer = f"layers.{index}"
    q, k, v, o = (f"{layer}.self_attn.{part}_proj" for part in "qkvo")
    gate, up, down = (f"{layer}.mlp.{part}_proj" for part in ("gate", "up", "down"))
    return (
        Joint(f"{layer}.qkv", hidden, (q, k, v), (queries, keys, keys), config.qkv_bias),
        Joint(f"{layer}.output", queries, (o,), (hidden,), config.output_bias),
        Joint(f"{layer}.gate_up", hidden, (gate, up), (inner, inner), config.mlp_bias),
        Joint(f"{layer}.down", inner, (down,), (hidden,), config.mlp_bias),
    )


def joints(config: ModelConfig) -> tuple[Joint, ...]:
    """All, those of the vocabulary included; a tied model has no use for the head's own."""
    tables = (EMBEDDING, HEAD)
    names = (name.removesuffix(".weight") for name in tables)
    layers = (joint for index in range(len(config.layers)) for joint in joints_of_layer(config, index))
    return (*(Joint(name, config.hidden_size, (name,), (config.vocab_size,)) for name in names), *layers)
