"""int8 matrices from a checkpoint's bytes as they land, also before the decoder stands.

packing = Packing(config, tensors, workers=2, failed=...)
stream(..., pieces=packing.pieces)      # large matrices come in pieces, so that none lies there whole
packing.take(landed)                    # False: not a matrix of the text decoder; the assembly's
assembly.adopt(packing)                 # once the decoder stands: it runs on these matrices
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from coldstream.backends.cpu.filling import MatrixFilling
from coldstream.backends.cpu.packed import DTYPE_CODES, PackedMatrix, Packer, best_library
from coldstream.model.config import ModelConfig
from coldstream.model.matrices import Joint, joints
from coldstream.model.names import Text, destination
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.transfer.checksum import pinned
from coldstream.weights.transfer.stream import Landed

_PIECE = 4 * 1024 * 1024
"""Bytes that are packed as one: some milliseconds, and many to a read."""
_ROWS = 16
"""Rows that the kernels keep together; a piece is a multiple of it."""


@dataclass(frozen=True, slots=True)
class RowsPlace:
    """Where a tensor's rows go: from row `first` of a joint matrix on."""

    parameter: str
    joint: Joint
    first: int
    whole: TensorInfo


class Packing(MatrixFilling):
    """The packed matrices of a text decoder, `matrices` by the names of their joints, and what fills them.

    `tensors` are the checkpoint's own; one of another shape or dtype than the config asks for is left alone, for
    the model's assembly to complain about. `failed` hears of an error on a worker.

    Raises UnsupportedConfig when the kernels were not built.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Iterable[TensorInfo],
        *,
        workers: int,
        failed: Callable[[BaseException], None],
    ) -> None:
        super().__init__(workers=workers, failed=failed)
        self._places = find_places(config, tensors)
        joints = {place.joint.name: place.joint for place in self._places.values()}
        self.matrices = {name: PackedMatrix(joint.in_features, joint.rows) for name, joint in joints.items()}
        self._packer = Packer(best_library())
        self._left = Counter({key: place.whole.shape[0] for key, place in self._places.items()})

    @property
    def parts(self) -> Mapping[str, frozenset[str]]:
        """The tensors that a matrix is made of, by its joint's name."""
        found: dict[str, set[str]] = {}
        for key, place in self._places.items():
            found.setdefault(place.joint.name, set()).add(key)
        return {joint: frozenset(keys) for joint, keys in found.items()}

    def pieces(self, info: TensorInfo) -> Sequence[TensorInfo]:
        """What a tensor should come in; see `weights.stream.Pieces`."""
        if info.name not in self._places:
            return (info,)
        rows = info.shape[0]
        step = max(_PIECE * rows // info.nbytes // _ROWS, 1) * _ROWS
        return [info.rows(start, min(start + step, rows)) for start in range(0, rows, step)]

    def take(self, landed: Landed) -> bool:
        """Pack rows, on a worker; whether they are a matrix's. Waits while too much is under way."""
        place = self._places.get(landed.info.name)
        if place is None:
            return False
        subject = f"{landed.info.name} {landed.info.start}"
        work = partial(self._pack, place, landed)
        done = partial(self._count, partial(self._note, landed.info))
        self._crew.run(subject, [work], done=done, failed=self._failed)
        return True

    def release(self, joint: str) -> None:
        """Let go of a matrix that is filled and used up; nothing may come for it any more."""
        del self.matrices[joint]

    def _pack(self, place: RowsPlace, landed: Landed) -> None:
        whole, info = place.whole, landed.info
        first = place.first + (info.start - whole.start) * whole.shape[0] // whole.nbytes
        with pinned(landed.data) as address:
            self._packer.pack(self.matrices[place.joint.name], address, DTYPE_CODES[info.dtype], first, info.shape[0])

    def _note(self, info: TensorInfo) -> list[tuple[str, str]]:
        self._left[info.name] -= info.shape[0]
        return [] if self._left[info.name] else [(self._places[info.name].parameter, info.name)]


def find_places(config: ModelConfig, tensors: Iterable[TensorInfo]) -> Mapping[str, RowsPlace]:
    """The tensors that are packed, by their own names; one of another shape or dtype than can be is not among them."""
    keys = _by_parameter(tensors)
    places = {}
    for joint in joints(config):
        first = 0
        for part, size in zip(joint.parts, joint.sizes, strict=True):
            info = keys.get(f"{part}.weight")
            if info is not None and info.shape == (size, joint.in_features) and info.dtype in DTYPE_CODES:
                places[info.name] = RowsPlace(f"{part}.weight", joint, first, info)
            first += size
    return places


def _by_parameter(tensors: Iterable[TensorInfo]) -> Mapping[str, TensorInfo]:
    found = ((destination(info.name), info) for info in tensors if info.nbytes)
    return {to.name: info for to, info in found if isinstance(to, Text)}
