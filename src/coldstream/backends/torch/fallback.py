"""Any other decoder-only architecture, through transformers; the only file here that imports it.

The model is transformers' own, but its attention is ours: transformers lets an attention function be registered, and
the one registered here hands q, k and v to `attend`. So the engine drives it exactly as it drives the native decoder:
one flat step of many sequences, its own keys and values, no padding, no mask. What that seam cannot carry (attention
sinks, soft-capped scores, layers without attention, keys and values of different width) is refused by name.

Nothing is run from the checkpoint: `trust_remote_code` is never set, and a class that transformers does not ship is
an UnknownArchitecture.
"""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from coldstream.backends.gate import Gate
from coldstream.backends.torch.decoder import Embeds
from coldstream.backends.torch.layers import Attention
from coldstream.errors import (
    ColdstreamError,
    EngineError,
    MissingExtra,
    ParameterMismatch,
    UnknownArchitecture,
    UnsupportedConfig,
)
from coldstream.model.architecture import listed

_NAME = "coldstream"
_UNCARRIED = ("softcap", "s_aux", "position_bias", "alibi")
_UNCARRIED_ATTRIBUTES = ("attn_logit_softcapping", "sinks")
_NOT_READ = frozenset({"auto_map", "quantization_config"})
_EIGHT_BITS = frozenset({torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class FallbackLayer:
    """What attention needs to know of a layer; as config.LayerConfig has it."""

    window: int | None


@dataclass(frozen=True, slots=True)
class FallbackConfig:
    """What the engine needs to know of the model; named as in config.ModelConfig."""

    architecture: str
    vocab_size: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    layers: tuple[FallbackLayer, ...]
    attention_scale: float
    max_positions: int


class FallbackDecoder:
    """The `forward` of decoder.Decoder over a transformers model, which stands once all its bytes are there.

    Raises MissingExtra without the `[transformers]` extra, UnknownArchitecture and UnsupportedConfig as described.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        device: torch.device | str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.device = torch.device(device)
        self.precision = precision
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self.loaded = Gate("transformers model")
        self._transformers = _transformers()
        self._attend: Attention | None = None
        self._model: nn.Module | None = None
        try:
            self._class, self._model_config = _class_and_config(self._transformers, config)
            with torch.device("meta"):
                described = self._class(self._model_config)
                self.config = _described(described, self._model_config)
        except ColdstreamError:
            raise
        except Exception as exc:  # of whatever kind a config class or a model's constructor complains with
            raise UnsupportedConfig(f"config.json: transformers makes no model of it: {exc}") from exc
        self._bytes = sum(item.numel() for item in described.parameters()) * self.dtype.itemsize

    @property
    def vision(self) -> None:
        """It takes no images; see `Decoder.vision`."""

    @property
    def attention_dtype(self) -> torch.dtype:
        """The dtype of q, k and v."""
        return self.dtype

    @property
    def kernels(self) -> None:
        """Its layers are transformers' own; see `Decoder.kernels`."""

    @property
    def has_landed(self) -> bool:
        """Whether no step waits for weights any more."""
        return self._model is not None

    @property
    def unallocated(self) -> int:
        """Bytes that the weights will yet take on the device, once they are all there."""
        return 0 if self._model is not None else self._bytes

    def build(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the model of the checkpoint's tensors; they are aliased where the dtype is the run's own.

        Raises ParameterMismatch, naming them, where parameters are missing, unexpected, misshapen or left on meta.
        """
        model, report = self._class.from_pretrained(
            None,
            config=self._model_config,
            state_dict=dict(tensors),
            dtype=self.dtype,
            attn_implementation=_NAME,
            output_loading_info=True,
        )
        _refuse_misfits(model, report)
        self._model = model.to(self.device).eval()
        for module, _ in _attentions(model):
            object.__setattr__(module, "coldstream_decoder", self)
        self._try_one_token()
        self.loaded.open()

    @torch.inference_mode()
    def _try_one_token(self) -> None:
        """What a layer asks of attention is seen only when it runs; what is refused is refused before a request."""
        assert self._model is not None
        self._attend = lambda layer, q, k, v, pending=None: q.reshape(len(q), -1)
        first = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        self._model(input_ids=first, position_ids=first, use_cache=False)

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, positions: Tensor, attend: Attention, rows: Tensor, *, embeds: Embeds | None = None
    ) -> Tensor:
        """As decoder.Decoder.forward: flat ids and positions, float32 logits `[len(rows), vocab]`; text only."""
        if embeds is not None:
            raise EngineError(f"{self.config.architecture} takes no images here; only Gemma 3 does")
        self.loaded.wait()
        assert self._model is not None
        self._attend = attend
        wanted = {"logits_to_keep": rows} if _takes(self._model, "logits_to_keep") else {}
        out = self._model(input_ids=ids[None], position_ids=positions[None], use_cache=False, **wanted)
        logits: Tensor = out.logits[0]
        return (logits if wanted else logits[rows]).float()

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """One layer's attention: `[1, heads, tokens, head_dim]` of transformers to `[1, tokens, heads, head_dim]`."""
        _check_options(module, options, self.config)
        assert self._attend is not None
        query, key, value = (item[0].transpose(0, 1) for item in (q, k, v))
        out = self._attend(module.layer_idx, query, key, value)
        return out.view(1, q.shape[2], q.shape[1], -1)


class FallbackAssembly:
    """Takes a checkpoint's tensors as build.Assembly does, and makes the model of them at `finish`."""

    def __init__(self, decoder: FallbackDecoder, shapes: Mapping[str, Sequence[int]]) -> None:
        self._decoder = decoder
        self._shapes = shapes
        self._tensors: dict[str, Tensor] = {}
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    @property
    def filled_by(self) -> Mapping[str, str]:
        """Every tensor by its own name; transformers maps them to parameters."""
        return {name: name for name in self._tensors}

    def assign(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor until the end; a second delivery replaces the first."""
        if name not in self._shapes:
            raise ParameterMismatch(f"{name} was not announced by the checkpoint's headers")
        if tensor.dtype in _EIGHT_BITS:
            raise ParameterMismatch(f"{name} has dtype {tensor.dtype}; weights must be bfloat16, float16 or float32")
        with self._lock:
            self._tensors[name] = tensor

    def settle(self) -> None:
        """As `Assembly.settle`; nothing is left to workers here."""

    def finish(self) -> None:
        """Build the model. Raises ParameterMismatch, and fails the decoder's gate, where they do not fit."""
        if self._error is not None:
            raise self._error
        missing = [name for name in self._shapes if name not in self._tensors]
        try:
            if missing:
                raise ParameterMismatch(_named("the load ended without", missing))
            self._decoder.build(self._tensors)
        except Exception as exc:
            self.fail(exc)
            raise
        self._tensors = {name: tensor.to("meta") for name, tensor in self._tensors.items()}

    def fail(self, error: BaseException) -> None:
        """Make every waiting and every later `forward` raise `error`."""
        self._error = error
        self._decoder.loaded.fail(error)


def _transformers() -> Any:
    try:
        library = importlib.import_module("transformers")
    except ImportError as exc:
        raise MissingExtra(
            "this architecture is served through transformers: pip install 'coldstream[transformers]'"
        ) from exc
    library.AttentionInterface.register(_NAME, _attention)
    library.utils.logging.disable_progress_bar()
    return library


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls for a layer; the mask is None: transformers makes none for this implementation."""
    decoder: FallbackDecoder = module.coldstream_decoder
    return decoder.attend(module, query, key, value, **options), None


def _class_and_config(library: Any, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """`model_type` decides, as in AutoModelForCausalLM; `architectures` where there is none.

    A quantization_config is left out: whether the weights are quantised is seen by their dtypes.
    """
    model_type, names = config.get("model_type"), listed(config)
    by_type: Mapping[str, str] = library.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if isinstance(model_type, str) and model_type in by_type:
        names = [by_type[model_type]]
    name = next((name for name in names if name.endswith(("ForCausalLM", "LMHeadModel"))), None)
    found = getattr(library, name, None) if name else None
    if found is None or found.config_class is None or model_type not in (None, found.config_class.model_type):
        raise UnknownArchitecture(
            f"config.json: neither the native decoder nor transformers {library.__version__} has "
            f"{', '.join(names) or 'an architecture'} (model_type {model_type!r}) as a decoder of text; "
            "code from the checkpoint is never run"
        )
    parsed = found.config_class.from_dict({key: value for key, value in config.items() if key not in _NOT_READ})
    parsed._attn_implementation = _NAME
    return found, parsed


def _attentions(model: nn.Module) -> Iterator[tuple[Any, int]]:
    """The attention modules, by the convention that transformers' attention functions rest on."""
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if hasattr(module, "layer_idx") and hasattr(module, "is_causal") and not hasattr(module, "self_attn"):
            yield module, int(module.layer_idx)


def _described(model: nn.Module, config: Any) -> FallbackConfig:
    """Read what the engine needs off the model, whose parameters are on meta."""
    name, found = type(model).__name__, {index: module for module, index in _attentions(model)}
    layers = int(config.num_hidden_layers)
    if sorted(found) != list(range(layers)):
        raise UnsupportedConfig(f"{name}: not every layer is an attention that can be run over the engine's keys")
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedConfig(f"{name}: transformers does not let its attention be replaced")
    for attribute in _UNCARRIED_ATTRIBUTES:
        if any(getattr(module, attribute, None) is not None for module in found.values()):
            raise UnsupportedConfig(f"{name}: its attention needs {attribute}, which the engine has not")
    if getattr(config, "is_causal", True) is not True or any(module.is_causal is False for module in found.values()):
        raise UnsupportedConfig(f"{name}: config.json asks for attention to later tokens, which the engine has not")
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    scales = {float(getattr(module, "scaling", None) or head_dim**-0.5) for module in found.values()}
    if len(scales) != 1:
        raise UnsupportedConfig(f"{name}: layers scale their scores differently ({sorted(scales)})")
    return FallbackConfig(
        architecture=name,
        vocab_size=int(config.vocab_size),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=head_dim,
        hidden_size=int(config.hidden_size),
        intermediate_size=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        layers=tuple(FallbackLayer(_window(found[index], config)) for index in range(layers)),
        attention_scale=scales.pop(),
        max_positions=_positions(config),
    )


def _positions(config: Any) -> int:
    """How far positions reach: YaRN's stretch counts where it is longer than what the config declares.

    LongRoPE turns every position of a step by another table once one of them is beyond the original context, other
    sequences' too; so it ends there.
    """
    declared, rope = int(config.max_position_embeddings), getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings")
    match rope.get("rope_type"):
        case "yarn" if original and rope.get("factor"):
            return max(declared, int(original * rope["factor"]))
        case "longrope" if original:
            return min(declared, int(original))
    return declared


def _window(module: Any, config: Any) -> int | None:
    types = getattr(config, "layer_types", None)
    if types is not None:
        kind = types[module.layer_idx]
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedConfig(f"config.json: layer_types has {kind}, which the engine has not")
        return getattr(config, "sliding_window", None) if kind == "sliding_attention" else None
    if getattr(config, "attention_chunk_size", None):
        raise UnsupportedConfig("config.json: attention_chunk_size asks for attention that the engine has not")
    window = getattr(module, "sliding_window", None) or getattr(config, "sliding_window", None)
    return int(window) if window else None


def _check_options(module: Any, options: Mapping[str, Any], config: FallbackConfig) -> None:
    for name in _UNCARRIED:
        if options.get(name) is not None:
            raise UnsupportedConfig(f"{config.architecture}: its attention needs {name}, which the engine has not")
    scale, window = options.get("scaling"), options.get("sliding_window")
    expected = config.layers[module.layer_idx].window
    if scale is not None and abs(scale - config.attention_scale) > 1e-6:
        raise UnsupportedConfig(f"{config.architecture}: layer {module.layer_idx} scales its scores by {scale}")
    if window != expected:
        raise UnsupportedConfig(
            f"{config.architecture}: config.json gives layer {module.layer_idx} a window of {expected} tokens "
            f"(sliding_window, layer_types), but it attends over {window or 'all'}"
        )


def _refuse_misfits(model: nn.Module, report: Mapping[str, Any]) -> None:
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    problems += [f"{name} is unexpected" for name in sorted(report["unexpected_keys"])]
    problems += [f"{item[0]} has the wrong shape" for item in sorted(report["mismatched_keys"])]
    named = (*model.named_parameters(), *model.named_buffers())
    problems += [f"{name} was left on meta" for name, tensor in named if tensor.is_meta]
    if problems:
        raise ParameterMismatch(_named("the checkpoint and config.json do not fit:", problems))


def _named(what: str, items: Sequence[str]) -> str:
    more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{what} " + "; ".join(items[:_SHOWN]) + more


def _takes(model: nn.Module, option: str) -> bool:
    return option in inspect.signature(model.forward).parameters
