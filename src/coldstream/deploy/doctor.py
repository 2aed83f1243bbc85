"""`coldstream doctor`: everything that could stop a deployment, asked at once; changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from coldstream.deploy import evidence, plan, quota
from coldstream.deploy.access import NOBODY, Check, Grant
from coldstream.deploy.evidence import Evidence, Said, ask
from coldstream.deploy.google import Google
from coldstream.deploy.plan import Model, OpenModel
from coldstream.deploy.sizing import GIB
from coldstream.deploy.target import Kind, Target
from coldstream.errors import ColdstreamError, PermissionRefused
from coldstream.settings import DeploySettings, Settings

OK, MISSING, UNKNOWN = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Report:
    """Every check, and what they rest on."""

    target: Target
    evidence: Evidence
    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """0: nothing stands in the way. 1: something is missing. 2: something could not be found out."""
        answers = {check.answer for check in self.checks}
        return MISSING if "no" in answers else UNKNOWN if "unknown" in answers else OK

    @property
    def grants(self) -> tuple[Grant, ...]:
        """What mends the access graph: each grant once."""
        mends = [check.mend for check in self.checks if not check.met]
        return tuple(dict.fromkeys(mend for mend in mends if isinstance(mend, Grant)))

    def as_json(self) -> dict[str, Any]:
        """The report as plain data."""
        checks = [
            {
                "step": check.step,
                "question": check.question,
                "answer": check.answer,
                "evidence": check.evidence,
                "mend": None if check.mend is None else str(check.mend),
            }
            for check in self.checks
        ]
        return {
            "project": self.target.project,
            "region": self.target.region,
            "exit_code": self.exit_code,
            "checks": checks,
        }


def examine(
    google: Google, settings: Settings, wanted: DeploySettings, target: Target, *, open_model: OpenModel
) -> Report:
    """Ask everything in parallel, and answer."""
    names = (
        "gcp.resourceLocations",
        "iam.disableServiceAccountCreation",
        "run.allowedIngress",
        "run.managed.requireInvokerIam",
    )
    with ThreadPoolExecutor(16) as pool:
        access = pool.submit(evidence.gather, google, target)
        billing = pool.submit(ask, "getBillingInfo", lambda: google.billing_enabled(target.project))
        buckets = {name: pool.submit(ask, "buckets.get", _bucket(google, name)) for name in target.model_buckets}
        policies = {name: pool.submit(ask, f"orgpolicy {name}", _policy(google, target, name)) for name in names}
        limits = pool.submit(plan.limits, google, target.project, target.region)
        models = {name: pool.submit(_model, settings, name, open_model) for name in settings.models}
        checks = [
            *evidence.access_checks(target, access.result()),
            _billing_check(billing.result()),
            *_model_checks(settings, models),
            *(_region_check(target, name, future.result()) for name, future in buckets.items()),
            *(_policy_check(target, name, future.result(), _member(access)) for name, future in policies.items()),
        ]
        read = [future.result() for future in models.values()]
        checks += _quota_checks(settings, wanted, target, read, limits.result(), _member(access))
        return Report(target, access.result(), tuple(checks))


def _member(access: Future[Evidence]) -> str:
    return access.result().caller.value or NOBODY


def _to_look(said: Said[Any], role: str, member: str, target: Target) -> Grant | None:
    """What lets the caller see what a check wanted to see; nothing, where it was not a permission that was missing."""
    return Grant(role, member, target.resource(Kind.PROJECT)) if isinstance(said.error, PermissionRefused) else None


def _bucket(google: Google, name: str) -> Callable[[], Mapping[str, Any]]:
    return lambda: google.bucket(name)


def _policy(google: Google, target: Target, name: str) -> Callable[[], Mapping[str, Any]]:
    return lambda: google.organisation_policy(target.project, name)


def _model(settings: Settings, name: str, open_model: OpenModel) -> Said[Model]:
    def read() -> Model:
        one = {name: settings.models[name]}
        return plan.read_models(Settings(models=one, tasks={}), open_model)[0]

    return ask(f"the headers of {settings.models[name].uri}", read)


def _billing_check(said: Said[bool]) -> Check:
    question = "a billing account pays for the project"
    advice = "link one: https://console.cloud.google.com/billing/linkedaccount"
    if said.value is None:
        return Check("billing", question, "unknown", said.why_not, advice)
    return Check("billing", question, "yes" if said.value else "no", said.call, None if said.value else advice)


def _model_checks(settings: Settings, models: Mapping[str, Future[Said[Model]]]) -> list[Check]:
    found = []
    for name, future in models.items():
        said, uri = future.result(), settings.models[name].uri
        question = f"{uri} is a checkpoint"
        if said.value is None:
            # A checkpoint that is wrong is missing; one that could not be looked at is unknown.
            wrong = said.error is not None and 30 <= said.error.exit_code < 50
            advice = f"`coldstream inspect {uri}` says more"
            found.append(Check("model", question, "no" if wrong else "unknown", said.why_not, advice))
            continue
        model = said.value.weights
        text = f"{said.call}: {model.shape.architecture}, {model.parameters / 1e6:.0f} M parameters, "
        text += f"{model.bytes / GIB:.2f} GiB, pinned as {said.value.revision}; every byte is checked while it loads"
        found.append(Check("model", question, "yes", text))
    return found


def _region_check(target: Target, bucket: str, said: Said[Mapping[str, Any]]) -> Check:
    question = f"bucket {bucket} is in {target.region}"
    if said.value is None:
        return Check("region", question, "unknown", said.why_not)
    location = str(said.value["location"]).lower()
    continent = {"us": "us-", "eu": "europe-", "asia": "asia-"}.get(location)
    text = f"{said.call}: it is in {location}"
    if location == target.region or (continent and target.region.startswith(continent)):
        return Check("region", question, "yes", text)
    advice = f"deploy with --region {location}, or copy the model: every cold start would pay for crossing regions"
    return Check("region", question, "no", text, advice)


def _policy_check(target: Target, name: str, said: Said[Mapping[str, Any]], member: str) -> Check:
    question = f"organisation policy {name} allows the deployment"
    if said.value is None:
        mend = _to_look(said, "roles/orgpolicy.policyViewer", member, target)
        return Check("policy", question, "unknown", said.why_not, mend)
    refused = _refused(target, name, said.value.get("rules", []))
    if refused is None:
        return Check("policy", question, "yes", said.call)
    return Check("policy", question, "no", f"{said.call}: {refused}", "ask the organisation's policy administrator")


def _refused(target: Target, name: str, rules: list[Mapping[str, Any]]) -> str | None:
    enforced = any(rule.get("enforce") for rule in rules)
    if name == "iam.disableServiceAccountCreation":
        return "service accounts may not be made" if enforced else None
    if name == "run.managed.requireInvokerIam":
        return "a service may not be public" if enforced and target.public else None
    wanted = {"gcp.resourceLocations": target.region, "run.allowedIngress": "all"}[name]
    return f"{wanted} is not allowed" if not _allows(rules, wanted) else None


def _allows(rules: list[Mapping[str, Any]], wanted: str) -> bool:
    """Whether a list constraint lets a value pass; `in:us-locations` stands for every region of a continent."""
    for rule in rules:
        if rule.get("deny_all") or _names(rule, "denied_values", wanted):
            return False
    lists = [rule for rule in rules if rule.get("values", {}).get("allowed_values")]
    return not lists or any(_names(rule, "allowed_values", wanted) for rule in lists)


def _names(rule: Mapping[str, Any], field: str, wanted: str) -> bool:
    for value in rule.get("values", {}).get(field, []):
        plain = str(value).removeprefix("in:").removeprefix("is:").removesuffix("-locations")
        if plain == wanted or (str(value).startswith("in:") and wanted.startswith(plain)):
            return True
    return False


def _quota_checks(
    settings: Settings,
    wanted: DeploySettings,
    target: Target,
    models: list[Said[Model]],
    limits: Mapping[str, Said[int | None]],
    member: str,
) -> list[Check]:
    question = "quota holds the instances and a rollout's overlap"
    read = tuple(said.value for said in models if said.value is not None)
    if len(read) < len(models):
        return [Check("quota", question, "unknown", "the models could not be read, so their size is not known")]
    try:
        size = plan.choose_size(settings, wanted, read)
    except ColdstreamError as exc:
        return [Check("quota", "the models fit in one instance", "no", str(exc), "choose a smaller model")]
    asked = quota.demands(
        size, {name: said.value for name, said in limits.items()}, zonal_redundancy=wanted.zonal_redundancy
    )
    instances = wanted.max_instances or 1
    looks = {item.quota: _to_look(limits[item.quota], "roles/cloudquotas.viewer", member, target) for item in asked}
    return [_quota_check(item, instances, limits[item.quota], looks[item.quota]) for item in asked]


def _quota_check(item: quota.Demand, instances: int, said: Said[int | None], look: Grant | None) -> Check:
    question = f"quota for {item.label}: {instances} + 1"
    advice = f"ask for more of {item.quota}: https://console.cloud.google.com/iam-admin/quotas"
    if said.error is not None:
        return Check("quota", question, "unknown", said.why_not, look or advice)
    fits = item.fits(instances)
    text = f"{said.call}: {item.says(instances)}"
    if item.auto_granted:
        text += "; a project's first L4 service usually grants itself 3"
    if fits is None:
        return Check("quota", question, "unknown", text, advice)
    return Check("quota", question, "yes" if fits else "no", text, None if fits else advice)
