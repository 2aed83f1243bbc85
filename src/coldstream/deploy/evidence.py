"""Answers to the access graph's questions: every call is made at once, and what it said is kept with the answer.

Whether a resource is there is asked with `get`: what testIamPermissions says of one that is not differs by service. The
caller is asked about with testIamPermissions, one call a resource. Other principals are asked about with the policy
troubleshooter; where that is not available, with the policies of the resource and the project, which show neither
groups' members, nor deny policies, nor what is inherited from folders: what they do not show stays unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from coldstream.deploy import access
from coldstream.deploy.access import AGENTS, Answer, Principal
from coldstream.deploy.google import Google
from coldstream.deploy.target import Kind, Resource, Target
from coldstream.errors import (
    ApiDisabled,
    ColdstreamError,
    MissingExtra,
    ResourceNotFound,
)

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
    """Call, and keep what it said. Without Google's clients nothing can be asked: that is no answer."""
    try:
        return Said(call, function())
    except MissingExtra:
        raise
    except ColdstreamError as exc:
        return Said(call, error=exc)


@dataclass(frozen=True, slots=True)
class EvidenceQuestion:
    """Another principal's permission on a resource."""

    email: str
    permission: str
    resource: Resource


@dataclass(frozen=True)
class Evidence:
    """Everything that the calls said about access. `target` knows the project's number, where it was said."""

    target: Target
    caller: Said[str]
    apis: Said[Mapping[str, bool]]
    project: Said[Mapping[str, str]]
    held: Mapping[Resource, Said[frozenset[str]]]
    there: Mapping[Resource, Said[bool]]
    buckets: Mapping[str, Said[Mapping[str, Any]]]
    service: Said[Mapping[str, Any] | None]
    others: Mapping[EvidenceQuestion, tuple[Answer, str]]

    @property
    def member(self) -> str:
        """The caller's IAM member."""
        return self.target.caller or self.caller.value or access.NOBODY

    def exists(self, resource: Resource) -> bool | None:
        """Whether a resource is there; None when Google would not say. A project whose API is off has nothing of it."""
        if resource.kind is Kind.PROJECT:
            return True
        if resource.kind is Kind.SERVICE and not self.service.error:
            return self.service.value is not None
        said = self.there.get(resource)
        if said is not None and said.error is None:
            return said.value
        if said is not None and isinstance(said.error, ApiDisabled) and resource.project == self.target.project:
            return False
        held = self.held.get(resource)
        # Who holds a permission on it knows that it is there; who holds none may be told nothing of one that is not.
        return True if held is not None and held.value else None

    def caller_may(self, permission: str, resource: Resource) -> bool | None:
        """Whether the caller holds a permission: on the resource, or on the project, from which it is inherited."""
        project = Resource(Kind.PROJECT, resource.project, resource.project)
        places = [project] if self.exists(resource) is False else [resource, project]
        values = [said.value for place in places if (said := self.held.get(place)) is not None and not said.missing]
        if any(value is not None and permission in value for value in values):
            return True
        return None if not values or None in values else False

    def said_of(self, resource: Resource) -> Said[Any]:
        """The call that answers for the caller's permissions on a resource."""
        project = Resource(Kind.PROJECT, resource.project, resource.project)
        fallback = self.held.get(project, self.held[self.target.resource(Kind.PROJECT)])
        return fallback if self.exists(resource) is False else self.held.get(resource, fallback)


def gather(google: Google, target: Target) -> Evidence:
    """Ask everything, in parallel."""
    with ThreadPoolExecutor(WORKERS) as pool:
        asked_project = pool.submit(ask, "projects.get", lambda: google.project(target.project))
        if any(need.principal in AGENTS for need, _ in access.needs(target)):
            # A service agent's name has the project's number in it.
            target = _numbered(target, asked_project.result())
        questions = tuple(_questions(target))
        caller = pool.submit(ask, "oauth2.userinfo", google.caller)
        apis = pool.submit(ask, "services.batchGet", lambda: google.enabled_apis(target.project, access.apis(target)))
        service = pool.submit(ask, "services.get", lambda: google.service(target.service_name))
        held = {
            resource: pool.submit(ask, f"testIamPermissions on {resource}", _test(google, resource, permissions))
            for resource, permissions in access.asked_of_caller(target).items()
        }
        buckets = {name: pool.submit(ask, "buckets.get", _bucket(google, name)) for name in _bucket_names(target)}
        there = {
            resource: pool.submit(ask, f"{resource.kind}s.get", _exists(google, resource))
            for resource in _looked_for(target)
        }
        troubled = {item: pool.submit(ask, "policytroubleshooter", _troubleshoot(google, item)) for item in questions}
        unanswered = [item for item, future in troubled.items() if future.result().value in (None, "unknown")]
        policies, project = _policies(google, pool, unanswered), asked_project.result()
        seen = {name: future.result() for name, future in buckets.items()}
        alone = _alone(target, project, seen)
        others = {
            item: _other(item, future.result(), policies, alone=item.resource in alone)
            for item, future in troubled.items()
        }
        return Evidence(
            _numbered(target, project),
            caller.result(),
            apis.result(),
            project,
            {resource: future.result() for resource, future in held.items()},
            {resource: future.result() for resource, future in there.items()} | _buckets_there(target, seen),
            seen,
            service.result(),
            others,
        )


def _numbered(target: Target, project: Said[Mapping[str, str]]) -> Target:
    return replace(target, number=(project.value or {}).get("number"))


def _bucket_names(target: Target) -> tuple[str, ...]:
    source = () if target.own_image is not None else (target.source_bucket,)
    return tuple(dict.fromkeys((*source, *target.model_buckets, *target.photo_buckets)))


def _bucket(google: Google, name: str) -> Callable[[], Mapping[str, Any]]:
    return lambda: google.bucket(name)


def _buckets_there(target: Target, seen: Mapping[str, Said[Mapping[str, Any]]]) -> dict[Resource, Said[bool]]:
    return {
        target.resource(Kind.BUCKET, name): Said(said.call, value=not said.missing)
        if said.missing or said.value is not None
        else Said(said.call, error=said.error)
        for name, said in seen.items()
    }


def _looked_for(target: Target) -> tuple[Resource, ...]:
    """What may not be there: all that a deployment makes, and what is named by its path; buckets are apart."""
    accounts = [target.resource(Kind.ACCOUNT, email) for email in target.accounts]
    named = [item for item in (target.key, target.subnet) if item is not None]
    made = access.made_resources(target)
    return tuple(item for item in dict.fromkeys((*accounts, *made, *named)) if item.kind is not Kind.BUCKET)


def _exists(google: Google, resource: Resource) -> Callable[[], bool]:
    def look() -> bool:
        if resource.kind is Kind.ACCOUNT:
            return google.account_exists(resource.project, resource.name)
        get = {Kind.SECRET: google.secret, Kind.KEY: google.key, Kind.SUBNET: google.subnet}
        try:
            get.get(resource.kind, google.repository)(resource.name)
        except ResourceNotFound:
            return False
        return True

    return look


def _test(google: Google, resource: Resource, permissions: tuple[str, ...]) -> Callable[[], frozenset[str]]:
    return lambda: google.test_permissions(resource, permissions)


def _troubleshoot(google: Google, question: EvidenceQuestion) -> Callable[[], Answer]:
    return lambda: google.troubleshoot(question.email, question.permission, question.resource)


def _questions(target: Target) -> Iterable[EvidenceQuestion]:
    for need, resource in access.needs(target):
        if need.principal is not Principal.CALLER:
            yield EvidenceQuestion(email_of(need.principal, target), need.permission, resource)
            if resource.kind is Kind.SERVICE:
                # A service that is not there yet inherits from the project; which of both counts is known later.
                yield EvidenceQuestion(email_of(need.principal, target), need.permission, target.resource(Kind.PROJECT))


def email_of(principal: Principal, target: Target) -> str:
    return access.principal_member(principal, target, "").partition(":")[2]


# The fallback: policies that the caller may read, expanded here.


@dataclass(frozen=True)
class _Policies:
    bindings: Mapping[Resource, Said[dict[str, Any]]]
    roles: Mapping[str, Said[frozenset[str]]]


def project_of(resource: Resource) -> Resource:
    return Resource(Kind.PROJECT, resource.project, resource.project)


def _with_parents(resource: Resource) -> tuple[Resource, ...]:
    """The resource and what its policy inherits from, up to the project."""
    ring = resource.name.partition("/cryptoKeys/")[0]
    between = (Resource(Kind.KEY, ring, resource.project),) if resource.kind is Kind.KEY else ()
    return tuple(dict.fromkeys((resource, *between, project_of(resource))))


def _alone(
    target: Target, project: Said[Mapping[str, str]], buckets: Mapping[str, Said[Mapping[str, Any]]]
) -> frozenset[Resource]:
    """What nothing above the project's own policy could grant a role on: the project has no parent, and it is in it."""
    if project.value is None or project.value["parent"]:
        return frozenset()
    resources = {resource for _, resource in access.needs(target)} | {target.resource(Kind.PROJECT)}
    number = project.value["number"]
    foreign = {name for name, said in buckets.items() if (said.value or {}).get("project_number") != number}
    return frozenset(
        item
        for item in resources
        if item.project == target.project and not (item.kind is Kind.BUCKET and item.name in foreign)
    )


def _policies(google: Google, pool: ThreadPoolExecutor, questions: list[EvidenceQuestion]) -> _Policies:
    places = dict.fromkeys(place for item in questions for place in _with_parents(item.resource))
    policies = {place: pool.submit(ask, f"getIamPolicy on {place}", _policy(google, place)) for place in places}
    bindings = {place: future.result() for place, future in policies.items()}
    names = {item["role"] for said in bindings.values() if said.value for item in said.value["bindings"]}
    roles = {name: pool.submit(ask, "roles.get", _role(google, name)) for name in sorted(names)}
    return _Policies(bindings, {name: future.result() for name, future in roles.items()})


def _policy(google: Google, resource: Resource) -> Callable[[], dict[str, Any]]:
    return lambda: google.policy(resource)


def _role(google: Google, name: str) -> Callable[[], frozenset[str]]:
    return lambda: google.role_permissions(name)


def _other(item: EvidenceQuestion, troubled: Said[Answer], policies: _Policies, *, alone: bool) -> tuple[Answer, str]:
    if troubled.value in ("yes", "no"):
        return troubled.value, "policytroubleshooter"
    first = troubled.why_not if troubled.error else "policytroubleshooter: part of the policy is hidden from the caller"
    asked = _with_parents(item.resource)
    answers = [_in_policy(item, policies.bindings[place], policies.roles) for place in asked]
    places = f"the policies of {item.resource} and {asked[-1]}"
    if "yes" in answers:
        return "unknown", f"{first}; getIamPolicy: granted in {places}, which show no deny policy"
    if "unknown" in answers:
        hidden = [policies.bindings[place].why_not for place in asked if policies.bindings[place].error]
        why = hidden[0] if hidden else f"a group, a condition or a role in {places} may or may not grant it"
        return "unknown", f"{first}; {why}"
    if alone:
        return "no", f"getIamPolicy: not in {places}, and the project has no parent"
    return "unknown", f"{first}; not in {places}, but a folder or the organisation might grant it"


def _in_policy(
    item: EvidenceQuestion, policy: Said[dict[str, Any]], roles: Mapping[str, Said[frozenset[str]]]
) -> Answer:
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
