"""Small real parts for the engine's tests: a byte-level tokenizer, random decoders, a place that collects events."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
import torch
from torch import Tensor

from coldstream.backends.assembly import Assembly, Fillable
from coldstream.backends.cpu.backend import CpuBackend
from coldstream.backends.cpu.decoder import CpuDecoder, CpuPrecision
from coldstream.backends.torch.backend import TorchBackend
from coldstream.backends.torch.decoder import Decoder, DecoderPrecision
from coldstream.backends.torch.device_kernels import DeviceKernels
from coldstream.engine.engine import Engine
from coldstream.engine.request import Request, SamplingParams, TokenEvent
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.model.config import ModelConfig
from coldstream.settings import EngineSettings

SPECIAL = ("<pad>", "<eos>", "<bos>", "<turn>")
WORDS = ("▁", "▁the", "▁SELECT", "안", "녕", "▁a", "b", "c", "ab")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
VOCAB = {piece: number for number, piece in enumerate((*SPECIAL, *BYTES, *WORDS))}
EOS, BOS = VOCAB["<eos>"], VOCAB["<bos>"]

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)


def tokenizer_json() -> bytes:
    """Gemma's kind of tokenizer: pieces with ▁ for spaces, and bytes for everything else."""
    decoders = tokenizers.decoders
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(VOCAB, [], byte_fallback=True))
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    backend.add_special_tokens(list(SPECIAL))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    text: str = backend.to_str()
    return text.encode()


def tokenizer_files(**changes: Any) -> dict[str, bytes]:
    """The files of a checkpoint with that tokenizer; `changes` go into tokenizer_config.json."""
    config = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, **changes}
    return {
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps({"eos_token_id": [EOS]}).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
    }


def make_tokenizer() -> Tokenizer:
    return Tokenizer.load(tokenizer_files(), source="test")


LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": len(VOCAB),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "tie_word_embeddings": False,
}
GEMMA: Mapping[str, Any] = {
    **{key: value for key, value in LLAMA.items() if key != "hidden_act"},
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 8,
    "sliding_window": 40,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 100_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "tie_word_embeddings": True,
}


def make_decoder(
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    precision: DecoderPrecision = "float32",
    kernels: DeviceKernels | None = None,
    change: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> Decoder:
    """torch's decoder, filled."""
    decoder = Decoder(ModelConfig.from_json(config), precision=precision, kernels=kernels)
    fill(decoder, {name: change(tensor) for name, tensor in random_tensors(decoder, config, seed).items()})
    return decoder


def make_cpu_decoder(config: Mapping[str, Any], *, seed: int = 0, precision: CpuPrecision = "float32") -> CpuDecoder:
    """The CPU's own decoder, filled with the same weights."""
    decoder = CpuDecoder(ModelConfig.from_json(config), precision=precision)
    tensors = random_tensors(decoder, config, seed)
    fill(decoder, {name: tensor.numpy() for name, tensor in tensors.items()})
    return decoder


def make_cpu_backend(decoder: Any, *, threads: int | None = 1) -> CpuBackend:
    return CpuBackend(decoder, decoder.config, kernels=decoder.kernels, blas=True, threads=threads)


def random_tensors(decoder: Fillable, config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A checkpoint of it, spread widely enough that the best token is clearly the best."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "lm_head.weight" if item.name == "lm_head.weight" else f"model.{item.name}": torch.randn(
            item.shape, generator=generator
        )
        * 0.4
        for item in decoder.parameters()
        if not (config["tie_word_embeddings"] and item.name == "lm_head.weight")
    }


def fill(decoder: Fillable, tensors: Mapping[str, Any]) -> None:
    assembly = Assembly(decoder, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        assembly.assign(name, tensor)
    assembly.finish()


class Faulty:
    """A decoder that does something before some of its steps: raises, waits, or spoils the logits."""

    def __init__(self, decoder: Decoder, before: Callable[[int, Tensor], None] | None = None) -> None:
        self._decoder = decoder
        self._before = before
        self.steps = 0
        self.spoil: Callable[[Tensor], Tensor] = lambda logits: logits

    @property
    def config(self) -> ModelConfig:
        return self._decoder.config

    @property
    def attention_dtype(self) -> torch.dtype:
        return self._decoder.attention_dtype

    def forward(self, ids: Tensor, positions: Tensor, attend: Any, rows: Tensor) -> Tensor:
        self.steps += 1
        if self._before is not None:
            self._before(self.steps, ids)
        return self.spoil(self._decoder.forward(ids, positions, attend, rows))


class Inbox:
    """Collects events by request and knows when each has ended."""

    def __init__(self) -> None:
        self.events: dict[str, list[TokenEvent]] = defaultdict(list)
        self._changed = threading.Condition()

    def deliver(self, event: TokenEvent) -> None:
        with self._changed:
            self.events[event.request_id].append(event)
            self._changed.notify_all()

    def wait(self, *ids: str, timeout: float = 60.0) -> list[TokenEvent]:
        """The terminal events of these requests."""
        with self._changed:
            done = self._changed.wait_for(lambda: all(self._last(key) for key in ids), timeout)
        assert done, f"not ended: {[key for key in ids if not self._last(key)]}"
        return [self.events[key][-1] for key in ids]

    def wait_for_token(self, key: str, count: int = 1, timeout: float = 60.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events[key]) >= count, timeout)

    def text(self, key: str) -> str:
        return "".join(event.text for event in self.events[key])

    def ids(self, key: str) -> tuple[int, ...]:
        return tuple(token for event in self.events[key] for token in event.token_ids)

    def _last(self, key: str) -> bool:
        return bool(self.events[key]) and self.events[key][-1].finish_reason is not None


def make_engine(decoder: Any, config: ModelConfig, *, settings: EngineSettings | None = None, **more: Any) -> Engine:
    chosen = settings or EngineSettings(kv_bytes=16 << 20, threads=1)
    backend = TorchBackend(decoder, config, threads=chosen.threads)
    return Engine(backend, make_tokenizer(), config, chosen, **more)


def request(key: str, ids: list[int] | tuple[int, ...], *, deadline: float | None = None, **sampling: Any) -> Request:
    return Request(key, tuple(ids), SamplingParams(**sampling), deadline)
