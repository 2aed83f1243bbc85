"""Tensors as they land -> a filled decoder, and the proof that every parameter was filled, and by which tensor.

assembly = Assembly(decoder, {info.name: info.shape for info in tensors})   # refuses what cannot fit, before a byte
assembly.assign(name, tensor)     # loader's thread, in any order; a second delivery replaces the first
assembly.finish()                 # or assembly.fail(error)
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from coldstream.backends.cpu.crew import Crew
from coldstream.backends.cpu.placing import Filling
from coldstream.backends.gate import Gate
from coldstream.backends.parameter import Parameter, Unit
from coldstream.errors import ParameterMismatch
from coldstream.model.config import ModelConfig
from coldstream.model.matrices import EMBEDDING, HEAD
from coldstream.model.names import Head, Ignored, Text, Unknown, Vision, destination, tower_parameter

_SHOWN = 8
_DTYPES = frozenset({"bfloat16", "float16", "float32", "float64"})
"""As numpy and torch both call them, once torch's own name is taken away."""


class Tower(Protocol):
    """A vision tower, as far as it is filled."""

    def parameters(self) -> Iterable[Parameter]:
        """In order of execution; names as `model.names.tower_parameter` gives them."""
        ...


class Fillable(Protocol):
    """A decoder before its bytes, of whatever arrays."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def vision(self) -> Tower | None: ...

    def parameters(self) -> Iterable[Parameter]:
        """Everything that can be filled, in order of execution; a tied model does not need `lm_head.weight`."""
        ...

    def gate(self, unit: Unit) -> Gate:
        """What holds a step back until the unit's parameters are filled."""
        ...

    def gates(self) -> Iterable[Gate]:
        """All of them."""
        ...

    def tie(self, tied: bool) -> None:
        """Use the embedding's matrix as the head, or the head's own. The file decides, before the gate opens."""
        ...

    def landed(self) -> None:
        """Nothing more comes, and everything was filled."""
        ...


class Assembly:
    """Fills a decoder. `shapes` are the checkpoint's tensors by their own names, from its headers.

    Raises ParameterMismatch at once, before any byte is fetched, where names or shapes cannot make this model.
    Whether the head is tied is decided here, by the file: an `lm_head.weight` that is there is used, whatever the
    config says; one that is absent is the embedding, unless the config says that they are not tied.

    `workers` threads take tensors in beside the caller, 0: the caller does it.
    """

    def __init__(self, decoder: Fillable, shapes: Mapping[str, Sequence[int]], *, workers: int = 0) -> None:
        self._crew = Crew(workers)
        self._packing: Filling | None = None
        self._decoder = decoder
        self._parameters = {parameter.name: parameter for parameter in decoder.parameters()}
        tower = decoder.vision.parameters() if decoder.vision is not None else ()
        self._parameters |= {parameter.name: parameter for parameter in tower}
        self._targets: dict[str, str] = {}
        self._vision: list[str] = []
        self._ignored: dict[str, str] = {}
        self._filled: dict[str, str] = {}
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        problems = list(self._match(shapes))
        tied = self._decide_head(problems)
        if problems:
            raise ParameterMismatch(_summary("the checkpoint and config.json do not fit", problems))
        decoder.tie(tied)
        self.tied = tied
        self._missing_by_unit = Counter(parameter.unit for parameter in self._needed())

    @property
    def filled_by(self) -> Mapping[str, str]:
        """Parameter -> the checkpoint's tensor that filled it (`lm_head.weight` too, where it is tied)."""
        tied = {HEAD: self._filled[EMBEDDING]} if self.tied and EMBEDDING in self._filled else {}
        return dict(self._filled) | tied

    @property
    def ignored(self) -> Mapping[str, str]:
        """Tensors that are not part of this model -> why."""
        unseen = [name for name in self._vision if name not in self._targets]
        return self._ignored | dict.fromkeys(unseen, "part of the vision tower, which text does not need")

    @property
    def vision(self) -> tuple[str, ...]:
        """The checkpoint's names of the vision tower's and projector's tensors."""
        return tuple(self._vision)

    def assign(self, name: str, tensor: Any) -> None:
        """Take a tensor of the checkpoint by its own name; opens its unit's gate when the unit is whole.

        Where the dtype is the decoder's own the tensor is aliased, so its memory must stay; else it may be let go.
        """
        target = self._targets.get(name)
        if target is None:
            if name in self._ignored or name in self._vision:
                return
            raise ParameterMismatch(f"{name} was not announced by the checkpoint's headers")
        parameter = self._parameters[target]
        if tuple(tensor.shape) != parameter.shape:
            raise ParameterMismatch(_misshapen(name, tensor.shape, parameter))
        if str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
            raise ParameterMismatch(f"{name} has dtype {tensor.dtype}; weights must be bfloat16, float16 or float32")
        self._crew.run(
            parameter.name,
            [partial(parameter.fill, tensor)],
            done=partial(self._note, parameter, name),
            failed=self.fail,
        )

    def follow(self, packing: Filling) -> None:
        """Open the gates of what `packing` fills as it does, for a decoder that runs on its matrices.

        Its tensors are not assigned here.
        """
        self._packing = packing
        packing.when_filled(lambda parameter, name: self._note(self._parameters[parameter], name))

    def settle(self) -> None:
        """Return when everything that was assigned is in its place; `assign` may leave it to workers."""
        self._crew.settle()
        if self._packing is not None:
            self._packing.settle()

    def finish(self) -> None:
        """Say that nothing more will come. Raises ParameterMismatch, and fails the gates, if anything is unfilled."""
        self._crew.end()
        if self._packing is not None:
            self._packing.end()
        if self._error is not None:
            raise self._error
        unfilled = [parameter.name for parameter in self._needed() if parameter.name not in self._filled]
        if unfilled:
            error = ParameterMismatch(_summary("the load ended with unfilled parameters", unfilled))
            self.fail(error)
            raise error
        self._decoder.landed()

    def fail(self, error: BaseException) -> None:
        """Make every waiting and every later `forward` raise `error`."""
        with self._lock:
            self._error = error
        for gate in self._decoder.gates():
            gate.fail(error)
        self._crew.stop()
        if self._packing is not None:
            self._packing.stop()

    def _note(self, parameter: Parameter, name: str) -> None:
        with self._lock:
            again = parameter.name in self._filled
            self._filled[parameter.name] = name
            if again or self._error is not None:
                return
            self._missing_by_unit[parameter.unit] -= 1
            whole = [unit for unit in self._woken(parameter.unit) if self._is_whole(unit)]
        for unit in whole:
            self._decoder.gate(unit).open()

    def _woken(self, unit: Unit) -> tuple[Unit, ...]:
        return ("embedding", "head") if unit == "embedding" and self.tied else (unit,)

    def _is_whole(self, unit: Unit) -> bool:
        return self._missing_by_unit["embedding" if unit == "head" and self.tied else unit] == 0

    def _needed(self) -> Iterable[Parameter]:
        return (item for item in self._parameters.values() if not (self.tied and item.name == HEAD))

    def _match(self, shapes: Mapping[str, Sequence[int]]) -> Iterable[str]:
        """Sort the checkpoint's names into targets, vision and ignored; yield what does not fit."""
        sources: dict[str, str] = {}
        for key, shape in shapes.items():
            match self._destination(key):
                case None:
                    pass
                case Ignored(reason):
                    self._ignored[key] = reason
                case Head():
                    self._ignored[key] = "a head beside the model's own, which text does not need"
                case Text(name) if name in self._parameters:
                    if name in sources:
                        yield f"{key} and {sources[name]} would both fill {name}"
                    if tuple(shape) != self._parameters[name].shape:
                        yield _misshapen(key, shape, self._parameters[name])
                    sources[name] = key
                    self._targets[key] = name
                case _:
                    yield f"{key} is unexpected: no parameter of {self._decoder.config.architecture} has that name"
        yield from (f"{name} is missing" for name in self._parameters if name not in sources and name != HEAD)

    def _destination(self, key: str) -> Text | Head | Ignored | Unknown | None:
        """Where a tensor belongs in this model; None for one of a vision tower that this model has not."""
        found = destination(key)
        if not isinstance(found, Vision):
            return found
        self._vision.append(key)
        if self._decoder.vision is None:
            return None
        plain = tower_parameter(found.name)
        return Ignored("part of SigLIP that Gemma 3 does not run") if plain is None else Text(plain)

    def _decide_head(self, problems: list[str]) -> bool:
        if HEAD in self._targets.values():
            return False
        if not self._decoder.config.tied:
            problems.append(f"{HEAD} is missing, and config.json has tie_word_embeddings = false")
        return True


def _misshapen(key: str, shape: Sequence[int], parameter: Parameter) -> str:
    return f"{key} has shape {list(shape)}, but config.json makes {parameter.name} {list(parameter.shape)}"


def _summary(what: str, problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{what}: " + "; ".join(problems[:_SHOWN]) + more
