"""Every path of a step with a model on CUDA, on a machine without a GPU: no mixed devices, and one wait a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from coldstream.backends.assembly import Assembly
from coldstream.backends.blocks import windows
from coldstream.backends.protocol import Copy, Group
from coldstream.backends.spans import SequenceSpan
from coldstream.backends.torch.backend import TorchBackend
from coldstream.backends.torch.decoder import Decoder, DecoderPrecision
from coldstream.backends.torch.device_kernels import DeviceKernels
from coldstream.backends.torch.fallback import FallbackAssembly, FallbackDecoder
from coldstream.backends.torch.graphs import WITHOUT
from coldstream.backends.torch.kv_cache import KvCache
from coldstream.bench.gpu.floors import LAUNCHES_A_LAYER, LAUNCHES_BESIDE_A_RECORDING
from coldstream.engine.generation import Generation
from coldstream.engine.grammar import Grammars
from coldstream.engine.kvcache.blocks import Blocks
from coldstream.engine.kvcache.budget import affordable
from coldstream.engine.kvcache.pool import Table
from coldstream.engine.request import Grammar, PromptImage, Request, SamplingParams, TokenEvent
from coldstream.engine.scheduler import Scheduler
from coldstream.engine.stats import Meter
from coldstream.engine.steps import Steps
from coldstream.errors import ColdstreamError
from coldstream.model.config import ModelConfig
from coldstream.model.memory import BLOCK_SIZE
from coldstream.model.vision_config import VisionConfig
from coldstream.settings import EngineSettings
from tests.backends.torch.test_fallback import make as make_reference
from tests.support.cuda_device import CUDA, SilentLauncher, SilentRecorder, UnorderedCopies, Waited, Waits, cuda
from tests.support.parts import GEMMA, LLAMA, make_tokenizer
from tests.support.tiny import Tiny
from tests.support.tiny_vision import IMAGE, SIZE, TOKENS, gemma3_vision

pytestmark = pytest.mark.more
PRECISIONS: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
SAMPLING: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0},
    "top_k": {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.05},
    "top_p": {"temperature": 0.7, "top_p": 0.9},
    "min_p": {"temperature": 0.7, "min_p": 0.1},
    "repetition": {"repetition_penalty": 1.2},
    "presence and frequency": {"presence_penalty": 0.5, "frequency_penalty": 0.5},
    "logit bias": {"logit_bias": ((3, 2.0), (5, -1.0))},
    "logprobs": {"logprobs": 0},
    "top logprobs": {"temperature": 1.0, "logprobs": 3},
    "prompt logprobs": {"prompt_logprobs": 0},
    "top prompt logprobs": {"prompt_logprobs": 2, "logprobs": 2},
}


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return gemma3_vision()


@pytest.fixture(scope="module", params=PRECISIONS)
def fallback(request: pytest.FixtureRequest) -> FallbackDecoder:
    reference = make_reference("Starcoder2", sliding_window=8)
    decoder = FallbackDecoder(reference.config, precision=request.param)
    assembly = FallbackAssembly(decoder, {name: tensor.shape for name, tensor in reference.tensors.items()})
    for name, tensor in reference.tensors.items():
        assembly.assign(name, tensor)
    assembly.finish()
    return decoder


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with cuda():
        yield


class Stepping:
    """The engine's parts around a decoder on CUDA, driven on this thread; each step under a guard against waits."""

    def __init__(
        self,
        decoder: Any,
        *,
        step_tokens: int = 32,
        kv_bytes: int = 1 << 20,
        recorder: SilentRecorder | None = None,
    ) -> None:
        settings = EngineSettings(max_sequences=16, step_tokens=step_tokens, kv_bytes=kv_bytes)
        config = decoder.config
        made_recorder = None if recorder is None else lambda device: recorder
        self.backend = TorchBackend(decoder, config, device=CUDA, kernels=decoder.kernels, recorder=made_recorder)
        groups = affordable(
            kv_bytes,
            windows=self.backend.windows,
            block_bytes=self.backend.block_bytes(BLOCK_SIZE),
            sequences=settings.max_sequences,
            context=512,
            step=step_tokens,
        )
        self.backend.allocate(groups, BLOCK_SIZE)
        self.blocks = Blocks(groups, BLOCK_SIZE, step=step_tokens, together=not self.backend.reads_anywhere)
        self.scheduler = Scheduler(self.blocks, settings.max_sequences, settings.step_tokens)
        self.steps = Steps(self.backend, self.blocks, self.scheduler, Meter(), as_error=self._as_error)
        self.tokenizer = make_tokenizer()
        self.grammars = Grammars(self.tokenizer, vocab_size=config.vocab_size, stop_ids=frozenset())
        self.active: dict[str, Generation] = {}
        self.finished: dict[str, TokenEvent] = {}

    def add(self, key: str, ids: Sequence[int], images: Mapping[int, Tensor] | None = None, **sampling: Any) -> None:
        """A request; `images` are vectors by where they begin."""
        placed = tuple(
            PromptImage(start, start + len(vectors), np.zeros((1, 1, 3), np.uint8), str(start).encode())
            for start, vectors in (images or {}).items()
        )
        request = Request(key, tuple(ids), SamplingParams(**sampling), images=placed)
        grammar = request.sampling.grammar
        generation = Generation(
            request,
            lambda event: None,
            tokenizer=self.tokenizer,
            stop_ids=frozenset(),
            max_context=512,
            matcher=None if grammar is None else lambda: self.grammars.matcher(grammar),
        )
        for item in generation.sequence.images:
            item.vectors = (images or {})[item.start]
        generation.sequence.arrival = len(self.active) + len(self.finished)
        self.active[key] = generation
        self.scheduler.add(generation.sequence)

    def step(self) -> Counter[str]:
        """What the device was given."""
        step = self.scheduler.schedule()
        with torch.inference_mode(), Waits() as waits:
            launched = self.steps.launch(step, self.active)
            assert not waits.readbacks
            emitted = self.steps.emit(launched, self.steps.collect(launched))
        for generation, event in emitted:
            if event.finish_reason is not None:
                self._end(generation, event)
        needs_one = any(piece.draws or piece.sequence.is_scored for piece in step.pieces)
        assert waits.readbacks == needs_one
        return waits.queued

    def run(self) -> None:
        """To the end of all."""
        while self.scheduler.has_work:
            self.step()

    def _end(self, generation: Generation, event: TokenEvent) -> None:
        self.finished[generation.request.id] = event
        self.scheduler.remove(generation.sequence)
        del self.active[generation.request.id]

    def _as_error(self, exc: Exception) -> ColdstreamError:
        if isinstance(exc, ColdstreamError):
            return exc
        raise exc


def made(
    config: Mapping[str, Any], precision: DecoderPrecision = "float32", kernels: DeviceKernels | None = None
) -> Decoder:
    decoder = Decoder(
        ModelConfig.from_json(config), precision=precision, device=CUDA, kernels=kernels, copies=UnorderedCopies
    )
    shapes = {
        "lm_head.weight" if item.name == "lm_head.weight" else f"model.{item.name}": item.shape
        for item in decoder.parameters()
        if not (config["tie_word_embeddings"] and item.name == "lm_head.weight")
    }
    assembly = Assembly(decoder, shapes)
    for name, shape in shapes.items():
        assembly.assign(name, torch.zeros(shape, dtype=torch.bfloat16))
    assembly.finish()
    return decoder


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["llama", "gemma"])
def test_prompts_in_chunks_beside_sequences_that_decode(
    config: Mapping[str, Any], precision: Literal["float32", "bfloat16"]
) -> None:
    stepping = Stepping(made(config, precision))
    stepping.add("short", range(4, 9), max_tokens=4)
    stepping.step()
    stepping.add("long", range(4, 104), max_tokens=2)
    stepping.run()
    assert {event.finish_reason for event in stepping.finished.values()} == {"length"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["llama", "gemma"])
def test_steps_of_our_own_kernels(config: Mapping[str, Any], precision: DecoderPrecision) -> None:
    """Prompts in chunks beside decodes; five launches between a layer's four products, and four of those in 8 bits."""
    launcher = SilentLauncher()
    stepping = Stepping(made(config, precision, DeviceKernels(launcher)))
    stepping.add("short", range(4, 9), max_tokens=4)
    stepping.step()
    layers = config["num_hidden_layers"]
    products = {"multiply8": 4 * layers + 1} if precision == "int8" else {}
    assert launcher.launches == {
        "place": layers,
        "attend": layers,
        "gated": layers,
        "add_norm": 2 * layers + 1,
        **products,
    }
    assert LAUNCHES_A_LAYER == 9
    stepping.add("long", range(4, 104), max_tokens=2)
    stepping.run()
    assert {event.finish_reason for event in stepping.finished.values()} == {"length"}


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["llama", "gemma"])
def test_a_decode_step_is_one_recording_and_a_few_launches(
    config: Mapping[str, Any], precision: DecoderPrecision
) -> None:
    """What `bench/gpu.py --plan` says of a step."""
    launcher, recorder = SilentLauncher(), SilentRecorder(CUDA)
    stepping = Stepping(made(config, precision, DeviceKernels(launcher)), recorder=recorder)
    for name in "abc":
        stepping.add(name, range(4, 9), max_tokens=40)
    queued = [stepping.step() for _ in range(WITHOUT + 2)]
    assert not recorder.played
    before = launcher.launches.total()
    queued = [stepping.step() for _ in range(8)]
    assert recorder.played == len(queued)
    assert launcher.launches.total() == before
    assert {sum(each.values()) for each in queued} == {LAUNCHES_BESIDE_A_RECORDING}, queued
    stepping.add("late", range(4, 50), max_tokens=2)
    stepping.run()
    assert {event.finish_reason for event in stepping.finished.values()} == {"length"}


def test_blocks_that_are_copied_and_blocks_that_lie_scattered() -> None:
    config = ModelConfig.from_json(GEMMA)
    groups = tuple(Group(window, 8) for window in windows(config))
    cache = KvCache(config, groups, size=BLOCK_SIZE, device=CUDA)
    scattered = tuple(Table(1, 0, [3, 1, 6], together=False) for _ in groups)
    together = tuple(Table(2, 0, [4, 5]) for _ in groups)
    spans = [SequenceSpan(0, 70, 75, scattered), SequenceSpan(5, 30, 50, together), SequenceSpan(25, 90, 91, scattered)]
    q, k, v = (torch.zeros(26, heads, 8, device=CUDA) for heads in (4, 1, 1))
    with torch.inference_mode(), Waits():
        cache.copy([Copy(group, 0, 1) for group in range(len(groups))])
        attend = cache.attend(spans)
        for layer in range(len(config.layers)):
            assert attend(layer, q, k, v).device == CUDA


def test_every_way_to_sample_in_one_step_with_one_wait() -> None:
    stepping = Stepping(made(LLAMA), step_tokens=128)
    for number, (name, sampling) in enumerate(SAMPLING.items()):
        stepping.add(name, range(4, 7 + number), max_tokens=2, **sampling)
    stepping.run()
    assert stepping.finished.keys() == SAMPLING.keys()
    assert {event.finish_reason for event in stepping.finished.values()} == {"length"}


def test_the_token_that_proves_a_device() -> None:
    for config in (LLAMA, GEMMA):
        stepping = Stepping(made(config))
        with torch.inference_mode(), Waits() as waits:
            stepping.steps.prove()
        assert waits.readbacks == 1


def test_a_grammars_mask() -> None:
    stepping = Stepping(made(LLAMA))
    stepping.add("mine", range(4, 50), max_tokens=3, temperature=1.0, grammar=Grammar("regex", "[ab]+"))
    stepping.run()
    stepping.grammars.close()
    # The zeros that stand for what was drawn are a token that the grammar had masked.
    assert "grammar" in str(stepping.finished["mine"].error)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_and_the_tower_that_sees_them(tiny: Tiny, precision: Literal["float32", "bfloat16"]) -> None:
    config = ModelConfig.from_json(tiny.config)
    decoder = Decoder(
        config, precision=precision, device=CUDA, vision=VisionConfig.from_json(tiny.config), copies=UnorderedCopies
    )
    assembly = Assembly(decoder, {name: tensor.shape for name, tensor in tiny.tensors.items()})
    for name, tensor in tiny.tensors.items():
        assembly.assign(name, torch.zeros_like(tensor))
    assembly.finish()
    assert decoder.vision is not None
    vectors = decoder.vision.encode(torch.zeros(3, SIZE, SIZE))
    assert vectors.device == CUDA
    assert vectors.shape == (TOKENS, config.hidden_size)
    stepping = Stepping(decoder)
    ids = [4, 5, *[IMAGE] * TOKENS, 6, 7, *[IMAGE] * TOKENS, 8]
    stepping.add("seen", ids, {2: vectors, 4 + TOKENS: vectors}, max_tokens=3)
    stepping.add("text", range(4, 40), max_tokens=3)
    stepping.run()
    assert {event.finish_reason for event in stepping.finished.values()} == {"length"}


def test_transformers_own_layers(fallback: FallbackDecoder) -> None:
    for module in vars(fallback)["_model"].modules():
        for held in (vars(module)["_parameters"], vars(module)["_buffers"]):
            on_device = {name: torch.zeros_like(item, device=CUDA) for name, item in held.items() if item is not None}
            held.update({name: torch.nn.Parameter(item, requires_grad=False) for name, item in on_device.items()})
    stepping = Stepping(fallback)
    stepping.add("one", range(4, 50), max_tokens=3)
    stepping.add("two", range(4, 9), max_tokens=3, logprobs=1)
    stepping.run()
    assert {event.finish_reason for event in stepping.finished.values()} == {"length"}


def test_the_guard_sees_a_wait() -> None:
    on_device = torch.zeros(4, device=CUDA)
    waits = (
        lambda: on_device.tolist(),
        lambda: on_device[0].item(),
        lambda: bool((on_device > 0).any()),
        lambda: on_device.cpu(),
        lambda: torch.ops.aten.nonzero(on_device),
        lambda: on_device[on_device > 0],
        lambda: on_device[[1, 2]],
        lambda: on_device[torch.tensor([1])],
        lambda: torch.tensor([1], device=CUDA),
        lambda: torch.tensor([1]).to(CUDA),
    )
    for wait in waits:
        with Waits(), pytest.raises(Waited):
            wait()
