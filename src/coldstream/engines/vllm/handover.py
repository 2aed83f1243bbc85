"""What a server tells the process that loads its model, and what it hears of the load: two files beside the config.

vLLM loads in processes of its own, and gives them a folder's name and nothing of ours. So the folder says where the
weights are, and which pins its config was read with: weights of another revision are refused, not mixed with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from coldstream import errors
from coldstream.errors import ColdstreamError, ModelError, SettingsError
from coldstream.settings import LoadSettings, Verify, WeightsFrom
from coldstream.weights.transfer.progress import Counters, Phase, Progress
from coldstream.weights.transfer.retry import RetryPolicy
from coldstream.weights.transfer.stream import StreamOptions

FORMAT = "runai_streamer"
"""The load format of our loader: for gs:// vLLM accepts no other name."""
_SOURCE, _REPORT = "coldstream-source.json", "coldstream-load.json"
BYTES_IN_FLIGHT = 256 * 1024 * 1024
"""Asked for and not yet taken, where nothing else is said: vLLM copies tensors on, and lets them go."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's weights are, and how to fetch them. `revision` None takes what is there."""

    uri: str
    revision: str | None = None
    weights: WeightsFrom = "index"
    verify: Verify = "published"
    max_bytes_in_flight: int | None = None
    concurrency: int | None = None
    deadline: float = LoadSettings().deadline

    @classmethod
    def of(cls, uri: str, revision: str, weights: WeightsFrom, load: LoadSettings) -> ModelSource:
        """With a server's settings."""
        return cls(uri, revision, weights, load.verify, load.max_bytes_in_flight, load.concurrency, load.deadline)

    @property
    def retry(self) -> RetryPolicy:
        """How often a read is tried again, and until when."""
        return RetryPolicy(deadline=self.deadline)

    @property
    def options(self) -> StreamOptions:
        """How the bytes are fetched."""
        return StreamOptions(
            max_bytes_in_flight=self.max_bytes_in_flight or BYTES_IN_FLIGHT,
            concurrency=self.concurrency,
            verify="required" if self.verify == "required" else True,
            retry=self.retry,
        )

    def write(self, folder: Path) -> None:
        """Leave it in a model's folder."""
        _write(folder / _SOURCE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> ModelSource | None:
        """What was left there; None where nothing was."""
        data = _read(folder / _SOURCE)
        return None if data is None else cls(**data)


_EXTRA = {"concurrency": int, "memory_limit": int, "verify": str, "distributed": bool}


def checked_extra(extra: Mapping[str, Any]) -> dict[str, Any]:
    """`--model-loader-extra-config` as fields of a `ModelSource`.

    Raises:
        SettingsError: it names the key.
    """
    for name, value in extra.items():
        kind = _EXTRA.get(name)
        if kind is None or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            known = ", ".join(f"{key} ({of.__name__})" for key, of in _EXTRA.items())
            raise SettingsError(f"model_loader_extra_config.{name} = {value!r}; known here: {known}")
    found: dict[str, Any] = {}
    if "concurrency" in extra:
        found["concurrency"] = extra["concurrency"]
    if "memory_limit" in extra:
        found["max_bytes_in_flight"] = extra["memory_limit"] if extra["memory_limit"] > 0 else 1 << 62
    if "verify" in extra:
        if extra["verify"] not in ("published", "required"):
            message = f"model_loader_extra_config.verify = {extra['verify']!r}; allowed: published, required"
            raise SettingsError(message)
        found["verify"] = extra["verify"]
    return found


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How far a load is. `error` is the name of a class of `coldstream.errors` and its message."""

    phase: Phase = "waiting"
    total_bytes: int = 0
    landed_bytes: int = 0
    counters: Counters = field(default_factory=Counters)
    verified: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    seconds: float = 0.0
    error: tuple[str, str] | None = None

    @classmethod
    def of(cls, progress: Progress, error: ColdstreamError | None = None) -> LoadReport:
        """Of a load in this process."""
        said = None if error is None else (type(error).__name__, str(error))
        return cls(
            progress.phase,
            progress.total_bytes,
            progress.landed_bytes,
            progress.counters,
            progress.verified,
            progress.unverified_files,
            progress.seconds,
            said,
        )

    def write(self, folder: Path) -> None:
        """Leave it in a model's folder, over the one before."""
        _write(folder / _REPORT, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> LoadReport | None:
        """The last one; None before the first."""
        data = _read(folder / _REPORT)
        if data is None:
            return None
        lists = {name: tuple(data[name]) for name in ("verified", "unverified")}
        said = tuple(data["error"]) if data["error"] else None
        return cls(**{**data, **lists, "counters": Counters(**data["counters"]), "error": said})

    def into(self, progress: Progress) -> None:
        """Make a server's progress say the same."""
        progress.total_bytes, progress.landed_bytes = self.total_bytes, self.landed_bytes
        for item in fields(Counters):
            setattr(progress.counters, item.name, getattr(self.counters, item.name))
        progress.verified, progress.unverified_files = self.verified, self.unverified
        if progress.phase != self.phase:
            progress.enter(self.phase)

    def raised(self) -> ColdstreamError | None:
        """The load's error, as it was raised there."""
        if self.error is None:
            return None
        name, message = self.error
        kind = getattr(errors, name, ModelError)
        try:
            error: ColdstreamError = kind(message)
        except TypeError:  # it wants more than a message
            error = ModelError(message)
        return error


def _write(path: Path, data: dict[str, Any]) -> None:
    """Whole, or not at all: the other process may be reading."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(data), encoding="utf-8")
    beside.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found
