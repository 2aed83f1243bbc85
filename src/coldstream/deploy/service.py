"""The Cloud Run service as data (the spelling of google.cloud.run_v2.Service), and what would change; pure."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from coldstream.deploy.sizing import Size
from coldstream.deploy.target import LABELS, Target
from coldstream.errors import SettingsError
from coldstream.settings import DeploySettings, InputSettings, Settings

CANDIDATE = "candidate"
MODEL_ANNOTATION = "coldstream.dev/model"
PROVEN_ANNOTATION = "coldstream.dev/proven"
PREVIOUS_ANNOTATION = "coldstream.dev/previous"
CONFIG_VARIABLE = "COLDSTREAM_TOML"
KEYS_VARIABLE = "COLDSTREAM_API_KEYS"
# Cloud Run does not tell a container its project; with it the server's log lines join Google's traces.
PROJECT_VARIABLE = "GOOGLE_CLOUD_PROJECT"
_VARIABLES = frozenset({CONFIG_VARIABLE, KEYS_VARIABLE, PROJECT_VARIABLE})
BY_REVISION = "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION"
CONTAINER = "coldstream"
READY, LIVE = "/ready", "/live"
INGRESS: Mapping[str, str] = MappingProxyType(
    {
        "all": "INGRESS_TRAFFIC_ALL",
        "internal": "INGRESS_TRAFFIC_INTERNAL_ONLY",
        "internal-and-cloud-load-balancing": "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER",
    }
)
# Of an existing revision's template: what others may have set and a deployment keeps. With it a template is another
# one, and so is the name of its revision; what Google fills in by itself must not be in here.
_KEPT = (
    "vpc_access",
    "session_affinity",
    "volumes",
    "encryption_key",
    "encryption_key_revocation_action",
    "encryption_key_shutdown_duration",
    "service_mesh",
    "health_check_disabled",
)
_KEPT_OF_CONTAINER = (
    "args",
    "command",
    "volume_mounts",
    "working_dir",
    "depends_on",
    "readiness_probe",
    "base_image_uri",
)
# Fields of a template that are ours alone: without a wish for them they go.
_OURS = ("node_selector", "gpu_zonal_redundancy_disabled", "revision", "client", "client_version")


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many instances, and what a request may take."""

    min_instances: int
    max_instances: int
    request_timeout: int


@dataclass(frozen=True, slots=True)
class Options:
    """What may be wanted of a service beside its size. None (and no label) leaves what an existing service has."""

    ingress: str | None = None
    network: str | None = None
    subnet: str | None = None
    session_affinity: bool | None = None
    liveness: bool = True
    encryption_key: str | None = None
    binary_authorization: bool | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    redundancy: bool = False


def options(wanted: DeploySettings) -> Options:
    """From the settings. An image of one's own may be older than the path that a liveness probe asks."""
    return Options(
        ingress=wanted.ingress,
        network=wanted.network,
        subnet=wanted.subnet,
        session_affinity=wanted.session_affinity,
        liveness=wanted.image is None if wanted.liveness is None else wanted.liveness,
        encryption_key=wanted.encryption_key,
        binary_authorization=wanted.binary_authorization,
        labels=wanted.labels,
        redundancy=wanted.zonal_redundancy,
    )


def template(
    target: Target, size: Size, scaling: Scaling, *, image: str, config: str, revision_of_model: str, options: Options
) -> dict[str, Any]:
    """What a revision is made from, without its name."""
    body: dict[str, Any] = {
        "labels": {**LABELS, **options.labels},
        "annotations": {MODEL_ANNOTATION: revision_of_model},
        "service_account": target.runtime_account,
        "execution_environment": "EXECUTION_ENVIRONMENT_GEN2",
        "timeout": f"{scaling.request_timeout}s",
        "max_instance_request_concurrency": size.concurrency,
        "scaling": {"max_instance_count": scaling.max_instances},
        "containers": [_container(target, size, image=image, config=config, liveness=options.liveness)],
    }
    if size.card is not None:
        body["node_selector"] = {"accelerator": size.card.accelerator}
        body["gpu_zonal_redundancy_disabled"] = not options.redundancy
    if options.network is not None:
        interface = {"network": options.network} | ({"subnetwork": options.subnet} if options.subnet else {})
        # Private Google Access answers on Google's public addresses: without ALL_TRAFFIC the model would go around it.
        body["vpc_access"] = {"egress": "ALL_TRAFFIC", "network_interfaces": [interface]}
    if options.session_affinity is not None:
        body["session_affinity"] = options.session_affinity
    if options.encryption_key is not None:
        body["encryption_key"] = options.encryption_key
    return body


def _container(target: Target, size: Size, *, image: str, config: str, liveness: bool) -> dict[str, Any]:
    limits = {"cpu": str(size.cpu), "memory": f"{size.memory_gib}Gi"}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": image,
        "ports": [{"name": "http1", "container_port": 8080}],
        "env": [
            {"name": CONFIG_VARIABLE, "value": config},
            {"name": PROJECT_VARIABLE, "value": target.project},
            *_keys(target),
        ],
        "resources": {
            "limits": {**limits, "nvidia.com/gpu": "1"} if size.gpu else limits,
            # Billed by instance and never throttled between requests: the engine's loop is a thread.
            "cpu_idle": False,
            "startup_cpu_boost": True,
        },
        "startup_probe": {
            "http_get": {"path": READY, "port": 8080},
            "period_seconds": size.probe_period,
            # The API's own words differ on whether both may be equal; smaller is right by either.
            "timeout_seconds": max(1, size.probe_period - 1),
            "failure_threshold": size.probe_failures,
        },
    }
    if liveness:
        probe = {"period_seconds": 30, "timeout_seconds": 10, "failure_threshold": 4}
        container["liveness_probe"] = {"http_get": {"path": LIVE, "port": 8080}, **probe}
    return container


def _keys(target: Target) -> list[dict[str, Any]]:
    if target.secret is None:
        return []
    source = {"secret": target.secret, "version": "latest"}
    return [{"name": KEYS_VARIABLE, "value_source": {"secret_key_ref": source}}]


def revision_name(service_name: str, body: Mapping[str, Any], deployed: Mapping[str, Any] | None) -> str:
    """A revision's name, derived from what it is made from: the same template is the same revision."""
    others = {key: value for key, value in foreign(deployed).items() if key not in body}
    labels = {key: value for key, value in others.pop("template_labels", {}).items() if key not in body["labels"]}
    others |= {"labels": labels} if labels else {}
    return f"{service_name}-{_digest({**body, 'foreign': others} if others else body)}"


def pinned(template: Mapping[str, Any], image: str) -> dict[str, Any]:
    """The template with another reference to its image."""
    containers = [{**item, "image": image} if _is_ours(item) else item for item in template["containers"]]
    return {**template, "containers": containers}


def upon(deployed: Mapping[str, Any] | None, body: Mapping[str, Any]) -> dict[str, Any]:
    """Our template over that of a deployed service: what is ours is replaced, what others set stays."""
    if deployed is None or not deployed.get("template"):
        return dict(body)
    before = deployed["template"]
    kept = {key: value for key, value in before.items() if key not in _OURS}
    merged = {**kept, **body}
    for room in ("labels", "annotations"):
        merged[room] = {**before.get(room, {}), **body.get(room, {})}
    (ours,) = body["containers"]
    others = [item for item in before.get("containers", []) if not _is_ours(item)]
    mine: Mapping[str, Any] = next((item for item in before.get("containers", []) if _is_ours(item)), {})
    merged["containers"] = [_container_upon(mine, ours), *others]
    return merged


def _is_ours(container: Mapping[str, Any]) -> bool:
    # Only the container that takes requests has a port.
    return container.get("name") == CONTAINER or bool(container.get("ports"))


def _container_upon(before: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in before.items() if key not in ("startup_probe", "liveness_probe")}
    env = [*ours["env"], *(item for item in before.get("env", []) if item["name"] not in _VARIABLES)]
    return {**kept, **ours, "env": env}


def foreign(deployed: Mapping[str, Any] | None) -> dict[str, Any]:
    """What others set in the template of a deployed service, as far as it makes another revision."""
    if deployed is None:
        return {}
    before = deployed.get("template", {})
    found = {key: before[key] for key in _KEPT if before.get(key)}
    others = [item for item in before.get("containers", []) if not _is_ours(item)]
    mine: Mapping[str, Any] = next((item for item in before.get("containers", []) if _is_ours(item)), {})
    env = [item for item in mine.get("env", []) if item["name"] not in _VARIABLES]
    extra = {key: mine[key] for key in _KEPT_OF_CONTAINER if mine.get(key)}
    # A label with a namespace is a tool's, or Google's own.
    labels = {
        key: value for key, value in before.get("labels", {}).items() if "/" not in key and LABELS.get(key) != value
    }
    rooms = {"sidecars": others, "env": env, "template_labels": labels}
    return found | {name: room for name, room in rooms.items() if room} | extra


def service(
    target: Target,
    template: Mapping[str, Any],
    scaling: Scaling,
    traffic: list[dict[str, Any]],
    *,
    options: Options = Options(),
    deployed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is set on the service, and nothing else: its keys are the mask of an update.

    Private: only who holds run.routes.invoke gets in, unless the target is public.
    """
    before = deployed or {}
    spec: dict[str, Any] = {
        "name": target.service_name,
        "labels": {**before.get("labels", {}), **LABELS, **options.labels},
        "invoker_iam_disabled": target.public,
        "scaling": {**before.get("scaling", {}), "min_instance_count": scaling.min_instances},
        "template": dict(template),
        "traffic": traffic,
    }
    if options.ingress is not None or deployed is None:
        spec["ingress"] = INGRESS[options.ingress or "all"]
    if options.binary_authorization is not None:
        spec["binary_authorization"] = {"use_default": True} if options.binary_authorization else {}
    return spec


def mask(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that an update of a service names."""
    return tuple(key for key in spec if key not in ("name", "etag"))


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
    gone = [path for path in before if path.startswith("template.") and path not in after and not _filled_in(path)]
    return tuple(
        Change(path, before.get(path), after.get(path)) for path in [*compared, *gone] if not _same(path, before, after)
    )


def _same(path: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    # Proto3 leaves out what is false, zero or empty: absent and default are the same thing.
    return (before.get(path) or None) == (after.get(path) or None)


def _filled_in(path: str) -> bool:
    return path.startswith(("template.client", "template.revision"))


def kept(deployed: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What others set on a deployed service that a deployment leaves as it is, for people."""
    if deployed is None:
        return ()
    service_wide = {key: deployed[key] for key in _KEPT_OF_SERVICE if deployed.get(key)}
    labels = {key: value for key, value in deployed.get("labels", {}).items() if LABELS.get(key) != value}
    found = {**service_wide, **({"labels": labels} if labels else {}), **foreign(deployed)}
    return tuple(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in found.items())


_KEPT_OF_SERVICE = (
    "description",
    "ingress",
    "iap_enabled",
    "custom_audiences",
    "binary_authorization",
    "default_uri_disabled",
    "launch_stage",
    "multi_region_settings",
    "build_config",
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

    The host and the port are Cloud Run's to choose, and are left out. API keys come from the secret that the service
    mounts as an environment variable. A default image that is a file of this machine
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
        tables[f"{where}.help_in"] = _quoted(task.help_in)
        for title, example in task.examples.items():
            tables[f"{where}.examples.{_key(title)}"] = _quoted(example)
        for variable, item in task.inputs.items():
            tables[f"{where}.inputs.{_key(variable)}"] = _changed(_carried(item, f"{where}.inputs.{variable}"))
            tables[f"{where}.inputs.{_key(variable)}.help_in"] = _quoted(item.help_in)
        tables[f"{where}.sampling"] = _changed(task.sampling)
    for room in ("server", "load", "engine", "images"):
        values = _changed(getattr(settings, room))
        if values.pop("api_keys_secret", None) is not None:
            values["api_keys_env"] = KEYS_VARIABLE
        tables[room] = {key: value for key, value in values.items() if key not in ("host", "port")}
    kept = (".inputs.", ".examples.")  # there though nothing in it differs from a default
    wanted = {
        name: table
        for name, table in tables.items()
        if table or name.count(".") == 1 or (any(room in name for room in kept) and not name.endswith(".help_in"))
    }
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


def _quoted(values: Mapping[str, str]) -> dict[str, str]:
    """A table whose keys are free text."""
    return {_key(name): value for name, value in values.items()}


def _table(name: str, values: Mapping[str, Any]) -> str:
    return "".join([f"[{name}]\n", *(f"{key} = {_value(value)}\n" for key, value in values.items())])


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _value(name)


def _value(value: Any) -> str:
    """A TOML value. JSON's strings are TOML's, but for DEL, which TOML wants escaped."""
    if isinstance(value, tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
