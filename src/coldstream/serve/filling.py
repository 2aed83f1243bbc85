"""From the landing into the model: matrices to the packing, the rest to the decoder once it stands."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from coldstream.loading.tensor_queue import TensorQueue

if TYPE_CHECKING:
    from coldstream.model.build import Assembly
    from coldstream.model.fallback import FallbackAssembly
    from coldstream.model.packing import Packing
    from coldstream.weights.header import TensorInfo
    from coldstream.weights.stream import Landed

_SMALL = 64 * 1024
"""Bytes of a tensor that is copied, to wait for torch without the memory of its whole read."""


class Filling:
    """The landing's reader; all of it runs on the reader's thread. `standing` is the decoder that is to be filled."""

    def __init__(self, landing: TensorQueue, standing: Future[Assembly | FallbackAssembly]) -> None:
        self.came_twice = False
        """Whether a tensor was delivered again: what was computed with the first is void."""
        self._landing, self._standing = landing, standing
        self._early: list[Landed] = []

    def take_all(self, packing: Packing | None) -> None:
        """Take tensors as they land, until the end; raises what the load failed with."""
        seen: set[TensorInfo] = set()
        for landed in self._landing:
            self.came_twice |= landed.info in seen
            seen.add(landed.info)
            if packing is None or not packing.take(landed):
                self._assign(landed)
            del landed  # kept here until the next one comes, it would hold its read's memory
        self.assign_early()

    def assign_early(self) -> None:
        """Once the decoder stands: give it what came before."""
        self._standing.result()
        early, self._early = self._early, []
        for landed in early:
            self._to_decoder(landed)

    def _assign(self, landed: Landed) -> None:
        """Give a tensor to the decoder; one that is small need not wait for it."""
        if not self._standing.done() and len(landed.data) <= _SMALL:
            self._early.append(replace(landed, data=memoryview(bytes(landed.data))))
            return
        self.assign_early()
        self._to_decoder(landed)

    def _to_decoder(self, landed: Landed) -> None:
        from coldstream.weights.tensors import as_tensor

        self._standing.result().assign(landed.info.name, as_tensor(landed))
