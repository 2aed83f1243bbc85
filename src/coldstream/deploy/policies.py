"""Organisation policies that could stop a deployment, and whether their rules let this one pass; pure.

Constraints: https://cloud.google.com/resource-manager/docs/organization-policy/org-policy-constraints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from coldstream.deploy import places
from coldstream.deploy.access import Answer
from coldstream.deploy.target import Target
from coldstream.settings import DeploySettings

Rules = Sequence[Mapping[str, Any]]
Verdict = tuple[Answer, str]
_FINE: Verdict = ("yes", "")


def asked(wanted: DeploySettings) -> tuple[str, ...]:
    """The constraints that are worth asking about with these settings."""
    building = () if wanted.image is not None else ("cloudbuild.allowedWorkerPools",)
    network = () if wanted.network is None else ("run.allowedVPCEgress",)
    return (*_JUDGES, *building, *network)


def judge(name: str, rules: Rules, wanted: DeploySettings, target: Target) -> Verdict:
    """Whether a constraint's rules let the deployment pass, and why not. A condition leaves it unknown."""
    if any(rule.get("condition") for rule in rules):
        return "unknown", "a rule has a condition, which is not evaluated here"
    return {**_JUDGES, **_OTHERS}[name](rules, wanted, target)


def _locations(rules: Rules, wanted: DeploySettings, target: Target) -> Verdict:
    answer = _listed(rules, lambda value: places.allowed(value, target.region))
    if answer is None:
        return "unknown", f"a group of locations that is not known here may or may not hold {target.region}"
    return _FINE if answer else ("no", f"{target.region} is not allowed")


def _ingress(rules: Rules, wanted: DeploySettings, target: Target) -> Verdict:
    ingress = wanted.ingress or "all"
    fits = _listed(rules, lambda value: value.removeprefix("is:") == ingress)
    return _FINE if fits else ("no", f"ingress {ingress} is not allowed; choose another with deploy.ingress")


def _accounts(rules: Rules, wanted: DeploySettings, target: Target) -> Verdict:
    ours = [email for email in target.accounts if target.dedicated(email)]
    if _enforced(rules) and ours:
        return "no", "service accounts may not be made; name existing ones with deploy.build_account and the like"
    return _FINE


def _invoker(rules: Rules, wanted: DeploySettings, target: Target) -> Verdict:
    return ("no", "a service may not be public") if _enforced(rules) and target.public else _FINE


def _domains(rules: Rules, wanted: DeploySettings, target: Target) -> Verdict:
    """Members are written as customers' ids; accounts of the organisation's own projects belong to its own customer."""
    if any(rule.get("deny_all") for rule in rules):
        return "no", "nobody may be granted a role"
    if any(rule.get("values", {}).get("allowed_values") for rule in rules):
        return "warning", "roles may be granted to members of certain domains alone; a caller of another one gets none"
    return _FINE


def _keys(rules: Rules, wanted: DeploySettings, target: Target) -> Verdict:
    services = {"run.googleapis.com", *(() if wanted.image else ("artifactregistry.googleapis.com",))}
    services |= set() if wanted.image else {"storage.googleapis.com"}
    denied = {str(item) for rule in rules for item in rule.get("values", {}).get("denied_values", [])}
    demanded = sorted(services & {item.removeprefix("is:") for item in denied})
    if not demanded or wanted.encryption_key is not None:
        return _FINE
    return "no", f"{', '.join(demanded)} want a key of the customer's; name it with deploy.encryption_key"


def _binary(rules: Rules, wanted: DeploySettings, target: Target) -> Verdict:
    listed = any(rule.get("values", {}).get("allowed_values") for rule in rules)
    if not listed or wanted.binary_authorization:
        return _FINE
    return "no", "binary authorization is required; turn it on with deploy.binary_authorization = true"


def _pools(rules: Rules, wanted: DeploySettings, target: Target) -> Verdict:
    pool = wanted.build_pool
    fits = _listed(rules, lambda value: pool is not None and _covers(value, pool))
    if fits is None or (not fits and pool is not None and any("under:" in item for item in _values(rules))):
        return "unknown", "worker pools are allowed by what they lie under, which is not looked up here"
    return (
        _FINE if fits else ("no", "builds must run in a private pool that is allowed; name it with deploy.build_pool")
    )


def _egress(rules: Rules, wanted: DeploySettings, target: Target) -> Verdict:
    fits = _listed(rules, lambda value: value.removeprefix("is:") == "all-traffic")
    return _FINE if fits else ("no", "egress of all traffic through a network is not allowed")


Judge = Callable[[Rules, DeploySettings, Target], Verdict]
_JUDGES: Mapping[str, Judge] = MappingProxyType(
    {
        "gcp.resourceLocations": _locations,
        "iam.disableServiceAccountCreation": _accounts,
        "iam.allowedPolicyMemberDomains": _domains,
        "run.allowedIngress": _ingress,
        "run.managed.requireInvokerIam": _invoker,
        "run.allowedBinaryAuthorizationPolicies": _binary,
        "gcp.restrictNonCmekServices": _keys,
    }
)
_OTHERS: Mapping[str, Judge] = MappingProxyType(
    {"cloudbuild.allowedWorkerPools": _pools, "run.allowedVPCEgress": _egress}
)


def _enforced(rules: Rules) -> bool:
    return any(rule.get("enforce") for rule in rules)


def _values(rules: Rules) -> list[str]:
    return [str(item) for rule in rules for item in rule.get("values", {}).get("allowed_values", [])]


def _covers(value: str, pool: str) -> bool:
    return value.removeprefix("is:") == pool


def _listed(rules: Rules, matches: Callable[[str], bool | None]) -> bool | None:
    """Whether a list constraint lets a value pass; None where a value of it is not understood."""
    denied = [matches(str(item)) for rule in rules for item in rule.get("values", {}).get("denied_values", [])]
    if any(rule.get("deny_all") for rule in rules) or True in denied:
        return False
    values = _values(rules)
    answers = [matches(value) for value in values]
    if None in denied:
        return None
    return not values or (True if True in answers else None if None in answers else False)
