"""`coldstream deploy` against the fake: the whole way, its failures, and running it again."""

from __future__ import annotations

from typing import Any

import pytest

from coldstream.deploy import lifecycle
from coldstream.deploy.apply import STEPS
from coldstream.deploy.service import CONFIG_VARIABLE
from coldstream.deploy.steps import Event
from coldstream.errors import DeployError, PermissionRefused, ResourceConflict, SettingsError
from tests.deploy.conftest import ME, MODEL, Opened, Site, one_model

CHANGES = (".create", ".patch", ".insert", ".delete", "etIamPolicy", "batchEnable")


def changes(site: Site) -> list[str]:
    """Every call that could have changed something."""
    reads = ("getIamPolicy", "testIamPermissions")
    return [name for name, _ in site.world.requests if name.endswith(CHANGES) and not name.endswith(reads)]


def second_model(site: Site) -> None:
    """The model was trained again: the next deployment makes another revision."""
    site.shelf.models[MODEL] = Opened(revision="ffeeddccbbaa9988")


def test_a_deployment_ends_with_a_private_service_that_has_answered(ready: Site) -> None:
    """Every step in order, one revision with all the traffic, and a door that asks who you are."""
    result = ready.deploy()
    assert ready.steps("begin") == [name for name, _ in STEPS]
    assert ready.shares() == {result.revision: 100}
    assert not ready.service().get("invokerIamDisabled")
    assert any("Paris" in event.text for event in ready.events)
    assert result.url == f"{ready.cloud.url}/app/coldstream"


def test_build_logs_are_shown_as_they_come(ready: Site) -> None:
    ready.deploy()
    logs = [event.text for event in ready.events if event.mark == "log"]
    assert logs[0] == "FETCHSOURCE"
    assert logs[-1] == "DONE"


def test_a_deployment_applied_twice_changes_nothing_the_second_time(ready: Site) -> None:
    ready.deploy()
    ready.world.requests.clear()
    ready.events.clear()
    ready.deploy()
    assert changes(ready) == []
    assert ready.steps("done") == []


def test_a_change_of_configuration_builds_nothing(ready: Site) -> None:
    """The image does not hold the configuration: a new revision from the same image."""
    first = ready.deploy()
    ready.world.requests.clear()
    second = ready.deploy(concurrency=3)
    assert ready.asked("builds.create") == ready.asked("objects.insert") == 0
    assert ready.shares() == {second.revision: 100}
    assert first.revision != second.revision


def test_a_model_that_was_replaced_in_its_bucket_gets_a_new_revision(ready: Site) -> None:
    first = ready.deploy()
    second_model(ready)
    assert ready.deploy().revision != first.revision


def test_a_canary_gets_its_share_and_the_next_run_the_rest(ready: Site) -> None:
    first = ready.deploy()
    second_model(ready)
    second = ready.deploy(canary=10)
    assert ready.shares() == {first.revision: 90, second.revision: 10}
    ready.deploy()
    assert ready.shares() == {second.revision: 100}


def test_the_candidate_has_a_tag_and_no_traffic_until_it_has_answered(ready: Site) -> None:
    """Traffic as it was when the smoke test began."""
    first = ready.deploy()
    second_model(ready)
    seen: list[dict[str, int]] = []
    ready.deploy(tell=lambda event: seen.append(ready.shares()) if event.step == "smoke test" else None)
    assert seen
    assert all(shares == {first.revision: 100} for shares in seen)


class Interrupted(Exception):
    """The plug was pulled."""


@pytest.mark.parametrize("step", [name for name, _ in STEPS])
def test_after_an_interruption_the_next_run_goes_on(ready: Site, step: str) -> None:
    """Stopped after any step, the second run ends as an uninterrupted one, with one upload, one build, one revision."""

    def pull_the_plug(event: Event) -> None:
        if event.step == step and event.mark in ("done", "kept"):
            raise Interrupted

    with pytest.raises(Interrupted):
        ready.deploy(tell=pull_the_plug)
    result = ready.deploy()
    assert ready.shares() == {result.revision: 100}
    assert ready.asked("builds.create") == 1
    assert ready.asked("objects.insert") == 1
    assert len(ready.world.revisions) == 1


def test_an_interruption_while_building_waits_for_the_same_build(ready: Site) -> None:
    def pull_the_plug(event: Event) -> None:
        if event.step == "build" and event.mark == "log":
            raise Interrupted

    with pytest.raises(Interrupted):
        ready.deploy(tell=pull_the_plug)
    ready.deploy()
    assert ready.asked("builds.create") == 1


def test_an_interruption_while_the_revision_starts_waits_for_the_same_one(ready: Site) -> None:
    def pull_the_plug(event: Event) -> None:
        if event.step == "revision" and event.mark == "note":
            raise Interrupted

    with pytest.raises(Interrupted):
        ready.deploy(tell=pull_the_plug)
    result = ready.deploy()
    assert len(ready.world.revisions) == 1
    assert ready.shares() == {result.revision: 100}


def test_an_interruption_before_the_smoke_test_does_not_skip_it(ready: Site) -> None:
    """A first revision has all the traffic of a service without callers yet; it is still asked before it is trusted."""

    def pull_the_plug(event: Event) -> None:
        if event.step == "revision" and event.mark == "done":
            raise Interrupted

    with pytest.raises(Interrupted):
        ready.deploy(tell=pull_the_plug)
    ready.world.container.default_answer = ""
    with pytest.raises(DeployError, match="the answer is empty"):
        ready.deploy()


def test_two_deployments_at_once_do_not_mix(ready: Site) -> None:
    """While one writes the service another has written it: the etag tells, and running again mends it."""
    ready.deploy()
    second_model(ready)

    def meanwhile(method: str) -> None:
        if method.endswith("services.patch"):
            ready.world.on_request = None
            ready.service()["etag"] = '"somebody else"'

    ready.world.on_request = meanwhile
    with pytest.raises(ResourceConflict, match="Conflict for resource"):
        ready.deploy()
    result = ready.deploy()
    assert ready.shares() == {result.revision: 100}


@pytest.mark.parametrize(
    ("role", "place", "cause", "mend"),
    [
        ("roles/storage.objectViewer", "source", "FETCH_SOURCE_FAILED", "roles/storage.objectViewer"),
        ("roles/logging.logWriter", "project", "LOGGING_FAILURE", "roles/logging.logWriter"),
        ("roles/artifactregistry.writer", "repository", "PUSH_NOT_AUTHORIZED", "roles/artifactregistry.writer"),
    ],
)
def test_a_build_that_lacks_a_permission_names_the_grant(
    ready: Site, role: str, place: str, cause: str, mend: str
) -> None:
    """Cloud Build's failure_info turned into the fix; with the grant, the next run builds."""
    world, target = ready.world, ready.job().target
    world.source_checked_at_once = False
    resource = {
        "source": world.bucket_name(target.source_bucket),
        "project": world.project_name,
        "repository": world.repository_name(target.repository_name),
    }[place]
    kept = world.iam.policies[resource]
    world.iam.policies[resource] = [item for item in kept if (item.role, item.member[:14]) != (role, "serviceAccount")]
    with pytest.raises(DeployError) as caught:
        ready.deploy()
    assert cause in str(caught.value)
    assert f"--role={mend}" in str(caught.value)
    assert "traffic: none" in str(caught.value)
    world.iam.policies[resource] = kept
    ready.deploy()


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        ("USER_BUILD_STEP", "a line of the Dockerfile failed"),
        ("PUSH_FAILED", "could not be pushed"),
        ("PUSH_IMAGE_NOT_FOUND", "without an image"),
        ("TIMEOUT", "took longer"),
        ("CANCELLED", "somebody cancelled"),
        ("EXPIRED", "waited too long"),
        ("INTERNAL_ERROR", "failed by itself"),
    ],
)
def test_a_build_that_fails_says_why_and_the_next_run_builds_again(ready: Site, breaks: str, says: str) -> None:
    ready.world.build_breaks = breaks
    with pytest.raises(DeployError, match=says) as caught:
        ready.deploy()
    assert "console.cloud.google.com/cloud-build" in str(caught.value)
    assert "source gs://" in str(caught.value)
    ready.world.build_breaks = None
    ready.deploy()
    assert ready.asked("objects.insert") == 1


def test_a_revision_that_never_gets_ready_leaves_traffic_where_it_was(ready: Site) -> None:
    """The error has the container's last words; the next run tries another revision of the same content."""
    first = ready.deploy()
    second_model(ready)
    ready.world.container.ready = False
    with pytest.raises(DeployError, match="startup probe") as caught:
        ready.deploy()
    assert "coldstream: still loading" in str(caught.value)
    assert f"100 % on {first.revision}" in str(caught.value)
    assert ready.shares() == {first.revision: 100}
    ready.world.container.ready = True
    result = ready.deploy()
    assert result.revision.endswith("-2")
    assert ready.shares() == {result.revision: 100}


def test_a_model_that_the_runtime_account_may_not_read_is_named(ready: Site) -> None:
    ready.world.iam.policies[ready.world.bucket_name("models")] = []
    ready.world.iam.grant(ready.world.bucket_name("models"), "roles/storage.objectViewer", "user:me@example.com")
    with pytest.raises(DeployError, match=r"AccessDenied: gs://models: storage.objects.get is missing"):
        ready.deploy()


def test_a_provisioning_failure_that_comes_late_is_reported(ready: Site) -> None:
    ready.world.provisioning_failure = "Resources are temporarily unavailable: nvidia-l4 in us-central1."
    with pytest.raises(DeployError, match="temporarily unavailable"):
        ready.deploy()
    assert ready.world.clock.now() >= 600


@pytest.mark.parametrize("answer", ["", "What is the capital of France?", "��������", "the " * 40, {"text": "no"}])
def test_a_smoke_test_that_answers_nonsense_moves_no_traffic(ready: Site, answer: object) -> None:
    first = ready.deploy()
    second_model(ready)
    ready.world.container.default_answer = answer
    with pytest.raises(DeployError, match="smoke test"):
        ready.deploy()
    assert ready.shares() == {first.revision: 100}


def test_a_server_that_fails_while_answering_moves_no_traffic(ready: Site) -> None:
    first = ready.deploy()
    second_model(ready)
    ready.world.container.status = 500
    with pytest.raises(DeployError, match="HTTP 500"):
        ready.deploy()
    assert ready.shares() == {first.revision: 100}


def test_the_smoke_test_waits_for_a_grant_that_is_slow_to_act(ready: Site) -> None:
    """The invoker's grant is new: 403 until it acts, seven minutes later."""
    ready.world.iam.delay = 420.0
    ready.deploy()
    assert any("the invoker's grant" in event.text for event in ready.events)
    assert ready.world.clock.now() >= 420


def test_gpu_quota_of_zero_with_the_automatic_grant_deploys(ready: Site) -> None:
    ready.world.quotas["NvidiaL4GpuAllocNoZonalRedundancyPerProjectRegion"] = 0
    ready.deploy()


def test_gpu_quota_of_zero_without_the_automatic_grant_says_so(ready: Site) -> None:
    ready.world.quotas["NvidiaL4GpuAllocNoZonalRedundancyPerProjectRegion"] = 0
    ready.world.quota_auto_grant = False
    with pytest.raises(DeployError, match="do not have quota for using GPUs without zonal redundancy"):
        ready.deploy()


def test_a_public_service_asks_for_no_token(ready: Site) -> None:
    ready.deploy(public=True)
    assert ready.service()["invokerIamDisabled"] is True
    assert ready.asked("generateIdToken") == 0


def test_a_service_without_a_gpu_asks_for_none(ready: Site) -> None:
    ready.deploy(cpu_only=True)
    template = ready.service()["template"]
    assert "nvidia.com/gpu" not in template["containers"][0]["resources"]["limits"]
    assert "nodeSelector" not in template


def test_a_service_with_a_gpu_asks_its_models_to_run_there(ready: Site) -> None:
    ready.deploy()
    assert 'device = "cuda"' in config(ready)
    ready.deploy(cpu_only=True)
    assert "device" not in config(ready)


@pytest.mark.parametrize(
    ("changed", "cpu_only", "word"),
    [
        ({"device": "cpu"}, False, "has a cuda"),
        ({"device": "cuda"}, True, "has a cpu"),
        ({"precision": "int8"}, False, "int8"),
    ],
)
def test_a_model_that_asks_for_what_the_service_has_not_is_refused(
    ready: Site, changed: dict[str, Any], cpu_only: bool, word: str
) -> None:
    with pytest.raises(SettingsError, match=word):
        ready.deploy(chosen=one_model(**changed), cpu_only=cpu_only)


def config(site: Site) -> str:
    """The coldstream.toml that the service carries."""
    env = site.service()["template"]["containers"][0]["env"]
    (value,) = (item["value"] for item in env if item["name"] == CONFIG_VARIABLE)
    return str(value)


OWN = "us-docker.pkg.dev/other-project/images/coldstream:1"


def other_repository(site: Site, *, readable: bool) -> None:
    """An image of the operator's own, in a repository of another project."""
    world = site.world
    world.other_projects["other-project"] = "999"
    world.images[OWN] = "sha256:1"
    name = "projects/other-project/locations/us/repositories/images"
    world.repositories[name] = {"name": name, "format": "DOCKER"}
    agent = f"service-{world.number}@serverless-robot-prod.iam.gserviceaccount.com"
    world.iam.policies.setdefault(world.repository_name(name), [])
    for member in (ME, *([f"serviceAccount:{agent}"] if readable else [])):
        world.iam.grant(world.repository_name(name), "roles/artifactregistry.reader", member)


def test_an_image_of_ones_own_is_neither_built_nor_uploaded(ready: Site) -> None:
    other_repository(ready, readable=True)
    ready.deploy(image=OWN)
    assert ready.asked("builds.create") == ready.asked("objects.insert") == 0


def test_a_caller_who_may_not_act_as_the_runtime_account_is_told_so(ready: Site) -> None:
    world = ready.world
    other = "user:other@example.com"
    for role in ("roles/run.developer", "roles/browser", "roles/serviceusage.serviceUsageConsumer"):
        world.iam.grant(world.project_name, role, other)
    target = ready.job().target
    world.iam.grant(world.repository_name(target.repository_name), "roles/artifactregistry.reader", other)
    for email in target.accounts:
        world.iam.grant(world.account_name(email), "roles/iam.serviceAccountOpenIdTokenCreator", other)
    ready.deploy()
    with pytest.raises(PermissionRefused, match=r"iam\.serviceAccounts\.(get|actAs)"):
        ready.deploy("user:other@example.com", concurrency=2)


def test_rollback_moves_all_traffic_to_the_revision_before(ready: Site) -> None:
    first = ready.deploy()
    second_model(ready)
    ready.deploy()
    job = ready.job()
    lifecycle.rollback(job.session.google, job.target, to=None, clock=ready.world.clock, tell=lambda _: None)
    assert ready.shares() == {first.revision: 100}


def test_deploying_after_a_rollback_goes_back_to_the_same_revision(ready: Site) -> None:
    """A revision cannot be made twice: traffic moves, nothing is made."""
    ready.deploy()
    second_model(ready)
    second = ready.deploy()
    job = ready.job()
    lifecycle.rollback(job.session.google, job.target, to=None, clock=ready.world.clock, tell=lambda _: None)
    again = ready.deploy()
    assert again.revision == second.revision
    assert len(ready.world.revisions) == 2
    assert ready.shares() == {second.revision: 100}
