"""int8 matrices that come packed: a packed copy's bytes into the places from which the kernels read them.

In place of `Packing` where a checkpoint has such a copy (packed_copy.py); a loader sees no difference. The bytes are
copied once, into memory that begins with a page, in huge pages where there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from coldstream.backends.cpu.filling import MatrixFilling
from coldstream.backends.cpu.packed import PackedMatrix
from coldstream.backends.cpu.packing import Packing, RowsPlace, find_places
from coldstream.model.config import ModelConfig
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.transfer.checksum import copy
from coldstream.weights.transfer.stream import Landed

_PIECE = 4 * 1024 * 1024
"""Bytes that are copied as one."""


@dataclass(slots=True)
class _Target:
    """Where a copy's tensor goes, and how many of its bytes are missing."""

    joint: str
    memory: memoryview
    whole: TensorInfo
    missing: int


class Placing(MatrixFilling):
    """The packed matrices of a text decoder, `matrices` by the names of their joints, and what brings their bytes in.

    `tensors` are the checkpoint's own, `arriving` the copy's by name, which `packed_copy.check_fits` has held against
    one another. `failed` hears of an error on a worker.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Iterable[TensorInfo],
        arriving: Mapping[str, TensorInfo],
        *,
        workers: int,
        failed: Callable[[BaseException], None],
    ) -> None:
        super().__init__(workers=workers, failed=failed)
        self._parts: dict[str, list[RowsPlace]] = {}
        for place in find_places(config, tensors).values():
            self._parts.setdefault(place.joint.name, []).append(place)
        joints = [places[0].joint for places in self._parts.values()]
        self.matrices = {joint.name: PackedMatrix(joint.in_features, joint.rows) for joint in joints}
        self._targets = dict(self._all_targets(arriving))

    def pieces(self, info: TensorInfo) -> Sequence[TensorInfo]:
        """What a tensor should come in; see `weights.stream.Pieces`."""
        if info.name not in self._targets or info.nbytes <= _PIECE:
            return (info,)
        rows = info.shape[0]
        step = max(_PIECE * rows // info.nbytes, 1)
        return [info.rows(start, min(start + step, rows)) for start in range(0, rows, step)]

    def take(self, landed: Landed) -> bool:
        """Bring bytes in, on a worker; whether they are a matrix's. Waits while too much is under way."""
        target = self._targets.get(landed.info.name)
        if target is None:
            return False
        work = partial(_place, target, landed)
        done = partial(self._count, partial(self._note, target, landed.info.nbytes))
        self._crew.run(f"{landed.info.name} {landed.info.start}", [work], done=done, failed=self._failed)
        return True

    def _all_targets(self, arriving: Mapping[str, TensorInfo]) -> Iterable[tuple[str, _Target]]:
        for name, matrix in self.matrices.items():
            for key, memory in ((f"{name}.int8", matrix.units), (f"{name}.scales", matrix.scales)):
                yield key, _Target(name, memory, arriving[key], memory.nbytes)

    def _note(self, target: _Target, nbytes: int) -> list[tuple[str, str]]:
        target.missing -= nbytes
        if any(self._targets[f"{target.joint}.{part}"].missing for part in ("int8", "scales")):
            return []  # or came again: what was filled stays so
        return [(place.parameter, place.whole.name) for place in self._parts[target.joint]]


def _place(target: _Target, landed: Landed) -> None:
    at = landed.info.start - target.whole.start
    copy(landed.data, target.memory[at : at + landed.info.nbytes], checked=False)


Filling: TypeAlias = Packing | Placing
"""What fills the matrices of a decoder before it stands, and beside it."""
