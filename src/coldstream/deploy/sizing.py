"""Checkpoint + machine -> memory, concurrency, probe, seconds and dollars; pure.

Every figure that is not read from the checkpoint is a named assumption in `CloudMachine`, `Prices` or a constant below,
and `Size.assumptions` prints them beside the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coldstream.deploy import cards
from coldstream.deploy.cards import Card
from coldstream.errors import DeployError, OutOfMemory, UnknownArchitecture, UnsupportedConfig
from coldstream.model.config import ModelConfig
from coldstream.model.memory import BLOCK_SIZE, beside_weights, graph_bytes, sequence_bytes, step_of, workspace_bytes
from coldstream.model.vision_config import VisionConfig
from coldstream.settings import Precision, RunEngine

GIB = 1024**3
CUDA_BYTES = GIB
"""Of a card's memory: what CUDA's context and libraries take before a weight is there."""
DEFAULT_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What an architecture's keys, values and activations weigh. `window` is a sliding layer's reach in tokens, `image`
    how many stand for an image."""

    architecture: str
    layers: int
    sliding_layers: int
    window: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    context: int
    native: bool = True
    """Whether the native decoder takes it; else vLLM does on a GPU, and transformers on a CPU."""
    image: int = 0

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def hidden_size(self) -> int:
        return self.hidden

    @property
    def intermediate_size(self) -> int:
        return self.intermediate

    def kv_bytes(self, tokens: int, *, item: int, step: int) -> int:
        """Keys and values of one sequence, `item` bytes each, in the blocks that the engine keeps them in.

        `step` are the tokens of a step, as the settings have them.
        """
        block = 2 * self.kv_heads * self.head_dim * item * BLOCK_SIZE
        return sequence_bytes(
            tokens,
            windows=(None, self.window),
            block_bytes=(block * (self.layers - self.sliding_layers), block * self.sliding_layers),
            step=step_of(step, image=self.image, context=tokens),
        )

    def activation_bytes(self, tokens: int, rows: int, *, item: int, recorded: bool) -> int:
        """The largest moment of a step of `tokens`, with the logits of `rows`; and of steps that are `recorded`."""
        step = workspace_bytes(self, tokens=max(tokens, self.image), rows=rows, item=item)
        return step + (graph_bytes(self, rows=rows, item=item) if recorded else 0)


def shape(config: Mapping[str, Any]) -> ModelShape:
    """From config.json, as the decoder reads it; as it is written, where only transformers knows the architecture.

    Raises:
        UnsupportedConfig: a number that the plan needs is missing.
    """
    try:
        model = ModelConfig.from_json(config)
    except (UnknownArchitecture, UnsupportedConfig):
        return _written(config)
    windows = [layer.window for layer in model.layers if layer.window is not None]
    return ModelShape(
        architecture=model.architecture,
        layers=len(model.layers),
        sliding_layers=len(windows),
        window=max(windows, default=0),
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        hidden=model.hidden_size,
        intermediate=model.intermediate_size,
        vocab=model.vocab_size,
        context=model.max_positions,
        image=_image_tokens(config),
    )


def _image_tokens(config: Mapping[str, Any]) -> int:
    vision = VisionConfig.from_json(config) if "vision_config" in config else None
    return 0 if vision is None else vision.tokens_per_image


def _written(config: Mapping[str, Any]) -> ModelShape:
    text = config.get("text_config") or config
    heads, hidden = _number(text, "num_attention_heads"), _number(text, "hidden_size")
    layers = _number(text, "num_hidden_layers")
    window = text.get("sliding_window") or 0
    return ModelShape(
        architecture=str((config.get("architectures") or [config.get("model_type", "unknown")])[0]),
        layers=layers,
        sliding_layers=_sliding_layers(text, layers) if window else 0,
        window=window,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        hidden=hidden,
        intermediate=_number(text, "intermediate_size"),
        vocab=_number(text, "vocab_size"),
        context=int(text.get("max_position_embeddings") or DEFAULT_CONTEXT),
        native=False,
    )


def _number(text: Mapping[str, Any], key: str) -> int:
    value = text.get(key)
    if not isinstance(value, int) or value < 1:
        raise UnsupportedConfig(f"config.json: {key} = {value!r}; the plan needs it as a whole number")
    return value


def _sliding_layers(text: Mapping[str, Any], layers: int) -> int:
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        return sum(1 for kind in kinds if kind == "sliding_attention")
    pattern: int | None = text.get("sliding_window_pattern")
    if pattern:
        return layers - layers // pattern
    return 0 if text.get("use_sliding_window") is False else layers


@dataclass(frozen=True, slots=True)
class Weights:
    """One checkpoint as it will be served."""

    uri: str
    bytes: int
    parameters: int
    shape: ModelShape
    precision: Precision = "auto"

    def item(self, *, gpu: bool) -> int:
        """Bytes of a key or a value."""
        return 2 if self.precision == "bfloat16" or (gpu and self.precision != "float32") else 4

    def held_bytes(self, engine: RunEngine, *, gpu: bool) -> int:
        """What the weights take where they are computed with. int8: one byte a parameter, and a scale a row."""
        if engine == "vllm" and self.precision == "auto":
            return self.bytes
        chosen = self.precision
        if chosen == "auto":
            chosen = "bfloat16" if gpu else "int8" if self.shape.native else "float32"
        return int(self.parameters * {"float32": 4, "bfloat16": 2, "int8": 1.05}[chosen])


@dataclass(frozen=True, slots=True)
class CloudMachine:
    """An instance of Cloud Run with what is assumed of it. Bandwidths in bytes a second.

    `memory_bandwidth` is NVIDIA's figure for a card and a cautious one for a shared CPU; `efficiency` is the part of it
    that decoding reaches. `fetch` is what a stream from a bucket in the same region is assumed to reach for each vCPU.
    `import_seconds` pass beside the stream, `before_seconds` before it and `after_seconds` behind it. `batch` is the
    most sequences that a step serves for the price of one. `runtime_bytes` of the host's memory are the engine's own.
    """

    card: Card | None
    memory_bandwidth: float
    efficiency: float
    fetch_per_cpu: float
    fetch_most: float
    start_seconds: float
    import_seconds: float
    engine: RunEngine = "native"
    before_seconds: float = 0.0
    after_seconds: float = 1.0
    batch: int = 16
    runtime_bytes: int = int(1.5 * GIB)

    @property
    def name(self) -> str:
        return "CPU" if self.card is None else self.card.title

    @property
    def gpu(self) -> bool:
        return self.card is not None

    @property
    def device_bytes(self) -> int:
        return 0 if self.card is None else self.card.device_bytes


def with_card(card: Card, engine: RunEngine = "native") -> CloudMachine:
    """An instance with a card, and an engine on it. Nothing of it was measured on a card."""
    native = CloudMachine(
        card=card,
        memory_bandwidth=card.bandwidth,
        efficiency=0.55,
        fetch_per_cpu=0.15e9,
        fetch_most=1.0e9,
        start_seconds=12.0,
        import_seconds=6.0,
    )
    if engine == "native":
        return native
    return replace(
        native,
        engine="vllm",
        efficiency=0.75,
        start_seconds=20.0,
        import_seconds=0.0,
        before_seconds=25.0,
        after_seconds=45.0,
        batch=64,
        runtime_bytes=6 * GIB,
    )


L4 = with_card(cards.L4)
CPU = CloudMachine(
    card=None,
    memory_bandwidth=5e9,
    efficiency=0.5,
    fetch_per_cpu=0.1e9,
    fetch_most=0.6e9,
    start_seconds=4.0,
    import_seconds=3.0,
)


@dataclass(frozen=True, slots=True)
class Prices:
    """Dollars a second, instance-based billing, tier 1 regions; https://cloud.google.com/run/pricing, to be checked."""

    vcpu: float = 0.000018
    gib: float = 0.000002
    l4: float = 0.0001867
    l4_redundant: float = 0.0002909

    def of(self, card: Card, *, redundant: bool) -> float | None:
        """The card's own; None for one whose price is not in here."""
        if card.name != "l4":
            return None
        return self.l4_redundant if redundant else self.l4


@dataclass(frozen=True, slots=True)
class Wish:
    """What the settings fix; None is for the plan to choose."""

    cpu: int | None = None
    memory_gib: int | None = None
    concurrency: int | None = None
    max_sequences: int = 16
    step_tokens: int = 512
    context: int | None = None
    kv_bytes: int | None = None
    zonal_redundancy: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """One instance, and what it will do."""

    engine: RunEngine
    card: Card | None
    cpu: int
    memory_gib: int
    concurrency: int
    context: int
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    host_bytes: int
    device_bytes: int
    seconds_to_first_token: float
    probe_period: int
    probe_failures: int
    dollars_per_hour: float
    tokens_per_second: float
    assumptions: tuple[str, ...] = field(repr=False)

    @property
    def machine(self) -> str:
        return "CPU" if self.card is None else self.card.title

    @property
    def gpu(self) -> bool:
        return self.card is not None

    @property
    def priced(self) -> bool:
        """Whether the dollars have the card in them: the price of one may not be known here."""
        return self.card is None or Prices().of(self.card, redundant=False) is not None

    @property
    def needed_bytes(self) -> int:
        """On the device: weights, keys and values at the concurrency, activations, and the runtime's own."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes + (CUDA_BYTES if self.gpu else 0)

    @property
    def dollars_per_million_tokens(self) -> float:
        """At full concurrency, around the clock; idle time makes it more."""
        return self.dollars_per_hour / (self.tokens_per_second * 3600) * 1e6


# https://cloud.google.com/run/docs/configuring/services/memory-limits: the least CPU for a memory limit.
_LEAST_CPU = ((4, 1), (8, 2), (16, 4), (24, 6), (32, 8), (80, 20))
_IN_FLIGHT_BYTES = GIB
# Failures x period: 1,800 s on a GPU. Without one, pages and discovery documents read on 2026-11-29 say 240 s for
# services (and 240 s at most for one period); the page for jobs has 600 s since this autumn, so 240 s fits both.
_PROBE_LIMIT = {True: 1800, False: 240}


def size(models: tuple[Weights, ...], machine: CloudMachine, wish: Wish, *, prices: Prices) -> Size:
    """One instance that serves all the models.

    Raises:
        DeployError: they do not fit in the largest instance; the message says by how much and what would fit.
    """
    if machine.card is None:
        return _cpu_size(models, machine, wish, prices)
    return _gpu_size(models, machine, machine.card, wish, prices)


def _gpu_size(models: tuple[Weights, ...], machine: CloudMachine, card: Card, wish: Wish, prices: Prices) -> Size:
    weights = sum(model.held_bytes(machine.engine, gpu=True) for model in models)
    activations = _activations(models, wish, gpu=True, recorded=machine.engine == "native")
    context = _context(models, wish)
    total = machine.device_bytes
    try:
        free = beside_weights(total - CUDA_BYTES, total, unallocated=weights, workspace=activations)
    except OutOfMemory:
        free = 0
    sequences, context = _sequences(models, free, context, wish, gpu=True)
    if sequences < 1:
        raise DeployError(
            f"{weights / GIB:.1f} GiB of weights and one sequence of {context} tokens do not fit in the "
            f"{machine.device_bytes / GIB:.0f} GiB of one {machine.name}; quantize the model or lower max_context"
        )
    host = machine.runtime_bytes + _IN_FLIGHT_BYTES + int(weights * 0.1) + 2 * GIB
    memory = wish.memory_gib or max(card.least_memory_gib, math.ceil(host / GIB))
    cpu = wish.cpu or max(card.least_cpu, _least_cpu(memory))
    _check_gpu_instance(card, cpu, memory)
    kv = min(sequences, wish.max_sequences) * sum(_kv(models, context, wish, gpu=True))
    price = prices.of(card, redundant=wish.zonal_redundancy)
    hourly = 3600 * (cpu * prices.vcpu + memory * prices.gib + (price or 0.0))
    return _finish(models, machine, cpu, memory, sequences, context, weights, kv, activations, host, hourly)


def _check_gpu_instance(card: Card, cpu: int, memory: int) -> None:
    """What Cloud Run's page says of sizes; what it does not say is left to Cloud Run's own judgement."""
    small = cpu < card.least_cpu or memory < card.least_memory_gib
    large = card is cards.L4 and (cpu not in (4, 6, 8) or memory > 32 or cpu < _least_cpu(memory))
    if small or large:
        most = "; use 4 vCPU with 16 GiB, or 8 with 16-32" if card is cards.L4 else ""
        raise DeployError(
            f"{card.title} with {cpu} vCPU and {memory} GiB is not possible: it wants at least {card.least_cpu} vCPU "
            f"and {card.least_memory_gib} GiB{most}"
        )


def _cpu_size(models: tuple[Weights, ...], machine: CloudMachine, wish: Wish, prices: Prices) -> Size:
    # Loading lets each layer's source go.
    weights = sum(model.held_bytes(machine.engine, gpu=False) for model in models)
    activations = _activations(models, wish, gpu=False, recorded=False)
    context = _context(models, wish)
    room = 32 * GIB - weights - activations - machine.runtime_bytes - _IN_FLIGHT_BYTES
    sequences, context = _sequences(models, room, context, wish, gpu=False)
    if sequences < 1:
        raise DeployError(
            f"{weights / GIB:.1f} GiB of weights, as they are computed with, do not fit in Cloud Run's largest "
            "instance (32 GiB); leave --cpu out"
        )
    kv = min(sequences, wish.max_sequences) * sum(_kv(models, context, wish, gpu=False))
    host = weights + kv + activations + machine.runtime_bytes + _IN_FLIGHT_BYTES
    memory = wish.memory_gib or max(2, math.ceil(host * 1.1 / GIB))
    cpu = wish.cpu or max(4, _least_cpu(memory))
    if memory > 32 or cpu not in (1, 2, 4, 6, 8) or cpu < _least_cpu(memory):
        raise DeployError(
            f"an instance with {cpu} vCPU and {memory} GiB is not possible; 8 vCPU and 32 GiB are the most"
        )
    hourly = 3600 * (cpu * prices.vcpu + memory * prices.gib)
    return _finish(models, machine, cpu, memory, sequences, context, weights, kv, activations, host, hourly)


def _least_cpu(memory_gib: int) -> int:
    return next((cpu for most, cpu in _LEAST_CPU if memory_gib <= most), 8)


def _context(models: tuple[Weights, ...], wish: Wish) -> int:
    limit = min(model.shape.context for model in models)
    return min(limit, wish.context or DEFAULT_CONTEXT)


def _activations(models: tuple[Weights, ...], wish: Wish, *, gpu: bool, recorded: bool) -> int:
    """Of all models: each has an engine of its own, and they may compute at once."""
    return sum(
        model.shape.activation_bytes(wish.step_tokens, wish.max_sequences, item=model.item(gpu=gpu), recorded=recorded)
        for model in models
    )


def _kv(models: tuple[Weights, ...], context: int, wish: Wish, *, gpu: bool) -> list[int]:
    """Of one sequence of each model: every engine has blocks for as many as may run."""
    return [model.shape.kv_bytes(context, item=model.item(gpu=gpu), step=wish.step_tokens) for model in models]


def _sequences(models: tuple[Weights, ...], free: int, context: int, wish: Wish, *, gpu: bool) -> tuple[int, int]:
    """How many sequences fit, and of what length; without a wish for the context, it is halved until four fit."""
    wanted = wish.concurrency or wish.max_sequences
    together = min(wanted, wish.max_sequences)
    while True:
        each = _kv(models, context, wish, gpu=gpu)
        fits = max(0, free) // sum(each)
        if wish.kv_bytes is not None:
            fits = min(fits, wish.kv_bytes // max(each))
        enough = fits >= min(4, together) or wish.context is not None or context <= 1024
        if enough:
            # What is beyond the sequences that are computed together waits, and has no keys yet.
            return (wanted if fits >= together else fits), context
        context //= 2


def _finish(
    models: tuple[Weights, ...],
    machine: CloudMachine,
    cpu: int,
    memory: int,
    sequences: int,
    context: int,
    weights: int,
    kv: int,
    activations: int,
    host: int,
    hourly: float,
) -> Size:
    fetch = min(machine.fetch_most, cpu * machine.fetch_per_cpu)
    read = sum(model.bytes for model in models)
    stream = machine.before_seconds + max(machine.import_seconds, read / fetch) + machine.after_seconds
    first = machine.start_seconds + stream
    bandwidth = machine.memory_bandwidth * (1 if machine.gpu else cpu) * machine.efficiency
    # Decoding reads every weight once a step, whatever the batch, until arithmetic is what limits it.
    speed = (
        min(sequences, machine.batch)
        * bandwidth
        / max(1, max(model.bytes for model in models) / (1 if machine.gpu else 2))
    )
    period, failures = _probe(first, gpu=machine.gpu)
    return Size(
        engine=machine.engine,
        card=machine.card,
        cpu=cpu,
        memory_gib=memory,
        concurrency=sequences,
        context=context,
        weight_bytes=weights,
        kv_bytes=kv,
        activation_bytes=activations,
        host_bytes=host,
        device_bytes=machine.device_bytes if machine.gpu else memory * GIB,
        seconds_to_first_token=first,
        probe_period=period,
        probe_failures=failures,
        dollars_per_hour=hourly,
        tokens_per_second=speed,
        assumptions=_assumptions(machine, fetch, context),
    )


def _around(machine: CloudMachine) -> str:
    if machine.engine == "native":
        return f"{machine.import_seconds:.0f} s of imports behind the stream"
    return (
        f"{machine.before_seconds:.0f} s of vLLM's imports before the stream, {machine.after_seconds:.0f} s of its "
        "compilation and captured graphs behind it"
    )


def _probe(seconds: float, *, gpu: bool) -> tuple[int, int]:
    """(period, failures): six times the expected start, within Cloud Run's limit, asked every two seconds or more."""
    budget = min(_PROBE_LIMIT[gpu], max(120, math.ceil(6 * seconds)))
    if budget < 1.5 * seconds:
        raise DeployError(
            f"the model needs about {seconds:.0f} s to load, and Cloud Run waits {_PROBE_LIMIT[gpu]} s at most; "
            f"use {'a smaller model' if gpu else 'a GPU service (leave --cpu out), which may take 1800 s'}"
        )
    period = 2 if budget <= 240 else 5
    return period, budget // period


def _assumptions(machine: CloudMachine, fetch: float, context: int) -> tuple[str, ...]:
    return (
        f"{context} tokens of context for every sequence at once (max_context changes it)",
        f"{fetch / 1e9:.2f} GB/s from a bucket in the same region, {machine.start_seconds:.0f} s for an instance to "
        f"start, {_around(machine)}",
        f"decoding at {machine.efficiency:.0%} of {machine.memory_bandwidth / 1e9:.0f} GB/s memory bandwidth"
        f"{'' if machine.gpu else ' a vCPU'}, all slots busy; not measured on Cloud Run",
        "prices of tier 1 regions with instance-based billing, without free tier or discounts; "
        "an idle instance is paid for 10-15 minutes more",
        *(
            ()
            if machine.card in (None, cards.L4)
            else (
                f"the price of {machine.name} is not known here and not in the cost: see cloud.google.com/run/pricing",
            )
        ),
    )
