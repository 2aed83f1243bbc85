"""The model on a CPU, by numpy and our kernels: decoder, keys and values, sampler, behind `protocol.Backend`.

A step is computed while it is launched; `collect` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from coldstream.backends.blocks import AttentionConfig, bytes_per_block, windows
from coldstream.backends.cpu.kv_cache import BlockCache, padded_head
from coldstream.backends.cpu.library import Kernels
from coldstream.backends.cpu.runner import Forward, StepLogits, run
from coldstream.backends.cpu.sampler import Sampler
from coldstream.backends.cpu.threads import compute_with
from coldstream.backends.host_memory import host_kv_bytes
from coldstream.backends.protocol import Group, Logprob, Outcome, SamplingRow, StepBatch, TokenRun, VisionEncoder
from coldstream.errors import OutOfMemory
from coldstream.host.limits import cpu_limit


class CpuBackend:
    """A decoder with its cache. `vision` is the tower of a model that takes images; `threads` None: the container's.

    `kernels` are the decoder's, and `blas`: it multiplies by numpy's BLAS as well. `name` is the model's, for messages.
    """

    reads_anywhere = True

    def __init__(
        self,
        decoder: Forward,
        config: AttentionConfig,
        *,
        kernels: Kernels,
        blas: bool,
        vision: VisionEncoder | None = None,
        threads: int | None = None,
        name: str = "the model",
    ) -> None:
        self.vision = vision
        self.windows = windows(config)
        self._decoder, self._config, self._kernels, self._name = decoder, config, kernels, name
        self._threads, self._blas = threads or cpu_limit(), blas
        self._sampler = Sampler(kernels)
        self._cache: BlockCache | None = None
        self._computed: StepLogits | None = None

    def block_bytes(self, block_size: int) -> tuple[int, ...]:
        """See `Backend.block_bytes`."""
        token = 2 * self._config.kv_heads * padded_head(self._config) * 4
        return bytes_per_block(self._config, block_size, token_bytes=token)

    def cache_bytes(self, *, step_tokens: int, rows: int) -> int:
        """See `Backend.cache_bytes`."""
        return host_kv_bytes()

    def allocate(self, groups: Sequence[Group], block_size: int) -> None:
        """See `Backend.allocate`. Memory is taken page by page, as blocks are first written."""
        try:
            self._cache = BlockCache(self._config, groups, size=block_size, kernels=self._kernels)
        except MemoryError as exc:
            size = sum(group.count * each for group, each in zip(groups, self.block_bytes(block_size), strict=True))
            raise OutOfMemory(
                f"{self._name}: keys and values of {size / 1e9:.2f} GB cannot be mapped; lower engine.kv_bytes"
            ) from exc

    def thread(self) -> AbstractContextManager[object]:
        """See `Backend.thread`."""
        compute_with(self._threads, blas=self._blas)
        return nullcontext()

    def launch(self, batch: StepBatch, is_wanted: Callable[[], bool]) -> None:
        """See `Backend.launch`."""
        assert self._cache is not None
        self._computed = run(self._decoder, self._cache, batch, is_wanted)

    def collect(self, rows: Sequence[SamplingRow | None]) -> Sequence[Outcome]:
        """See `Backend.collect`."""
        assert self._computed is not None
        computed, self._computed = self._computed, None
        drawing = [place for place, row in enumerate(rows) if row is not None]
        logits = [computed.logits[computed.rows[place][-1]] for place in drawing]
        drawn = self._sampler.sample(logits, [row for row in rows if row is not None])
        sampled = dict(zip(drawing, drawn, strict=True))
        return [
            Outcome(sampled.get(place), self._score(item, computed, own))
            for place, (item, own) in enumerate(zip(computed.runs, computed.rows, strict=True))
        ]

    def _score(self, item: TokenRun, computed: StepLogits, own: range) -> Sequence[Logprob]:
        """The logits of token i score the one that follows it."""
        if item.scoring is None:
            return ()
        targets = item.scoring.targets
        rows = computed.logits[own.start : own.start + len(targets)]
        return self._sampler.token_logprobs(rows, targets, item.scoring.top)
