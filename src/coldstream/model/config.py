"""config.json of a checkpoint -> ModelConfig: everything that the native decoder needs to know, and nothing else.

Both spellings are read: transformers 4.x (`rope_theta`, `rope_scaling`, `rope_local_base_freq`,
`sliding_window_pattern`, `torch_dtype`) and 5.x (`rope_parameters`, `layer_types`, `dtype`). A value that would change
the results and that is not implemented is refused by name; it is never ignored. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coldstream.errors import UnknownArchitecture, UnsupportedConfig

RopeKind = Literal["default", "linear", "llama3", "yarn"]
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


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding of one kind of layer (Su et al. 2021), with its context extension.

    `linear` divides positions by `factor`; `llama3` and `yarn` (Peng et al. 2023) stretch the low frequencies only, as
    transformers' `modeling_rope_utils` does; `attention_factor` multiplies cos and sin.
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


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
        architecture = _architecture(config)
        inner = config.get("text_config") if architecture in _NESTED else None
        if inner is not None and not isinstance(inner, Mapping):
            raise UnsupportedConfig(f"config.json: text_config must be an object, not {inner!r}")
        fields = _Fields(inner if inner is not None else config, "text_config." if inner is not None else "")
        _refuse_what_changes_results(config, "")
        if inner is not None:
            _refuse_what_changes_results(inner, "text_config.")
        return _FAMILIES[architecture](architecture, fields, config)


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether the native decoder takes this config as it is; else only the fallback can."""
    try:
        ModelConfig.from_json(config)
    except (UnknownArchitecture, UnsupportedConfig):
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Fields:
    """Typed access to a JSON object, with errors that name the field."""

    data: Mapping[str, Any]
    prefix: str

    def given(self, name: str) -> bool:
        return self.data.get(name) is not None

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.data.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UnsupportedConfig(f"config.json: {self.prefix}{name} must be a positive whole number, not {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.data.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise UnsupportedConfig(f"config.json: {self.prefix}{name} must be a positive number, not {value!r}")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return self.number(name) if self.given(name) else None

    def flag(self, name: str, default: bool) -> bool:
        value = self.data.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise UnsupportedConfig(f"config.json: {self.prefix}{name} must be true or false, not {value!r}")
        return value

    def inside(self, name: str) -> _Fields | None:
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise UnsupportedConfig(f"config.json: {self.prefix}{name} must be an object, not {value!r}")
        return _Fields(value, f"{self.prefix}{name}.")

    def activation(self, *names: str, default: str) -> Activation:
        name = next((name for name in names if self.given(name)), names[0])
        value = self.data.get(name) or default
        if value not in _ACTIVATIONS:
            known = ", ".join(sorted(_ACTIVATIONS))
            raise UnsupportedConfig(f"config.json: {self.prefix}{name} = {value!r}; the native decoder has {known}")
        return _ACTIVATIONS[value]


def _architecture(config: Mapping[str, Any]) -> str:
    listed = config.get("architectures")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, Sequence) else []
    model_type = config.get("model_type")
    if not names and isinstance(model_type, str) and model_type in _BY_MODEL_TYPE:
        names = [_BY_MODEL_TYPE[model_type]]
    for name in names:
        if name in _FAMILIES:
            return name
    what = ", ".join(names) or f"model_type {model_type!r}"
    raise UnknownArchitecture(
        f"config.json: the native decoder does not know {what} (it knows {', '.join(sorted(_FAMILIES))}); "
        "install coldstream[transformers] to serve it through transformers"
    )


def _refuse_what_changes_results(config: Mapping[str, Any], prefix: str) -> None:
    if config.get("quantization_config"):
        raise UnsupportedConfig(
            f"config.json: {prefix}quantization_config: the checkpoint is quantised; "
            "save it in bfloat16 or float32 (merge, then save_pretrained)"
        )
    for name in ("attn_logit_softcapping", "use_bidirectional_attention", "partial_rotary_factor", "no_rope_layers"):
        value = config.get(name)
        if value and not (name == "partial_rotary_factor" and value == 1):
            raise UnsupportedConfig(f"config.json: {prefix}{name} = {value!r} is not implemented by the native decoder")


def _gemma3(architecture: str, fields: _Fields, config: Mapping[str, Any]) -> ModelConfig:
    layers = fields.whole("num_hidden_layers", 26)
    window = fields.whole("sliding_window", 4096)
    types = _gemma3_layer_types(fields, layers)
    ropes = _gemma3_ropes(fields)
    hidden = fields.whole("hidden_size", 2304)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.whole("vocab_size", 262_208),
        hidden_size=hidden,
        intermediate_size=fields.whole("intermediate_size", 9216),
        heads=fields.whole("num_attention_heads", 8),
        kv_heads=fields.whole("num_key_value_heads", 4),
        head_dim=_even(fields, fields.whole("head_dim", 256)),
        layers=tuple(LayerConfig(window if kind == "sliding_attention" else None, ropes[kind]) for kind in types),
        attention_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        norm_offset=1.0,
        sandwich_norms=True,
        qk_norm=True,
        embedding_scale=hidden**0.5,
        activation=fields.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh"),
        qkv_bias=fields.flag("attention_bias", False),
        output_bias=fields.flag("attention_bias", False),
        mlp_bias=False,
        tied=_tied(fields, config, True),
        max_positions=fields.whole("max_position_embeddings", 131_072),
        logit_softcap=fields.optional_number("final_logit_softcapping"),
        dtype=_dtype(fields, config),
    )


def _gemma3_layer_types(fields: _Fields, layers: int) -> tuple[str, ...]:
    if fields.given("layer_types"):
        return _layer_types(fields, layers)
    pattern = fields.whole("sliding_window_pattern", fields.whole("_sliding_window_pattern", 6))
    return tuple("full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers))


def _layer_types(fields: _Fields, layers: int) -> tuple[str, ...]:
    types = fields.data["layer_types"]
    known = {"full_attention", "sliding_attention"}
    if not isinstance(types, Sequence) or len(types) != layers or not all(item in known for item in types):
        raise UnsupportedConfig(
            f"config.json: {fields.prefix}layer_types must list full_attention or sliding_attention "
            f"for each of the {layers} layers, not {types!r}"
        )
    return tuple(types)


def _gemma3_ropes(fields: _Fields) -> dict[str, RopeConfig]:
    rope = fields.inside("rope_parameters")
    if rope is None:
        scaling = fields.inside("rope_scaling")
        whole = _rope(scaling, fields, fields.number("rope_theta", 1_000_000.0))
        return {
            "full_attention": whole,
            "sliding_attention": RopeConfig(fields.number("rope_local_base_freq", 10_000.0)),
        }
    full, sliding = rope.inside("full_attention"), rope.inside("sliding_attention")
    return {
        "full_attention": _rope(full, fields, fields.number("rope_theta", 1_000_000.0)),
        "sliding_attention": _rope(sliding, fields, fields.number("rope_local_base_freq", 10_000.0)),
    }


@dataclass(frozen=True, slots=True)
class _LlamaTraits:
    """Where the members of the Llama family differ."""

    qk_norm: bool = False
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias_field: bool = False
    head_dim: int | None = None
    windows: Literal["never", "always", "use_sliding_window"] = "never"


_LLAMA = _LlamaTraits(mlp_bias_field=True)
_MISTRAL = _LlamaTraits(qkv_bias=False, output_bias=False, windows="always")
_QWEN2 = _LlamaTraits(qkv_bias=True, output_bias=False, windows="use_sliding_window")
_QWEN3 = _LlamaTraits(qk_norm=True, head_dim=128, windows="use_sliding_window")


def _llama_family(traits: _LlamaTraits) -> Callable[[str, _Fields, Mapping[str, Any]], ModelConfig]:
    def read(architecture: str, fields: _Fields, config: Mapping[str, Any]) -> ModelConfig:
        heads, hidden = fields.whole("num_attention_heads"), fields.whole("hidden_size")
        head_dim = _even(fields, fields.whole("head_dim", traits.head_dim or hidden // heads))
        attention_bias = fields.flag("attention_bias", False)
        rope = _llama_rope(fields)
        windows = _llama_windows(fields, traits, fields.whole("num_hidden_layers"))
        return ModelConfig(
            architecture=architecture,
            vocab_size=fields.whole("vocab_size"),
            hidden_size=hidden,
            intermediate_size=fields.whole("intermediate_size"),
            heads=heads,
            kv_heads=_groups(fields, heads),
            head_dim=head_dim,
            layers=tuple(LayerConfig(window, rope) for window in windows),
            attention_scale=head_dim**-0.5,
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            norm_offset=0.0,
            sandwich_norms=False,
            qk_norm=traits.qk_norm,
            embedding_scale=1.0,
            activation=fields.activation("hidden_act", default="silu"),
            qkv_bias=attention_bias if traits.qkv_bias is None else traits.qkv_bias,
            output_bias=attention_bias if traits.output_bias is None else traits.output_bias,
            mlp_bias=traits.mlp_bias_field and fields.flag("mlp_bias", False),
            tied=_tied(fields, config, False),
            max_positions=fields.whole("max_position_embeddings", 2048),
            logit_softcap=fields.optional_number("final_logit_softcapping"),
            dtype=_dtype(fields, config),
        )

    return read


def _groups(fields: _Fields, heads: int) -> int:
    kv_heads = fields.whole("num_key_value_heads", heads)
    if heads % kv_heads:
        raise UnsupportedConfig(
            f"config.json: {fields.prefix}num_attention_heads = {heads} does not divide by "
            f"num_key_value_heads = {kv_heads}"
        )
    return kv_heads


def _llama_windows(fields: _Fields, traits: _LlamaTraits, layers: int) -> tuple[int | None, ...]:
    if traits.windows == "never" or not fields.given("sliding_window"):
        return (None,) * layers
    if traits.windows == "use_sliding_window" and not fields.flag("use_sliding_window", False):
        return (None,) * layers
    window = fields.whole("sliding_window")
    if traits.windows == "always":
        return (window,) * layers
    if fields.given("layer_types"):
        return tuple(window if kind == "sliding_attention" else None for kind in _layer_types(fields, layers))
    first = fields.data.get("max_window_layers")
    first = 28 if first is None else first
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise UnsupportedConfig(f"config.json: {fields.prefix}max_window_layers must be a whole number, not {first!r}")
    return tuple(window if index >= first else None for index in range(layers))


def _llama_rope(fields: _Fields) -> RopeConfig:
    rope = fields.inside("rope_parameters")
    if rope is not None and rope.inside("full_attention") is not None:
        # one embedding for all layers here; two different ones would be a model that this family does not have
        full, sliding = rope.inside("full_attention"), rope.inside("sliding_attention")
        if sliding is not None and full is not None and sliding.data != full.data:
            raise UnsupportedConfig(
                f"config.json: {fields.prefix}rope_parameters differ by layer in a Llama-like model"
            )
        rope = full
    return _rope(rope or fields.inside("rope_scaling"), fields, fields.number("rope_theta", 10_000.0))


def _rope(rope: _Fields | None, fields: _Fields, theta: float) -> RopeConfig:
    if rope is None:
        return RopeConfig(theta)
    theta = rope.number("rope_theta", theta)
    kind = rope.data.get("rope_type") or rope.data.get("type") or "default"
    _refuse_what_changes_results(rope.data, rope.prefix)
    match kind:
        case "default":
            return RopeConfig(theta)
        case "linear":
            return RopeConfig(theta, "linear", factor=rope.number("factor"))
        case "llama3":
            return RopeConfig(
                theta,
                "llama3",
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
                original_context=_original_context(rope, fields),
            )
        case "yarn":
            return _yarn(rope, fields, theta)
    raise UnsupportedConfig(
        f"config.json: {rope.prefix}rope_type = {kind!r}; the native decoder has default, linear, llama3 and yarn"
    )


def _original_context(rope: _Fields, fields: _Fields) -> int:
    return rope.whole("original_max_position_embeddings", fields.whole("max_position_embeddings", 2048))


def _yarn(rope: _Fields, fields: _Fields, theta: float) -> RopeConfig:
    original = _original_context(rope, fields)
    factor = rope.number("factor", fields.whole("max_position_embeddings", 2048) / original)
    mscale, mscale_all = rope.optional_number("mscale"), rope.optional_number("mscale_all_dim")
    attention = rope.optional_number("attention_factor")
    if attention is None and mscale and mscale_all:
        attention = _yarn_mscale(factor, mscale) / _yarn_mscale(factor, mscale_all)
    return RopeConfig(
        theta,
        "yarn",
        factor=factor,
        original_context=original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
        attention_factor=_yarn_mscale(factor, 1.0) if attention is None else attention,
    )


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _even(fields: _Fields, head_dim: int) -> int:
    if head_dim % 2:
        raise UnsupportedConfig(
            f"config.json: {fields.prefix}head_dim = {head_dim}; rotary embeddings need an even one"
        )
    return head_dim


def _tied(fields: _Fields, config: Mapping[str, Any], default: bool) -> bool:
    # image-text configs say it outside, text configs inside; the outer one is what transformers obeys
    return _Fields(config, "").flag("tie_word_embeddings", fields.flag("tie_word_embeddings", default))


def _dtype(fields: _Fields, config: Mapping[str, Any]) -> str | None:
    for data in (fields.data, config):
        for name in ("dtype", "torch_dtype"):
            value = data.get(name)
            if isinstance(value, str):
                return value.removeprefix("torch.")
    return None


_FAMILIES: Mapping[str, Callable[[str, _Fields, Mapping[str, Any]], ModelConfig]] = {
    "Gemma3ForCausalLM": _gemma3,
    "Gemma3ForConditionalGeneration": _gemma3,
    "LlamaForCausalLM": _llama_family(_LLAMA),
    "MistralForCausalLM": _llama_family(_MISTRAL),
    "Qwen2ForCausalLM": _llama_family(_QWEN2),
    "Qwen3ForCausalLM": _llama_family(_QWEN3),
}
_NESTED = frozenset({"Gemma3ForConditionalGeneration"})
_BY_MODEL_TYPE: Mapping[str, str] = {
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
