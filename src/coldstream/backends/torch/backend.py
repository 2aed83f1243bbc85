"""The model through torch, on a CPU or a GPU: decoder, keys and values, sampler, behind `backends.protocol.Backend`.

On a CPU a step is computed while it is launched; on a GPU it is queued, and `collect` is the one wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from coldstream.backends.blocks import AttentionConfig, bytes_per_block, windows
from coldstream.backends.cpu.library import load
from coldstream.backends.cpu.packed import is_built
from coldstream.backends.cuda.variants import BLOCK
from coldstream.backends.device import naming_out_of_memory
from coldstream.backends.protocol import (
    Group,
    Logprob,
    Outcome,
    Sampled,
    SamplingRow,
    StepBatch,
    TokenRun,
    VisionEncoder,
)
from coldstream.backends.torch import kv_cache, memory
from coldstream.backends.torch.device_kernels import DeviceKernels
from coldstream.backends.torch.graphs import DecodeGraphs, Recorder
from coldstream.backends.torch.kv_cache import KvCache
from coldstream.backends.torch.paged import PagedKernels
from coldstream.backends.torch.runner import Computed, DecoderProtocol, run
from coldstream.backends.torch.sampler import sample, token_logprobs
from coldstream.backends.torch.transfer import Readback, int64
from coldstream.errors import EngineError
from coldstream.host.limits import cpu_limit
from coldstream.model.memory import WorkspaceShape


class TorchConfig(AttentionConfig, WorkspaceShape, Protocol):
    """What the backend needs to know of a model; `model.config.ModelConfig` has it."""


class TorchBackend:
    """A decoder with its cache. `vision` is the tower of a model that takes images; `threads` None: the container's.

    `unallocated` are the bytes that the weights will yet take on a GPU; `kernels` attend there, where they can, and
    steps of theirs are recorded with what `recorder` makes.
    `name` is the model's, for messages.
    """

    def __init__(
        self,
        decoder: DecoderProtocol,
        config: TorchConfig,
        *,
        device: torch.device | str = "cpu",
        vision: VisionEncoder | None = None,
        threads: int | None = None,
        unallocated: int = 0,
        kernels: DeviceKernels | None = None,
        recorder: Callable[[torch.device], Recorder] | None = None,
        name: str = "the model",
    ) -> None:
        self.vision = vision
        self.windows = windows(config)
        self._decoder, self._config, self._name = decoder, config, name
        self._device, self._dtype = torch.device(device), decoder.attention_dtype
        self._threads = threads or cpu_limit()
        self._unallocated = unallocated
        is_ours = is_built() and kv_cache.can_attend(config, self._dtype, self._device)
        self._kernels = load() if is_ours else None
        self._paged = self._made_paged(kernels)
        self._recorder = recorder if self._paged is not None else None
        self._cache: KvCache | None = None
        self._graphs: DecodeGraphs | None = None
        self._computed: Computed | None = None

    @property
    def reads_anywhere(self) -> bool:
        """See `Backend.reads_anywhere`: our own kernels do, on a CPU or a GPU."""
        return self._kernels is not None or self._paged is not None

    def block_bytes(self, block_size: int) -> tuple[int, ...]:
        """See `Backend.block_bytes`."""
        token = 2 * self._config.kv_heads * self._config.head_dim * self._dtype.itemsize
        return bytes_per_block(self._config, block_size, token_bytes=token)

    def cache_bytes(self, *, step_tokens: int, rows: int) -> int:
        """See `Backend.cache_bytes`."""
        return memory.kv_bytes(
            self._config,
            self._dtype,
            self._device,
            step_tokens=step_tokens,
            rows=rows,
            unallocated=self._unallocated,
            graphs=self._recorder is not None,
        )

    def allocate(self, groups: Sequence[Group], block_size: int) -> None:
        """See `Backend.allocate`. On a CPU memory is taken page by page, as blocks are first written."""
        size = sum(group.count * each for group, each in zip(groups, self.block_bytes(block_size), strict=True))
        with naming_out_of_memory(f"{self._name}: keys and values of {size / 1e9:.2f} GB"):
            self._cache = KvCache(
                self._config,
                groups,
                size=block_size,
                dtype=self._dtype,
                device=self._device,
                kernels=self._kernels,
                paged=self._paged,
            )
            if self._recorder is not None and self._paged is not None:
                recorder = self._recorder(self._device)
                self._graphs = DecodeGraphs(self._decoder, self._cache, self._paged, recorder)

    @contextmanager
    def thread(self) -> Iterator[None]:
        """See `Backend.thread`."""
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            yield

    def launch(self, batch: StepBatch, is_wanted: Callable[[], bool]) -> None:
        """See `Backend.launch`."""
        assert self._cache is not None
        with self._naming():
            self._computed = run(self._decoder, self._cache, batch, is_wanted, self._graphs)

    def collect(self, rows: Sequence[SamplingRow | None]) -> Sequence[Outcome]:
        """See `Backend.collect`."""
        assert self._computed is not None
        computed, self._computed = self._computed, None
        readback = Readback()
        with self._naming():
            scored = [
                _score(item, computed.logits[own.start : own.stop], readback)
                for item, own in zip(computed.runs, computed.rows, strict=True)
            ]
            sampled = _draw(computed, rows, readback)
            if self._graphs is not None:
                self._graphs.prepare()
            readback.wait()
        drawn = sampled()
        return [Outcome(drawn.get(place), scores()) for place, scores in enumerate(scored)]

    def _made_paged(self, kernels: DeviceKernels | None) -> PagedKernels | None:
        config = self._config
        group = config.heads // config.kv_heads
        if kernels is None or not kernels.can_attend(self._dtype, config.head_dim, group, BLOCK):
            return None
        return PagedKernels(kernels, self._device)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        with naming_out_of_memory(f"{self._name}: a step of this request"):
            yield


def _score(item: TokenRun, logits: Tensor, readback: Readback) -> Callable[[], Sequence[Logprob]]:
    """The logits of token i score the one that follows it."""
    if item.scoring is None:
        return tuple
    targets = item.scoring.targets
    return token_logprobs(logits[: len(targets)], targets, item.scoring.top, readback)


def _draw(
    computed: Computed, rows: Sequence[SamplingRow | None], readback: Readback
) -> Callable[[], dict[int, Sampled | EngineError]]:
    """What is returned tells what was drawn for which run, once `readback` has waited."""
    drawing = {place: row for place, row in enumerate(rows) if row is not None}
    if not drawing:
        return dict
    logits = computed.logits
    last = [computed.rows[place][-1] for place in drawing]
    best = computed.best
    if last != list(range(len(logits))):
        logits, best = logits[int64(last, logits.device)], None
    drawn = sample(logits, list(drawing.values()), readback, best)
    return lambda: dict(zip(drawing, drawn(), strict=True))
