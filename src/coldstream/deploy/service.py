"""The Cloud Run service as data (the spelling of google.cloud.run_v2.Service), and what would change; pure."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from coldstream.deploy.sizing import Size
from coldstream.deploy.target import LABELS, Target
from coldstream.errors import SettingsError
from coldstream.settings import InputSettings, Settings

CANDIDATE = "candidate"
MODEL_ANNOTATION = "coldstream.dev/model"
PROVEN_ANNOTATION = "coldstream.dev/proven"
PREVIOUS_ANNOTATION = "coldstream.dev/previous"
CONFIG_VARIABLE = "COLDSTREAM_TOML"
BY_REVISION = "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION"


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many instances, and what a request may take."""

    min_instances: int
    max_instances: int
    request_timeout: int


def template(
    target: Target, size: Size, scaling: Scaling, *, image: str, config: str, revision_of_model: str, redundancy: bool
) -> dict[str, Any]:
    """What a revision is made from. Its name is derived from its content: the same template is the same revision."""
    limits = {"cpu": str(size.cpu), "memory": f"{size.memory_gib}Gi"}
    body: dict[str, Any] = {
        "labels": dict(LABELS),
        "annotations": {MODEL_ANNOTATION: revision_of_model},
        "service_account": target.runtime_account,
        "execution_environment": "EXECUTION_ENVIRONMENT_GEN2",
        "timeout": f"{scaling.request_timeout}s",
        "max_instance_request_concurrency": size.concurrency,
        "scaling": {"max_instance_count": scaling.max_instances},
        "containers": [
            {
                "name": "coldstream",
                "image": image,
                "ports": [{"name": "http1", "container_port": 8080}],
                "env": [{"name": CONFIG_VARIABLE, "value": config}],
                "resources": {
                    "limits": {**limits, "nvidia.com/gpu": "1"} if size.gpu else limits,
                    # Billed by instance and never throttled between requests: the engine's loop is a thread.
                    "cpu_idle": False,
                    "startup_cpu_boost": True,
                },
                "startup_probe": {
                    "http_get": {"path": "/ready", "port": 8080},
                    "period_seconds": size.probe_period,
                    "timeout_seconds": size.probe_period,
                    "failure_threshold": size.probe_failures,
                },
            }
        ],
    }
    if size.gpu:
        body["node_selector"] = {"accelerator": "nvidia-l4"}
        body["gpu_zonal_redundancy_disabled"] = not redundancy
    return {"revision": f"{target.service}-{_digest(body)}", **body}


def service(
    target: Target, template: Mapping[str, Any], scaling: Scaling, traffic: list[dict[str, Any]]
) -> dict[str, Any]:
    """The whole service. Private: only who holds run.routes.invoke gets in, unless the target is public."""
    return {
        "name": target.service_name,
        "labels": dict(LABELS),
        "ingress": "INGRESS_TRAFFIC_ALL",
        "invoker_iam_disabled": target.public,
        "scaling": {"min_instance_count": scaling.min_instances},
        "template": dict(template),
        "traffic": traffic,
    }


def to_revision(revision: str, percent: int = 0, tag: str = "") -> dict[str, Any]:
    """One target of traffic."""
    target: dict[str, Any] = {"type_": BY_REVISION, "revision": revision}
    return target | ({"percent": percent} if percent else {}) | ({"tag": tag} if tag else {})


def serving(deployed: Mapping[str, Any]) -> dict[str, int]:
    """Revision to percent, as traffic flows now; LATEST is resolved to the revision it means."""
    latest = str(deployed.get("latest_ready_revision", "")).rsplit("/", 1)[-1]
    shares: dict[str, int] = {}
    for item in deployed.get("traffic_statuses") or deployed.get("traffic", []):
        revision = item.get("revision") or latest
        if item.get("percent") and revision:
            shares[revision] = shares.get(revision, 0) + int(item["percent"])
    return shares


def tag_url(deployed: Mapping[str, Any], tag: str) -> str | None:
    """The address of a tagged revision."""
    return next((item.get("uri") for item in deployed.get("traffic_statuses", []) if item.get("tag") == tag), None)


@dataclass(frozen=True, slots=True)
class Change:
    """One field that would change; None stands for a field that is not there."""

    path: str
    before: Any
    after: Any


def diff(deployed: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> tuple[Change, ...]:
    """What applying `wanted` would change of what is deployed; traffic is a matter of its own."""
    before = dict(_flat({} if deployed is None else deployed))
    after = dict(_flat(wanted))
    compared = [path for path in after if not path.startswith(("traffic", "etag", "template.revision"))]
    gone = [path for path in before if _ours(path) and path not in after]
    return tuple(
        Change(path, before.get(path), after.get(path)) for path in [*compared, *gone] if not _same(path, before, after)
    )


def _same(path: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    # Proto3 leaves out what is false, zero or empty: absent and default are the same thing.
    return (before.get(path) or None) == (after.get(path) or None)


def _ours(path: str) -> bool:
    return path.startswith(
        ("template.containers[0].env", "template.containers[0].resources.limits", "template.node_selector")
    )


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        yield path, value


def _digest(body: Mapping[str, Any]) -> str:
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:8]


def config_text(settings: Settings) -> str:
    """coldstream.toml for the deployed server: every setting that is not a default, without `[deploy]`.

    The host and the port are Cloud Run's to choose, and are left out. A default image that is a file of this machine
    travels inside it, as a data URL.

    Raises:
        SettingsError: such a file cannot be read.
    """
    tables: dict[str, Mapping[str, Any]] = {}
    for name, model in settings.models.items():
        tables[f"models.{_key(name)}"] = _changed(model)
    for name, task in settings.tasks.items():
        where = f"tasks.{_key(name)}"
        tables[where] = _changed(task)
        for variable, item in task.inputs.items():
            tables[f"{where}.inputs.{_key(variable)}"] = _changed(_carried(item, f"{where}.inputs.{variable}"))
        tables[f"{where}.sampling"] = _changed(task.sampling)
    for room in ("server", "load", "engine", "images"):
        values = _changed(getattr(settings, room))
        tables[room] = {key: value for key, value in values.items() if key not in ("host", "port")}
    wanted = {name: table for name, table in tables.items() if table or name.count(".") == 1 or ".inputs." in name}
    return "\n".join(_table(name, table) for name, table in wanted.items())


def _carried(item: InputSettings, where: str) -> InputSettings:
    if item.kind != "image" or item.default is None or not Path(item.default).is_absolute():
        return item
    path = Path(item.default)
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as exc:
        raise SettingsError(f"{where}.default: {path} cannot be read ({exc.strerror})") from exc
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return replace(item, default=f"data:{kind};base64,{data}")


def _changed(record: Any) -> dict[str, Any]:
    """The plain fields of a settings record that differ from their defaults."""
    values = {item.name: getattr(record, item.name) for item in fields(record) if item.name != "name"}
    defaults = {item.name: item.default for item in fields(record)}
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping) and not is_dataclass(value)}
    return {key: value for key, value in plain.items() if value is not None and value != defaults[key]}


def _table(name: str, values: Mapping[str, Any]) -> str:
    return "".join([f"[{name}]\n", *(f"{key} = {_value(value)}\n" for key, value in values.items())])


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _value(name)


def _value(value: Any) -> str:
    """A TOML value. JSON's strings are TOML's, but for DEL, which TOML wants escaped."""
    if isinstance(value, tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
