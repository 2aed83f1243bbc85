"""`coldstream deploy`: idempotent steps, each looking first at what is there already.

    apis -> accounts -> repository -> source -> build -> revision -> invoker -> smoke test -> traffic

There is no journal: what was done is read from Google Cloud, so the next run, from wherever, goes on where it
stopped. Traffic moves in the last step alone; until then the service answers as it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coldstream.deploy import build, fix, ground, revision, service, traffic
from coldstream.deploy.access import GRANTING, NEEDS, Grant, Principal, principal_member
from coldstream.deploy.clock import Clock
from coldstream.deploy.google import Google
from coldstream.deploy.plan import Plan
from coldstream.deploy.smoke import Question
from coldstream.deploy.steps import Deployment, Steps, Tell, follow
from coldstream.deploy.target import Kind
from coldstream.errors import ApiDisabled, ResourceNotFound
from coldstream.settings import DeploySettings


def _apis(work: Deployment) -> Deployment:
    off = ground.ensure_apis(work.google, work.target, clock=work.clock, tell=work.note)
    return work.making(*(f"API {name}" for name in off))


def _accounts(work: Deployment) -> Deployment:
    target, builds = work.target, work.plan.context is not None
    ours = [email for email in target.accounts if target.dedicated(email)]
    made = [
        email
        for email in ours
        if (builds or email != target.build_account)
        and ground.ensure_account(work.google, target, email, clock=work.clock, tell=work.note)
    ]
    return work.making(*(f"account {email}" for email in made))


def _repository(work: Deployment) -> Deployment:
    if work.plan.context is None:
        return work
    made = ground.ensure_repository(work.google, work.target, clock=work.clock, tell=work.note)
    return work.making(f"repository {work.target.repository}") if made else work


def _invoker(work: Deployment) -> Deployment:
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


IMAGE_STEPS: Steps = (
    ("apis", _apis),
    ("accounts", _accounts),
    ("repository", _repository),
    ("source", build.upload_source),
    ("build", build.build_image),
)
STEPS: Steps = (
    *IMAGE_STEPS,
    ("revision", revision.make_or_find),
    ("invoker", _invoker),
    ("smoke test", traffic.smoke_test),
    ("traffic", traffic.move_traffic),
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
    work = follow(Deployment(google, clock, plan, wanted, questions, canary, tell), STEPS)
    deployed = work.deployed or {}
    return Deployed(str(deployed["uri"]), work.revision, tuple(work.made), service.serving(deployed))


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
