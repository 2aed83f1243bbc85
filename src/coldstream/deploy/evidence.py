"""Answers to the access graph's questions: every call is made at once, and what it said is kept with the answer.

The caller is asked about with testIamPermissions, one call a resource. Other principals are asked about with the policy
troubleshooter; where that is not available, with the policies of the resource and the project, which show neither
groups' members nor what is inherited from folders: what they do not show stays unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from coldstream.deploy import access
from coldstream.deploy.access import APIS, MAKING, Answer, Check, Grant, Make, Need, Principal
from coldstream.deploy.google import Google
from coldstream.deploy.target import Kind, Resource, Target
from coldstream.errors import ApiDisabled, ColdstreamError, MissingExtra, ResourceNotFound

WORKERS = 24

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Said(Generic[_T]):
    """What a call answered, or the error it raised."""

    call: str
    value: _T | None = None
    error: ColdstreamError | None = None

    @property
    def missing(self) -> bool:
        return isinstance(self.error, ResourceNotFound)

    @property
    def why_not(self) -> str:
        """Why there is no value, in one line."""
        if isinstance(self.error, ApiDisabled):
            return f"{self.call}: that API is off"
        return f"{self.call}: {str(self.error).splitlines()[0][:160]}"


def ask(call: str, function: Callable[[], _T]) -> Said[_T]:
    """Call, and keep what it said. Without Google's clients nothing can be asked: that is nobody's answer."""
    try:
        return Said(call, function())
    except MissingExtra:
        raise
    except ColdstreamError as exc:
        return Said(call, error=exc)


@dataclass(frozen=True, slots=True)
class Question:
    """Another principal's permission on a resource."""

    email: str
    permission: str
    resource: Resource


@dataclass(frozen=True)
class Evidence:
    """Everything that the calls said about access."""

    caller: Said[str]
    apis: Said[Mapping[str, bool]]
    parent: Said[str]
    held: Mapping[Resource, Said[frozenset[str]]]
    accounts: Mapping[str, Said[bool]]
    service: Said[Mapping[str, Any] | None]
    others: Mapping[Question, tuple[Answer, str]]

    def exists(self, resource: Resource) -> bool | None:
        """Whether a resource is there; None when nobody would say. An API that is off has nothing."""
        if resource.kind is Kind.ACCOUNT and (seen := self.accounts.get(resource.name)) is not None and not seen.error:
            return seen.value
        if resource.kind is Kind.SERVICE and not self.service.error:
            return self.service.value is not None
        said = self.held.get(resource)
        if said is None:
            return None
        if said.missing or isinstance(said.error, ApiDisabled):
            return resource.kind is Kind.PROJECT
        return True if said.error is None else None

    def caller_may(self, permission: str, resource: Resource) -> bool | None:
        """Whether the caller holds a permission; on what is not there yet, as it would be inherited."""
        place = resource
        if self.exists(resource) is False and resource.kind is not Kind.PROJECT:
            place = Resource(Kind.PROJECT, resource.project, resource.project)
        said = self.held.get(place)
        return None if said is None or said.value is None else permission in said.value


def gather(google: Google, target: Target) -> Evidence:
    """Ask everything, in parallel."""
    questions = tuple(_questions(target))
    asked = access.asked_of_caller(target)
    with ThreadPoolExecutor(WORKERS) as pool:
        caller = pool.submit(ask, "oauth2.userinfo", google.caller)
        apis = pool.submit(ask, "services.batchGet", lambda: google.enabled_apis(target.project, APIS))
        parent = pool.submit(ask, "projects.get", lambda: google.project_parent(target.project))
        service = pool.submit(ask, "services.get", lambda: google.service(target.service_name))
        held = {
            resource: pool.submit(ask, f"testIamPermissions on {resource}", _test(google, resource, permissions))
            for resource, permissions in asked.items()
        }
        accounts = {
            email: pool.submit(ask, "serviceAccounts.get", _exists(google, target.project, email))
            for email in target.accounts
        }
        troubled = {item: pool.submit(ask, "policytroubleshooter", _troubleshoot(google, item)) for item in questions}
        unanswered = [item for item, future in troubled.items() if future.result().value in (None, "unknown")]
        policies = _policies(google, pool, target, unanswered)
        known = parent.result()
        others = {item: _other(item, future.result(), policies, known) for item, future in troubled.items()}
        return Evidence(
            caller.result(),
            apis.result(),
            known,
            {resource: future.result() for resource, future in held.items()},
            {email: future.result() for email, future in accounts.items()},
            service.result(),
            others,
        )


def _test(google: Google, resource: Resource, permissions: tuple[str, ...]) -> Callable[[], frozenset[str]]:
    return lambda: google.test_permissions(resource, permissions)


def _exists(google: Google, project: str, email: str) -> Callable[[], bool]:
    return lambda: google.account_exists(project, email)


def _troubleshoot(google: Google, question: Question) -> Callable[[], Answer]:
    return lambda: google.troubleshoot(question.email, question.permission, question.resource)


def _questions(target: Target) -> Iterable[Question]:
    for need, resource in access.needs(target):
        if need.principal is not Principal.CALLER:
            yield Question(_email(need.principal, target), need.permission, resource)
            if resource.kind is Kind.SERVICE:
                # A service that is not there yet inherits from the project; which of both counts is known later.
                yield Question(_email(need.principal, target), need.permission, target.resource(Kind.PROJECT))


def _email(principal: Principal, target: Target) -> str:
    return access.principal_member(principal, target, "").partition(":")[2]


# The fallback: policies that the caller may read, expanded here.


@dataclass(frozen=True)
class _Policies:
    bindings: Mapping[Resource, Said[dict[str, Any]]]
    roles: Mapping[str, Said[frozenset[str]]]


def _policies(google: Google, pool: ThreadPoolExecutor, target: Target, questions: list[Question]) -> _Policies:
    project = target.resource(Kind.PROJECT)
    places = dict.fromkeys(place for item in questions for place in (item.resource, project))
    policies = {place: pool.submit(ask, f"getIamPolicy on {place}", _policy(google, place)) for place in places}
    bindings = {place: future.result() for place, future in policies.items()}
    names = {item["role"] for said in bindings.values() if said.value for item in said.value["bindings"]}
    roles = {name: pool.submit(ask, "roles.get", _role(google, name)) for name in sorted(names)}
    return _Policies(bindings, {name: future.result() for name, future in roles.items()})


def _policy(google: Google, resource: Resource) -> Callable[[], dict[str, Any]]:
    return lambda: google.policy(resource)


def _role(google: Google, name: str) -> Callable[[], frozenset[str]]:
    return lambda: google.role_permissions(name)


def _other(item: Question, troubled: Said[Answer], policies: _Policies, parent: Said[str]) -> tuple[Answer, str]:
    if troubled.value in ("yes", "no"):
        return troubled.value, "policytroubleshooter"
    first = troubled.why_not if troubled.error else "policytroubleshooter: part of the policy is hidden from the caller"
    project = Resource(Kind.PROJECT, item.resource.project, item.resource.project)
    answers = [_in_policy(item, policies.bindings[place], policies.roles) for place in (item.resource, project)]
    places = f"the policies of {item.resource} and {project}"
    if "yes" in answers:
        return "yes", f"getIamPolicy: granted in {places}"
    if "unknown" in answers:
        hidden = [
            policies.bindings[place].why_not for place in (item.resource, project) if policies.bindings[place].error
        ]
        why = hidden[0] if hidden else f"a group, a condition or a role in {places} may or may not grant it"
        return "unknown", f"{first}; {why}"
    if parent.value == "":
        return "no", f"getIamPolicy: not in {places}, and the project has no parent"
    return "unknown", f"{first}; not in {places}, but a folder or the organisation might grant it"


def _in_policy(item: Question, policy: Said[dict[str, Any]], roles: Mapping[str, Said[frozenset[str]]]) -> Answer:
    if policy.missing:
        return "no"
    if policy.value is None:
        return "unknown"
    answer: Answer = "no"
    for binding in policy.value["bindings"]:
        contains = roles[binding["role"]]
        if contains.value is not None and item.permission not in contains.value:
            continue
        certain = contains.value is not None and "condition" not in binding
        direct = {f"serviceAccount:{item.email}", f"user:{item.email}", "allUsers", "allAuthenticatedUsers"}
        if certain and direct & set(binding["members"]):
            return "yes"
        if not certain or any(member.startswith(("group:", "domain:")) for member in binding["members"]):
            answer = "unknown"
    return answer


# From evidence to checks.


def access_checks(target: Target, evidence: Evidence) -> tuple[Check, ...]:
    """The graph, answered."""
    return (
        _apis_check(target, evidence),
        *(_made_check(target, evidence, resource) for resource in access.made_resources(target)),
        *(_check(target, evidence, need, resource) for need, resource in access.needs(target)),
    )


def _apis_check(target: Target, evidence: Evidence) -> Check:
    project = target.resource(Kind.PROJECT)
    said, question = evidence.apis, f"the {len(APIS)} APIs are on"
    if said.value is None:
        return Check("apis", question, "unknown", said.why_not, Make(project, apis=APIS))
    off = tuple(api for api in APIS if not said.value.get(api, False))
    if not off:
        return Check("apis", question, "yes", said.call)
    may = evidence.caller_may(MAKING["apis"], project)
    names = ", ".join(api.removesuffix(".googleapis.com") for api in off)
    whom = "the caller may turn them on" if may else "the caller may not turn them on"
    return Check("apis", question, "no", f"{said.call}: off: {names}; {whom}", Make(project, apis=off))


def _made_check(target: Target, evidence: Evidence, resource: Resource) -> Check:
    question, make = f"{resource} is there, or can be made", Make(resource, region=target.region)
    step = {Kind.ACCOUNT: "accounts", Kind.REPOSITORY: "repository"}.get(resource.kind, "source bucket")
    there = evidence.exists(resource)
    if there:
        return Check(step, question, "yes", "it is there")
    project = target.resource(Kind.PROJECT)
    may = evidence.caller_may(MAKING[resource.kind], project)
    evidence_text = f"{'not there' if there is False else 'cannot be seen'}; {evidence.held[project].call}"
    if there is False and may:
        return Check(step, question, "yes", f"{evidence_text}: the caller may make it")
    if may is None or there is None:
        said = evidence.held[project] if may is None else evidence.held.get(resource, evidence.held[project])
        return Check(step, question, "unknown", said.why_not if said.error else evidence_text, make)
    return Check(step, question, "no", f"{evidence_text}: {MAKING[resource.kind]} is missing", make)


def _check(target: Target, evidence: Evidence, need: Need, resource: Resource) -> Check:
    question = f"{need.principal}: {need.permission} on {resource}"
    member = access.principal_member(need.principal, target, evidence.caller.value or access.NOBODY)
    answer, why = _answer(target, evidence, need, resource)
    if answer == "yes":
        return Check(need.step, question, answer, why)
    return Check(need.step, question, answer, why, Grant(need.role, member, _granted_on(evidence, resource)))


def _granted_on(evidence: Evidence, resource: Resource) -> Resource:
    # A service that is not deployed yet has no policy to grant on; everything else is made before it is granted on.
    if resource.kind is Kind.SERVICE and not evidence.exists(resource):
        return Resource(Kind.PROJECT, resource.project, resource.project)
    return resource


def _answer(target: Target, evidence: Evidence, need: Need, resource: Resource) -> tuple[Answer, str]:
    if need.principal is Principal.CALLER:
        return _callers_answer(evidence, need, resource)
    email = _email(need.principal, target)
    if evidence.exists(target.resource(Kind.ACCOUNT, email)) is False:
        return "no", f"account {email} is not there yet"
    if resource.kind in (Kind.BUCKET, Kind.REPOSITORY) and evidence.exists(resource) is False:
        return "no", f"{resource} is not there yet"
    answer, why = evidence.others[Question(email, need.permission, _granted_on(evidence, resource))]
    deploy_grants_it = need.principal is Principal.INVOKER and evidence.caller_may(
        access.GRANTING[Kind.SERVICE], resource
    )
    if answer != "yes" and deploy_grants_it:
        return "yes", f"{why}: {answer}; but the caller may grant it on the service, and deploy does"
    return answer, why


def _callers_answer(evidence: Evidence, need: Need, resource: Resource) -> tuple[Answer, str]:
    may = evidence.caller_may(need.permission, resource)
    there = evidence.exists(resource)
    project = Resource(Kind.PROJECT, resource.project, resource.project)
    said = evidence.held[project if there is False else resource]
    if may is None:
        return "unknown", said.why_not
    where = (
        f"{said.call} ({resource} is not there yet)"
        if there is False and resource.kind is not Kind.PROJECT
        else said.call
    )
    return ("yes" if may else "no"), where
