"""The fake itself: it refuses what Google's documents do not allow, and what IAM does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.fakecloud import FakeCloud, World, discovery
from tests.fakecloud.iam import roles
from tests.fakecloud.server import HANDLERS

ME = "user:me@example.com"


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    world = World()
    world.apis |= {"run.googleapis.com", "cloudresourcemanager.googleapis.com"}
    with FakeCloud(world) as running:
        yield running


def call(cloud: FakeCloud, method: str, path: str, body: Any = None) -> requests.Response:
    headers = {"Authorization": f"Bearer token-of:{ME}"}
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
