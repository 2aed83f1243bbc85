"""What a packed copy for this backend holds: int8 matrices as the kernels read them, everything else as it was. Pure.

A matrix is the joint one of the parts that share their input; `JOINT.int8` are its rows of units, `[blocks, bytes]`,
and `JOINT.scales` a float32 a row. Other tensors keep name, dtype and bytes. The tower's lie in a file of their own,
since text does not wait for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coldstream.backends.cpu.packed import scales_shape, units_shape
from coldstream.backends.cpu.packing import RowsPlace, find_places
from coldstream.errors import CopyRefused, UnsupportedConfig
from coldstream.model.config import ModelConfig
from coldstream.model.names import Ignored, Vision, destination
from coldstream.weights.checkpoint.header import TensorInfo
from coldstream.weights.checkpoint.plan import execution_order
from coldstream.weights.packed.forms import CPU_INT8

TEXT = f"{CPU_INT8}-text.safetensors"
VISION = f"{CPU_INT8}-vision.safetensors"


@dataclass(frozen=True, slots=True)
class CopiedTensor:
    """A tensor of a copy. `joint`: the matrix that it is a part of; None where it is the source's tensor as it was."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    joint: str | None = None


def contents(config: Mapping[str, Any], tensors: Iterable[TensorInfo]) -> tuple[CopiedTensor, ...]:
    """What the copy of a checkpoint holds, in the order in which a start needs it.

    Raises:
        UnknownArchitecture, UnsupportedConfig: it cannot be packed; says why.
        ParameterMismatch: a tensor can be loaded into no model; see `names.destination`.
    """
    infos = list(tensors)
    places = find_places(ModelConfig.from_json(config), infos)
    made = [*_matrices(places), *(_as_it_was(info) for info in infos if info.name not in places and _is_needed(info))]
    named = {tensor.name: tensor for tensor in made}
    if len(named) != len(made):
        raise UnsupportedConfig("a tensor of the checkpoint has the name of one of its packed copy; rename it")
    return tuple(named[name] for name in execution_order(named))


def check_fits(config: Mapping[str, Any], tensors: Iterable[TensorInfo], arriving: Mapping[str, TensorInfo]) -> None:
    """Return where a copy holds what the copy of this checkpoint has to.

    Raises:
        CopyRefused: it does not; names the first tensor.
    """
    wanted = {tensor.name: tensor for tensor in contents(config, tensors)}
    for name in sorted(wanted.keys() | arriving.keys()):
        if name not in arriving:
            raise CopyRefused(f"the packed copy lacks {name}; run coldstream pack again")
        if name not in wanted:
            raise CopyRefused(
                f"the packed copy holds {name!r}, which is no part of this model; run coldstream pack again"
            )
        tensor, info = wanted[name], arriving[name]
        if (info.dtype, info.shape, info.file) != (tensor.dtype, tensor.shape, tensor.file):
            raise CopyRefused(
                f"{info.file}: {name} is {info.dtype} {list(info.shape)} in the packed copy, and has to be "
                f"{tensor.dtype} {list(tensor.shape)} in {tensor.file}; run coldstream pack again"
            )


def _matrices(places: Mapping[str, RowsPlace]) -> Iterable[CopiedTensor]:
    parts = Counter(place.joint for place in places.values())
    for joint, count in parts.items():
        if count != len(joint.parts):
            raise UnsupportedConfig(f"{joint.name}: only some of its parts are there, or of a dtype that is packed")
        yield CopiedTensor(f"{joint.name}.int8", "U8", units_shape(joint.in_features, joint.rows), TEXT, joint.name)
        yield CopiedTensor(f"{joint.name}.scales", "F32", scales_shape(joint.rows), TEXT, joint.name)


def _as_it_was(info: TensorInfo) -> CopiedTensor:
    file = VISION if isinstance(destination(info.name), Vision) else TEXT
    return CopiedTensor(info.name, info.dtype, info.shape, file)


def _is_needed(info: TensorInfo) -> bool:
    return not isinstance(destination(info.name), Ignored)
