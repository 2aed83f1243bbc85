"""A checkpoint's tensors for vLLM's loader: streamed, pinned, verified, released by reference count. Imports torch.

A tensor may come twice, when its file was damaged on the way: the later one counts, which a loader that copies into
parameters does by itself, and one that quantises meanwhile cannot do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from coldstream.engines.vllm.handover import LoadReport, ModelSource
from coldstream.errors import ChecksumMismatch, ColdstreamError, ModelError, ObjectChanged
from coldstream.weights.checkpoint.checkpoint import Checkpoint, open_checkpoint_async
from coldstream.weights.load import iter_tensors
from coldstream.weights.transfer.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from coldstream.weights.stores.store import Store

_log = logging.getLogger(__name__)

_REPORT_PERIOD = 0.1
_LOG_PERIOD = 2.0


class WeightSource:
    """The tensors of one source. `report` is called now and then, and when it has ended, however it did.

    `store` is another way to it than its URI's; tests use this.
    """

    def __init__(
        self, source: ModelSource, *, report: Callable[[LoadReport], None], store: Store | None = None
    ) -> None:
        self._source, self._report, self._store = source, report, store
        self._progress = Progress()
        self._reported = self._logged = time.monotonic()

    def tensors(self, *, replaceable: bool) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors as they land; when this ends, every byte was verified or its file named.

        A tensor is not to be written to, and its memory is free once nothing refers to it. `replaceable`: what takes
        them can take one again.

        Raises:
            StoreError, CheckpointError: see `iter_tensors`.
            ObjectChanged: the checkpoint is not of the source's revision.
            ChecksumMismatch: a file was damaged on the way, and its tensors cannot be replaced.
        """
        try:
            yield from self._arriving(replaceable)
        except ColdstreamError as error:
            self._report(LoadReport.of(self._progress, error))
            raise
        except Exception as exc:  # of any kind: the server must hear of it
            self._report(LoadReport.of(self._progress, ModelError(f"{self._source.uri}: {exc!r}")))
            raise
        self._report(LoadReport.of(self._progress))

    def _arriving(self, replaceable: bool) -> Iterator[tuple[str, Tensor]]:
        source = self._source
        checkpoint = asyncio.run(self._open())
        seen: set[str] = set()
        arriving = iter_tensors(checkpoint, options=source.options, progress=self._moved)
        with closing(arriving):  # type: ignore[type-var]  # a generator
            for name, tensor in arriving:
                if name in seen and not replaceable:
                    raise ChecksumMismatch(
                        f"{source.uri}: {checkpoint.tensors[name].file} was damaged on the way, and a model that is "
                        "quantised while it loads cannot take its tensors again; load it again"
                    )
                seen.add(name)
                yield name, tensor
                del tensor  # kept here until the next one comes, it would hold its read's memory
        for file in self._progress.unverified_files:
            _log.warning("%s: %s has no published checksum; its bytes are not verified", source.uri, file)
        _log.info(
            "%s: %d tensors, %.2f GB in %.2f s, %d files verified",
            *(source.uri, len(seen), self._progress.total_bytes / 1e9),
            *(self._progress.seconds, self._progress.verified_files),
        )

    async def _open(self) -> Checkpoint:
        source = self._source
        checkpoint = await open_checkpoint_async(
            source.uri, store=self._store, weights=source.weights, retry=source.retry, progress=self._progress
        )
        checkpoint.store.close_idle()
        if source.revision not in (None, checkpoint.revision):
            raise ObjectChanged(
                f"{source.uri}: was revision {source.revision} when its config was read, and is {checkpoint.revision} "
                "now; load it again"
            )
        return checkpoint

    def _moved(self, progress: Progress) -> None:
        self._progress = progress
        now = time.monotonic()
        if now - self._reported >= _REPORT_PERIOD:
            self._reported = now
            self._report(LoadReport.of(progress))
        if now - self._logged >= _LOG_PERIOD:
            self._logged = now
            done, of, rate = progress.landed_bytes / 1e9, progress.total_bytes / 1e9, progress.rate / 1e9
            _log.info("%s: %.2f of %.2f GB, %.2f GB/s", self._source.uri, done, of, rate)
