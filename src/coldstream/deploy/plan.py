"""Settings + checkpoints + what the region allows + what is deployed -> what a deployment would do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any, Protocol

from coldstream.deploy import image, quota, service, sizing
from coldstream.deploy.evidence import Said, ask
from coldstream.deploy.google import Google
from coldstream.deploy.quota import Fit
from coldstream.deploy.service import Change, Scaling
from coldstream.deploy.sizing import CPU, GIB, L4, Prices, Size, Weights, Wish
from coldstream.deploy.target import Target
from coldstream.errors import DeployError, SettingsError
from coldstream.settings import DeploySettings, Device, Settings

# https://cloud.google.com/run/quotas: an environment variable ends at 32 KiB.
MOST_CONFIG = 32 * 1024


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
MakeContext = Callable[[image.Variant], image.Context]


def open_model(uri: str) -> OpenedCheckpoint:
    """The checkpoint's headers."""
    from coldstream.weights.checkpoint.checkpoint import open_checkpoint

    return open_checkpoint(uri)


@dataclass(frozen=True, slots=True)
class Model:
    """One model as it lies in its bucket now. `revision` changes when any of its objects does."""

    name: str
    weights: Weights
    revision: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What `coldstream deploy` does. `changes` is empty when it would change nothing."""

    target: Target
    models: tuple[Model, ...]
    size: Size
    fit: Fit
    scaling: Scaling
    context: image.Context | None
    image: str
    template: Mapping[str, Any]
    deployed: Mapping[str, Any] | None
    changes: tuple[Change, ...]
    proposals: tuple[str, ...]

    @property
    def revision(self) -> str:
        """The short name of the revision to be."""
        return str(self.template["revision"])


def read_models(settings: Settings, opener: OpenModel) -> tuple[Model, ...]:
    """Open every model's headers, in parallel."""

    def read(name: str) -> Model:
        uri = settings.models[name].uri
        opened = opener(uri)
        shape = sizing.shape(opened.config)
        return Model(name, Weights(uri, opened.total_bytes, opened.total_parameters, shape), opened.revision)

    with ThreadPoolExecutor(8) as pool:
        return tuple(pool.map(read, settings.models))


def limits(google: Google, project: str, region: str) -> dict[str, Said[int | None]]:
    """Cloud Run's limits in a region, asked for in parallel."""
    names = (quota.CPU_QUOTA, quota.MEMORY_QUOTA, quota.L4_QUOTA, quota.L4_REDUNDANT_QUOTA)
    with ThreadPoolExecutor(len(names)) as pool:
        asked = {
            name: pool.submit(ask, f"quotaInfos.get {name}", _quota(google, project, region, name)) for name in names
        }
        return {name: future.result() for name, future in asked.items()}


def _quota(google: Google, project: str, region: str, name: str) -> Callable[[], int | None]:
    return lambda: google.quota(project, region, name)


def make_plan(
    settings: Settings,
    wanted: DeploySettings,
    target: Target,
    models: tuple[Model, ...],
    *,
    limits: Mapping[str, int | None],
    deployed: Mapping[str, Any] | None,
    context: MakeContext,
) -> Plan:
    """The whole plan; pure, but for `context`, which reads the installed package that the image is made from.

    Raises:
        DeployError: the models do not fit in any instance, or the region's quota does not hold even one.
        SettingsError: the configuration is larger than a service can carry, or names API keys, which are not carried.
    """
    _refuse_keys(settings)
    size = choose_size(settings, wanted, models)
    fit = quota.fit(size, limits, wanted=wanted.max_instances, zonal_redundancy=wanted.zonal_redundancy)
    scaling = Scaling(min(wanted.min_instances, max(1, fit.instances)), max(1, fit.instances), wanted.request_timeout)
    built = None if wanted.image else context("gpu" if size.gpu else "cpu")
    name = wanted.image or f"{target.image}:{built.tag if built else ''}"
    config = service.config_text(_on_device(settings, size))
    if len(config.encode()) > MOST_CONFIG:
        raise SettingsError(
            f"the configuration has {len(config.encode())} bytes; a service carries {MOST_CONFIG} at most. Images that "
            "are an input's default travel in it, as base64; name a gs:// object of a bucket in images.buckets instead"
        )
    template = service.template(
        target,
        size,
        scaling,
        image=name,
        config=config,
        revision_of_model=_digest(models),
        redundancy=wanted.zonal_redundancy,
    )
    changes = service.diff(deployed, service.service(target, template, scaling, []))
    proposals = tuple(_proposals(settings, wanted, models, fit, limits))
    return Plan(target, models, size, fit, scaling, built, name, template, deployed, changes, proposals)


def _on_device(settings: Settings, size: Size) -> Settings:
    """With the device that the service has, so that one with a GPU never runs on its CPU unnoticed.

    Raises:
        SettingsError: a model asks for something else.
    """
    device: Device = "cuda" if size.gpu else "cpu"
    for name, model in settings.models.items():
        if model.device not in ("auto", device):
            advice = "leave it out, or deploy with --cpu" if size.gpu else "leave it out, or deploy without --cpu"
            raise SettingsError(f'models.{name}.device = "{model.device}", but the service has a {device}; {advice}')
        if size.gpu and model.precision == "int8":
            raise SettingsError(f'models.{name}.precision = "int8" runs on a CPU; leave it out, or deploy with --cpu')
    if not size.gpu:
        return settings
    return replace(settings, models={name: replace(model, device=device) for name, model in settings.models.items()})


def _refuse_keys(settings: Settings) -> None:
    """A service whose keys are not there would not start, after a build that took minutes."""
    for name in ("api_keys_env", "api_keys_file"):
        if getattr(settings.server, name) is not None:
            raise SettingsError(
                f"server.{name}: deploy carries no secrets to Cloud Run, where callers are let in by IAM; take it out "
                "of the coldstream.toml that is deployed, and give people roles/run.invoker"
            )


def choose_size(settings: Settings, wanted: DeploySettings, models: tuple[Model, ...]) -> Size:
    """One instance for all the models, on the machine that the settings want."""
    contexts = [item.max_context for item in settings.models.values() if item.max_context is not None]
    wish = Wish(
        cpu=wanted.cpu,
        memory_gib=wanted.memory_gib,
        concurrency=wanted.concurrency,
        max_sequences=settings.engine.max_sequences,
        step_tokens=settings.engine.step_tokens,
        context=min(contexts, default=None),
        zonal_redundancy=wanted.zonal_redundancy,
    )
    weights = tuple(model.weights for model in models)
    return sizing.size(weights, CPU if wanted.cpu_only else L4, wish, prices=Prices())


def _digest(models: tuple[Model, ...]) -> str:
    return sha256("\n".join(f"{item.name}={item.revision}" for item in models).encode()).hexdigest()[:16]


def _proposals(
    settings: Settings, wanted: DeploySettings, models: tuple[Model, ...], fit: Fit, limits: Mapping[str, int | None]
) -> list[str]:
    """What would fit, where the wish does not: fewer instances, smaller ones, without a GPU, or more quota."""
    if fit.limited_by is None:
        return []
    found = []
    goal = wanted.max_instances or quota.DEFAULT_MAX_INSTANCES
    if fit.instances:
        found.append(f"{fit.instances} instances instead of {goal}: {fit.limited_by} is {limits[fit.limited_by]}")
    for label, other in (
        ("--cpu-count 4 --memory 16", wanted.overridden(cpu=4, memory_gib=16)),
        ("--cpu", wanted.overridden(cpu_only=True, cpu=None, memory_gib=None)),
    ):
        more = _instances(settings, other, models, limits)
        if more > fit.instances:
            found.append(f"{label}: {more} instances fit")
    found.append(f"ask for more of {fit.limited_by}: https://console.cloud.google.com/iam-admin/quotas")
    return found


def _instances(
    settings: Settings, wanted: DeploySettings, models: tuple[Model, ...], limits: Mapping[str, int | None]
) -> int:
    try:
        size = choose_size(settings, wanted, models)
    except DeployError:
        return 0
    return quota.fit(size, limits, wanted=wanted.max_instances, zonal_redundancy=wanted.zonal_redundancy).instances


def lines(plan: Plan) -> list[tuple[str, str]]:
    """The plan for people: (what, how much)."""
    size = plan.size
    demands = "; ".join(item.says(plan.scaling.max_instances) for item in plan.fit.demands)
    return [
        ("service", f"{plan.target.service} in {plan.target.region}, project {plan.target.project}"),
        ("access", _access(plan.target)),
        *(("model", f"{item.name}: {item.weights.uri} ({item.weights.shape.architecture})") for item in plan.models),
        ("instance", f"{size.machine}, {size.cpu} vCPU, {size.memory_gib} GiB"),
        ("memory", _memory(size)),
        ("host memory", f"{size.host_bytes / GIB:.1f} GiB of {size.memory_gib} GiB while loading"),
        ("concurrency", f"{size.concurrency} requests an instance, {size.context} tokens of context each"),
        ("startup probe", f"GET /ready every {size.probe_period} s, {size.probe_failures} times"),
        ("instances", f"{plan.scaling.min_instances} to {plan.scaling.max_instances}"),
        ("quota", demands),
        ("first token", f"about {size.seconds_to_first_token:.0f} s after a request that finds no instance"),
        ("cost", f"${size.dollars_per_hour:.2f} an hour and instance, about {_per_million(size)} per million tokens"),
        *(("assumed", text) for text in size.assumptions),
        *(("instead", text) for text in plan.proposals),
        ("image", plan.image),
        ("revision", plan.revision),
    ]


def _access(target: Target) -> str:
    if target.public:
        return "PUBLIC: anybody who knows the address may use it, at your expense"
    return f"private: {target.invoker_account} and whoever else holds roles/run.invoker"


def _memory(size: Size) -> str:
    parts = {"weights": size.weight_bytes, "keys and values": size.kv_bytes, "activations": size.activation_bytes}
    told = ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items())
    place = "GPU" if size.gpu else "instance"
    return f"{size.needed_bytes / GIB:.1f} of {size.device_bytes / GIB:.0f} GiB on the {place} ({told})"


def _per_million(size: Size) -> str:
    return f"${size.dollars_per_million_tokens:.2f} at {size.tokens_per_second:.0f} tokens/s"


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    size = {**asdict(plan.size), "needed_bytes": plan.size.needed_bytes}
    size["dollars_per_million_tokens"] = plan.size.dollars_per_million_tokens
    return {
        "target": asdict(plan.target),
        "size": size,
        "scaling": asdict(plan.scaling),
        "limited_by": plan.fit.limited_by,
        "image": plan.image,
        "revision": plan.revision,
        "template": dict(plan.template),
        "changes": [asdict(change) for change in plan.changes],
        "proposals": list(plan.proposals),
        "models": [{"name": item.name, "revision": item.revision, **asdict(item.weights)} for item in plan.models],
    }
