"""The fake itself: it refuses what Google's documents do not allow, and what IAM does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.fakecloud import Bucket, FakeCloud, World, discovery, run
from tests.fakecloud.iam import roles
from tests.fakecloud.server import HANDLERS

ME = "user:me@example.com"


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    world = World(hiccup=0)
    world.apis |= {"run.googleapis.com", "cloudresourcemanager.googleapis.com", "iam.googleapis.com"}
    world.iam.grant(world.project_name, USE, ME)
    with FakeCloud(world) as running:
        yield running


USE = "roles/serviceusage.serviceUsageConsumer"


def call(
    cloud: FakeCloud, method: str, path: str, body: Any = None, *, quota_project: str = "demo-project"
) -> requests.Response:
    headers = {"Authorization": f"Bearer token-of:{ME}"}
    headers |= {"x-goog-user-project": quota_project} if quota_project else {}
    return requests.request(method, f"{cloud.url}/{path}", json=body, headers=headers, timeout=10)


SERVICES = "run.googleapis.com/v2/projects/demo-project/locations/us-central1/services"


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", f"{SERVICES}?serviceId=x", {"tempalte": {}}, "tempalte"),
        ("POST", f"{SERVICES}?serviceId=x", {"template": {"timeout": 5}}, "timeout"),
        ("POST", f"{SERVICES}?serviceId=x", {"ingress": "EVERYBODY"}, "ingress"),
        ("POST", f"{SERVICES}?service_id=x", {}, "service_id"),
        ("GET", "run.googleapis.com/v2/projects/demo-project/services", None, "is not in the discovery document"),
        ("PATCH", f"{SERVICES}/x?updateMask=tempalte", {}, "updateMask=tempalte is no field"),
        ("PATCH", f"{SERVICES}/x?updateMask=traffic,uri", {}, "updateMask=uri is read-only"),
        ("POST", "cloudresourcemanager.googleapis.com/v3/projects/demo-project:testIamPermissions", {"x": 1}, "x"),
    ],
)
def test_a_request_that_is_not_as_published_is_refused_and_remembered(
    cloud: FakeCloud, method: str, path: str, body: Any, says: str
) -> None:
    """Unknown field, wrong type, wrong enum, unknown parameter, unknown method."""
    assert call(cloud, method, path, body).status_code in (400, 501)
    assert says in " ".join(cloud.world.violations)


def test_a_call_without_permission_is_refused_and_with_it_answered(cloud: FakeCloud) -> None:
    path = "cloudresourcemanager.googleapis.com/v3/projects/demo-project"
    assert call(cloud, "GET", path).status_code == 403
    cloud.world.iam.grant(cloud.world.project_name, "roles/browser", ME)
    assert call(cloud, "GET", path).json()["projectId"] == "demo-project"


def test_an_api_that_is_off_says_so(cloud: FakeCloud) -> None:
    cloud.world.apis.discard("run.googleapis.com")
    error = call(cloud, "GET", f"{SERVICES}/x").json()["error"]
    assert error["details"][0]["reason"] == "SERVICE_DISABLED"


def test_a_grant_acts_only_after_its_delay() -> None:
    world = World()
    world.iam.delay = 60.0
    world.iam.replace(world.project_name, {"bindings": [{"role": "roles/browser", "members": [ME]}]})
    assert not world.iam.allowed(ME, "resourcemanager.projects.get", world.project_name)
    world.clock.sleep(60.0)
    assert world.iam.allowed(ME, "resourcemanager.projects.get", world.project_name)


def test_what_is_granted_on_the_project_reaches_what_is_in_it_and_not_the_other_way() -> None:
    world = World()
    bucket = world.bucket_name("models")
    world.iam.grant(bucket, "roles/storage.objectViewer", ME)
    assert not world.iam.allowed(ME, "storage.objects.get", world.project_name)
    world.iam.grant(world.project_name, "roles/storage.objectCreator", ME)
    assert world.iam.allowed(ME, "storage.objects.create", bucket)


def test_every_method_of_the_fake_is_a_published_one() -> None:
    known = {method.id for service in (*discovery.DOCUMENTS, "cloudquotas") for method in discovery.methods(service)}
    assert set(HANDLERS) - known == set()


def test_the_role_data_names_its_source_and_date() -> None:
    from importlib.resources import files

    data = json.loads(files("tests.fakecloud").joinpath("roles.json").read_text(encoding="utf-8"))
    assert data["source"]["repository"].startswith("https://github.com/")
    assert len(data["source"]["date"]) == 10
    assert "roles/run.invoker" in roles()


# As strict as Google.

PROJECT = "cloudresourcemanager.googleapis.com/v3/projects/demo-project"


def reason(answer: requests.Response) -> tuple[int, str]:
    """The status and Google's reason for an error."""
    error = answer.json()["error"]
    return answer.status_code, error.get("details", [{"reason": error["status"]}])[0]["reason"]


def test_a_users_call_that_names_no_quota_project_is_charged_to_gclouds_own(cloud: FakeCloud) -> None:
    answer = call(cloud, "GET", PROJECT, quota_project="")
    assert reason(answer) == (403, "SERVICE_DISABLED")
    assert "764086051850" in answer.json()["error"]["message"]


def test_a_quota_project_wants_the_right_to_use_it(cloud: FakeCloud) -> None:
    cloud.world.iam.policies.clear()
    assert reason(call(cloud, "GET", PROJECT)) == (403, "USER_PROJECT_DENIED")


@pytest.mark.parametrize(("mode", "status"), [("404", 404), ("empty", 200), ("403", 403)])
@pytest.mark.parametrize("service", ["run", "storage"])
def test_permissions_on_what_is_not_there_are_answered_in_three_ways(
    cloud: FakeCloud, service: str, mode: Any, status: int
) -> None:
    """Existence is asked with get, since this says nothing of it."""
    cloud.world.iam.grant(cloud.world.project_name, "roles/owner", ME)
    cloud.world.absent[service] = mode
    path = {
        "run": f"{SERVICES}/none:testIamPermissions",
        "storage": "storage.googleapis.com/storage/v1/b/none/iam/testPermissions?permissions=storage.buckets.get",
    }[service]
    body = {"permissions": ["run.services.get"]} if service == "run" else None
    answer = call(cloud, "POST" if service == "run" else "GET", path, body)
    assert answer.status_code == status
    assert status != 200 or answer.json().get("permissions", []) == []


def test_a_read_fails_now_and_then(cloud: FakeCloud) -> None:
    cloud.world.hiccup = 2
    cloud.world.iam.grant(cloud.world.project_name, "roles/browser", ME)
    assert [call(cloud, "GET", PROJECT).status_code for _ in range(4)] == [200, 429, 200, 503]


def test_a_new_account_is_seen_late_and_named_in_a_policy_later_still(cloud: FakeCloud) -> None:
    world = cloud.world
    world.iam.grant(world.project_name, "roles/owner", ME)
    accounts = "iam.googleapis.com/v1/projects/demo-project/serviceAccounts"
    email = "new@demo-project.iam.gserviceaccount.com"
    assert call(cloud, "POST", accounts, {"accountId": "new"}).status_code == 200
    assert call(cloud, "GET", f"{accounts}/{email}").status_code == 404
    binding = {"role": "roles/logging.logWriter", "members": [f"serviceAccount:{email}"]}
    refused = call(cloud, "POST", f"{PROJECT}:setIamPolicy", {"policy": {"bindings": [binding]}})
    assert "does not exist" in refused.json()["error"]["message"]
    world.clock.sleep(world.account_delay)
    assert call(cloud, "GET", f"{accounts}/{email}").status_code == 200


def test_a_role_goes_only_where_it_may_be_granted(cloud: FakeCloud) -> None:
    cloud.world.iam.grant(cloud.world.project_name, "roles/owner", ME)
    cloud.world.add_bucket("models", Bucket("US"))
    binding = {"role": "roles/browser", "members": [ME]}
    answer = call(cloud, "PUT", "storage.googleapis.com/storage/v1/b/models/iam", {"bindings": [binding]})
    assert "not supported for this resource" in answer.json()["error"]["message"]


def test_an_update_without_a_mask_replaces_and_one_with_a_mask_does_not() -> None:
    before = {"name": "s", "template": {"timeout": "1s"}, "description": "ours", "etag": '"1"'}
    body = {"template": {"timeout": "2s"}}
    assert "description" not in run._updated(before, body, "")
    kept = run._updated(before, body, "template.timeout")
    assert (kept["description"], kept["template"]) == ("ours", {"timeout": "2s"})


def test_healthz_never_reaches_the_container(cloud: FakeCloud) -> None:
    name = "projects/demo-project/locations/us-central1/services/s"
    cloud.world.services[name] = {"name": name, "uri": "u", "invokerIamDisabled": True}
    assert requests.get(f"{cloud.url}/app/s/healthz", timeout=10).status_code == 404
