"""Steps in which every sequence decodes one token, recorded once for each of a few sizes and then played back.

A recording is one launch where a step has hundreds. It reads its ids and tables where it was recorded with them, so
they lie in one place, and a smaller batch leaves rows that store nothing. While the device computes a step, the tables
of the next are made and queued, as they will be if every sequence goes on by one token; where it is otherwise, they
are made anew.

A size is recorded once it was computed some times without: no first answer waits for it, and all kernels are loaded.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from coldstream.backends.protocol import Abandoned
from coldstream.backends.spans import Layout, SequenceSpan
from coldstream.backends.torch.kv_cache import Attending, KvCache
from coldstream.backends.torch.paged import PART, PagedAttend, PagedKernels
from coldstream.backends.torch.sampler import best_of
from coldstream.backends.torch.step_tables import TableLayout, most_parts, pack
from coldstream.backends.torch.transfer import int64, into
from coldstream.model.memory import GRAPH_SIZES

_log = logging.getLogger(__name__)

WITHOUT = 4
"""Steps of a size that are computed before it is recorded."""
_GROWTH = 4
"""Sequences have parts by their length; a recording is for at most so many times those that there are."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Logits, float32 `[rows, vocab]`, and of each row the best logit and its token, float64 `[2, rows]`.

    Until the next step.
    """

    logits: Tensor
    best: Tensor

    def first(self, rows: int) -> Scored:
        """Of the first rows alone."""
        return Scored(self.logits[:rows], self.best[:, :rows])


class Recorder(Protocol):
    """What a device records with."""

    def record(self, work: Callable[[], Scored]) -> tuple[Callable[[], object], Scored]:
        """What plays `work` back, without computing it now, and what its result will be in.

        Raises:
            RuntimeError: the device has not the memory, or does not record something of it.
        """
        ...


class CudaRecorder:
    """CUDA graphs that share their memory: one is played at a time, and its result is read before the next."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Scored]) -> tuple[Callable[[], object], Scored]:
        """See `Recorder.record`. Other threads go on with CUDA meanwhile."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = work()
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph.replay, result


class Decodes(Protocol):
    """The decoder, as far as a step of one token each needs it. See `runner.DecoderProtocol`."""

    @property
    def has_landed(self) -> bool: ...

    def forward(self, ids: Tensor, positions: Tensor, attend: Attending, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _Key:
    rows: int
    parts: int


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    play: Callable[[], object]
    scored: Scored
    work: Callable[[], Scored]
    """Holds what the recording reads."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ahead:
    """Tables that lie on the device for these spans."""

    key: _Key
    spans: list[tuple[int, tuple[tuple[int, tuple[int, ...]], ...]]]


class DecodeGraphs:
    """For one decoder and its cache, on one thread. `recorder` records them."""

    def __init__(self, decoder: Decodes, cache: KvCache, paged: PagedKernels, recorder: Recorder) -> None:
        self._decoder, self._cache, self._paged, self._recorder = decoder, cache, paged, recorder
        self._seen = Counter[_Key]()
        self._recorded: dict[_Key, _Recorded | None] = {}
        most = GRAPH_SIZES[-1]
        # Sequences with a beginning in common name its blocks once each.
        self._blocks = 2 * sum(group.count for group in cache.groups)
        self._packed = torch.zeros(self._layout(most).size, dtype=torch.int32, device=cache.device)
        self._ids = torch.zeros(most, dtype=torch.int64, device=cache.device)
        self._rows = int64(range(most), cache.device)
        self._last: tuple[_Key, Layout] | None = None
        self._ahead: _Ahead | None = None

    def run(self, laid: Layout, is_wanted: Callable[[], bool]) -> Scored | None:
        """What comes of such a step; None: it is not one, or one that is not recorded yet.

        Raises:
            Abandoned: it is not wanted any more.
        """
        ahead, self._ahead, self._last = self._ahead, None, None
        key = self._key(laid)
        if key is None or not self._decoder.has_landed:
            return None
        recorded = self._recorded.get(key)
        if key not in self._recorded:
            self._seen[key] += 1
        if recorded is None and (key in self._recorded or self._seen[key] <= WITHOUT):
            return None
        if not is_wanted():
            raise Abandoned
        self._place(key, laid, ahead)
        self._last = key, laid
        if recorded is None:
            return self._first(key).first(len(laid.spans))
        recorded.play()
        return recorded.scored.first(len(laid.spans))

    def prepare(self) -> None:
        """Queue the next step's tables behind what was queued, as they are if all go on by a token."""
        if self._last is None:
            return
        (key, laid), self._last = self._last, None
        spans = [replace(span, start=span.end, end=span.end + 1) for span in laid.spans]
        size = self._cache.size
        if all(span.start // size - table.first < len(table.blocks) for span in spans for table in span.tables):
            self._upload(key, spans)
            self._ahead = _Ahead(key, _known(spans))

    def _key(self, laid: Layout) -> _Key | None:
        """What a step is recorded as; None: not at all."""
        rows, spans = len(laid.spans), laid.spans
        one_each = all(span.count == 1 for span in spans) and len(laid.rows) == rows and not laid.images
        size = next((size for size in GRAPH_SIZES if size >= rows), None)
        if not one_each or size is None:
            return None
        if sum(len(table.blocks) for span in spans for table in span.tables) > self._blocks:
            return None
        parts, needed = 1, most_parts(spans, None, part=PART)
        while parts < needed:
            parts *= _GROWTH
        return _Key(size, parts)

    def _place(self, key: _Key, laid: Layout, ahead: _Ahead | None) -> None:
        into(self._ids, torch.tensor(laid.ids, dtype=torch.int64))
        if ahead is None or ahead.key != key or ahead.spans != _known(laid.spans):
            self._upload(key, laid.spans)

    def _upload(self, key: _Key, spans: Sequence[SequenceSpan]) -> None:
        packed = pack(spans, self._layout(key.rows), size=self._cache.size, tile_tokens=1)
        into(self._packed, packed)

    def _layout(self, rows: int) -> TableLayout:
        return TableLayout(rows=rows, tiles=rows, groups=len(self._cache.groups), blocks=self._blocks)

    def _first(self, key: _Key) -> Scored:
        """The step computed, and then recorded for the next one."""
        parts = [key.parts if group.window is None else self._most(group.window) for group in self._cache.groups]

        def work() -> Scored:
            tables = self._layout(key.rows).view(self._packed)
            attend = PagedAttend(self._cache, self._paged, tables, parts, decodes=True)
            ids, rows = self._ids[: key.rows], self._rows[: key.rows]
            logits = self._decoder.forward(ids, tables.positions, attend, rows)
            return Scored(logits, best_of(logits))

        scored = work()
        self._recorded[key] = self._record(key, work)
        return scored

    def _most(self, window: int) -> int:
        """Parts that a window may lie in."""
        return (window - 1) // PART + 2

    def _record(self, key: _Key, work: Callable[[], Scored]) -> _Recorded | None:
        try:
            play, scored = self._recorder.record(work)
        except RuntimeError as exc:  # a lack of memory, mostly: the step was computed, and others can be as it was
            _log.warning("steps of %d sequences are not recorded as a graph: %s", key.rows, exc)
            return None
        _log.info("steps of %d sequences are recorded as a graph, for up to %d tokens", key.rows, key.parts * PART)
        return _Recorded(play, scored, work)


def _known(spans: Sequence[SequenceSpan]) -> list[tuple[int, tuple[tuple[int, tuple[int, ...]], ...]]]:
    """What tables are made of; the engine changes its own from step to step."""
    return [(span.start, tuple((table.first, tuple(table.blocks)) for table in span.tables)) for span in spans]
