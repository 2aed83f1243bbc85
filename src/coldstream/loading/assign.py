"""From the tensor queue into the model: matrices to the packing, the rest to the decoder once it stands."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from coldstream.loading.tensor_queue import FileVerified, ModelBuilt, TensorQueue

if TYPE_CHECKING:
    from coldstream.backends.cpu.placing import Filling
    from coldstream.backends.protocol import TakesTensors
    from coldstream.weights.transfer.stream import Landed

_SMALL = 64 * 1024
"""Bytes of a tensor that is copied, to wait for the decoder without the memory of its whole read."""


class Milestone(Enum):
    """What an engine has to hear of its weights."""

    REPLACED = auto()
    """Tensors were replaced by later deliveries: what was computed before is void."""
    TEXT_VERIFIED = auto()
    """Everything that text rests on is in its place and verified; the vision tower may be on the way."""


class Assigner:
    """The reader of the tensor queue; `run` is its thread. `text_files`: what text rests on, where that is not all.

    `as_stored` makes of landed bytes what the model takes. `reached` is called on that thread.
    """

    def __init__(
        self,
        tensors: TensorQueue,
        packing: Filling | None,
        text_files: frozenset[str],
        *,
        as_stored: Callable[[Landed], Any],
        reached: Callable[[Milestone], object],
    ) -> None:
        self._tensors, self._packing, self._reached = tensors, packing, reached
        self._as_stored = as_stored
        self._unverified_text = set(text_files)
        self._model: Future[TakesTensors] = Future()
        self._early: list[Landed] = []

    def model_built(self, model: TakesTensors) -> None:
        """The decoder stands. On the thread that may call `fail`."""
        self._model.set_result(model)
        self._tensors.tell(ModelBuilt())

    def fail(self, error: BaseException) -> None:
        """Let `run` raise the error, and the engine that waits for a layer. Once."""
        self._tensors.fail(error)
        if self._packing is not None:
            self._packing.stop()
        if self._model.done():
            self._model.result().fail(error)
        else:
            self._model.set_exception(error)

    def run(self) -> None:
        """Take everything in, until the model is whole.

        Raises:
            ParameterMismatch: something is missing.
            BaseException: what the load failed with.
        """
        for event in self._tensors:
            if isinstance(event, FileVerified):
                self._verified(event)
            elif isinstance(event, ModelBuilt):
                self._assign_early()
            else:
                self._take(event)
            del event  # kept here until the next one comes, it would hold its read's memory
        self._assign_early()
        if self._packing is not None:
            self._packing.end()
        self._tensors.check()  # a worker may have failed after the last tensor
        self._model.result().finish()

    def _take(self, landed: Landed) -> None:
        if self._packing is not None and self._packing.take(landed):
            return
        if not self._model.done() and len(landed.data) <= _SMALL:
            self._early.append(replace(landed, data=memoryview(bytes(landed.data))))
            return
        self._assign_early()
        self._assign(landed)

    def _verified(self, event: FileVerified) -> None:
        if event.redelivered:
            self._assign_early()
            self._model.result().settle()
            self._reached(Milestone.REPLACED)
        if self._unverified_text:
            self._unverified_text.discard(event.file)
            if not self._unverified_text:
                self._reached(Milestone.TEXT_VERIFIED)

    def _assign_early(self) -> None:
        """Give the decoder what came before it; waits until it stands."""
        self._model.result()
        early, self._early = self._early, []
        for landed in early:
            self._assign(landed)

    def _assign(self, landed: Landed) -> None:
        self._model.result().assign(landed.info.name, self._as_stored(landed))
