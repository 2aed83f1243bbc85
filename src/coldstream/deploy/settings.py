"""The `[deploy]` table of coldstream.toml as a frozen dataclass; pure.

[deploy]
project = "my-project"
region = "us-central1"
max_instances = 2

[deploy.smoke.sql]               # what the smoke test asks, and what the answer must contain
inputs = { context = "CREATE TABLE t (a int)", question = "How many rows?" }
expect = "SELECT"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from coldstream.errors import SettingsError

_TYPES: Mapping[str, type] = MappingProxyType({"str": str, "int": int, "bool": bool})


@dataclass(frozen=True, slots=True)
class SmokeSettings:
    """One question for one task. `expect` must occur in the answer, where given."""

    prompt: str | None = None
    inputs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    expect: str | None = None


@dataclass(frozen=True, slots=True)
class DeploySettings:
    """Where to deploy and how large. None lets the plan, or the naming rules of `Target`, choose.

    Accounts are e-mail addresses; `build_account = "default"` means whichever account Cloud Build uses by itself.
    `caller` is the IAM member that deploys, for credentials that do not say whose they are (workload identity).

    Of an existing service, what `ingress`, `network`, `subnet`, `session_affinity`, `labels`, `encryption_key` and
    `binary_authorization` leave out is kept as somebody set it; `overlap = false` lets the old revision's instances go
    before the new one starts.
    """

    project: str | None = None
    region: str = "us-central1"
    service: str = "coldstream"
    repository: str = "coldstream"
    source_bucket: str | None = None
    build_account: str | None = None
    runtime_account: str | None = None
    invoker_account: str | None = None
    build_region: str | None = None
    build_pool: str | None = None
    caller: str | None = None
    image: str | None = None
    image_cuda: str | None = None
    public: bool = False
    cpu_only: bool = False
    card: str = "l4"
    zonal_redundancy: bool = False
    cpu: int | None = None
    memory_gib: int | None = None
    concurrency: int | None = None
    min_instances: int = 0
    max_instances: int | None = None
    request_timeout: int = 600
    overlap: bool = True
    ingress: str | None = None
    network: str | None = None
    subnet: str | None = None
    session_affinity: bool | None = None
    liveness: bool | None = None
    encryption_key: str | None = None
    binary_authorization: bool | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    smoke: Mapping[str, SmokeSettings] = field(default_factory=lambda: MappingProxyType({}))

    def overridden(self, **options: Any) -> DeploySettings:
        """With the command line's options on top; an option that was not given is None."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})


def read(table: Mapping[str, Any]) -> DeploySettings:
    """`Settings.deploy` as settings.

    Raises:
        SettingsError: a key is unknown or has the wrong type; the message names it and what is known.
    """
    smoke = _table(table.get("smoke", {}), "deploy.smoke")
    labels = _table(table.get("labels", {}), "deploy.labels")
    plain = {key: value for key, value in table.items() if key not in ("smoke", "labels")}
    values = _checked(DeploySettings, plain, "deploy")
    tests = {name: _smoke(_table(item, f"deploy.smoke.{name}"), f"deploy.smoke.{name}") for name, item in smoke.items()}
    settings = DeploySettings(**values, smoke=tests, labels=_labels(labels))
    _check_ranges(settings)
    return settings


def _labels(table: Mapping[str, Any]) -> Mapping[str, str]:
    for name, value in table.items():
        if not isinstance(value, str):
            raise SettingsError(f"deploy.labels.{name} must be a string, not {value!r}")
    return dict(table)


def _smoke(table: Mapping[str, Any], where: str) -> SmokeSettings:
    inputs = _table(table.get("inputs", {}), f"{where}.inputs")
    for name, value in inputs.items():
        if not isinstance(value, str):
            raise SettingsError(f"{where}.inputs.{name} must be a string, not {value!r}")
    plain = {key: value for key, value in table.items() if key != "inputs"}
    return SmokeSettings(**_checked(SmokeSettings, plain, where), inputs=inputs)


def _checked(cls: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    hints = {item.name: str(item.type).split(" | ", 1)[0] for item in fields(cls)}
    for key, value in table.items():
        if key not in hints:
            raise SettingsError(f"{where}.{key} is unknown; known here: {', '.join(sorted(hints))}")
        wanted = _TYPES.get(hints[key])
        if wanted is None or not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise SettingsError(f"{where}.{key} must be of type {hints[key]}, not {value!r}")
    return dict(table)


def _check_ranges(settings: DeploySettings) -> None:
    for name in ("cpu", "memory_gib", "concurrency", "max_instances", "request_timeout"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise SettingsError(f"deploy.{name} = {value}; it must be at least 1")
    if settings.min_instances < 0:
        raise SettingsError(f"deploy.min_instances = {settings.min_instances}; it must be at least 0")
    if settings.max_instances is not None and settings.min_instances > settings.max_instances:
        raise SettingsError(
            f"deploy.min_instances = {settings.min_instances} is more than max_instances = {settings.max_instances}"
        )


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where} must be a table, not {value!r}")
    return value
