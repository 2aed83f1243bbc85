"""Recorded decode steps give what steps that are computed give, whichever sequences come and go between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.backends.protocol import Abandoned, Group, StepBatch, TokenRun
from coldstream.backends.spans import Layout, lay_out
from coldstream.backends.torch.backend import TorchBackend
from coldstream.backends.torch.decoder import Decoder
from coldstream.backends.torch.device_kernels import DeviceKernels
from coldstream.backends.torch.graphs import WITHOUT, DecodeGraphs, Recorder, Scored
from coldstream.backends.torch.kv_cache import KvCache
from coldstream.backends.torch.paged import PART, PagedKernels
from coldstream.engine.engine import Engine
from coldstream.engine.kvcache.pool import Table
from coldstream.model.config import ModelConfig
from coldstream.model.memory import GRAPH_SIZES
from coldstream.settings import EngineSettings
from tests.support.parts import GEMMA, LLAMA, Inbox, make_decoder, make_tokenizer, request
from tests.support.torch_launcher import ReplayingRecorder, TorchLauncher

MODELS: Mapping[str, Mapping[str, Any]] = {"llama": LLAMA, "gemma": {**GEMMA, "hidden_size": 48}}
SETTINGS = EngineSettings(kv_bytes=1 << 20, threads=1, max_sequences=6, step_tokens=36)
CPU = torch.device("cpu")


class Unable:
    """A device that has no memory for a recording."""

    def __init__(self, device: torch.device) -> None:
        self.asked = 0

    def record(self, work: Callable[[], Scored]) -> tuple[Callable[[], object], Scored]:
        self.asked += 1
        raise torch.OutOfMemoryError("CUDA out of memory")


def answers(config: Mapping[str, Any], recorder: Callable[[torch.device], Recorder] | None) -> list[tuple[int, ...]]:
    """Of requests of several lengths, which end at different times, one of them drawn and one with penalties."""
    decoder = make_decoder(config, kernels=DeviceKernels(TorchLauncher()))
    backend = TorchBackend(decoder, decoder.config, kernels=decoder.kernels, threads=1, recorder=recorder)
    engine, inbox = Engine(backend, make_tokenizer(), decoder.config, SETTINGS), Inbox()
    engine.start()
    more: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 5}, {"repetition_penalty": 1.3}, {"logprobs": 2}]
    names = [str(number) for number in range(len(more))]
    for number, (name, sampling) in enumerate(zip(names, more, strict=True)):
        prompt = range(4, 9 + 9 * number)
        asked = request(name, prompt, max_tokens=12 + 10 * number, ignore_eos=True, **sampling)
        engine.submit(asked, inbox.deliver)
    events = inbox.wait(*names, timeout=100.0)
    engine.stop()
    assert [event.finish_reason for event in events] == ["length"] * len(more), events
    return [inbox.ids(name) for name in names]


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_the_engine_gives_the_same_tokens(config: Mapping[str, Any]) -> None:
    recorder = ReplayingRecorder()
    assert answers(config, lambda device: recorder) == answers(config, None)
    assert recorder.recorded > 1
    assert recorder.played > 20


def test_what_cannot_be_recorded_is_computed_and_asked_for_once() -> None:
    recorder = Unable(CPU)
    assert answers(LLAMA, lambda device: recorder) == answers(LLAMA, None)
    assert 0 < recorder.asked <= len(GRAPH_SIZES)


class Rig:
    """A decoder with two caches of the same blocks: one for recorded steps, one for others."""

    def __init__(self) -> None:
        kernels = DeviceKernels(TorchLauncher())
        self.decoder = make_decoder(MODELS["gemma"], kernels=kernels)
        windows = TorchBackend(self.decoder, self.decoder.config, kernels=kernels).windows
        groups = [Group(window, 96) for window in windows]
        paged = PagedKernels(kernels, CPU)
        generator = torch.Generator().manual_seed(3)
        self.caches = [KvCache(self.decoder.config, groups, size=32, paged=paged) for _ in range(2)]
        for kind in ("keys", "values"):
            for one, other in zip(*(getattr(cache, kind) for cache in self.caches), strict=True):
                other.copy_(one.normal_(generator=generator))
        self.windows = len(windows)
        self.recorder = ReplayingRecorder()
        self.graphs = DecodeGraphs(self.decoder, self.caches[0], paged, self.recorder)

    @torch.inference_mode()
    def step(self, batch: StepBatch, *, prepares: bool) -> tuple[Scored | None, torch.Tensor]:
        laid = lay_out(batch)
        found = self.graphs.run(laid, lambda: True)
        if prepares:
            self.graphs.prepare()
        computed = self._computed(self.caches[1], laid)
        if found is None:
            self._computed(self.caches[0], laid)
        return found, computed

    def _computed(self, cache: KvCache, laid: Layout) -> torch.Tensor:
        ids, positions, rows = (torch.tensor(part) for part in (laid.ids, laid.positions, laid.rows))
        return self.decoder.forward(ids, positions, cache.attend(laid.spans), rows)


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig()


STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans(), st.booleans()), min_size=2, max_size=12)


@settings(deadline=None, max_examples=12)
@given(steps=STEPS, start=st.integers(0, 40) | st.integers(PART - 20, PART + 40))
def test_a_recorded_step_gives_what_a_computed_one_does(
    rig: Rig, steps: list[tuple[int, int, bool, bool]], start: int
) -> None:
    """Sequences go on, stand still, change their blocks or leave; the next tables were prepared, or were not."""
    tables = [
        [Table(1, 0, [(number * 19 + n) % 96 for n in range(19)]) for _ in range(rig.windows)] for number in range(5)
    ]
    at = [start + 3 * number for number in range(5)]
    for first, count, moves, prepares in steps:
        chosen = list(range(first, min(5, first + count)))
        if moves:
            for table in tables[chosen[0]]:
                table.blocks[:] = table.blocks[::-1]
        runs = [TokenRun([4 + at[n] % 200], at[n], tables[n], draws=True) for n in chosen]
        found, computed = rig.step(StepBatch(runs), prepares=prepares)
        if found is not None:
            torch.testing.assert_close(found.logits, computed, rtol=1e-4, atol=1e-4)
            assert found.best[1].tolist() == computed.argmax(-1).tolist()
        for n in chosen:
            at[n] += 1


def test_only_steps_of_one_token_each_are_recorded_and_only_once_the_weights_are_there(rig: Rig) -> None:
    one, two = (TokenRun(ids, 0, [Table(1, 0, [5]) for _ in range(rig.windows)], draws=True) for ids in ([4], [4, 5]))
    own = Rig()
    for runs in ([two], [one, two], [one] * (GRAPH_SIZES[-1] + 1)):
        for _ in range(WITHOUT + 1):
            assert own.graphs.run(lay_out(StepBatch(runs)), lambda: True) is None
    unfilled = Decoder(ModelConfig.from_json(MODELS["gemma"]), kernels=DeviceKernels(TorchLauncher()))
    waiting = DecodeGraphs(unfilled, own.caches[0], PagedKernels(DeviceKernels(TorchLauncher()), CPU), own.recorder)
    for _ in range(WITHOUT + 1):
        assert waiting.run(lay_out(StepBatch([one])), lambda: True) is None
    assert own.recorder.recorded == 0


def test_a_step_that_is_not_wanted_is_given_up(rig: Rig) -> None:
    run = TokenRun([4], 0, [Table(1, 0, [5]) for _ in range(rig.windows)], draws=True)
    for _ in range(WITHOUT + 1):
        rig.step(StepBatch([run]), prepares=False)
    with pytest.raises(Abandoned):
        rig.graphs.run(lay_out(StepBatch([run])), lambda: False)
