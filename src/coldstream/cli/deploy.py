"""`coldstream doctor | plan | deploy | job | status | logs | token | ...`: from a bucket to Cloud Run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from coldstream import settings as configuration
from coldstream.errors import DeployError, SettingsError, printable

if TYPE_CHECKING:
    from coldstream.cli.terminal import PrintableConsole
    from coldstream.deploy.access import Grant, Make
    from coldstream.deploy.doctor import Report
    from coldstream.deploy.plan import Plan
    from coldstream.deploy.session import DeployJob

_DEFAULT_CONFIG = Path("coldstream.toml")

AsJson = Annotated[bool, typer.Option("--json", help="Data instead of a table.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Ask Google nothing: no quota, no deployed service, no credentials.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True, slots=True)
class PlaceOptions:
    """Which model, and where it is deployed: every command takes these."""

    uri: Annotated[str | None, typer.Argument(help="The checkpoint's folder, gs://bucket/model.")] = None
    config: Annotated[
        Path | None, typer.Option(help="A coldstream.toml with [deploy]. Default: ./coldstream.toml.")
    ] = None
    project: Annotated[str | None, typer.Option(help="The project's id.")] = None
    region: Annotated[str | None, typer.Option(help="The region; where the bucket is. [default: us-central1]")] = None
    service: Annotated[str | None, typer.Option(help="The service's name. [default: coldstream]")] = None


@dataclass(frozen=True, slots=True)
class KindOptions:
    """What kind of service it is."""

    cpu_only: Annotated[bool, typer.Option("--cpu", help="A service without a GPU, for small models.")] = False
    card: Annotated[str | None, typer.Option(help="l4 or rtx-pro-6000. [default: l4]")] = None
    engine: Annotated[str | None, typer.Option(help="auto, native or vllm; the plan says why. [default: auto]")] = None
    public: Annotated[
        bool, typer.Option("--public", help="Anybody who knows the address may use it, at your expense.")
    ] = False


@dataclass(frozen=True, slots=True)
class SizeOptions:
    """How large an instance is."""

    cpu: Annotated[int | None, typer.Option("--cpu-count", help="vCPU of an instance. Default: the plan's choice.")] = (
        None
    )
    memory_gib: Annotated[
        int | None, typer.Option("--memory", help="GiB of an instance. Default: the plan's choice.")
    ] = None
    concurrency: Annotated[int | None, typer.Option(help="Requests an instance. Default: what memory holds.")] = None


@dataclass(frozen=True, slots=True)
class Instances:
    """How many instances there are."""

    min_instances: Annotated[
        int | None, typer.Option(help="Instances that are always there, and paid for. [default: 0]")
    ] = None
    max_instances: Annotated[
        int | None, typer.Option(help="Instances at most. Default: what the quota holds, up to 3.")
    ] = None


class Format(StrEnum):
    """What `export` writes."""

    KNATIVE = "knative"
    TERRAFORM = "terraform"
    K8S = "k8s"
    KSERVE = "kserve"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (doctor, plan, deploy, job, status, logs, token, rollback, destroy, export):
        app.command()(_spelled_out(command))


def _spelled_out(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads one: a parameter that is a group of options becomes the group's options."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        group = groups.get(parameter.name)
        parameters += _options(group) if group else [parameter.replace(annotation=hints[parameter.name])]

    @wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: group(**{item.name: given.pop(item.name) for item in fields(group)}) for name, group in groups.items()
        }
        command(**given, **made)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(group: Any) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(item.name, Parameter.POSITIONAL_OR_KEYWORD, default=item.default, annotation=hints[item.name])
        for item in fields(group)
    ]


def doctor(
    ctx: typer.Context,
    place: PlaceOptions = PlaceOptions(),
    kind: KindOptions = KindOptions(),
    fix: Annotated[bool, typer.Option("--fix", help="Make the grants that are missing, after showing them.")] = False,
    undo: Annotated[Path, typer.Option(help="Where --fix writes how to take its grants back.")] = Path(
        "coldstream-undo.sh"
    ),
    script: Annotated[Path, typer.Option(help="Where --fix writes what somebody else has to do.")] = Path(
        "coldstream-grants.sh"
    ),
    everything: Annotated[bool, typer.Option("--all", help="Show what is well, too.")] = False,
    as_json: AsJson = False,
    yes: Yes = False,
) -> None:
    """Ask everything that could stop a deployment, at once. Changes nothing without --fix.

    Exits with 0 when nothing stands in the way, 1 when something is missing, 2 when something could not be found out.
    """
    job = _job(ctx, place, kind)
    found = job.examine()
    if fix:
        found = _fix(job, found, undo, script, yes=yes, as_json=as_json)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
    else:
        from coldstream.deploy import show

        show.report(_console(), found, everything=everything)
    raise typer.Exit(found.exit_code)


def _fix(job: DeployJob, found: Report, undo: Path, script: Path, *, yes: bool, as_json: bool) -> Report:
    from coldstream.deploy import fix, show

    console = _console(stderr=as_json)
    remedy = fix.remedy(found)
    if not remedy.all:
        console.print("there is nothing to make or to grant")
        return found
    if remedy.mine:
        show.listed(console, "to be made and granted:", remedy.mine)
    others = remedy.others
    if remedy.mine and _agreed(yes, "Go on?"):
        google, clock = job.session.google, job.session.clock
        # How to take it back is on disk before the first grant: an interrupted fix can be undone too.
        _write(undo, fix.undo_script(tuple(item for item in remedy.grants if item in remedy.caller_may), job.target))
        fixed = fix.apply(google, job.examine, found, clock=clock, tell=lambda text: console.print(f"  {text}"))
        _write(undo, fix.undo_script(fixed.added, job.target))
        console.print(f"{undo} takes the {len(fixed.added)} grants back")
        found, others = fixed.report, fixed.others
    _hand_over(console, job, others, script)
    return found


def _hand_over(console: PrintableConsole, job: DeployJob, others: tuple[Make | Grant, ...], script: Path) -> None:
    from coldstream.deploy import fix, show

    if not others:
        return
    show.listed(console, "the caller may not do this; give it to whoever may:", others)
    _write(script, fix.script(others, job.target))
    console.print(f"{script} has the commands")


def plan(
    ctx: typer.Context,
    place: PlaceOptions = PlaceOptions(),
    kind: KindOptions = KindOptions(),
    size: SizeOptions = SizeOptions(),
    instances: Instances = Instances(),
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """What a deployment would be: memory, concurrency, cost, and what it would change. Reads headers only."""
    made = _plan(ctx, place, kind, size, instances, offline=offline)
    from coldstream.deploy import show
    from coldstream.deploy.plan_report import as_json as plan_as_json

    if as_json:
        typer.echo(json.dumps(plan_as_json(made), indent=2))
    else:
        show.plan(_console(), made)


def deploy(
    ctx: typer.Context,
    place: PlaceOptions = PlaceOptions(),
    kind: KindOptions = KindOptions(),
    size: SizeOptions = SizeOptions(),
    instances: Instances = Instances(),
    canary: Annotated[int, typer.Option(min=1, max=100, help="Percent of traffic for the new revision.")] = 100,
    no_overlap: Annotated[
        bool, typer.Option("--no-overlap", help="The old revision's instances go first; for a tight quota.")
    ] = False,
    refresh_base: Annotated[
        bool, typer.Option("--refresh-base", help="Build anew on today's base image, with nothing cached.")
    ] = False,
    pack: Annotated[
        bool, typer.Option("--pack", help="With --cpu: first write the models' packed copies, to start from.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="A table that lives, instead of lines.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and plan; change nothing.")] = False,
) -> None:
    """Put a model on Cloud Run: check, build, start without traffic, ask it, then move the traffic.

    Private unless --public. Run it again after a failure: what is made is kept, and it goes on from there.
    """
    from coldstream.deploy import apply, show, smoke

    extra = {"overlap": False} if no_overlap else {}
    job, console = _job(ctx, place, kind, size, instances, extra=extra, refresh_base=refresh_base), _console()
    questions = smoke.questions(job.settings, job.wanted.smoke)
    if pack:
        _check_packable(job)
    found = job.examine()
    show.report(console, found, everything=False)
    if found.exit_code == 1 and not dry_run:
        raise DeployError("the checks above say that a deployment would fail; mend them, or `coldstream doctor --fix`")
    if pack and not dry_run:
        _pack(job, console)
    made = job.plan()
    show.plan(console, made)
    if dry_run:
        console.print(apply.validate(job.session.google, made), markup=False)
        raise typer.Exit(found.exit_code)
    if made.fit.instances < 1:
        raise DeployError(f"the quota {made.fit.limited_by} does not hold one instance; {'; '.join(made.proposals)}")
    with show.progress(console, live=watch) as tell:
        result = apply.apply(
            job.session.google, made, job.wanted, questions, canary=canary, clock=job.session.clock, tell=tell
        )
    show.deployed(console, result, job.target, questions[0].body)


def _check_packable(job: DeployJob) -> None:
    if not job.wanted.cpu_only or job.wanted.engine == "vllm":
        raise SettingsError("--pack: packed copies are int8 for our engine on a CPU; add --cpu, or leave --pack out")
    for name, model in job.settings.models.items():
        if model.precision not in ("auto", "int8") or model.packed == "off":
            kept = f'precision = "{model.precision}" and packed = "{model.packed}"'
            raise SettingsError(f"--pack: model {name} has {kept}, so nothing would read its packed copy")


def _pack(job: DeployJob, console: PrintableConsole) -> None:
    """Write the copies that are not there yet."""
    import asyncio

    from coldstream.cli.pack import said
    from coldstream.pack.pack import pack

    for model in job.settings.models.values():
        destination = None if model.packed == "auto" else model.packed
        report = asyncio.run(pack(model.uri, destination, weights=model.weights))
        console.print(said(report), soft_wrap=True)


def job(
    ctx: typer.Context,
    script: Annotated[Path, typer.Option(help="A Python file; its text travels with the job.")],
    place: PlaceOptions = PlaceOptions(),
    kind: KindOptions = KindOptions(),
    size: SizeOptions = SizeOptions(),
    argument: Annotated[
        list[str] | None, typer.Option("--argument", help="Given to the script; may be repeated.")
    ] = None,
) -> None:
    """Run a script once on the service's machine, with its image and account; prints what the script printed."""
    from coldstream.deploy import job as jobs
    from coldstream.deploy import show

    try:
        text = script.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"--script {script}: cannot be read ({exc})") from exc
    wanted = jobs.Script(script.name, text, tuple(argument or ()))
    work, console = _job(ctx, place, kind, size), _console(stderr=True)
    lines = jobs.run(
        work.session.google,
        work.plan(),
        work.wanted,
        wanted,
        clock=work.session.clock,
        tell=lambda event: show.event(console, event),
    )
    for line in lines:
        typer.echo(line)


def status(
    ctx: typer.Context,
    place: PlaceOptions = PlaceOptions(),
    as_json: AsJson = False,
) -> None:
    """The service, its revisions and where traffic flows."""
    from coldstream.deploy import lifecycle, show

    job = _job(ctx, place, model_needed=False)
    state = lifecycle.status(job.session.google, job.target)
    if as_json:
        typer.echo(json.dumps(state, indent=2))
    else:
        show.status(_console(), state)


def logs(
    ctx: typer.Context,
    place: PlaceOptions = PlaceOptions(),
    revision: Annotated[str | None, typer.Option(help="Of one revision only.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted.")] = False,
    newest: Annotated[int, typer.Option("--lines", "-n", min=1, max=1000, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """What the service's containers say."""
    from coldstream.deploy import lifecycle

    job = _job(ctx, place, model_needed=False)
    query = lifecycle.LogQuery(job.target, revision)
    session = job.session
    try:
        for entry in lifecycle.logs(session.google, query, newest=newest, follow=follow, clock=session.clock):
            text = json.dumps(entry) if as_json else printable(f"{entry['time']} {entry['text']}")
            typer.echo(text)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def token(
    ctx: typer.Context,
    place: PlaceOptions = PlaceOptions(),
) -> None:
    """Print an identity token for a private service, good for an hour: what its callers send as a bearer token."""
    from coldstream.deploy import lifecycle

    job = _job(ctx, place, model_needed=False)
    typer.echo(lifecycle.token(job.session.google, job.target))


def rollback(
    ctx: typer.Context,
    place: PlaceOptions = PlaceOptions(),
    to: Annotated[str | None, typer.Option(help="The revision. Default: the one that had the traffic before.")] = None,
) -> None:
    """Move all traffic back to an earlier revision, at once."""
    from coldstream.deploy import lifecycle

    job = _job(ctx, place, model_needed=False)
    lifecycle.rollback(job.session.google, job.target, to=to, clock=job.session.clock, tell=typer.echo)


def destroy(
    ctx: typer.Context,
    place: PlaceOptions = PlaceOptions(),
    yes: Yes = False,
) -> None:
    """Remove what a deployment made, after listing what it costs. The model's bucket is never touched."""
    from coldstream.deploy import lifecycle, show

    job, console = _job(ctx, place, model_needed=False), _console()
    items, left = lifecycle.inventory(job.session.google, job.target, clock=job.session.clock, tell=typer.echo)
    show.listed(console, "left alone:", left)
    if not items:
        console.print("nothing of this deployment is left")
        return
    show.listed(console, "to be removed:", [f"{item.what}: costs {item.cost}" for item in items])
    if not _agreed(yes, "Remove all of it?"):
        raise typer.Exit(1)
    lifecycle.destroy(items, tell=typer.echo)


def export(
    ctx: typer.Context,
    form: Annotated[Format, typer.Argument(help="What to write.")],
    place: PlaceOptions = PlaceOptions(),
    kind: KindOptions = KindOptions(),
    size: SizeOptions = SizeOptions(),
    instances: Instances = Instances(),
    offline: Offline = False,
) -> None:
    """The plan in another tool's words: Cloud Run YAML, Terraform, a GKE Deployment, a KServe InferenceService."""
    from coldstream.deploy import export as writing

    made = _plan(ctx, place, kind, size, instances, offline=offline)
    write = {
        Format.KNATIVE: writing.knative,
        Format.TERRAFORM: writing.terraform,
        Format.K8S: writing.gke,
        Format.KSERVE: writing.kserve,
    }[form]
    typer.echo(write(made), nl=False)


def _job(
    ctx: typer.Context,
    place: PlaceOptions,
    *groups: KindOptions | SizeOptions | Instances,
    model_needed: bool = True,
    extra: Mapping[str, Any] | None = None,
    refresh_base: bool = False,
) -> DeployJob:
    """Settings, the command line on top of them, and the session (which tests put into the context).

    Everything that is wrong in the arguments is said before anybody looks for credentials.
    """
    from coldstream.deploy import session as sessions

    settings, wanted = _read(place, *groups, model_needed=model_needed, extra=extra or {})
    sessions.named(settings, wanted)
    session = ctx.obj if isinstance(ctx.obj, sessions.Session) else sessions.open_session(wanted.project)
    return sessions.DeployJob(sessions.on_todays_base(session) if refresh_base else session, settings, wanted)


def _read(
    place: PlaceOptions, *groups: KindOptions | SizeOptions | Instances, model_needed: bool, extra: Mapping[str, Any]
) -> tuple[configuration.Settings, configuration.DeploySettings]:

    settings = _settings(place.uri, place.config, model_needed=model_needed)
    options: dict[str, Any] = {"project": place.project, "region": place.region, "service": place.service}
    for group in groups:
        options |= asdict(group)
    # A switch that was not given leaves the file's word in force.
    given = {name: value for name, value in options.items() if value is not False}
    return settings, settings.deploy.overridden(**given, **extra)


def _plan(
    ctx: typer.Context, place: PlaceOptions, *groups: KindOptions | SizeOptions | Instances, offline: bool
) -> Plan:
    """The plan; offline with the switch, or where a model lies on this machine, and then without credentials."""
    from coldstream.deploy import session as sessions

    settings, wanted = _read(place, *groups, model_needed=True, extra={})
    if not offline and all("://" in model.uri for model in settings.models.values()):
        return _job(ctx, place, *groups).plan()
    opened = ctx.obj if isinstance(ctx.obj, sessions.Session) else None
    return sessions.offline_plan(settings, wanted, opened)


def _settings(uri: str | None, config: Path | None, *, model_needed: bool) -> configuration.Settings:
    if uri is not None and config is not None:
        raise SettingsError("give a URI or --config, not both; models in the file have their own uri")
    if uri is not None:
        return configuration.for_uri(uri)
    if config is None and not _DEFAULT_CONFIG.exists():
        if model_needed:
            raise SettingsError("which model? give gs://bucket/model, or --config FILE")
        return configuration.Settings(models={}, tasks={})
    return configuration.load(config or _DEFAULT_CONFIG)


def _agreed(yes: bool, question: str) -> bool:
    return yes or typer.confirm(question)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise SettingsError(f"{path}: cannot be written ({exc.strerror})") from exc


def _console(*, stderr: bool = False) -> PrintableConsole:
    from coldstream.cli.terminal import PrintableConsole

    return PrintableConsole(stderr=stderr, highlight=False)
