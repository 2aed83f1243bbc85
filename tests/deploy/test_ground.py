"""What a deployment stands on when it is not ours, not there yet, somewhere else, or barred."""

from __future__ import annotations

import pytest

from coldstream.deploy import cards, places
from coldstream.deploy.plan_report import as_json, lines
from coldstream.errors import AccessBarred, DeployError
from tests.deploy.conftest import ADMIN, ME, MODEL, Opened, Site, prepare
from tests.deploy.test_apply import OWN, other_repository
from tests.deploy.test_doctor import GPU_QUOTA, check, mend, unmet
from tests.fakecloud import Bucket

# The source.


def test_a_source_bucket_of_somebody_else_is_refused_before_anything_is_written(ready: Site) -> None:
    """Its name is anybody's to take, and its owner could exchange what we build."""
    target = ready.job().target
    theirs = Bucket("US-CENTRAL1", owner="666")
    ready.world.add_bucket(target.source_bucket, theirs)
    ready.world.iam.grant(ready.world.bucket_name(target.source_bucket), "roles/storage.admin", "allAuthenticatedUsers")
    found = check(ready.job().examine(), f"bucket {target.source_bucket} is the project's own")
    assert (found.answer, "source_bucket" in str(found.mend)) == ("no", True)
    with pytest.raises(DeployError, match="belongs to project 666"):
        ready.deploy()
    assert theirs.objects == {}


def test_a_source_bucket_whose_owner_cannot_be_seen_is_not_trusted(ready: Site) -> None:
    target = ready.job().target
    ready.world.add_bucket(target.source_bucket, Bucket("US-CENTRAL1", owner="666"))
    ready.world.iam.policies[ready.world.bucket_name(target.source_bucket)] = []
    with pytest.raises(DeployError, match="its owner cannot be seen"):
        ready.deploy()


def test_a_build_reads_the_generation_that_was_uploaded(ready: Site) -> None:
    ready.deploy()
    (build,) = (item["build"] for item in ready.world.builds.values())
    source = build["source"]["storageSource"]
    stored = ready.world.buckets[source["bucket"]].objects[source["object"]]
    assert source["generation"] == str(stored[1])


def test_other_bytes_under_our_sources_name_are_not_built(ready: Site) -> None:
    bucket = ready.world.buckets[ready.job().target.source_bucket]
    context = ready.job().plan().context
    assert context is not None
    bucket.objects[f"source/{context.tag}.tar.gz"] = (b"poison", 1)
    ready.deploy()
    assert bucket.objects[f"source/{context.tag}.tar.gz"][0] == context.archive()


def test_a_bucket_that_is_made_loses_old_sources_and_a_repository_old_images(owned: Site) -> None:
    mend(owned)
    (bucket,) = (item for name, item in owned.world.buckets.items() if name != "models")
    (repository,) = owned.world.repositories.values()
    assert bucket.settings["lifecycle"]["rule"][0]["action"] == {"type": "Delete"}
    actions = {item["action"] for item in repository["cleanupPolicies"].values()}
    assert actions == {"KEEP", "DELETE"}


# Where builds run.


def test_a_source_that_the_build_account_cannot_read_is_named_at_once(ready: Site) -> None:
    """The second failure of everybody's first day: INVALID_ARGUMENT from the submit itself."""
    bucket = ready.world.bucket_name(ready.job().target.source_bucket)
    kept = ready.world.iam.policies[bucket]
    ready.world.iam.policies[bucket] = [item for item in kept if not item.member.startswith("serviceAccount")]
    with pytest.raises(DeployError, match=r"(?s)could not resolve source.*--role=roles/storage\.objectViewer"):
        ready.deploy()


def test_a_region_that_is_closed_to_a_projects_builds_is_gone_around(ready: Site) -> None:
    ready.world.barred_build_regions.add("us-central1")
    ready.deploy()
    (build,) = (item["build"] for item in ready.world.builds.values())
    assert "/locations/global/builds/" in build["name"]
    assert any("trying global" in event.text for event in ready.events)


def test_a_build_region_of_ones_own_is_the_only_one(ready: Site) -> None:
    ready.world.barred_build_regions.add("europe-west1")
    with pytest.raises(DeployError, match=r"deploy\.build_region"):
        ready.deploy(build_region="europe-west1")
    ready.deploy(build_region="us-east1")


def test_builds_that_must_run_in_a_private_pool_say_so_and_do(ready: Site) -> None:
    pool = "projects/demo-project/locations/us-central1/workerPools/private"
    ready.world.build_pools = {pool}
    with pytest.raises(DeployError, match=r"deploy\.build_pool"):
        ready.deploy()
    ready.deploy(build_pool=pool)


# Who is asked, and what bars the way.


def test_existence_is_not_read_from_permissions(owned: Site) -> None:
    """testIamPermissions answers in three ways about what is not there; the report is the same."""
    reports = []
    for mode in ("404", "empty", "403"):
        owned.world.absent = dict.fromkeys(owned.world.absent, mode)  # type: ignore[assignment]
        reports.append([(item.question, item.answer) for item in owned.job().examine().checks])
    assert reports[0] == reports[1] == reports[2]


def test_a_caller_who_may_not_use_the_quota_project_is_told_that_and_no_other_grant_first(site: Site) -> None:
    site.world.iam.grant(site.world.project_name, "roles/browser", ME)
    report = site.job().examine()
    found = check(report, "caller: serviceusage.services.use")
    assert found.answer == "no"
    assert "roles/serviceusage.serviceUsageConsumer" in str(found.mend)


def test_a_perimeter_is_told_from_a_missing_role(ready: Site) -> None:
    """No grant helps, so none is proposed."""
    ready.world.perimeter.add("artifactregistry")
    found = check(ready.job().examine(), "repository coldstream is there")
    assert found.answer != "yes"
    assert "VPC Service Controls" in found.evidence
    with pytest.raises((AccessBarred, DeployError), match="VPC Service Controls"):
        ready.deploy()


def test_a_bucket_whose_readers_pay_is_refused(ready: Site) -> None:
    ready.world.buckets["models"].requester_pays = True
    found = check(ready.job().examine(), "bucket models is in")
    assert (found.answer, "readers pay" in found.evidence) == ("no", True)
    with pytest.raises(DeployError, match="requester pays"):
        ready.deploy()


def test_billing_that_is_off_is_told_from_a_missing_role(ready: Site) -> None:
    ready.world.billing = False
    report = ready.job().examine()
    found = check(report, "repository coldstream is there")
    assert (found.answer, "billing is off" in found.evidence) == ("unknown", True)
    assert not [item for item in report.grants if item.resource.kind == "repository" and "reader" in item.role]


def test_a_deny_policy_goes_before_a_grant(ready: Site) -> None:
    """Version 3 of the troubleshooter knows it; version 1 said yes."""
    runtime = f"serviceAccount:{ready.job().target.runtime_account}"
    ready.world.iam.denied.add((runtime, "storage.objects.get"))
    assert check(ready.job().examine(), "runtime account: storage.objects.get").answer == "no"


def test_a_lost_comfort_is_a_warning_and_deploys(site: Site) -> None:
    """Without logs, the helpers' APIs and a look at the model's bucket, a deployment still works."""
    site.world.iam.grant(site.world.project_name, "roles/owner", ADMIN)
    prepare(site)
    world = site.world
    bindings = world.iam.policies[world.project_name]
    world.iam.policies[world.project_name] = [item for item in bindings if item.role != "roles/logging.viewer"]
    world.apis.discard("cloudbilling.googleapis.com")
    world.iam.grant(world.project_name, "roles/run.invoker", f"serviceAccount:{site.job().target.invoker_account}")
    answers = {item.question: item.answer for item in site.job().examine().checks}
    assert answers["caller: logging.logEntries.list on project demo-project"] == "warning"
    assert answers["the 4 APIs that checks read with are on"] == "warning"
    site.deploy()


def test_an_own_image_needs_no_build_but_the_agents_read_of_its_repository(ready: Site) -> None:
    other_repository(ready, readable=False)
    report = ready.job(image=OWN).examine()
    questions = [item.question for item in report.checks]
    gone = ("cloudbuild.", "coldstream-source", "build account")
    assert not [text for text in questions if any(word in text for word in gone)]
    found = check(report, "Cloud Run's service agent: artifactregistry.repositories.downloadArtifacts")
    assert found.answer != "yes"
    with pytest.raises(DeployError, match="must have permission to read the image"):
        ready.deploy(image=OWN)


def test_every_read_may_fail_now_and_then_and_the_deployment_ends(ready: Site) -> None:
    ready.world.hiccup = 3
    result = ready.deploy()
    assert ready.shares() == {result.revision: 100}


def test_a_project_whose_apis_were_off_deploys_though_agents_come_late(owned: Site) -> None:
    """Everything is new: accounts are seen after seconds, agents after a minute."""
    owned.world.account_delay, owned.world.agent_delay = 40.0, 300.0
    mend(owned)
    result = owned.deploy()
    assert any("not known everywhere yet" in event.text for event in owned.events)
    assert owned.shares() == {result.revision: 100}


def test_a_fix_survives_accounts_that_come_late(owned: Site) -> None:
    owned.world.account_delay = 90.0
    fixed = mend(owned)
    assert unmet(fixed.report) == []
    writes = sum(1 for name, _ in owned.world.requests if name.endswith("setIamPolicy"))
    assert writes >= len(fixed.added)


# Regions.


@pytest.mark.parametrize(
    ("region", "answer"),
    [("us-east4", "yes"), ("us-central1", "unknown"), ("asia-south1", "unknown"), ("us-west1", "no")],
)
def test_a_region_has_the_card_or_other_regions_are_named(ready: Site, region: str, answer: str) -> None:
    found = check(ready.job(region=region).examine(), f"{region} has NVIDIA L4")
    assert found.answer == answer
    assert answer == "yes" or "europe-west4" in str(found.mend)


def test_what_the_api_says_goes_before_a_dated_table(ready: Site) -> None:
    ready.world.region = "us-west1"
    ready.world.quotas[GPU_QUOTA] = 3
    assert check(ready.job(region="us-west1").examine(), "us-west1 has NVIDIA L4").answer == "yes"


def test_a_quota_that_is_not_listed_is_unknown(ready: Site) -> None:
    ready.world.unlisted_quotas.add(GPU_QUOTA)
    found = check(ready.job().examine(), "quota for L4")
    assert found.answer == "unknown"
    assert "usually grants itself 3" in found.evidence
    ready.deploy()


@pytest.mark.parametrize(
    ("location", "locations", "region", "covered"),
    [
        ("NAM4", (), "us-east1", True),
        ("NAM4", (), "us-west1", False),
        ("EU", (), "europe-west4", True),
        ("EU", (), "europe-west2", False),
        ("US", ("US-EAST4", "US-WEST1"), "us-west1", True),
        ("ASIA", (), "asia-southeast1", True),
        ("EUROPE-WEST1", (), "europe-west1", True),
    ],
)
def test_a_multi_region_covers_its_regions(
    location: str, locations: tuple[str, ...], region: str, covered: bool
) -> None:
    assert places.covers(location, locations, region) is covered


def test_every_region_with_a_card_is_a_region() -> None:
    named = {region for card in cards.CARDS.values() for region in (*card.regions, *card.by_invitation)}
    assert named <= places.COUNTRIES.keys()


# Other projects, other callers.


def test_a_project_that_belongs_to_a_domain_is_deployed_to(site: Site) -> None:
    world = site.world
    world.project = "example.com:shop-web"
    world.iam.policies.clear()
    world.add_bucket("models", Bucket("US-CENTRAL1"))
    world.iam.grant(world.project_name, "roles/owner", ME)
    target = site.job().target
    assert target.runtime_account == "coldstream-runtime@shop-web.example.com.iam.gserviceaccount.com"
    assert target.image.startswith("us-central1-docker.pkg.dev/example.com/shop-web/coldstream/")
    assert ":" not in target.source_bucket
    mend(site)
    result = site.deploy()
    assert site.shares() == {result.revision: 100}


FEDERATED = "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci/subject/main"


@pytest.mark.parametrize("caller", ["serviceAccount:ci@demo-project.iam.gserviceaccount.com", FEDERATED])
def test_a_service_account_or_a_federated_identity_deploys(site: Site, caller: str) -> None:
    prepare(site, caller)
    member = f"serviceAccount:{site.job().target.invoker_account}"
    site.world.iam.grant(site.world.project_name, "roles/run.invoker", member)
    named = {"caller": caller} if caller == FEDERATED else {}
    report = site.job(caller, **named).examine()
    assert {item.member for item in report.grants} <= {caller}
    result = site.deploy(caller, **named)
    assert site.shares() == {result.revision: 100}


def test_a_model_in_another_projects_bucket_is_read(ready: Site) -> None:
    ready.world.other_projects["models-project"] = "555"
    ready.world.add_bucket("shared-models", Bucket("US-CENTRAL1", owner="555"))
    runtime = f"serviceAccount:{ready.job().target.runtime_account}"
    for member in (ME, runtime):
        ready.world.iam.grant(ready.world.bucket_name("shared-models"), "roles/storage.objectViewer", member)
    ready.shelf.models["gs://shared-models/gemma"] = Opened()
    from tests.deploy.conftest import one_model

    chosen = one_model(uri="gs://shared-models/gemma")
    result = ready.deploy(chosen=chosen)
    assert ready.shares() == {result.revision: 100}
    assert MODEL not in str(ready.service()["template"])


def test_a_service_on_an_rtx_pro_6000(ready: Site) -> None:
    """20 vCPU and 80 GiB: more than a new project has, and the plan says so; with the quota it is deployed."""
    plan = ready.job(card="rtx-pro-6000").plan()
    assert plan.fit.instances == 0
    assert "without the NVIDIA RTX PRO 6000, whose price is not known here" in dict(lines(plan))["cost"]
    assert as_json(plan)["size"]["dollars_per_million_tokens"] is None
    assert "MemAllocPerProjectRegion" in " ".join(plan.proposals)
    ready.world.quotas |= {"CpuAllocPerProjectRegion": 100_000, "MemAllocPerProjectRegion": 400 * 1024**3}
    ready.deploy(card="rtx-pro-6000", engine="native")
    template = ready.service()["template"]
    assert template["nodeSelector"] == {"accelerator": "nvidia-rtx-pro-6000"}
    (build,) = (item["build"] for item in ready.world.builds.values())
    assert any("whl/cu130" in word for word in build["steps"][0]["args"])


def test_a_container_knows_its_project_and_is_asked_whether_it_lives(ready: Site) -> None:
    """GOOGLE_CLOUD_PROJECT joins the server's log lines to Google's traces."""
    ready.deploy()
    container = ready.service()["template"]["containers"][0]
    assert {"name": "GOOGLE_CLOUD_PROJECT", "value": "demo-project"} in container["env"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/live"
    ready.deploy(liveness=False)
    assert "livenessProbe" not in ready.service()["template"]["containers"][0]


def test_an_image_of_ones_own_is_not_asked_a_path_that_it_may_not_have(ready: Site) -> None:
    other_repository(ready, readable=True)
    ready.deploy(image=OWN)
    assert "livenessProbe" not in ready.service()["template"]["containers"][0]
