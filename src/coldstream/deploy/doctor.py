"""`coldstream doctor`: everything that could stop a deployment, asked at once; changes nothing."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from coldstream.deploy import answers, cards, evidence, places, plan, policies, quota
from coldstream.deploy.access import Check, Grant
from coldstream.deploy.evidence import Evidence, Said, ask
from coldstream.deploy.google import Google
from coldstream.deploy.models import Model, OpenModel, read_models
from coldstream.deploy.sizing import GIB
from coldstream.deploy.target import Kind, Resource, Target
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
        """0: nothing stands in the way, warnings aside. 1: something is missing. 2: something is not known."""
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
    names = policies.asked(wanted)
    with ThreadPoolExecutor(24) as pool:
        access = pool.submit(evidence.gather, google, target)
        billing = pool.submit(ask, "getBillingInfo", lambda: google.billing_enabled(target.project))
        rules = {name: pool.submit(ask, f"orgpolicy {name}", _policy(google, target, name)) for name in names}
        limits = pool.submit(plan.limits, google, target.project, plan.quota_names(wanted))
        models = {name: pool.submit(_model, settings, name, open_model) for name in settings.models}
        subnet = None if target.subnet is None else pool.submit(ask, "subnetworks.get", _subnet(google, target.subnet))
        found = access.result()
        member = found.member
        checks = [
            *answers.access_checks(found),
            _billing_check(billing.result()),
            *_model_checks(settings, models),
            *(_location_check(target, name, found.buckets[name]) for name in target.model_buckets),
            *(_policy_check(wanted, target, name, future.result(), member) for name, future in rules.items()),
            *(() if target.subnet is None or subnet is None else (_subnet_check(target.subnet, subnet.result()),)),
        ]
        read = [future.result() for future in models.values()]
        checks += _card_checks(wanted, target, limits.result())
        checks += _quota_checks(settings, wanted, found, read, limits.result())
        return Report(found.target, found, tuple(checks))


def _to_look(said: Said[Any], role: str, member: str, target: Target) -> Grant | None:
    """What lets the caller see what a check wanted to see; nothing, where it was not a permission that was missing."""
    return Grant(role, member, target.resource(Kind.PROJECT)) if isinstance(said.error, PermissionRefused) else None


def _policy(google: Google, target: Target, name: str) -> Callable[[], Mapping[str, Any]]:
    return lambda: google.organisation_policy(target.project, name)


def _subnet(google: Google, subnet: Resource) -> Callable[[], Mapping[str, Any]]:
    return lambda: google.subnet(subnet.name)


def _subnet_check(subnet: Resource, said: Said[Mapping[str, Any]]) -> Check:
    question = f"{subnet} has Private Google Access"
    _, project, _, region, _, name = subnet.name.split("/")
    words = ["gcloud", "compute", "networks", "subnets", "update", name, f"--region={region}", f"--project={project}"]
    mend = shlex.join([*words, "--enable-private-ip-google-access"])
    if said.value is None:
        return Check("network", question, "no" if said.missing else "unknown", said.why_not, mend)
    if said.value.get("privateIpGoogleAccess"):
        return Check("network", question, "yes", said.call)
    # All traffic goes through the network, so the model's bucket would not be reached without it.
    return Check("network", question, "no", f"{said.call}: privateIpGoogleAccess is off", mend)


def _model(settings: Settings, name: str, open_model: OpenModel) -> Said[Model]:
    def read() -> Model:
        one = {name: settings.models[name]}
        return read_models(Settings(models=one, tasks={}), open_model)[0]

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
            advice = f"`{shlex.join(['coldstream', 'inspect', uri])}` says more"
            found.append(Check("model", question, "no" if wrong else "unknown", said.why_not, advice))
            continue
        model = said.value.weights
        text = f"{said.call}: {model.shape.architecture}, {model.parameters / 1e6:.0f} M parameters, "
        text += f"{model.bytes / GIB:.2f} GiB, pinned as {said.value.revision}; every byte is checked while it loads"
        found.append(Check("model", question, "yes", text))
    return found


def _location_check(target: Target, bucket: str, said: Said[Mapping[str, Any]]) -> Check:
    question = f"bucket {bucket} is in {target.region}"
    if said.value is None:
        return Check("region", question, "no" if said.missing else "unknown", said.why_not)
    if said.value["requester_pays"]:
        advice = "turn it off, or copy the model to a bucket of yours: a service's reads name nobody who pays"
        return Check("region", question, "no", f"{said.call}: the bucket's readers pay", advice)
    location = str(said.value["location"]).lower()
    text = f"{said.call}: it is in {location}"
    if places.covers(location, said.value["locations"], target.region):
        return Check("region", question, "yes", text)
    where = f"--region {location}" if location in places.COUNTRIES else "a region of its location"
    advice = f"deploy with {where}, or copy the model: every cold start would pay for crossing regions"
    return Check("region", question, "warning", text, advice)


def _policy_check(
    wanted: DeploySettings, target: Target, name: str, said: Said[Mapping[str, Any]], member: str
) -> Check:
    question = f"organisation policy {name} allows the deployment"
    if said.value is None:
        mend = _to_look(said, "roles/orgpolicy.policyViewer", member, target)
        return Check("policy", question, "unknown", said.why_not, mend)
    answer, why = policies.judge(name, said.value.get("rules", []), wanted, target)
    if answer == "yes":
        return Check("policy", question, "yes", said.call)
    return Check("policy", question, answer, f"{said.call}: {why}", "ask the organisation's policy administrator")


def _card_checks(wanted: DeploySettings, target: Target, limits: Mapping[str, Said[Mapping[str, int]]]) -> list[Check]:
    """Whether the region has the card: by Google's page, as of its date, and by the quota that the API lists."""
    if wanted.cpu_only:
        return []
    card = cards.card(wanted.card)
    said = limits[card.quota(redundant=wanted.zonal_redundancy)]
    question = f"{target.region} has {card.title}"
    regions = f"regions with one: {', '.join(card.regions)}"
    if said.value is not None and said.value.get(target.region, 0) > 0:
        return [Check("card", question, "yes", f"{said.call}: {said.value[target.region]}")]
    if target.region in card.regions:
        return [Check("card", question, "yes", f"Google's list of {cards.READ_ON}")]
    if target.region in card.by_invitation:
        text = f"Google's list of {cards.READ_ON}: by invitation; {said.call} lists none"
        return [Check("card", question, "unknown", text, f"ask Google, or choose one of {regions}")]
    listed = said.value is not None and target.region in said.value
    if listed:
        return [Check("card", question, "unknown", f"{said.call} lists the region, with 0", regions)]
    return [Check("card", question, "no", f"Google's list of {cards.READ_ON}; {said.call} lists none", regions)]


def _quota_checks(
    settings: Settings,
    wanted: DeploySettings,
    found: Evidence,
    models: list[Said[Model]],
    limits: Mapping[str, Said[Mapping[str, int]]],
) -> list[Check]:
    question = "quota holds the instances"
    read = tuple(said.value for said in models if said.value is not None)
    if len(read) < len(models):
        return [Check("quota", question, "unknown", "the models could not be read, so their size is not known")]
    try:
        size = plan.choose_size(settings, wanted, read)
    except ColdstreamError as exc:
        return [Check("quota", "the models fit in one instance", "no", str(exc), "choose a smaller model")]
    here, least = plan.of_region(limits, found.target.region), wanted.min_instances
    fit = quota.fit(size, here, wanted=wanted.max_instances, least=least, zonal_redundancy=wanted.zonal_redundancy)
    instances = wanted.max_instances or max(1, least, fit.instances)
    checks = []
    for item in fit.demands:
        look = _to_look(limits[item.quota], "roles/cloudquotas.viewer", found.member, found.target)
        checks.append(_quota_check(item, instances, limits[item.quota], look))
    deployed = found.service.value is not None
    return [*checks, _overlap_check(fit)] if deployed and wanted.overlap and fit.overlap is False else checks


def _quota_check(item: quota.Demand, instances: int, said: Said[Mapping[str, int]], look: Grant | None) -> Check:
    question = f"quota for {item.label}: {instances}"
    advice = f"ask for more of {item.quota}: https://console.cloud.google.com/iam-admin/quotas"
    first = (
        f"; a project's first service with a card usually grants itself {item.first_grant}" if item.first_grant else ""
    )
    if said.error is not None:
        # A quota that is not listed at all is one that the project has no history with, not one that is 0.
        return Check("quota", question, "unknown", f"{said.why_not}{first if said.missing else ''}", look or advice)
    fits = item.fits(instances)
    text = f"{said.call}: {item.says(instances)}"
    if fits is None:
        return Check("quota", question, "unknown", text + first, advice)
    return Check("quota", question, "yes" if fits else "no", text, None if fits else advice)


def _overlap_check(fit: quota.Fit) -> Check:
    text = "; ".join(item.says(fit.instances + 1) for item in fit.crowded)
    advice = "deploy with --no-overlap: the old revision's instances go first, for minutes without a service"
    return Check("quota", "quota holds an old instance beside the new ones", "warning", text, advice)
