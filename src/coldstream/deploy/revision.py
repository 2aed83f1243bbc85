"""The revision of a plan: made without traffic under a tag, waited for, and found again by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from coldstream.deploy import ground, service
from coldstream.deploy.build import built_digest
from coldstream.deploy.google import Pending, wait
from coldstream.deploy.service import CANDIDATE
from coldstream.deploy.steps import Deployment, poll
from coldstream.errors import ColdstreamError, DeployError, ResourceConflict, ResourceExists


def make_or_find(work: Deployment) -> Deployment:
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


def _make_revision(work: Deployment, deployed: Mapping[str, Any] | None, *, new: bool) -> Deployment:
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


def _await(work: Deployment, pending: Pending) -> None:
    try:
        wait(
            pending, clock=work.clock, limit=_start_limit(work), every=3.0, tick=lambda waited: _progress(work, waited)
        )
    except ResourceConflict:
        raise
    except DeployError as exc:
        raise _start_error(work, exc) from exc


def _spec(work: Deployment, deployed: Mapping[str, Any] | None, *, new: bool) -> dict[str, Any]:
    plan = work.plan
    return service.service(
        work.target,
        _template(work, deployed, new=new),
        plan.scaling,
        _traffic(work, deployed),
        options=plan.options,
        deployed=deployed,
    )


def _template(work: Deployment, deployed: Mapping[str, Any] | None, *, new: bool) -> Mapping[str, Any]:
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


def _send(work: Deployment, deployed: Mapping[str, Any] | None, spec: dict[str, Any]) -> Pending:
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


def _stop_old(work: Deployment, deployed: Mapping[str, Any]) -> Mapping[str, Any]:
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


def _start_old(work: Deployment, stopped: Mapping[str, Any] | None, deployed: Mapping[str, Any] | None) -> None:
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


def _traffic(work: Deployment, deployed: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Everything stays where it flows; the candidate gets a tag. A new service has no callers to protect yet."""
    shares = {} if deployed is None else service.serving(deployed)
    if not shares:
        return [service.to_revision(work.revision, 100, CANDIDATE)]
    flowing = [service.to_revision(name, percent) for name, percent in shares.items() if name != work.revision]
    return [*flowing, service.to_revision(work.revision, shares.get(work.revision, 0), CANDIDATE)]


def _as_wanted(work: Deployment, deployed: Mapping[str, Any]) -> bool:
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


def _state(work: Deployment, name: str) -> State:
    revision = work.google.revision(f"{work.target.service_name}/revisions/{name}")
    if revision is None:
        return None
    state = next((item.get("state") for item in revision.get("conditions", []) if item.get("type_") == "Ready"), "")
    return {"CONDITION_SUCCEEDED": "ready", "CONDITION_FAILED": "failed"}.get(state or "", "pending")  # type: ignore[return-value]


def _start_limit(work: Deployment) -> float:
    return work.plan.size.probe_period * work.plan.size.probe_failures + 600.0


def _progress(work: Deployment, waited: float) -> None:
    if waited and int(waited) % 15 < 3:
        work.note(f"the revision is starting: {waited:.0f} s of about {work.plan.size.seconds_to_first_token:.0f} s")


def _await_revision(work: Deployment) -> Deployment:
    begun = work.clock.now()
    unheard: State = "pending"
    while (state := poll(lambda: _state(work, work.revision), unheard)) == "pending":
        waited = work.clock.now() - begun
        if waited > _start_limit(work):
            raise _start_error(work, DeployError(f"revision {work.revision} is still starting after {waited:.0f} s"))
        _progress(work, waited)
        work.clock.sleep(3.0)
    if state != "ready":
        raise _start_error(work, DeployError(f"revision {work.revision} did not become ready"))
    return replace(work, deployed=work.google.service(work.target.service_name))


def _start_error(work: Deployment, cause: DeployError) -> DeployError:
    """The failure with the last words of the container, which say why."""
    place = f'resource.type="cloud_run_revision" AND resource.labels.revision_name="{work.revision}"'
    try:
        entries = work.google.log_entries(work.target.project, place, newest=5)
    except ColdstreamError:
        entries = ()
    said = "".join(f"\n    {entry['text']}" for entry in entries)
    return DeployError(f"{cause}{said}")
