"""Settings + checkpoints + what the region allows + what is deployed -> what a deployment would do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from coldstream.deploy import cards, image, quota, service, sizing
from coldstream.deploy.evidence import Said, ask
from coldstream.deploy.google import Google
from coldstream.deploy.models import Model
from coldstream.deploy.quota import Fit
from coldstream.deploy.service import Change, Options, Scaling
from coldstream.deploy.sizing import CPU, Prices, Size, Wish
from coldstream.deploy.target import Target
from coldstream.engines.choice import choose_engine
from coldstream.errors import DeployError, SettingsError
from coldstream.settings import DeploySettings, Device, RunEngine, Settings

# https://cloud.google.com/run/quotas: an environment variable ends at 32 KiB.
MOST_CONFIG = 32 * 1024
_VLLM_STEP = 2048
"""Tokens of a step where engine.step_tokens leaves it to vLLM."""


MakeContext = Callable[[image.Variant], image.Context]
DigestOf = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What `coldstream deploy` does. `changes` is empty when it would change nothing.

    `engine_reason` says why it is `size.engine`; `beside` is the size with the other engine, where there is a choice.
    `kept` is what was set on the deployed service by others and a deployment leaves alone; `warnings` stop nothing.
    `image` is named by its tag; the template names it by its digest where that is known already.
    """

    target: Target
    models: tuple[Model, ...]
    size: Size
    engine_reason: str
    beside: Size | None
    fit: Fit
    scaling: Scaling
    context: image.Context | None
    image: str
    template: Mapping[str, Any]
    deployed: Mapping[str, Any] | None
    changes: tuple[Change, ...]
    proposals: tuple[str, ...]
    options: Options
    overlap: bool
    kept: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def revision(self) -> str:
        """The short name of the revision to be."""
        return str(self.template["revision"])


def limits(google: Google, project: str, names: tuple[str, ...]) -> dict[str, Said[Mapping[str, int]]]:
    """Cloud Run's limits in every region, asked for in parallel."""
    with ThreadPoolExecutor(len(names)) as pool:
        said = {name: pool.submit(ask, f"quotaInfos.get {name}", _quota(google, project, name)) for name in names}
        return {name: future.result() for name, future in said.items()}


def _quota(google: Google, project: str, name: str) -> Callable[[], Mapping[str, int]]:
    return lambda: google.quota(project, name)


def quota_names(wanted: DeploySettings) -> tuple[str, ...]:
    """The limits that a plan with these settings asks for; a card's, where there is one."""
    plain = (quota.CPU_QUOTA, quota.MEMORY_QUOTA)
    return plain if wanted.cpu_only else (*plain, cards.card(wanted.card).quota(redundant=wanted.zonal_redundancy))


def of_region(said: Mapping[str, Said[Mapping[str, int]]], region: str) -> dict[str, int | None]:
    """The limits in one region; None where Google does not say."""
    return {name: None if item.value is None else item.value.get(region) for name, item in said.items()}


def make_plan(
    settings: Settings,
    wanted: DeploySettings,
    target: Target,
    models: tuple[Model, ...],
    *,
    limits: Mapping[str, int | None],
    deployed: Mapping[str, Any] | None,
    context: MakeContext,
    digest_of: DigestOf = lambda _: None,
) -> Plan:
    """The whole plan; pure, but for `context`, which reads the installed package that the image is made from, and
    `digest_of`, which may know the digest behind an image's tag.

    Raises:
        DeployError: the models do not fit in any instance, or the card's driver does not run the image.
        SettingsError: the configuration is larger than a service can carry, or names API keys, which are not carried.
    """
    _refuse_keys(settings)
    engine, why = chosen_engine(settings, wanted, models)
    size = choose_size(settings, wanted, models, engine)
    fit = fitting(size, wanted, limits)
    most = max(1, wanted.min_instances, fit.instances)
    scaling = Scaling(wanted.min_instances, most, wanted.request_timeout)
    built = _context(wanted, size, context)
    options, name = service.options(wanted), wanted.image or f"{target.image}:{built.tag if built else ''}"
    pinned = _pinned(name, digest_of(name))
    body = service.template(
        target,
        size,
        scaling,
        # A built image's tag says what is in it; the operator's own may be moved, so its digest is what counts.
        image=pinned if wanted.image else name,
        config=_config(_sized(_on_engine(_on_device(settings, size), wanted, engine), size)),
        revision_of_model=_digest(models),
        options=options,
    )
    revision = service.revision_name(target.service, body, deployed)
    template = {"revision": revision, **service.pinned(service.upon(deployed, body), pinned)}
    spec = service.service(target, template, scaling, [], options=options, deployed=deployed)
    return Plan(
        target=target,
        models=models,
        size=size,
        engine_reason=why,
        beside=_other_size(settings, wanted, models, engine),
        fit=fit,
        scaling=scaling,
        context=built,
        image=name,
        template=template,
        deployed=deployed,
        changes=service.diff(deployed, spec),
        proposals=tuple(_proposals(settings, wanted, models, fit, limits)),
        options=options,
        overlap=wanted.overlap,
        kept=service.kept(deployed),
        warnings=(*_lowered(settings, size), *_warnings(wanted, size, fit, deployed)),
    )


def fitting(size: Size, wanted: DeploySettings, limits: Mapping[str, int | None]) -> Fit:
    """What the limits hold of the instances that the settings want.

    Raises:
        DeployError: fewer than are to be there always.
    """
    least = wanted.min_instances
    found = quota.fit(size, limits, wanted=wanted.max_instances, least=least, zonal_redundancy=wanted.zonal_redundancy)
    if 0 < found.instances < least:
        raise DeployError(
            f"deploy.min_instances = {least}, and {found.limited_by} of {limits[found.limited_by or '']} holds "
            f"{found.instances}; ask for fewer, or for more quota: https://console.cloud.google.com/iam-admin/quotas"
        )
    return found


def _pinned(name: str, digest: str | None) -> str:
    """The image by its digest, where that is known."""
    tagged = ":" in name.rpartition("/")[2]
    return name if digest is None else f"{name.rpartition(':')[0] if tagged else name}@{digest}"


def _context(wanted: DeploySettings, size: Size, context: MakeContext) -> image.Context | None:
    """What is built, for the card's driver; nothing for an image of one's own, whose CUDA version may be named."""
    if wanted.image is not None:
        if wanted.image_cuda is not None and size.card is not None:
            cards.check_image(size.card, cards.read_cuda(wanted.image_cuda))
        return None
    if wanted.image_cuda is not None:
        raise SettingsError("deploy.image_cuda is about deploy.image; an image that is built here follows the card")
    built = context("cpu" if not size.gpu else "vllm" if size.engine == "vllm" else "gpu")
    return built if size.card is None else image.for_card(built, size.card)


def _config(settings: Settings) -> str:
    config = service.config_text(settings)
    if len(config.encode()) > MOST_CONFIG:
        raise SettingsError(
            f"the configuration has {len(config.encode())} bytes; a service carries {MOST_CONFIG} at most. Images that "
            "are an input's default travel in it, as base64; name a gs:// object of a bucket in images.buckets instead"
        )
    return config


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
    if not size.gpu:
        return settings
    return replace(settings, models={name: replace(model, device=device) for name, model in settings.models.items()})


def _refuse_keys(settings: Settings) -> None:
    """A service whose keys are not there would not start, after a build that took minutes."""
    for name in ("api_keys_env", "api_keys_file"):
        if getattr(settings.server, name) is not None:
            raise SettingsError(
                f"server.{name}: deploy carries no secrets from this machine to Cloud Run; name a secret of Secret "
                "Manager in server.api_keys_secret, or take it out and give people roles/run.invoker"
            )


def _lowered(settings: Settings, size: Size) -> list[str]:
    return [
        f"models.{name}.max_context = {model.max_context} is {size.context} in the service: all its models are given "
        "the least of theirs"
        for name, model in settings.models.items()
        if (model.max_context or 0) > size.context
    ]


def _warnings(wanted: DeploySettings, size: Size, fit: Fit, deployed: Mapping[str, Any] | None) -> list[str]:
    """What deserves to be known before it costs something, and stops nothing."""
    found = []
    if deployed is not None and wanted.overlap and fit.instances and fit.overlap is False:
        short = "; ".join(item.says(fit.instances + 1) for item in fit.crowded)
        found.append(
            f"while the new revision starts, one of the old one runs beside it, and the quota may not hold both "
            f"({short}); --no-overlap lets the old one go first, for minutes without a service"
        )
    if size.card is not None and wanted.image is not None and wanted.image_cuda is None:
        newest = ".".join(str(part) for part in size.card.cuda)
        found.append(
            f"{size.card.title} has driver {size.card.driver} (CUDA {newest}): whether {wanted.image} "
            "runs on it is not known here; say deploy.image_cuda to have it checked"
        )
    if wanted.network is not None:
        found.append(
            f"all traffic goes through {wanted.network}: its subnet needs Private Google Access, and an address for "
            "each instance and its successor (a /26 or larger)"
        )
    return found


def chosen_engine(settings: Settings, wanted: DeploySettings, models: tuple[Model, ...]) -> tuple[RunEngine, str]:
    """The engine of the image, and why; an image with vLLM has the native engine, too, and not the other way round.

    Raises:
        SettingsError: vLLM is wanted where its image cannot run, or a model wants it and the image is not to have it.
    """
    of_models = [name for name, model in settings.models.items() if model.engine == "vllm"]
    if wanted.cpu_only:
        if wanted.engine == "vllm" or of_models:
            raise SettingsError("engine vllm is for services with a GPU; leave --cpu out, or take --engine native")
        return "native", "a service without a GPU"
    if of_models and wanted.engine == "native":
        raise SettingsError(
            f'models.{of_models[0]}.engine = "vllm", but deploy.engine = "native"; take one of them out'
        )
    if of_models:
        return "vllm", f"models.{of_models[0]}.engine asks for it"
    is_native = all(model.weights.shape.native for model in models)
    return choose_engine(wanted.engine, device="cuda", is_native=is_native, has_vllm=True)


def _sized(settings: Settings, size: Size) -> Settings:
    """With the context and the number of sequences that were planned, so that the engine's memory is the plan's."""
    models = {
        name: replace(model, max_context=min(size.context, model.max_context or size.context))
        for name, model in settings.models.items()
    }
    most = min(size.concurrency, settings.engine.max_sequences)
    return replace(settings, models=models, engine=replace(settings.engine, max_sequences=most))


def _on_engine(settings: Settings, wanted: DeploySettings, engine: RunEngine) -> Settings:
    """With the image's engine where a model leaves it open, so that what is planned is what runs.

    What an image of one's own has is not known: it chooses, where nothing was said.

    Raises:
        SettingsError: vLLM has nothing for what a model asks for.
    """
    if wanted.cpu_only or (wanted.image is not None and wanted.engine == "auto"):
        return settings
    models = {
        name: replace(model, engine=engine) if model.engine == "auto" else model
        for name, model in settings.models.items()
    }
    for name, model in models.items():
        if model.engine == "vllm" and model.precision == "int8":
            raise SettingsError(
                f'models.{name}.precision = "int8" is the native engine\'s, but the service runs vllm; leave it out, '
                "or deploy with --engine native"
            )
    return replace(settings, models=models)


def _other_size(
    settings: Settings, wanted: DeploySettings, models: tuple[Model, ...], engine: RunEngine
) -> Size | None:
    if wanted.cpu_only or not all(model.weights.shape.native for model in models):
        return None
    try:
        return choose_size(settings, wanted, models, "native" if engine == "vllm" else "vllm")
    except DeployError:
        return None


def choose_size(
    settings: Settings, wanted: DeploySettings, models: tuple[Model, ...], engine: RunEngine = "native"
) -> Size:
    """One instance for all the models, on the machine that the settings want."""
    contexts = [item.max_context for item in settings.models.values() if item.max_context is not None]
    wish = Wish(
        cpu=wanted.cpu,
        memory_gib=wanted.memory_gib,
        concurrency=wanted.concurrency,
        max_sequences=settings.engine.max_sequences,
        step_tokens=settings.engine.step_tokens or (_VLLM_STEP if engine == "vllm" else 512),
        context=min(contexts, default=None),
        kv_bytes=settings.engine.kv_bytes,
        zonal_redundancy=wanted.zonal_redundancy,
    )
    weights = tuple(model.weights for model in models)
    machine = CPU if wanted.cpu_only else sizing.with_card(cards.card(wanted.card), engine)
    return sizing.size(weights, machine, wish, prices=Prices())


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
    if fit.instances and fit.instances < goal:
        found.append(f"{fit.instances} instances instead of {goal}: {fit.limited_by} is {limits[fit.limited_by]}")
    for label, other in (
        ("--cpu-count 4 --memory 16", wanted.overridden(cpu=4, memory_gib=16)),
        ("--cpu", replace(wanted, cpu_only=True, cpu=None, memory_gib=None)),
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
        engine, _ = chosen_engine(settings, wanted, models)
        return fitting(choose_size(settings, wanted, models, engine), wanted, limits).instances
    except (DeployError, SettingsError):
        return 0
