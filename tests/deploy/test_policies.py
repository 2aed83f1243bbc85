"""Organisation policies: each constraint that could stop a deployment, in the words of its rules."""

from __future__ import annotations

from typing import Any

import pytest

from coldstream.deploy import policies
from coldstream.deploy.target import target
from coldstream.settings import DeploySettings
from tests.deploy.conftest import KEY, MODEL

POOL = "projects/demo-project/locations/us-central1/workerPools/private"


def judged(name: str, rules: list[dict[str, Any]], **wanted: Any) -> str:
    settings = DeploySettings(project="demo-project", **wanted)
    return policies.judge(name, rules, settings, target(settings, (MODEL,)))[0]


def allowing(*values: str) -> list[dict[str, Any]]:
    return [{"values": {"allowed_values": list(values)}}]


def denying(*values: str) -> list[dict[str, Any]]:
    return [{"values": {"denied_values": list(values)}}]


@pytest.mark.parametrize(
    ("name", "rules", "wanted", "answer"),
    [
        ("gcp.resourceLocations", allowing("in:us-locations"), {}, "yes"),
        ("gcp.resourceLocations", allowing("in:northamerica-locations"), {}, "yes"),
        ("gcp.resourceLocations", allowing("in:us-central1-locations"), {}, "yes"),
        ("gcp.resourceLocations", allowing("is:us-central1"), {}, "yes"),
        ("gcp.resourceLocations", allowing("in:us-east1-locations"), {}, "no"),
        ("gcp.resourceLocations", allowing("in:eu-locations"), {"region": "europe-west4"}, "yes"),
        ("gcp.resourceLocations", allowing("in:eu-locations"), {"region": "europe-west2"}, "no"),
        ("gcp.resourceLocations", allowing("in:europe-locations"), {"region": "europe-west2"}, "yes"),
        ("gcp.resourceLocations", allowing("in:low-carbon-locations"), {}, "unknown"),
        ("gcp.resourceLocations", allowing("in:low-carbon-locations", "us-central1"), {}, "yes"),
        ("gcp.resourceLocations", denying("in:us-locations"), {}, "no"),
        ("gcp.resourceLocations", [{"allow_all": True}], {}, "yes"),
        ("gcp.resourceLocations", [{"deny_all": True}], {}, "no"),
        ("gcp.resourceLocations", [{"condition": {"expression": "x"}, "deny_all": True}], {}, "unknown"),
        ("run.allowedIngress", allowing("internal"), {}, "no"),
        ("run.allowedIngress", allowing("is:internal"), {"ingress": "internal"}, "yes"),
        ("run.managed.requireInvokerIam", [{"enforce": True}], {"public": True}, "no"),
        ("run.managed.requireInvokerIam", [{"enforce": True}], {}, "yes"),
        ("iam.disableServiceAccountCreation", [{"enforce": True}], {}, "no"),
        ("iam.allowedPolicyMemberDomains", allowing("C012345"), {}, "warning"),
        ("iam.allowedPolicyMemberDomains", [{"allow_all": True}], {}, "yes"),
        ("gcp.restrictNonCmekServices", denying("run.googleapis.com"), {}, "no"),
        ("gcp.restrictNonCmekServices", denying("is:run.googleapis.com"), {"encryption_key": KEY}, "yes"),
        ("gcp.restrictNonCmekServices", denying("bigquery.googleapis.com"), {}, "yes"),
        ("run.allowedBinaryAuthorizationPolicies", allowing("default"), {}, "no"),
        ("run.allowedBinaryAuthorizationPolicies", allowing("default"), {"binary_authorization": True}, "yes"),
        ("cloudbuild.allowedWorkerPools", allowing(POOL), {}, "no"),
        ("cloudbuild.allowedWorkerPools", allowing(POOL), {"build_pool": POOL}, "yes"),
        ("cloudbuild.allowedWorkerPools", allowing("under:organizations/1"), {"build_pool": POOL}, "unknown"),
        ("run.allowedVPCEgress", allowing("private-ranges-only"), {"network": "shop"}, "no"),
    ],
)
def test_a_rule_lets_a_deployment_pass_or_not(
    name: str, rules: list[dict[str, Any]], wanted: dict[str, Any], answer: str
) -> None:
    assert judged(name, rules, **wanted) == answer


def test_every_constraint_is_asked_about_where_it_matters() -> None:
    plain = set(policies.asked(DeploySettings()))
    assert {"gcp.resourceLocations", "cloudbuild.allowedWorkerPools"} <= plain
    assert "run.allowedVPCEgress" in policies.asked(DeploySettings(network="shop"))
    assert "cloudbuild.allowedWorkerPools" not in policies.asked(DeploySettings(image="i"))
