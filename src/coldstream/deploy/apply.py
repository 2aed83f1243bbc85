"""`coldstream deploy`: idempotent steps, each looking first at what is there already.

    apis -> accounts -> repository -> source -> build -> revision -> invoker -> smoke test -> traffic

There is no journal: what was done is read from Google Cloud, so whoever runs it again, from wherever, goes on where it
stopped. Traffic moves in the last step alone; until then the service answers as it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from coldstream.deploy import fix, ground, image, service, smoke
from coldstream.deploy.access import GRANTING, NEEDS, Grant, Principal, principal_member
from coldstream.deploy.clock import Clock
from coldstream.deploy.google import Google, Pending, wait
from coldstream.deploy.plan import Plan
from coldstream.deploy.service import CANDIDATE
from coldstream.deploy.smoke import Door, Question
from coldstream.deploy.target import Kind, Target
from coldstream.errors import ColdstreamError, DeployError, ResourceConflict, ResourceExists

Mark = Literal["begin", "note", "log", "done", "kept"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something to show. `kept` ends a step that found everything as it should be."""

    step: str
    mark: Mark
    text: str


Tell = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Work:
    """A deployment under way. `made` grows with what this run makes; `deployed` is the service as last seen."""

    google: Google
    clock: Clock
    plan: Plan
    questions: tuple[Question, ...]
    canary: int
    tell: Tell
    step: str = ""
    made: list[str] = field(default_factory=list)
    deployed: Mapping[str, Any] | None = None
    revision: str = ""

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
    ours = [email for email in work.target.accounts if work.target.dedicated(email)]
    made = [email for email in ours if ground.ensure_account(work.google, work.target, email, tell=work.note)]
    return work.making(*(f"account {email}" for email in made))


def _repository(work: Work) -> Work:
    if work.plan.context is None:
        return work
    made = ground.ensure_repository(work.google, work.target, clock=work.clock, tell=work.note)
    return work.making(f"repository {work.target.repository}") if made else work


def _source(work: Work) -> Work:
    """The build context, in the source bucket under its own digest."""
    context, target = work.plan.context, work.target
    if context is None or _image_is_there(work):
        return work
    if ground.ensure_bucket(work.google, target, tell=work.note):
        work = work.making(f"bucket {target.source_bucket}")
    name = source_object(context)
    if work.google.object_exists(target.source_bucket, name):
        return work
    archive = context.archive()
    try:
        work.google.upload(target.source_bucket, name, archive)
    except ResourceExists:
        return work
    work.note(f"uploaded {len(archive) / 1e6:.1f} MB to gs://{target.source_bucket}/{name}")
    return work.making(f"source gs://{target.source_bucket}/{name}")


def source_object(context: image.Context) -> str:
    """Where the context lies in the source bucket."""
    return f"source/{context.tag}.tar.gz"


def _image_is_there(work: Work) -> bool:
    context = work.plan.context
    return context is None or work.google.image_digest(work.target.repository_name, context.tag) is not None


def _build(work: Work) -> Work:
    """The image: there already, being built already, or built now."""
    context, target = work.plan.context, work.target
    if context is None or _image_is_there(work):
        return work
    running = [item for item in work.google.builds(target.location, context.tag) if item["status"] in image.RUNNING]
    if running:
        identity = str(running[0]["id"])
        work.note(f"a build of the same source is running; waiting for it: {identity}")
    else:
        request = image.build_request(target, context, source_object(context))
        identity = work.google.create_build(target.location, request)
        work.note(f"build {identity}")
        work = work.making(f"build {identity}")
    _watch_build(work, identity)
    return work.making(f"image {work.plan.image}")


def _watch_build(work: Work, identity: str) -> None:
    begun, seen = work.clock.now(), frozenset[str]()
    place = f'resource.type="build" AND resource.labels.build_id="{identity}"'
    while True:
        build = work.google.build(work.target.location, identity)
        seen = _show_logs(work, place, seen)
        if build["status"] == "SUCCESS":
            return
        if build["status"] not in image.RUNNING:
            raise _build_error(work.target, build)
        waited = work.clock.now() - begun
        if waited > image.BUILD_TIMEOUT + 600:
            raise DeployError(
                f"build {identity} is still {build['status']} after {waited:.0f} s; see {build['log_url']}"
            )
        work.clock.sleep(5.0)


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
    spec = service.service(work.target, _template(work, deployed, state), work.plan.scaling, _traffic(work, deployed))
    pending = _send(work, deployed, spec)
    work.note(f"revision {name}" if state is None else f"tagged revision {name}, which is there already")
    work = work.making(
        *(() if deployed else (f"service {work.target.service}",)), *(() if state else (f"revision {name}",))
    )
    try:
        wait(
            pending, clock=work.clock, limit=_start_limit(work), every=3.0, tick=lambda waited: _progress(work, waited)
        )
    except ResourceConflict:
        raise
    except DeployError as exc:
        raise _start_error(work, exc) from exc
    return replace(work, deployed=work.google.service(work.target.service_name))


def _send(work: Work, deployed: Mapping[str, Any] | None, spec: dict[str, Any]) -> Pending:
    if deployed is None:
        try:
            return work.google.create_service(work.target.service_name, spec, validate_only=False)
        except ResourceExists as exc:
            raise ResourceConflict(f"{exc}; another deployment made the service meanwhile; run this again") from exc
    # The etag: whoever else deploys now, one of both is told.
    kept = {"etag": deployed["etag"], "annotations": dict(deployed.get("annotations", {}))}
    return work.google.update_service({**spec, **kept}, validate_only=False)


def validate(google: Google, plan: Plan) -> None:
    """Let Cloud Run judge the service without making it (`validate_only`); changes nothing.

    Raises:
        DeployError: Cloud Run refuses it; the message is its own.
    """
    deployed = plan.deployed
    shares = {} if deployed is None else service.serving(deployed)
    traffic = [service.to_revision(name, percent) for name, percent in shares.items()]
    spec = service.service(plan.target, plan.template, plan.scaling, traffic)
    if deployed is None:
        google.create_service(plan.target.service_name, spec, validate_only=True)
    else:
        google.update_service({**spec, "etag": deployed["etag"]}, validate_only=True)


def _template(work: Work, deployed: Mapping[str, Any] | None, state: str | None) -> Mapping[str, Any]:
    if state is not None and deployed is not None:
        # A revision cannot be made twice: the service keeps its template, and traffic alone changes.
        return dict(deployed["template"])
    return {**work.plan.template, "revision": work.revision}


def _traffic(work: Work, deployed: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Everything stays where it flows; the candidate gets a tag. A new service has nobody to protect yet."""
    shares = {} if deployed is None else service.serving(deployed)
    if not shares:
        return [service.to_revision(work.revision, 100, CANDIDATE)]
    flowing = [service.to_revision(name, percent) for name, percent in shares.items() if name != work.revision]
    return [*flowing, service.to_revision(work.revision, shares.get(work.revision, 0), CANDIDATE)]


def _as_wanted(work: Work, deployed: Mapping[str, Any]) -> bool:
    """Whether the revision is reachable already, and the service around it is as the plan wants it."""
    around = service.service(work.target, deployed["template"], work.plan.scaling, [])
    settled = not service.diff(deployed, around)
    serves_all = service.serving(deployed) == {work.revision: 100}
    return settled and (
        serves_all or (service.tag_url(deployed, CANDIDATE) is not None and _tagged(deployed, work.revision))
    )


def _tagged(deployed: Mapping[str, Any], revision: str) -> bool:
    return any(
        item.get("tag") == CANDIDATE and item.get("revision") == revision for item in deployed.get("traffic", [])
    )


def _state(work: Work, name: str) -> Literal["ready", "failed", "pending"] | None:
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
    while (state := _state(work, work.revision)) == "pending":
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
    if not fix.add(work.google, grant, clock=work.clock):
        return work
    work.note(f"granted {grant}")
    return work.making(f"grant {grant}")


def door(work: Work) -> Door:
    """The candidate's address, with identity tokens of the invoker for the service itself."""
    deployed = work.deployed or {}
    audience = str(deployed["uri"])
    url = service.tag_url(deployed, CANDIDATE) or audience
    if work.target.public:
        return Door(url, None)
    return Door(url, lambda: work.google.identity_token(work.target.invoker_account, audience))


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
    kept = ("name", "labels", "ingress", "invoker_iam_disabled", "scaling", "template", "etag")
    spec = {key: deployed[key] for key in kept if key in deployed}
    annotations = {**deployed.get("annotations", {}), **notes}
    return google.update_service({**spec, "annotations": annotations, "traffic": traffic}, validate_only=False)


STEPS: tuple[tuple[str, Callable[[Work], Work]], ...] = (
    ("apis", _apis),
    ("accounts", _accounts),
    ("repository", _repository),
    ("source", _source),
    ("build", _build),
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
    google: Google, plan: Plan, questions: tuple[Question, ...], *, canary: int, clock: Clock, tell: Tell
) -> Deployed:
    """Every step. `canary` is the new revision's share in percent, 100 for all.

    Raises:
        DeployError: a step failed; the message names the step, what this run made, where traffic flows, and that
            running it again goes on from there.
    """
    work = Work(google, clock, plan, questions, canary, tell)
    for name, step in STEPS:
        work = replace(work, step=name)
        tell(Event(name, "begin", ""))
        before = len(work.made)
        try:
            work = step(work)
        except DeployError as exc:
            raise type(exc)(_report(work, name, exc)) from exc
        except ColdstreamError as exc:
            raise DeployError(_report(work, name, exc)) from exc
        made = work.made[before:]
        tell(Event(name, "done" if made else "kept", ", ".join(made)))
    deployed = work.deployed or {}
    return Deployed(str(deployed["uri"]), work.revision, tuple(work.made), service.serving(deployed))


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
