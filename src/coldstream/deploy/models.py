"""The models of a deployment as they lie in their buckets now: headers, and what there is of packed copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from coldstream.deploy import sizing
from coldstream.deploy.sizing import Weights
from coldstream.settings import ModelSettings, Settings
from coldstream.weights.checkpoint.uri import Location


class OpenedCheckpoint(Protocol):
    """What a plan reads of `coldstream.weights.checkpoint.checkpoint.Checkpoint`: its headers, no tensor."""

    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def total_parameters(self) -> int: ...
    @property
    def revision(self) -> str: ...


OpenModel = Callable[[str], OpenedCheckpoint]
FindCopy = Callable[[ModelSettings], str]


def open_model(uri: str) -> OpenedCheckpoint:
    """The checkpoint's headers."""
    from coldstream.weights.checkpoint.checkpoint import open_checkpoint

    return open_checkpoint(uri)


def find_copy(model: ModelSettings) -> str:
    """What a start on a CPU would find of a model's packed copy, in words."""
    from coldstream.weights.packed.forms import CPU_INT8
    from coldstream.weights.packed.opening import CopyPlace, open_with_copy
    from coldstream.weights.transfer.own_loop import run_here

    if model.packed == "off" or model.precision not in ("auto", "int8"):
        return f'not used: precision = "{model.precision}", packed = "{model.packed}"'
    place = CopyPlace.of(Location.parse(model.uri), CPU_INT8, model.packed)
    found = run_here(open_with_copy(model.uri, place, weights=model.weights))
    if found.copy is not None:
        return f"{found.copy.manifest.total_bytes / 1e9:.2f} GB in {found.copy.arriving.location}, which a start reads"
    return f"not used: {found.why_not}" if found.why_not else "none; --pack writes one, from which it starts sooner"


@dataclass(frozen=True, slots=True)
class Model:
    """One model as it lies in its bucket now. `revision` changes when any of its objects does.

    `packed` are words about its packed copy, where a start would look for one.
    """

    name: str
    weights: Weights
    revision: str
    packed: str | None = None


def read_models(settings: Settings, opener: OpenModel, copies: FindCopy | None = None) -> tuple[Model, ...]:
    """Open every model's headers, in parallel; with `copies`, look for their packed copies too."""

    def read(name: str) -> Model:
        model = settings.models[name]
        opened = opener(model.uri)
        shape = sizing.shape(opened.config)
        weights = Weights(model.uri, opened.total_bytes, opened.total_parameters, shape, model.precision)
        return Model(name, weights, opened.revision, copies(model) if copies is not None else None)

    with ThreadPoolExecutor(8) as pool:
        return tuple(pool.map(read, settings.models))
