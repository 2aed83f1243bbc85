"""config.json of a checkpoint -> ModelConfig: everything that the native decoder needs to know, and nothing else.

Both spellings are read: transformers 4.x (`rope_theta`, `rope_scaling`, `rope_local_base_freq`,
`sliding_window_pattern`, `torch_dtype`) and 5.x (`rope_parameters`, `layer_types`, `dtype`). A key that is absent is
what transformers' own config class has for that model; a value that would change the results and that is not
implemented, or that only another model has, is refused by name; it is never ignored. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from coldstream.errors import UnknownArchitecture, UnsupportedConfig
from coldstream.model.architecture import architecture
from coldstream.model.fields import Fields
from coldstream.model.foreign import refuse_foreign
from coldstream.model.rope_config import RopeConfig, layer_ropes, one_rope

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
MOST_LAYERS = 10_000
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One layer: `window` None is full attention; else a token sees itself and the `window - 1` tokens before it."""

    window: int | None
    rope: RopeConfig


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only text model of the Gemma 3 or the Llama family.

    `norm_offset` is 1 where a norm scales by `1 + weight` (Gemma). `sandwich_norms`: a norm after attention and after
    the MLP as well as before. `attention_scale` multiplies q·k. `tied` is what the config says; the file decides.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    attention_scale: float
    norm_eps: float
    norm_offset: float
    sandwich_norms: bool
    qk_norm: bool
    embedding_scale: float
    activation: Activation
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tied: bool
    max_positions: int
    logit_softcap: float | None
    dtype: str | None

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The distinct rotary embeddings, in order of first use."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers))

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a parsed config.json (`text_config` of an image-text model included).

        Raises UnknownArchitecture where only the fallback can help, UnsupportedConfig for a value not implemented here.
        """
        return _FAMILIES[architecture(config)](config)


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether the native decoder takes this config as it is; else only the fallback can."""
    try:
        ModelConfig.from_json(config)
    except (UnknownArchitecture, UnsupportedConfig):
        return False
    return True


GEMMA3_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
"""Of Gemma3TextConfig; Gemma3Config takes them for what its `text_config` leaves out."""


def _gemma3_text(config: Mapping[str, Any]) -> ModelConfig:
    fields = Fields(config, "", GEMMA3_DEFAULTS)
    return _gemma3(
        "Gemma3ForCausalLM",
        fields,
        tied=fields.flag("tie_word_embeddings"),
        softcap=fields.optional_number("final_logit_softcapping"),
    )


def _gemma3_nested(config: Mapping[str, Any]) -> ModelConfig:
    outer = Fields(config, "", {"tie_word_embeddings": True})
    refuse_foreign(outer)
    text = (outer.inside("text_config") or Fields({}, "text_config.")).over(GEMMA3_DEFAULTS)
    if text.data.get("model_type", "gemma3_text") != "gemma3_text":
        raise text.wrong("model_type", "can only be gemma3_text in a gemma3")
    if not text.is_null("final_logit_softcapping"):
        raise text.wrong("final_logit_softcapping", "has no effect in Gemma3ForConditionalGeneration; remove it")
    text.flag("tie_word_embeddings")  # of no effect, but checked: the outer one is obeyed, and null is false there
    tied = not outer.is_null("tie_word_embeddings") and outer.flag("tie_word_embeddings")
    return _gemma3("Gemma3ForConditionalGeneration", text, tied=tied, softcap=None)


def _gemma3(name: str, fields: Fields, *, tied: bool, softcap: float | None) -> ModelConfig:
    refuse_foreign(fields, own={"sliding_window_pattern", "final_logit_softcapping", "query_pre_attn_scalar"})
    activation = _activation(fields, "hidden_activation")
    if fields.data.get("hidden_act") and _activation(fields, "hidden_act") != activation:
        raise fields.wrong("hidden_act", "is not what Gemma 3 reads: say it as hidden_activation")
    kinds, ropes, hidden = _gemma3_layer_types(fields), layer_ropes(fields), fields.whole("hidden_size")
    windows = _windows(fields, kinds)
    _refuse_uneven(fields)
    return ModelConfig(
        architecture=name,
        vocab_size=fields.whole("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.whole("intermediate_size"),
        heads=fields.whole("num_attention_heads"),
        kv_heads=_kv_heads(fields),
        head_dim=_even(fields, fields.whole("head_dim")),
        layers=tuple(LayerConfig(window, ropes[kind]) for window, kind in zip(windows, kinds, strict=True)),
        attention_scale=fields.number("query_pre_attn_scalar") ** -0.5,
        norm_eps=fields.number("rms_norm_eps"),
        norm_offset=1.0,
        sandwich_norms=True,
        qk_norm=True,
        embedding_scale=hidden**0.5,
        activation=activation,
        qkv_bias=fields.flag("attention_bias"),
        output_bias=fields.flag("attention_bias"),
        mlp_bias=False,
        tied=tied,
        max_positions=ropes[_FULL].context(fields.whole("max_position_embeddings")),
        logit_softcap=softcap,
        dtype=_dtype(fields),
    )


def _gemma3_layer_types(fields: Fields) -> tuple[str, ...]:
    layers = fields.whole("num_hidden_layers", most=MOST_LAYERS)
    if not fields.is_null("layer_types"):
        return _layer_types(fields)
    written = fields.over({"sliding_window_pattern": 6, "_sliding_window_pattern": 6})
    pattern = written.whole("sliding_window_pattern")
    if "sliding_window_pattern" not in fields.data and written.value("_sliding_window_pattern") != 6:
        raise fields.wrong("_sliding_window_pattern", "has no effect without layer_types; write sliding_window_pattern")
    return tuple(_FULL if (i + 1) % pattern == 0 else _SLIDING for i in range(layers))


@dataclass(frozen=True, slots=True)
class LlamaMember:
    """A member of the Llama family: what its config class has where a key is absent, and where it differs.

    `derived`: keys that null leaves to be computed from others. `biases`: of q, k and v, and of the output; None where
    the config says it. `windows`: which layers slide. `divides`: heads must divide the hidden size, whatever head_dim.
    """

    architecture: str
    defaults: Mapping[str, Any]
    derived: frozenset[str]
    qk_norm: bool = False
    biases: tuple[bool, bool] | None = None
    has_mlp_bias: bool = False
    windows: Literal["none", "all", "by layer"] = "none"
    divides: bool = False


_LLAMA_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_QWEN_DEFAULTS: Mapping[str, Any] = {
    **_LLAMA_DEFAULTS,
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
LLAMA_FAMILY: Mapping[str, LlamaMember] = {
    "llama": LlamaMember(
        "LlamaForCausalLM",
        {
            **_LLAMA_DEFAULTS,
            "vocab_size": 32_000,
            "intermediate_size": 11_008,
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "mlp_bias": False,
        },
        derived=frozenset({"num_key_value_heads", "head_dim"}),
        has_mlp_bias=True,
        divides=True,
    ),
    "mistral": LlamaMember(
        "MistralForCausalLM",
        {
            **_LLAMA_DEFAULTS,
            "vocab_size": 32_000,
            "intermediate_size": 14_336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "sliding_window": 4096,
        },
        derived=frozenset({"head_dim"}),
        biases=(False, False),
        windows="all",
    ),
    "qwen2": LlamaMember(
        "Qwen2ForCausalLM",
        _QWEN_DEFAULTS,
        derived=frozenset({"num_key_value_heads"}),
        biases=(True, False),
        windows="by layer",
    ),
    "qwen3": LlamaMember(
        "Qwen3ForCausalLM",
        {**_QWEN_DEFAULTS, "head_dim": 128, "attention_bias": False},
        derived=frozenset({"num_key_value_heads"}),
        qk_norm=True,
        windows="by layer",
    ),
}
"""By model_type; the defaults are those of LlamaConfig, MistralConfig, Qwen2Config and Qwen3Config."""


def _llama(member: LlamaMember, config: Mapping[str, Any]) -> ModelConfig:
    fields = Fields(config, "", member.defaults)
    refuse_foreign(fields)
    if member.divides:
        _refuse_uneven(fields)
    hidden, head_dim = fields.whole("hidden_size"), _head_dim(fields, member)
    windows, rope = _llama_windows(fields, member), one_rope(fields)
    biases = member.biases or (fields.flag("attention_bias"),) * 2
    return ModelConfig(
        architecture=member.architecture,
        vocab_size=fields.whole("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.whole("intermediate_size"),
        heads=fields.whole("num_attention_heads"),
        kv_heads=_kv_heads(fields, member.derived),
        head_dim=_even(fields, head_dim),
        layers=tuple(LayerConfig(window, rope) for window in windows),
        attention_scale=head_dim**-0.5,
        norm_eps=fields.number("rms_norm_eps"),
        norm_offset=0.0,
        sandwich_norms=False,
        qk_norm=member.qk_norm,
        embedding_scale=1.0,
        activation=_activation(fields, "hidden_act"),
        qkv_bias=biases[0],
        output_bias=biases[1],
        mlp_bias=member.has_mlp_bias and fields.flag("mlp_bias"),
        tied=fields.flag("tie_word_embeddings"),
        max_positions=rope.context(fields.whole("max_position_embeddings")),
        logit_softcap=None,
        dtype=_dtype(fields),
    )


def _head_dim(fields: Fields, member: LlamaMember) -> int:
    absent = "head_dim" not in fields.data and "head_dim" not in fields.defaults
    if not absent and not ("head_dim" in member.derived and fields.is_null("head_dim")):
        return fields.whole("head_dim")
    hidden, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    if hidden < heads:
        raise fields.wrong("hidden_size", f"must be at least num_attention_heads = {heads}")
    return hidden // heads


def _kv_heads(fields: Fields, derived: Collection[str] = ()) -> int:
    heads = fields.whole("num_attention_heads")
    if "num_key_value_heads" in derived and fields.is_null("num_key_value_heads"):
        return heads
    kv_heads = fields.whole("num_key_value_heads")
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", f"must divide num_attention_heads = {heads}")
    return kv_heads


def _refuse_uneven(fields: Fields) -> None:
    """transformers checks it where the config class does, whatever head_dim is."""
    heads = fields.whole("num_attention_heads")
    if fields.whole("hidden_size") % heads:
        raise fields.wrong("hidden_size", f"must be a multiple of num_attention_heads = {heads}")


def _llama_windows(fields: Fields, member: LlamaMember) -> tuple[int | None, ...]:
    if member.windows == "by layer":
        return _windows(fields, _qwen_layer_types(fields), sliding=fields.flag("use_sliding_window"))
    has_window = not fields.is_null("sliding_window")
    if member.windows == "none" and has_window and fields.value("use_sliding_window") is not False:
        raise fields.wrong("sliding_window", f"is nothing that {member.architecture} has; set it to null")
    kind = _SLIDING if member.windows == "all" and has_window else _FULL
    if not fields.is_null("layer_types") and set(_layer_types(fields)) != {kind}:
        raise fields.wrong("layer_types", f"can only be {kind} in all layers of {member.architecture}")
    return _windows(fields, (kind,) * fields.whole("num_hidden_layers", most=MOST_LAYERS))


def _qwen_layer_types(fields: Fields) -> tuple[str, ...]:
    first = fields.value("max_window_layers")
    if isinstance(first, bool) or not isinstance(first, int):
        raise fields.wrong("max_window_layers", "must be a whole number")
    if not fields.is_null("layer_types"):
        return _layer_types(fields)
    slides = fields.flag("use_sliding_window") and not fields.is_null("sliding_window")
    return tuple(
        _SLIDING if slides and i >= first else _FULL for i in range(fields.whole("num_hidden_layers", most=MOST_LAYERS))
    )


def _layer_types(fields: Fields) -> tuple[str, ...]:
    types, layers = fields.value("layer_types"), fields.whole("num_hidden_layers", most=MOST_LAYERS)
    if not isinstance(types, Sequence) or len(types) != layers or not all(item in (_FULL, _SLIDING) for item in types):
        raise fields.wrong("layer_types", f"must list full_attention or sliding_attention for each of {layers} layers")
    return tuple(types)


def _windows(fields: Fields, kinds: Sequence[str], *, sliding: bool = True) -> tuple[int | None, ...]:
    """A window for each layer that slides; `sliding` false: the config turns windows off."""
    if _SLIDING not in kinds:
        return (None,) * len(kinds)
    if not sliding:
        raise fields.wrong("use_sliding_window", "contradicts layer_types, which has sliding_attention")
    if fields.is_null("sliding_window"):
        raise fields.wrong("sliding_window", "must be a positive whole number where layers are sliding_attention")
    window = fields.whole("sliding_window")
    return tuple(window if kind == _SLIDING else None for kind in kinds)


def _activation(fields: Fields, name: str) -> Activation:
    value = fields.text(name)
    if value not in _ACTIVATIONS:
        raise fields.wrong(name, f"must be one of {', '.join(sorted(_ACTIVATIONS))} for the native decoder")
    return _ACTIVATIONS[value]


def _even(fields: Fields, head_dim: int) -> int:
    if head_dim % 2:
        raise UnsupportedConfig(
            f"config.json: {fields.prefix}head_dim = {head_dim}; rotary embeddings need an even one"
        )
    return head_dim


def _dtype(fields: Fields) -> str | None:
    value = fields.value("dtype") or fields.value("torch_dtype")
    return value.removeprefix("torch.") if isinstance(value, str) else None


_FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], ModelConfig]] = {
    "Gemma3ForCausalLM": _gemma3_text,
    "Gemma3ForConditionalGeneration": _gemma3_nested,
    **{member.architecture: partial(_llama, member) for member in LLAMA_FAMILY.values()},
}
