"""The engine with the GPU's kernels, on Triton's interpreter: the tokens that the engine on torch's operators gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.support.interpreted import interpreted  # isort: skip

from coldstream.backends.protocol import Group, ImageRun, Sampled, SamplingRow, StepBatch, TokenRun
from coldstream.backends.torch.backend import TorchBackend
from coldstream.backends.torch.decoder import Decoder
from coldstream.backends.torch.layers import DenseAttention, DenseSequence
from coldstream.backends.torch.weight_only import rounded
from coldstream.engine.engine import Engine
from coldstream.engine.kvcache.pool import Table
from coldstream.engine.request import SamplingParams
from coldstream.settings import EngineSettings
from tests.support.parts import GEMMA, LLAMA, Inbox, make_decoder, make_tokenizer, request

# numpy warns of what a GPU does in silence: a sigmoid far from zero.
pytestmark = [pytest.mark.filterwarnings("ignore:overflow encountered in exp"), pytest.mark.timeout(600)]
SETTINGS = EngineSettings(kv_bytes=1 << 20, threads=1, max_sequences=4, step_tokens=36)
MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": LLAMA,
    "gemma": {**GEMMA, "hidden_size": 48},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def config(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    found: Mapping[str, Any] = request.param
    return found


def answers(decoder: Decoder) -> list[tuple[int, ...]]:
    """Of two requests that come together; one is read in two pieces, beside the other's decoding."""
    backend = TorchBackend(decoder, decoder.config, kernels=decoder.kernels, threads=1)
    assert backend.reads_anywhere == (decoder.kernels is not None)
    engine, inbox = Engine(backend, make_tokenizer(), decoder.config, SETTINGS), Inbox()
    engine.start()
    engine.submit(request("short", range(4, 9), max_tokens=4, ignore_eos=True), inbox.deliver)
    engine.submit(
        request("long", [9 + (11 * n) % 240 for n in range(38)], max_tokens=2, ignore_eos=True), inbox.deliver
    )
    events = inbox.wait("short", "long", timeout=500.0)
    engine.stop()
    assert [event.finish_reason for event in events] == ["length", "length"], events
    return [inbox.ids("short"), inbox.ids("long")]


def test_the_engine_gives_the_same_tokens(config: Mapping[str, Any]) -> None:
    assert answers(make_decoder(config, kernels=interpreted())) == answers(make_decoder(config))


def test_tokens_of_an_image_see_one_another() -> None:
    results = []
    for kernels in (interpreted(), None):
        decoder = make_decoder(MODELS["gemma"], kernels=kernels)
        backend = TorchBackend(decoder, decoder.config, kernels=decoder.kernels, threads=1)
        backend.allocate([Group(window, 4) for window in backend.windows], 32)
        vectors = torch.randn(6, 48, generator=torch.Generator().manual_seed(1))
        tables = [Table(1, 0, [2, 0]) for _ in backend.windows]
        run = TokenRun(range(4, 16), 0, tables, images=[ImageRun(3, 9, vectors)], draws=True)
        with backend.thread():
            backend.launch(StepBatch([run]), lambda: True)
            (outcome,) = backend.collect([SamplingRow(SamplingParams(logprobs=3), 0, ())])
        assert isinstance(outcome.sampled, Sampled)
        assert outcome.sampled.logprob is not None
        results.append(outcome.sampled.logprob)
    assert results[0].token_id == results[1].token_id
    assert results[0].logprob == pytest.approx(results[1].logprob, abs=1e-4)


def test_8_bit_weights_compute_what_their_levels_say(config: Mapping[str, Any]) -> None:
    """Against a decoder in bfloat16 whose weights are the rounded ones."""

    def levels(weight: torch.Tensor) -> torch.Tensor:
        if weight.dim() != 2:
            return weight
        whole, scales = rounded(weight)
        return whole.float() * scales[:, None]

    logits = []
    for decoder in (
        make_decoder(config, precision="int8", kernels=interpreted()),
        make_decoder(config, precision="float32", change=levels),
    ):
        attend = DenseAttention(decoder.config)
        positions = attend.begin([(DenseSequence(), 9)])
        logits.append(decoder.forward(torch.arange(4, 13), positions, attend, torch.arange(9)))
    spread = logits[1].std()
    assert float((logits[0] - logits[1]).abs().mean() / spread) < 0.05
