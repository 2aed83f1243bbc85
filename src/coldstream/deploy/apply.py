"""`coldstream deploy`: idempotent steps, each looking first at what is there already.

    apis -> accounts -> repository -> source -> build -> revision -> invoker -> smoke test -> traffic

There is no journal: what was done is read from Google Cloud, so the next run, from wherever, goes on where it
stopped. Traffic moves in the last step alone; until then the service answers as it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from coldstream.deploy import fix, ground, image, service, smoke
from coldstream.deploy.access import GRANTING, NEEDS, Grant, Principal, principal_member
from coldstream.deploy.clock import Clock
from coldstream.deploy.google import Google, Pending, wait
from coldstream.deploy.plan import Plan
from coldstream.deploy.service import CANDIDATE
from coldstream.deploy.smoke import Door, Question
from coldstream.deploy.target import Kind, Target
from coldstream.errors import (
    ApiDisabled,
    CloudUnavailable,
    ColdstreamError,
    DeployError,
    ResourceConflict,
    ResourceExists,
    ResourceNotFound,
)
from coldstream.settings import DeploySettings

Mark = Literal["begin", "note", "log", "done", "kept"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something to show. `kept` ends a step that found everything as it should be."""

    step: str
    mark: Mark
    text: str


Tell = Callable[[Event], None]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Work:
    """A deployment under way. `made` grows with what this run makes; `deployed` is the service as last seen.

    `source` is the generation of the build context's object.
    """

    google: Google
    clock: Clock
    plan: Plan
    wanted: DeploySettings
    questions: tuple[Question, ...]
    canary: int
    tell: Tell
    step: str = ""
    made: list[str] = field(default_factory=list)
    deployed: Mapping[str, Any] | None = None
    revision: str = ""
    source: int | None = None

    @property
    def target(self) -> Target:
        return self.plan.target

    def note(self, text: str) -> None:
        self.tell(Event(self.step, "note", text))

    def making(self, *names: str) -> Work:
        """Named at once: a step that fails later still says what it made."""
        self.made.extend(names)
        return self


def _apis(work: Work) -> Work:
    off = ground.ensure_apis(work.google, work.target, clock=work.clock, tell=work.note)
    return work.making(*(f"API {name}" for name in off))


def _accounts(work: Work) -> Work:
    target, builds = work.target, work.plan.context is not None
    ours = [email for email in target.accounts if target.dedicated(email)]
    made = [
        email
        for email in ours
        if (builds or email != target.build_account)
        and ground.ensure_account(work.google, target, email, clock=work.clock, tell=work.note)
    ]
    return work.making(*(f"account {email}" for email in made))


def _repository(work: Work) -> Work:
    if work.plan.context is None:
        return work
    made = ground.ensure_repository(work.google, work.target, clock=work.clock, tell=work.note)
    return work.making(f"repository {work.target.repository}") if made else work


def _source(work: Work) -> Work:
    """The build context, in the source bucket under its own digest; the generation that is built is pinned."""
    context, target = work.plan.context, work.target
    if context is None or built_digest(work) is not None:
        return work
    if ground.ensure_bucket(work.google, target, tell=work.note):
        work = work.making(f"bucket {target.source_bucket}")
    name, archive = source_object(context), context.archive()
    there = work.google.generation(target.source_bucket, name)
    # What lies there under our name need not be ours.
    if there is not None and work.google.content(target.source_bucket, name, there) == archive:
        return replace(work, source=there)
    try:
        source = work.google.upload(target.source_bucket, name, archive, over=there or 0)
    except ResourceExists as exc:
        raise ResourceConflict(f"gs://{target.source_bucket}/{name} was written by another meanwhile") from exc
    work.note(f"uploaded {len(archive) / 1e6:.1f} MB to gs://{target.source_bucket}/{name}")
    return replace(work, source=source).making(f"source gs://{target.source_bucket}/{name}")


def source_object(context: image.Context) -> str:
    """Where the context lies in the source bucket."""
    return f"source/{context.tag}.tar.gz"


def built_digest(work: Work) -> str | None:
    """The digest of the image that the plan wants, where it is built already."""
    context = work.plan.context
    if context is None:
        return None
    return work.google.image_digest(work.target.repository_name, "coldstream", context.tag)


def _build(work: Work) -> Work:
    """The image: there already, being built already, or built now."""
    context = work.plan.context
    if context is None or built_digest(work) is not None:
        return work
    running = _running_build(work, context)
    if running is not None:
        work.note(f"a build of the same source is running; waiting for it: {running[1]}")
    else:
        running = _start_build(work, context)
        work.note(f"build {running[1]}")
        work = work.making(f"build {running[1]}")
    _watch_build(work, *running)
    return work.making(f"image {work.plan.image}")


Build = tuple[str, str]
"""(location, id)"""


def _running_build(work: Work, context: image.Context) -> Build | None:
    for location in work.target.build_locations:
        for item in work.google.builds(location, context.tag):
            if item["status"] in image.RUNNING:
                return location, str(item["id"])
    return None


def _start_build(work: Work, context: image.Context) -> Build:
    """Start a build where the project may build: in its region, or globally."""
    *first, last = work.target.build_locations
    for location in first:
        try:
            return location, _create_build(work, context, location)
        except DeployError as exc:
            if image.BARRED_REGION not in str(exc):
                raise
            work.note(f"{exc}; trying {last.rsplit('/', 1)[1]}")
    return last, _create_build(work, context, last)


def _create_build(work: Work, context: image.Context, location: str) -> str:
    request = image.build_request(
        work.target, context, source_object(context), _source_of(work), immutable=_immutable(work), wanted=work.wanted
    )

    def create() -> str:
        return work.google.create_build(location, request)

    try:
        return ground.patiently("the build", create, clock=work.clock, tell=work.note)
    except CloudUnavailable:
        # Whether it began is not known: what is running now is it.
        work.clock.sleep(5.0)
        begun = _running_build(work, context)
        return begun[1] if begun is not None and begun[0] == location else create()
    except DeployError as exc:
        advice, grant = image.refused(work.target, str(exc))
        mend = advice if grant is None else f"{advice}; it needs {grant}: {fix.command(grant, work.target)}"
        raise type(exc)(f"{exc}; {mend}" if mend else str(exc)) from exc


def _source_of(work: Work) -> int:
    if work.source is None:
        raise DeployError("the source was not uploaded; run this again")
    return work.source


def _immutable(work: Work) -> bool:
    """Whether the repository's tags cannot be moved; a repository of our own making allows it."""
    repository = work.google.repository(work.target.repository_name)
    return bool(repository.get("docker_config", {}).get("immutable_tags"))


def _watch_build(work: Work, location: str, identity: str) -> None:
    begun, seen = work.clock.now(), frozenset[str]()
    place = f'resource.type="build" AND resource.labels.build_id="{identity}"'
    while True:
        unheard: Mapping[str, Any] = {"status": "WORKING"}
        build = _poll(lambda: work.google.build(location, identity), unheard)
        seen = _show_logs(work, place, seen)
        if build["status"] == "SUCCESS":
            return
        if build["status"] not in image.RUNNING:
            raise _build_error(work.target, build)
        waited = work.clock.now() - begun
        if waited > image.BUILD_TIMEOUT + 600:
            raise DeployError(
                f"build {identity} is still {build['status']} after {waited:.0f} s; see {build.get('log_url', '')}"
            )
        work.clock.sleep(5.0)


def _poll(look: Callable[[], _T], otherwise: _T) -> _T:
    """What a look says; `otherwise` when Google did not answer, which says nothing about what is waited for."""
    try:
        return look()
    except CloudUnavailable:
        return otherwise


def _build_error(target: Target, build: Mapping[str, Any]) -> DeployError:
    failed = image.failure(target, build)
    mend = "" if failed.grant is None else f"; it needs {failed.grant}: {fix.command(failed.grant, target)}"
    return DeployError(f"{failed.cause}: {failed.message}{mend}; log: {build.get('log_url', '')}")


def _show_logs(work: Work, place: str, seen: frozenset[str]) -> frozenset[str]:
    try:
        entries = work.google.log_entries(work.target.project, place, newest=200)
    except ColdstreamError:
        # Logs are a comfort here: a caller who may not read them still deploys, and the outcome names the log's URL.
        return seen
    for entry in entries:
        if entry["id"] not in seen:
            work.tell(Event(work.step, "log", entry["text"]))
    return seen | {entry["id"] for entry in entries}


def _revision(work: Work) -> Work:
    """The revision, with a tag and without traffic; one that is there already is only tagged."""
    deployed = work.google.service(work.target.service_name)
    name, attempt = work.plan.revision, 1
    while (state := _state(work, name)) == "failed":
        attempt += 1
        name = f"{work.plan.revision}-{attempt}"
    work = replace(work, revision=name, deployed=deployed)
    if state == "ready" and deployed is not None and _as_wanted(work, deployed):
        return work
    if state == "pending":
        work.note(f"revision {name} is starting already")
        return _await_revision(work)
    return _make_revision(work, deployed, new=state is None)


def _make_revision(work: Work, deployed: Mapping[str, Any] | None, *, new: bool) -> Work:
    spec = _spec(work, deployed, new=new)
    stopped = _stop_old(work, deployed) if new and deployed is not None and not work.plan.overlap else None
    try:
        pending = _send(work, stopped or deployed, spec)
        work.note(f"revision {work.revision}" if new else f"tagged revision {work.revision}, which is there already")
        work = work.making(
            *(() if deployed else (f"service {work.target.service}",)),
            *((f"revision {work.revision}",) if new else ()),
        )
        _await(work, pending)
    except ColdstreamError:
        _start_old(work, stopped, deployed)
        raise
    return replace(work, deployed=work.google.service(work.target.service_name))


def _await(work: Work, pending: Pending) -> None:
    try:
        wait(
            pending, clock=work.clock, limit=_start_limit(work), every=3.0, tick=lambda waited: _progress(work, waited)
        )
    except ResourceConflict:
        raise
    except DeployError as exc:
        raise _start_error(work, exc) from exc


def _spec(work: Work, deployed: Mapping[str, Any] | None, *, new: bool) -> dict[str, Any]:
    plan = work.plan
    return service.service(
        work.target,
        _template(work, deployed, new=new),
        plan.scaling,
        _traffic(work, deployed),
        options=plan.options,
        deployed=deployed,
    )


def _template(work: Work, deployed: Mapping[str, Any] | None, *, new: bool) -> Mapping[str, Any]:
    if not new and deployed is not None:
        # A revision cannot be made twice: the service keeps its template, and traffic alone changes.
        return dict(deployed["template"])
    if deployed is not None and "unread" in deployed:
        raise DeployError(
            f"the service has something that the installed google-cloud-run cannot read, and writing it back would "
            f"lose it: {deployed['unread']}; run `pip install --upgrade google-cloud-run`"
        )
    digest = built_digest(work)
    pinned = work.plan.template
    if digest is not None:
        pinned = service.pinned(pinned, f"{work.target.image}@{digest}")
    return {**pinned, "revision": work.revision}


def _send(work: Work, deployed: Mapping[str, Any] | None, spec: dict[str, Any]) -> Pending:
    """Make the service, or change what is ours of it. What is new here may not be known everywhere yet."""

    def create() -> Pending:
        return work.google.create_service(work.target.service_name, spec, validate_only=False)

    def update() -> Pending:
        # The etag: of two deployments at once, one is told.
        etag = {"etag": (deployed or {})["etag"]}
        return work.google.update_service({**spec, **etag}, mask=service.mask(spec), validate_only=False)

    action = create if deployed is None else update
    try:
        return ground.patiently("the service", action, clock=work.clock, tell=work.note)
    except ResourceExists as exc:
        raise ResourceConflict(f"{exc}; another deployment made it meanwhile; run this again") from exc


def _stop_old(work: Work, deployed: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let the service's instances go before the new revision starts, where the quota does not hold both."""
    work.note("the old revision's instances go first; the service does not answer until the new one does")
    scaling = {"scaling_mode": "MANUAL", "manual_instance_count": 0}
    spec = {"name": deployed["name"], "etag": deployed["etag"], "scaling": scaling}
    pending = work.google.update_service(spec, mask=("scaling",), validate_only=False)
    wait(pending, clock=work.clock, limit=300, tick=lambda waited: work.note(f"stopping: {waited:.0f} s"))
    stopped = work.google.service(work.target.service_name)
    if stopped is None:
        raise ResourceConflict(f"service {work.target.service} is gone; somebody else removed it")
    return stopped


def _start_old(work: Work, stopped: Mapping[str, Any] | None, deployed: Mapping[str, Any] | None) -> None:
    """Give the service back the scaling it had, after a failure; what cannot be done here is said."""
    if stopped is None or deployed is None:
        return
    spec = {"name": deployed["name"], "scaling": deployed.get("scaling", {})}
    try:
        wait(
            work.google.update_service(spec, mask=("scaling",), validate_only=False),
            clock=work.clock,
            limit=300,
            tick=lambda waited: work.note(f"starting the old revision: {waited:.0f} s"),
        )
    except ColdstreamError as exc:
        work.note(f"the service is still scaled to zero ({exc}); run this again")


def validate(google: Google, plan: Plan) -> str:
    """Let Cloud Run judge the service without making it (`validate_only`); changes nothing. What came of it, in words.

    Raises:
        DeployError: Cloud Run refuses it; the message is its own.
    """
    deployed = plan.deployed
    shares = {} if deployed is None else service.serving(deployed)
    traffic = [service.to_revision(name, percent) for name, percent in shares.items()]
    spec = service.service(plan.target, plan.template, plan.scaling, traffic, options=plan.options, deployed=deployed)
    try:
        if deployed is None:
            google.create_service(plan.target.service_name, spec, validate_only=True)
        else:
            named = {**spec, "etag": deployed["etag"]}
            google.update_service(named, mask=service.mask(spec), validate_only=True)
    except (ResourceNotFound, ApiDisabled) as exc:
        # What a deployment would have made by then; Cloud Run looks at it whether it judges or makes.
        return f"Cloud Run cannot judge the service before what it stands on is made: {exc}"
    return "Cloud Run accepts the service as it is planned"


def _traffic(work: Work, deployed: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Everything stays where it flows; the candidate gets a tag. A new service has no callers to protect yet."""
    shares = {} if deployed is None else service.serving(deployed)
    if not shares:
        return [service.to_revision(work.revision, 100, CANDIDATE)]
    flowing = [service.to_revision(name, percent) for name, percent in shares.items() if name != work.revision]
    return [*flowing, service.to_revision(work.revision, shares.get(work.revision, 0), CANDIDATE)]


def _as_wanted(work: Work, deployed: Mapping[str, Any]) -> bool:
    """Whether the revision is reachable already, and the service around it is as the plan wants it."""
    around = service.service(
        work.target, deployed["template"], work.plan.scaling, [], options=work.plan.options, deployed=deployed
    )
    settled = not service.diff(deployed, around)
    serves_all = service.serving(deployed) == {work.revision: 100}
    return settled and (
        serves_all or (service.tag_url(deployed, CANDIDATE) is not None and _tagged(deployed, work.revision))
    )


def _tagged(deployed: Mapping[str, Any], revision: str) -> bool:
    return any(
        item.get("tag") == CANDIDATE and item.get("revision") == revision for item in deployed.get("traffic", [])
    )


State = Literal["ready", "failed", "pending"] | None
"""Of a revision; None when there is none."""


def _state(work: Work, name: str) -> State:
    revision = work.google.revision(f"{work.target.service_name}/revisions/{name}")
    if revision is None:
        return None
    state = next((item.get("state") for item in revision.get("conditions", []) if item.get("type_") == "Ready"), "")
    return {"CONDITION_SUCCEEDED": "ready", "CONDITION_FAILED": "failed"}.get(state or "", "pending")  # type: ignore[return-value]


def _start_limit(work: Work) -> float:
    return work.plan.size.probe_period * work.plan.size.probe_failures + 600.0


def _progress(work: Work, waited: float) -> None:
    if waited and int(waited) % 15 < 3:
        work.note(f"the revision is starting: {waited:.0f} s of about {work.plan.size.seconds_to_first_token:.0f} s")


def _await_revision(work: Work) -> Work:
    begun = work.clock.now()
    unheard: State = "pending"
    while (state := _poll(lambda: _state(work, work.revision), unheard)) == "pending":
        waited = work.clock.now() - begun
        if waited > _start_limit(work):
            raise _start_error(work, DeployError(f"revision {work.revision} is still starting after {waited:.0f} s"))
        _progress(work, waited)
        work.clock.sleep(3.0)
    if state != "ready":
        raise _start_error(work, DeployError(f"revision {work.revision} did not become ready"))
    return replace(work, deployed=work.google.service(work.target.service_name))


def _start_error(work: Work, cause: DeployError) -> DeployError:
    """The failure with the last words of the container, which say why."""
    place = f'resource.type="cloud_run_revision" AND resource.labels.revision_name="{work.revision}"'
    try:
        entries = work.google.log_entries(work.target.project, place, newest=5)
    except ColdstreamError:
        entries = ()
    said = "".join(f"\n    {entry['text']}" for entry in entries)
    return DeployError(f"{cause}{said}")


def _invoker(work: Work) -> Work:
    """The invoker's right to call this one service, where the caller may give it."""
    resource = work.target.resource(Kind.SERVICE)
    if work.target.public or not work.google.test_permissions(resource, [GRANTING[Kind.SERVICE]]):
        return work
    need = next(item for item in NEEDS if item.principal is Principal.INVOKER)
    grant = Grant(need.role, principal_member(Principal.INVOKER, work.target, ""), resource)
    if not fix.add(work.google, grant, clock=work.clock, tell=work.note):
        return work
    work.note(f"granted {grant}")
    return work.making(f"grant {grant}")


def door(work: Work) -> Door:
    """The candidate's address, with identity tokens of the invoker for the service itself."""
    deployed = work.deployed or {}
    audience = str(deployed["uri"])
    url = service.tag_url(deployed, CANDIDATE) or audience
    key = None if work.target.secret is None else _first_key(work.google.secret_value(work.target.secret))
    if work.target.public:
        return Door(url, None, key)
    return Door(url, lambda: work.google.identity_token(work.target.invoker_account, audience), key)


def _first_key(text: str) -> str:
    """Keys are separated by commas or lines, and a line that begins with # is a comment."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return next((key.strip() for line in lines for key in line.split(",") if key.strip()), "")


def _smoke(work: Work) -> Work:
    if _proven(work.deployed) == work.revision:
        return work
    entrance = door(work)
    smoke.wait_until_ready(entrance, clock=work.clock, tick=work.note)
    smoke.check(entrance, work.questions, tell=work.note)
    return work


def _proven(deployed: Mapping[str, Any] | None) -> str | None:
    """The last revision that passed its smoke test; written together with the traffic that it earned."""
    found: str | None = (deployed or {}).get("annotations", {}).get(service.PROVEN_ANNOTATION)
    return found


def _move_traffic(work: Work) -> Work:
    deployed = work.google.service(work.target.service_name)
    if deployed is None:
        raise ResourceConflict(f"service {work.target.service} is gone; somebody else removed it")
    shares = service.serving(deployed)
    wanted = _shares(work, shares)
    if shares == wanted and _proven(deployed) == work.revision:
        return replace(work, deployed=deployed)
    traffic = [
        service.to_revision(name, percent, CANDIDATE if name == work.revision else "")
        for name, percent in wanted.items()
    ]
    notes = {service.PROVEN_ANNOTATION: work.revision}
    if (previous := _previous(work, shares)) is not None:
        notes[service.PREVIOUS_ANNOTATION] = previous
    moved = move(work.google, deployed, traffic, notes=notes)
    wait(moved, clock=work.clock, limit=300, tick=lambda waited: work.note(f"moving traffic: {waited:.0f} s"))
    work.note(", ".join(f"{percent} % to {name}" for name, percent in wanted.items()))
    return replace(work, deployed=work.google.service(work.target.service_name)).making("traffic")


def _shares(work: Work, shares: Mapping[str, int]) -> dict[str, int]:
    others = {name: percent for name, percent in shares.items() if name != work.revision}
    if work.canary == 100 or not others:
        return {work.revision: 100}
    stable = max(others, key=lambda name: others[name])
    return {stable: 100 - work.canary, work.revision: work.canary}


def _previous(work: Work, shares: Mapping[str, int]) -> str | None:
    others = {name: percent for name, percent in shares.items() if name != work.revision}
    return max(others, key=lambda name: others[name]) if others else None


def move(
    google: Google, deployed: Mapping[str, Any], traffic: list[dict[str, Any]], *, notes: Mapping[str, str]
) -> Pending:
    """Change where traffic flows, and nothing else; `notes` are annotations that remember it."""
    spec = {key: deployed[key] for key in ("name", "etag") if key in deployed}
    spec |= {"annotations": {**deployed.get("annotations", {}), **notes}, "traffic": traffic}
    return google.update_service(spec, mask=("annotations", "traffic"), validate_only=False)


Steps = tuple[tuple[str, Callable[[Work], Work]], ...]
IMAGE_STEPS: Steps = (
    ("apis", _apis),
    ("accounts", _accounts),
    ("repository", _repository),
    ("source", _source),
    ("build", _build),
)
STEPS: Steps = (
    *IMAGE_STEPS,
    ("revision", _revision),
    ("invoker", _invoker),
    ("smoke test", _smoke),
    ("traffic", _move_traffic),
)


@dataclass(frozen=True, slots=True)
class Deployed:
    """A finished deployment."""

    url: str
    revision: str
    made: tuple[str, ...]
    shares: Mapping[str, int]


def apply(
    google: Google,
    plan: Plan,
    wanted: DeploySettings,
    questions: tuple[Question, ...],
    *,
    canary: int,
    clock: Clock,
    tell: Tell,
) -> Deployed:
    """Every step. `canary` is the new revision's share in percent, 100 for all.

    Raises:
        DeployError: a step failed; the message names the step, what this run made, where traffic flows, and that
            running it again goes on from there.
    """
    work = follow(Work(google, clock, plan, wanted, questions, canary, tell), STEPS)
    deployed = work.deployed or {}
    return Deployed(str(deployed["uri"]), work.revision, tuple(work.made), service.serving(deployed))


def follow(work: Work, steps: Steps) -> Work:
    """Take steps in order, and say of each what it made.

    Raises:
        DeployError: as `apply`.
    """
    for name, step in steps:
        work = replace(work, step=name)
        work.tell(Event(name, "begin", ""))
        before = len(work.made)
        try:
            work = step(work)
        except DeployError as exc:
            raise type(exc)(_report(work, name, exc)) from exc
        except ColdstreamError as exc:
            raise DeployError(_report(work, name, exc)) from exc
        made = work.made[before:]
        work.tell(Event(name, "done" if made else "kept", ", ".join(made)))
    return work


def _report(work: Work, step: str, exc: Exception) -> str:
    made = ", ".join(work.made) or "nothing"
    after = "mend it and run the same command; what is made is kept"
    return f"{step}: {exc}\n  made by this run: {made}\n  traffic: {_flow(work)}\n  next: {after}"


def _flow(work: Work) -> str:
    try:
        deployed = work.google.service(work.target.service_name)
    except ColdstreamError as exc:
        return f"not known ({exc})"
    shares = {} if deployed is None else service.serving(deployed)
    return (
        ", ".join(f"{percent} % on {name}" for name, percent in shares.items()) or "none; the service is not deployed"
    )
