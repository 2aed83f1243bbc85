"""`coldstream doctor` and `--fix` against the fake: all problems at once, the smallest grants, their delay."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coldstream.deploy import fix
from coldstream.deploy import target as naming
from coldstream.deploy.access import NEEDS, Check, Grant, Make, Principal, grantable, resources
from coldstream.deploy.doctor import Report
from coldstream.deploy.fix import Fixed
from coldstream.errors import HeaderError, ResourceConflict
from coldstream.settings import DeploySettings, ImageSettings
from tests.deploy.conftest import ADMIN, KEY, ME, MODEL, SHARED, Opened, Site, one_model, prepare
from tests.deploy.test_apply import OWN
from tests.fakecloud import Bucket
from tests.fakecloud.iam import roles, takes

GPU_QUOTA = "NvidiaL4GpuAllocNoZonalRedundancyPerProjectRegion"


def unmet(report: Report) -> list[str]:
    """What is not well, but for a new project's cards: a quota of 0, and no telling what it grants itself."""
    cards = ("quota for L4", "us-central1 has NVIDIA L4")
    return [item.question for item in report.checks if not item.met and not item.question.startswith(cards)]


def check(report: Report, text: str) -> Check:
    """The one check whose question contains the text."""
    found = [item for item in report.checks if text in item.question]
    assert len(found) == 1, [item.question for item in found]
    return found[0]


def mend(site: Site, who: str = ME) -> Fixed:
    """`coldstream doctor --fix --yes`."""
    job = site.job(who)
    clock = site.world.clock
    return fix.apply(job.session.google, job.examine, job.examine(), clock=clock, tell=lambda _: None)


def test_a_prepared_project_has_nothing_in_the_way(ready: Site) -> None:
    """Fifty checks and more, every one answered yes, with the call that said so."""
    ready.world.quotas[GPU_QUOTA] = 3
    report = ready.job().examine()
    assert [item for item in report.checks if not item.met] == []
    assert report.exit_code == 0
    assert len(report.checks) >= 50
    assert all(item.evidence for item in report.checks)


def test_doctor_changes_nothing(owned: Site) -> None:
    before = (
        dict(owned.world.accounts),
        dict(owned.world.repositories),
        set(owned.world.apis),
        set(owned.world.buckets),
    )
    owned.job().examine()
    world = owned.world
    assert (dict(world.accounts), dict(world.repositories), set(world.apis), set(world.buckets)) == before
    harmless = ("get", "list", "Get", "testIamPermissions", "troubleshoot", "getIamPolicy", "Info", "Policy", "Account")
    assert all(name.endswith(harmless) for name, _ in world.requests)


def test_the_four_classic_failures_are_named_at_once(site: Site) -> None:
    """A caller without builds.editor, a build account that may read, log and push nothing: four of many, in one run."""
    for role in ("roles/browser", "roles/serviceusage.serviceUsageConsumer"):
        site.world.iam.grant(site.world.project_name, role, ME)
    report = site.job().examine()
    expected = {
        "caller: cloudbuild.builds.create": "roles/cloudbuild.builds.editor",
        "build account: storage.objects.get": "roles/storage.objectViewer",
        "build account: logging.logEntries.create": "roles/logging.logWriter",
        "build account: artifactregistry.repositories.uploadArtifacts": "roles/artifactregistry.writer",
    }
    for question, role in expected.items():
        found = check(report, question)
        assert found.answer == "no"
        assert isinstance(found.mend, Grant)
        assert found.mend.role == role
    assert report.exit_code == 1


def test_an_empty_project_is_mended_and_deployed(site: Site) -> None:
    """An owner, nothing else: doctor, --fix, deploy."""
    site.world.iam.grant(site.world.project_name, "roles/owner", ME)
    assert site.job().examine().exit_code == 1
    fixed = mend(site)
    assert unmet(fixed.report) == []
    assert fixed.others == ()
    result = site.deploy()
    assert site.shares() == {result.revision: 100}


def test_a_project_where_hardly_any_api_is_on_is_mended_in_one_fix(site: Site) -> None:
    """With Resource Manager off nothing can be tested: unknown, said so, and asked again once it is on."""
    site.world.apis.clear()
    site.world.iam.grant(site.world.project_name, "roles/owner", ME)
    report = site.job().examine()
    builds = check(report, "caller: cloudbuild.builds.create")
    assert builds.answer == "unknown"
    assert "that API is off" in builds.evidence
    assert unmet(mend(site).report) == []


def test_a_fix_grants_what_the_checks_asked_for_and_no_more(owned: Site) -> None:
    """Every permission that an account gained is in a role that a row of the table names for it, on that resource."""
    fixed = mend(owned)
    world, target = owned.world, owned.job().target
    named = {(item.member, item.resource.full_name): set[str]() for item in fixed.added}
    for item in fixed.added:
        named[(item.member, item.resource.full_name)] |= roles()[item.role]
    for email in target.accounts:
        member = f"serviceAccount:{email}"
        for resource, permissions in world.iam.permissions_of(member).items():
            assert permissions == named[(member, resource)]
    table = {need.role for need in NEEDS}
    assert {item.role for item in fixed.added} <= table


def test_no_row_of_the_table_would_grant_owner_editor_or_more(site: Site) -> None:
    assert {need.role for need in NEEDS} & fix.FORBIDDEN == set()


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: f"{need.principal}: {need.permission}")
def test_the_role_of_a_row_contains_its_permission(need: object) -> None:
    """Held against Google's own role data."""
    assert need.permission in roles()[need.role]  # type: ignore[attr-defined]


def test_project_wide_grants_of_the_accounts_are_logs_alone(site: Site) -> None:
    """What a dedicated account may do, it may do on one bucket, one repository or one service; but write logs."""
    wide = {need.role for need in NEEDS if need.place == "project" and need.principal is not Principal.CALLER}
    assert wide == {"roles/logging.logWriter"}


def test_a_fix_takes_seven_minutes_to_act_and_grants_nothing_twice(owned: Site) -> None:
    """Polled with growing pauses, on the clock of the test; the policies are written once."""
    owned.world.iam.delay = 420.0
    told: list[str] = []
    job = owned.job()
    clock = owned.world.clock
    fixed = fix.apply(job.session.google, job.examine, job.examine(), clock=clock, tell=told.append)
    assert unmet(fixed.report) == []
    assert 420 <= clock.now() < 900
    assert any("do not act yet" in text for text in told)
    writes = [path for name, path in owned.world.requests if name.endswith("setIamPolicy")]
    assert len(writes) == len(fixed.added)


@pytest.mark.more
def test_a_fix_that_never_acts_ends_after_fifteen_minutes(owned: Site) -> None:
    owned.world.iam.delay = 1e9
    fixed = mend(owned)
    assert fixed.report.exit_code == 1
    assert owned.world.clock.now() < fix.PATIENCE + 120


def test_the_bucket_that_requests_may_name_photos_in_is_opened_to_the_runtime_account_alone(owned: Site) -> None:
    """[images] buckets: objects.get for who serves, on that bucket; no other account gains anything there."""
    owned.world.add_bucket("photos", Bucket("EU"))
    job = owned.job(chosen=replace(one_model(), images=ImageSettings(buckets=("photos",))))
    fixed = fix.apply(job.session.google, job.examine, job.examine(), clock=owned.world.clock, tell=lambda _: None)
    there = [item for item in fixed.added if item.resource.name == "photos"]
    runtime = f"serviceAccount:{job.target.runtime_account}"
    assert [(item.role, item.member) for item in there] == [("roles/storage.objectViewer", runtime)]
    assert unmet(fixed.report) == []


def test_a_second_fix_finds_nothing_to_do(owned: Site) -> None:
    mend(owned)
    owned.world.requests.clear()
    assert mend(owned).added == ()
    assert owned.asked("setIamPolicy") == 0


def test_a_caller_who_may_not_grant_gets_the_commands_for_whoever_may(site: Site, tmp_path: Path) -> None:
    """The script is a shell's, complete, and what it says is what an administrator's fix would do."""
    for role in ("roles/browser", "roles/serviceusage.serviceUsageConsumer"):
        site.world.iam.grant(site.world.project_name, role, ME)
    report = site.job().examine()
    wanted = fix.remedy(report)
    assert wanted.mine == ()
    text = fix.script(wanted.others, report.target)
    assert "gcloud services enable" in text
    assert f"--member={ME} --role=roles/cloudbuild.builds.editor" in text
    assert "gcloud iam service-accounts create coldstream-build" in text
    assert text.index("service-accounts create coldstream-build") < text.index("roles/logging.logWriter")
    assert "roles/owner" not in text
    path = tmp_path / "grants.sh"
    path.write_text(text)
    subprocess.run(["sh", "-n", str(path)], check=True)


def test_after_an_administrator_granted_it_a_caller_without_power_deploys(site: Site) -> None:
    """What the script says, done: the caller needs no right to make or to grant anything."""
    site.world.iam.grant(site.world.project_name, "roles/owner", ADMIN)
    for role in ("roles/browser", "roles/serviceusage.serviceUsageConsumer"):
        site.world.iam.grant(site.world.project_name, role, ME)
    prepare(site)
    target = site.job().target
    member = f"serviceAccount:{target.invoker_account}"
    site.world.iam.grant(site.world.project_name, "roles/run.invoker", member)
    report = site.job().examine()
    assert report.exit_code == 2
    looks = {item.role for item in report.grants}
    assert looks == {"roles/orgpolicy.policyViewer", "roles/cloudquotas.viewer"}
    result = site.deploy()
    assert site.shares() == {result.revision: 100}


def test_the_undo_script_takes_back_each_grant(owned: Site) -> None:
    fixed = mend(owned)
    text = fix.undo_script(fixed.added, fixed.report.target)
    assert text.count("remove-iam-policy-binding") == len(fixed.added)
    assert all(item.role in text for item in fixed.added)


def test_a_group_whose_members_are_hidden_leaves_the_answer_unknown(owned: Site) -> None:
    """The runtime account may be in the group that reads the bucket; from here there is no telling."""
    mend(owned)
    world, target = owned.world, owned.job().target
    place = world.bucket_name("models")
    world.iam.policies[place] = [item for item in world.iam.policies[place] if not item.member.startswith("serviceA")]
    world.iam.grant(place, "roles/storage.objectViewer", "group:readers@example.com")
    world.iam.groups["group:readers@example.com"] = frozenset({f"serviceAccount:{target.runtime_account}"})
    report = owned.job().examine()
    found = check(report, "runtime account: storage.objects.get")
    assert found.answer == "unknown"
    assert "group" in found.evidence
    assert report.exit_code == 2


def test_without_the_troubleshooter_the_policies_themselves_are_read(ready: Site) -> None:
    ready.world.apis.discard("policytroubleshooter.googleapis.com")
    found = check(ready.job().examine(), "build account: storage.objects.get")
    assert found.answer == "unknown"
    assert "getIamPolicy: granted in" in found.evidence
    assert "no deny policy" in found.evidence


def test_what_policies_do_not_show_is_unknown_when_a_folder_might_grant_it(ready: Site) -> None:
    ready.world.apis.discard("policytroubleshooter.googleapis.com")
    place = ready.world.bucket_name("models")
    ready.world.iam.policies[place] = [
        item for item in ready.world.iam.policies[place] if "serviceA" not in item.member
    ]
    found = check(ready.job().examine(), "runtime account: storage.objects.list")
    assert found.answer == "unknown"
    assert "a folder or the organisation might grant it" in found.evidence


def test_others_who_change_the_policy_meanwhile_are_not_overwritten(owned: Site) -> None:
    """The etag conflicts once; the grant is read and added again, and the other's grant stays."""
    world = owned.world

    def meanwhile(method: str) -> None:
        if method == "cloudresourcemanager.projects.setIamPolicy":
            world.on_request = None
            world.iam.grant(world.project_name, "roles/browser", "user:other@example.com")

    world.on_request = meanwhile
    mend(owned)
    members = [item.member for item in world.iam.policies[world.project_name]]
    assert "user:other@example.com" in members
    assert any(member.startswith("serviceAccount:coldstream-build") for member in members)


def test_a_policy_that_is_always_changed_meanwhile_ends_with_an_error(owned: Site) -> None:
    world = owned.world
    count = iter(range(1000))

    def meanwhile(method: str) -> None:
        if method == "cloudresourcemanager.projects.setIamPolicy":
            world.iam.grant(world.project_name, "roles/browser", f"user:other{next(count)}@example.com")

    world.on_request = meanwhile
    with pytest.raises(Exception, match="others keep changing the policy") as caught:
        mend(owned)
    assert not isinstance(caught.value, ResourceConflict)


def test_no_billing_account(ready: Site) -> None:
    ready.world.billing = False
    found = check(ready.job().examine(), "billing account")
    assert found.answer == "no"
    assert "console.cloud.google.com/billing" in str(found.mend)


@pytest.mark.parametrize(
    ("location", "answer"),
    [("US-CENTRAL1", "yes"), ("US", "yes"), ("EUROPE-WEST4", "warning"), ("ASIA", "warning"), ("NAM4", "yes")],
)
def test_bucket_and_service_in_one_region(ready: Site, location: str, answer: str) -> None:
    ready.world.buckets["models"] = Bucket(location)
    assert check(ready.job().examine(), "bucket models is in").answer == answer


def test_a_model_that_is_not_there_is_unknown_and_a_broken_one_is_missing(ready: Site) -> None:
    ready.shelf.models.clear()
    assert check(ready.job().examine(), "is a checkpoint").answer == "unknown"

    class Broken(Opened):
        @property
        def revision(self) -> str:  # type: ignore[override]
            raise HeaderError(f"{MODEL}: the header is truncated")

    ready.shelf.models[MODEL] = object.__new__(Broken)
    object.__setattr__(ready.shelf.models[MODEL], "config", Opened().config)
    object.__setattr__(ready.shelf.models[MODEL], "total_bytes", 1)
    object.__setattr__(ready.shelf.models[MODEL], "total_parameters", 1)
    found = check(ready.job().examine(), "is a checkpoint")
    assert found.answer == "no"
    assert "truncated" in found.evidence


def test_gpu_quota_of_zero_is_unknown_because_it_may_grant_itself(ready: Site) -> None:
    ready.world.quotas[GPU_QUOTA] = 0
    report = ready.job().examine()
    found = check(report, "L4 without zonal redundancy")
    assert found.answer == "unknown"
    assert "usually grants itself 3" in found.evidence
    assert report.exit_code == 2


def test_gpu_quota_with_zonal_redundancy_of_zero_is_missing(ready: Site) -> None:
    assert check(ready.job(zonal_redundancy=True).examine(), "L4 with zonal redundancy").answer == "no"


def test_quota_is_held_against_the_services_own_maximum(ready: Site) -> None:
    """40 GiB hold two instances of 16, not three; there is no old revision that would run beside them."""
    assert check(ready.job(max_instances=2).examine(), "quota for memory").answer == "yes"
    assert check(ready.job(max_instances=3).examine(), "quota for memory").answer == "no"


def test_a_rollouts_overlap_is_a_warning_with_a_way_out(ready: Site) -> None:
    """Of a service that is there already; the deployment goes on."""
    ready.deploy(max_instances=2)
    report = ready.job(max_instances=2, concurrency=3).examine()
    found = check(report, "old instance beside the new ones")
    assert found.answer == "warning"
    assert "--no-overlap" in str(found.mend)
    assert report.exit_code == 0


@pytest.mark.parametrize(
    ("constraint", "rules"),
    [
        ("gcp.resourceLocations", [{"values": {"allowedValues": ["in:europe-locations"]}}]),
        ("iam.disableServiceAccountCreation", [{"enforce": True}]),
        ("run.allowedIngress", [{"values": {"allowedValues": ["internal"]}}]),
        ("gcp.resourceLocations", [{"denyAll": True}]),
    ],
)
def test_an_organisation_policy_that_would_stop_it_is_named(ready: Site, constraint: str, rules: list[object]) -> None:
    ready.world.organisation_policies[constraint] = {"rules": rules}
    found = check(ready.job().examine(), constraint)
    assert found.answer == "no"


@pytest.mark.parametrize("value", ["in:us-locations", "us-central1", "in:us-central1-locations"])
def test_an_organisation_policy_that_allows_the_region_is_no_obstacle(ready: Site, value: str) -> None:
    rules = [{"values": {"allowedValues": [value]}}]
    ready.world.organisation_policies["gcp.resourceLocations"] = {"rules": rules}
    assert check(ready.job().examine(), "gcp.resourceLocations").answer == "yes"


def test_a_public_service_needs_one_permission_more(ready: Site) -> None:
    questions = [item.question for item in ready.job(public=True).examine().checks]
    assert any("caller: run.services.setIamPolicy" in text for text in questions)


def test_whatever_is_made_first_is_ordered_before_what_is_granted_on_it(owned: Site) -> None:
    wanted = fix.remedy(owned.job().examine())
    assert [type(item) for item in wanted.all] == [Make] * len(wanted.makes) + [Grant] * len(wanted.grants)
    assert wanted.makes[0].apis


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: f"{need.role} on {need.place}")
def test_the_role_of_a_row_may_be_granted_where_the_row_grants_it(need: Any) -> None:
    """Held against the fake's own list of what takes which roles."""
    own = OWN if need.place == "repository of the image" else None
    wanted = DeploySettings(project="demo-project", image=own, encryption_key=KEY, network=SHARED)
    place = naming.target(wanted, (MODEL,), ("photos",), "model-keys")
    found = resources(need.place, place)
    assert found
    for resource in found:
        assert grantable(need.role, resource.kind)
        assert takes(resource.full_name, need.role)


def test_what_is_made_or_granted_by_a_fix_was_asked_for_by_a_check(owned: Site) -> None:
    before = owned.job().examine()
    fixed = mend(owned)
    assert set(fixed.added) <= set(before.grants)
