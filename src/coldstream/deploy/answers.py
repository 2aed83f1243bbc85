"""From evidence to checks: each row of the access graph with its answer, and what mends it; pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from coldstream.deploy import access
from coldstream.deploy.access import AGENTS, MAKING, Answer, Check, Grant, Make, Need, Principal
from coldstream.deploy.evidence import Evidence, EvidenceQuestion, email_of, project_of
from coldstream.deploy.target import Kind, Resource
from coldstream.errors import AccessBarred


def access_checks(evidence: Evidence) -> tuple[Check, ...]:
    """The graph, answered."""
    target = evidence.target
    return (
        *_apis_checks(evidence),
        *(_made_check(evidence, resource) for resource in access.made_resources(target)),
        *(_check(evidence, need, resource) for need, resource in access.needs(target)),
    )


def _apis_checks(evidence: Evidence) -> list[Check]:
    read_with = access.helpers(evidence.target)
    needed = tuple(api for api in access.apis(evidence.target) if api not in read_with)
    return [
        _apis_check(evidence, needed, f"the {len(needed)} APIs are on", "no"),
        _apis_check(evidence, read_with, f"the {len(read_with)} APIs that checks read with are on", "warning"),
    ]


def _apis_check(evidence: Evidence, wanted: tuple[str, ...], question: str, when_off: Answer) -> Check:
    project = evidence.target.resource(Kind.PROJECT)
    said = evidence.apis
    if said.value is None:
        return Check("apis", question, "unknown", said.why_not, Make(project, apis=wanted))
    off = tuple(api for api in wanted if not said.value.get(api, False))
    if not off:
        return Check("apis", question, "yes", said.call)
    may = evidence.caller_may(MAKING["apis"], project)
    names = ", ".join(api.removesuffix(".googleapis.com") for api in off)
    whom = "the caller may turn them on" if may else "the caller may not turn them on"
    return Check("apis", question, when_off, f"{said.call}: off: {names}; {whom}", Make(project, apis=off))


_STEPS: Mapping[Kind, str] = MappingProxyType(
    {
        Kind.ACCOUNT: "accounts",
        Kind.REPOSITORY: "repository",
        Kind.BUCKET: "source bucket",
        Kind.SECRET: "keys",
    }
)


def _made_check(evidence: Evidence, resource: Resource) -> Check:
    question = f"{resource} is there, or can be made"
    step, make = _STEPS[resource.kind], Make(resource, region=evidence.target.region)
    there = evidence.exists(resource)
    if there:
        return _owner_check(evidence, resource, step, question)
    project = evidence.target.resource(Kind.PROJECT)
    may = evidence.caller_may(MAKING[resource.kind], project)
    if resource.kind is Kind.SECRET and there is False:
        text = "not there; `coldstream doctor --fix` makes it, with a key of its own in it"
        return Check(step, question, "no", text, make)
    evidence_text = f"{'not there' if there is False else 'cannot be seen'}; {evidence.held[project].call}"
    if there is False and may:
        return Check(step, question, "yes", f"{evidence_text}: the caller may make it")
    if may is None or there is None:
        said = evidence.held[project] if may is None else evidence.there.get(resource, evidence.held[project])
        return Check(step, question, "unknown", said.why_not if said.error else evidence_text, make)
    return Check(step, question, "no", f"{evidence_text}: {MAKING[resource.kind]} is missing", make)


def _owner_check(evidence: Evidence, resource: Resource, step: str, question: str) -> Check:
    """Whose the source bucket is: a bucket's name is everybody's to take, and who has it may exchange what we build."""
    if resource.kind is not Kind.BUCKET:
        return Check(step, question, "yes", "it is there")
    question = f"{resource} is the project's own"
    said, number = evidence.buckets[resource.name], evidence.target.number
    if said.value is None or number is None:
        why = said.why_not if said.value is None else evidence.project.why_not
        return Check(step, question, "unknown", why)
    owner = said.value["project_number"]
    if owner == number:
        return Check(step, question, "yes", f"{said.call}: project {owner}")
    advice = 'name another with source_bucket = "..." under [deploy]'
    return Check(step, question, "no", f"{said.call}: it belongs to project {owner}, not {number}", advice)


def _check(evidence: Evidence, need: Need, resource: Resource) -> Check:
    question = f"{need.principal}: {need.permission} on {resource}"
    member = access.principal_member(need.principal, evidence.target, evidence.member)
    answer, why = _answer(evidence, need, resource)
    if answer == "yes":
        return Check(need.step, question, answer, why)
    if answer == "no" and need.comfort:
        answer = "warning"
    if not _made_before(evidence, resource):
        return Check(need.step, question, answer, why, f"{resource} is not there: make it, or name another")
    return Check(need.step, question, answer, why, Grant(need.role, member, _granted_on(evidence, resource)))


def _made_before(evidence: Evidence, resource: Resource) -> bool:
    """Whether there is something to grant on, by the time that grants are made."""
    made = resource.kind is Kind.SERVICE or resource in access.made_resources(evidence.target)
    return made or evidence.exists(resource) is not False


def _granted_on(evidence: Evidence, resource: Resource) -> Resource:
    # A service that is not deployed yet has no policy to grant on; everything else is made before it is granted on.
    if resource.kind is Kind.SERVICE and not evidence.exists(resource):
        return project_of(resource)
    return resource


def _answer(evidence: Evidence, need: Need, resource: Resource) -> tuple[Answer, str]:
    if need.principal is Principal.CALLER:
        return _callers_answer(evidence, need, resource)
    target = evidence.target
    email = email_of(need.principal, target)
    if need.principal not in AGENTS and evidence.exists(target.resource(Kind.ACCOUNT, email)) is False:
        return "no", f"account {email} is not there yet"
    if resource.kind is not Kind.SERVICE and evidence.exists(resource) is False:
        return "no", f"{resource} is not there yet"
    answer, why = evidence.others[EvidenceQuestion(email, need.permission, _granted_on(evidence, resource))]
    deploy_grants_it = need.principal is Principal.INVOKER and evidence.caller_may(
        access.GRANTING[Kind.SERVICE], resource
    )
    if answer != "yes" and deploy_grants_it:
        return "yes", f"{why}: {answer}; but the caller may grant it on the service, and deploy does"
    return answer, why


def _callers_answer(evidence: Evidence, need: Need, resource: Resource) -> tuple[Answer, str]:
    may = evidence.caller_may(need.permission, resource)
    there, said = evidence.exists(resource), evidence.said_of(resource)
    if may is None and isinstance(said.error, AccessBarred) and need.permission in str(said.error):
        return "no", said.why_not
    if may is None:
        return "unknown", said.why_not if said.error else f"{said.call}: {resource} cannot be seen"
    where = f"{said.call} ({resource} is not there yet)" if there is False else said.call
    return ("yes" if may else "no"), where
