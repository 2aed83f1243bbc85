"""After a deployment: status, logs, rollback, and destroy, which may be stopped half-way."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from coldstream.deploy import lifecycle
from coldstream.deploy.lifecycle import LogQuery, Remains
from coldstream.errors import DeployError, ResourceNotFound
from tests.deploy.conftest import ME, MODEL, Opened, Site


def inventory(site: Site) -> tuple[tuple[Remains, ...], tuple[str, ...]]:
    job = site.job()
    clock = site.world.clock
    return lifecycle.inventory(job.session.google, job.target, clock=clock, tell=lambda _: None)


def test_status_shows_traffic_state_and_machine_of_every_revision(ready: Site) -> None:
    first = ready.deploy()
    ready.shelf.models[MODEL] = Opened(revision="ffeeddccbbaa9988")
    second = ready.deploy(canary=20)
    job = ready.job()
    state = lifecycle.status(job.session.google, job.target)
    shown = {item["name"]: item for item in state["revisions"]}
    assert state["access"] == "private"
    assert (shown[first.revision]["percent"], shown[second.revision]["percent"]) == (80, 20)
    assert shown[second.revision]["tags"] == ["candidate"]
    assert shown[second.revision]["state"] == "succeeded"
    assert shown[second.revision]["limits"]["nvidia.com/gpu"] == "1"


def test_status_of_what_is_not_deployed_says_so(ready: Site) -> None:
    job = ready.job()
    with pytest.raises(ResourceNotFound, match="no service coldstream in us-central1"):
        lifecycle.status(job.session.google, job.target)


def test_logs_follow_without_repeating_or_losing_an_entry(ready: Site) -> None:
    """Entries of one moment, and entries that come while it waits, each once."""
    ready.deploy()
    job, world = ready.job(), ready.world
    name = ready.service()["latestCreatedRevision"].rsplit("/", 1)[1]
    labels = {"service_name": "coldstream", "revision_name": name}
    resource = {"type": "cloud_run_revision", "labels": labels}
    for text, delay in (("one", 0), ("two", 0), ("three", 1), ("four", 7), ("five", 7)):
        world.log(resource, text, at=world.clock.now() + delay)
    query = LogQuery(job.target)
    entries = lifecycle.logs(job.session.google, query, newest=50, follow=True, clock=world.clock)
    assert [entry["text"] for entry in islice(entries, 6)] == [
        "coldstream: ready",
        "one",
        "two",
        "three",
        "four",
        "five",
    ]


def test_logs_of_one_revision_only(ready: Site) -> None:
    ready.deploy()
    job = ready.job()
    query = LogQuery(job.target, revision="coldstream-other")
    entries = lifecycle.logs(job.session.google, query, newest=50, follow=False, clock=ready.world.clock)
    assert list(entries) == []


def test_rollback_without_an_earlier_revision_names_what_there_is(ready: Site) -> None:
    first = ready.deploy()
    job = ready.job()
    with pytest.raises(DeployError, match=first.revision):
        lifecycle.rollback(job.session.google, job.target, to=None, clock=ready.world.clock, tell=lambda _: None)


def test_rollback_to_a_revision_that_is_not_ready_is_refused(ready: Site) -> None:
    ready.deploy()
    ready.shelf.models[MODEL] = Opened(revision="ffeeddccbbaa9988")
    ready.world.container.ready = False
    with pytest.raises(DeployError):
        ready.deploy()
    broken = ready.service()["latestCreatedRevision"].rsplit("/", 1)[1]
    job = ready.job()
    with pytest.raises(DeployError, match="is not ready; traffic stays where it is"):
        lifecycle.rollback(job.session.google, job.target, to=broken, clock=ready.world.clock, tell=lambda _: None)


def test_rolling_back_twice_is_rolling_forward_again(ready: Site) -> None:
    ready.deploy()
    ready.shelf.models[MODEL] = Opened(revision="ffeeddccbbaa9988")
    second = ready.deploy()
    job = ready.job()
    for _ in range(2):
        lifecycle.rollback(job.session.google, job.target, to=None, clock=ready.world.clock, tell=lambda _: None)
    assert ready.shares() == {second.revision: 100}


def test_destroy_lists_what_costs_money_and_leaves_the_model_alone(ready: Site) -> None:
    ready.deploy(min_instances=1)
    items, left = inventory(ready)
    costs = {item.what: item.cost for item in items}
    assert costs["service coldstream"] == "1 instances around the clock"
    assert any("GiB and month" in cost for cost in costs.values())
    assert left == ("model bucket models: yours",)


def test_destroy_removes_everything_that_was_made(ready: Site) -> None:
    ready.deploy()
    items, _ = inventory(ready)
    lifecycle.destroy(items, tell=lambda _: None)
    world = ready.world
    assert (world.services, world.repositories, world.accounts, world.images) == ({}, {}, {}, {})
    assert set(world.buckets) == {"models"}
    assert inventory(ready)[0] == ()


@pytest.mark.parametrize("after", range(9))
def test_destroy_that_was_stopped_half_way_is_finished_by_the_next(ready: Site, after: int) -> None:
    ready.deploy()
    items, _ = inventory(ready)
    lifecycle.destroy(items[:after], tell=lambda _: None)
    rest, _ = inventory(ready)
    assert [item.what for item in rest] == [item.what for item in items[after:]]
    lifecycle.destroy(rest, tell=lambda _: None)
    assert inventory(ready)[0] == ()


def test_destroy_goes_on_past_what_it_may_not_remove_and_names_it(ready: Site) -> None:
    """An owner who lost the right to remove the repository: the rest goes, the repository is named."""
    ready.deploy()
    items, _ = inventory(ready)
    world = ready.world
    world.iam.policies[world.project_name] = [
        item for item in world.iam.policies[world.project_name] if item.role != "roles/owner"
    ]
    for role in ("roles/run.admin", "roles/storage.admin", "roles/iam.serviceAccountAdmin"):
        world.iam.grant(world.project_name, role, ME)
    with pytest.raises(DeployError, match="still there: repository coldstream"):
        lifecycle.destroy(items, tell=lambda _: None)
    assert (world.services, world.accounts) == ({}, {})
    assert len(world.repositories) == 1


def test_what_another_service_uses_too_is_left_until_the_last(ready: Site) -> None:
    ready.deploy()
    world = ready.world
    name = next(iter(world.services))
    world.services[f"{name}-two"] = {**world.services[name], "name": f"{name}-two"}
    items, left = inventory(ready)
    kinds = [item.what.partition(" ")[0] for item in items if not item.what.startswith("grants of")]
    assert kinds == ["service", "account", "account"]
    assert any("coldstream-two in us-central1" in text for text in left)


def test_what_coldstream_did_not_make_is_left_alone(ready: Site) -> None:
    ready.deploy()
    next(iter(ready.world.repositories.values()))["labels"] = {}
    items, left = inventory(ready)
    assert not [item for item in items if item.what.startswith("repository")]
    assert "repository coldstream: not made by coldstream" in left


def another_service(site: Site, name: str, region: str) -> None:
    """A service of ours somewhere else in the project."""
    service = next(iter(site.world.services.values()))
    full = f"projects/demo-project/locations/{region}/services/{name}"
    site.world.services[full] = {**service, "name": full}


def kinds(items: tuple[Remains, ...]) -> list[str]:
    return [item.what.partition(" ")[0] for item in items if not item.what.startswith("grants of")]


def test_a_service_of_another_region_keeps_the_source_bucket_and_the_build_account(ready: Site) -> None:
    """The repository is a region's own; the accounts that read and call are another name's."""
    ready.deploy()
    another_service(ready, "other", "europe-west4")
    items, left = inventory(ready)
    assert kinds(items) == ["service", "repository", "account", "account"]
    assert not [item for item in items if "coldstream-build" in item.what]
    assert any("other in europe-west4" in text for text in left)


def test_the_same_name_in_another_region_keeps_its_accounts(ready: Site) -> None:
    ready.deploy()
    another_service(ready, "coldstream", "europe-west4")
    items, left = inventory(ready)
    assert kinds(items) == ["service", "repository"]
    assert any("the accounts of coldstream: coldstream in europe-west4" in text for text in left)


def test_destroy_takes_back_what_its_accounts_were_granted_elsewhere(ready: Site) -> None:
    """An account that is gone stays in a policy as deleted:... for ever; the model's bucket keeps its own grants."""
    ready.deploy()
    place = ready.world.bucket_name("models")
    ready.world.iam.grant(place, "roles/storage.objectViewer", "user:somebody@example.com")
    items, _ = inventory(ready)
    lifecycle.destroy(items, tell=lambda _: None)
    members = {item.member for bindings in ready.world.iam.policies.values() for item in bindings}
    assert not [member for member in members if member.startswith("deleted:")]
    assert not [member for member in members if "coldstream-" in member]
    assert "user:somebody@example.com" in members


def test_whoever_destroys_without_the_file_finds_the_models_bucket_in_the_service(ready: Site) -> None:
    ready.deploy()
    target = replace(ready.job().target, model_buckets=())
    items, _ = lifecycle.inventory(ready.google(), target, clock=ready.world.clock, tell=lambda _: None)
    assert any(item.what.endswith("on bucket models") for item in items)
