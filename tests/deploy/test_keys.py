"""Keys of the customer's and networks of another project: who may use them is asked, granted, or unknown by name."""

from __future__ import annotations

from typing import Any

import pytest

from coldstream.deploy import fix
from coldstream.deploy.doctor import Report
from coldstream.deploy.fix import Fixed
from coldstream.errors import DeployError, SettingsError
from tests.deploy.conftest import ADMIN, KEY, ME, SHARED, Site
from tests.deploy.test_doctor import check
from tests.fakecloud import World

THEIRS = "projects/key-project/locations/us-central1/keyRings/r/cryptoKeys/k"
SUBNET = "projects/host-project/regions/us-central1/subnetworks/shared"
USE = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
APIS = ("run.googleapis.com", "artifactregistry.googleapis.com", "storage.googleapis.com")
OTHERS = {"key-project": "333333333333", "host-project": "444444444444"}


def opened_key(world: World, key: str) -> None:
    """A key that every agent may use."""
    world.keys.add(key)
    world.iam.grant(world.key_name(key), USE, *(f"serviceAccount:{world.agent_email(api)}" for api in APIS))


@pytest.fixture
def keyed(ready: Site) -> Site:
    """A key in the project, and one in another; a network of a third. Nothing was granted on them."""
    world = ready.world
    world.apis |= {"cloudkms.googleapis.com", "compute.googleapis.com"}
    world.other_projects |= OTHERS
    world.keys |= {KEY, THEIRS}
    world.subnets[SUBNET] = {"privateIpGoogleAccess": True}
    return ready


def project(name: str) -> str:
    return f"//cloudresourcemanager.googleapis.com/projects/{name}"


def about(report: Report, step: str) -> list[str]:
    return [item.answer for item in report.checks if item.step == step]


def mend(site: Site, who: str = ME, **wanted: Any) -> Fixed:
    job = site.job(who, **wanted)
    clock, told = site.world.clock, lambda _: None
    return fix.apply(job.session.google, job.examine, job.examine(), clock=clock, tell=told)


def unmade(site: Site) -> None:
    """As before the first deployment: neither repository nor source bucket."""
    target = site.job().target
    del site.world.repositories[target.repository_name]
    del site.world.buckets[target.source_bucket]


def test_each_agent_that_encrypts_is_asked_about_on_the_key(keyed: Site) -> None:
    report = keyed.job(encryption_key=KEY).examine()
    assert about(report, "encryption") == ["no"] * 6
    assert {grant.member.partition("@")[2] for grant in report.grants if grant.resource.kind == "key"} == {
        "serverless-robot-prod.iam.gserviceaccount.com",
        "gcp-sa-artifactregistry.iam.gserviceaccount.com",
        "gs-project-accounts.iam.gserviceaccount.com",
    }
    opened_key(keyed.world, KEY)
    assert about(keyed.job(encryption_key=KEY).examine(), "encryption") == ["yes"] * 6


def test_an_image_of_ones_own_is_encrypted_by_nobody_but_cloud_run(keyed: Site) -> None:
    report = keyed.job(encryption_key=KEY, image="us-docker.pkg.dev/demo-project/r/i:1").examine()
    assert about(report, "encryption") == ["no"] * 2


def test_a_fix_grants_the_key_before_it_makes_what_is_encrypted_with_it(keyed: Site) -> None:
    """The repository, the bucket and the instances have the key, and its users nothing else of it."""
    unmade(keyed)
    keyed.world.iam.delay = 200.0
    fixed = mend(keyed, encryption_key=KEY)
    assert about(fixed.report, "encryption") == ["yes"] * 6
    keyed.deploy(encryption_key=KEY)
    (repository,) = keyed.world.repositories.values()
    (bucket,) = (item for name, item in keyed.world.buckets.items() if name != "models")
    assert repository["kmsKeyName"] == KEY
    assert bucket.settings["encryption"] == {"defaultKmsKeyName": KEY}
    assert keyed.service()["template"]["encryptionKey"] == KEY
    granted = keyed.world.iam.policy(keyed.world.key_name(KEY))["bindings"]
    assert [item["role"] for item in granted] == [USE]
    assert len(granted[0]["members"]) == 3


def test_a_key_that_the_caller_may_not_grant_is_handed_over_before_what_it_encrypts(keyed: Site) -> None:
    unmade(keyed)
    keyed.world.iam.grant(project("key-project"), "roles/cloudkms.viewer", ME)
    keyed.world.iam.grant(project("key-project"), "roles/iam.securityReviewer", ME)
    fixed = mend(keyed, encryption_key=THEIRS)
    assert keyed.world.repositories == {}
    text = fix.script(fixed.others, fixed.report.target)
    assert text.count("gcloud kms keys add-iam-policy-binding k --member=serviceAccount:service-123456789012@") == 3
    assert "--keyring=r --location=us-central1 --project=key-project" in text
    commands = [fix.command(item, fixed.report.target) for item in fix.remedy(fixed.report).all]
    made = next(index for index, line in enumerate(commands) if f"--kms-key={THEIRS}" in line)
    assert all("kms keys add" in line for line in commands[:made] if "enable" not in line)
    opened_key(keyed.world, THEIRS)
    mend(keyed, encryption_key=THEIRS)
    keyed.deploy(encryption_key=THEIRS)
    assert keyed.service()["template"]["encryptionKey"] == THEIRS


def test_a_key_that_the_caller_may_not_see_is_unknown_and_stops_nothing(keyed: Site) -> None:
    opened_key(keyed.world, THEIRS)
    report = keyed.job(encryption_key=THEIRS).examine()
    assert about(report, "encryption") == ["unknown"] * 6
    assert "no" not in {item.answer for item in report.checks}
    keyed.deploy(encryption_key=THEIRS)


def test_a_key_without_its_api_is_unknown_in_another_project(keyed: Site) -> None:
    """The API that is off is the one of the project that calls are charged to."""
    keyed.world.apis.discard("cloudkms.googleapis.com")
    report = keyed.job(encryption_key=THEIRS).examine()
    assert about(report, "encryption") == ["unknown"] * 6
    assert check(report, "APIs that checks read with").answer == "warning"


def test_a_key_that_is_not_there_is_named_and_nothing_is_granted_on_it(keyed: Site) -> None:
    missing = KEY.removesuffix("/k") + "/other"
    report = keyed.job(encryption_key=missing).examine()
    found = [item for item in report.checks if item.step == "encryption"]
    assert {(item.answer, str(item.mend)) for item in found} == {
        ("no", "key other is not there: make it, or name another")
    }
    unmade(keyed)
    fixed = mend(keyed, encryption_key=missing)
    assert keyed.world.repositories == {}
    assert not [item for item in fixed.added if item.resource.kind == "key"]


def test_a_grant_on_the_ring_reaches_the_key(keyed: Site) -> None:
    member = f"serviceAccount:{keyed.world.agent_email(APIS[0])}"
    keyed.world.iam.grant(keyed.world.key_name(KEY.partition("/cryptoKeys/")[0]), USE, member)
    assert about(keyed.job(encryption_key=KEY).examine(), "encryption")[:2] == ["yes", "yes"]


def test_without_the_troubleshooter_the_rings_policy_is_read_too(keyed: Site) -> None:
    keyed.world.apis.discard("policytroubleshooter.googleapis.com")
    member = f"serviceAccount:{keyed.world.agent_email(APIS[0])}"
    keyed.world.iam.grant(keyed.world.key_name(KEY.partition("/cryptoKeys/")[0]), USE, member)
    first, _, third, *_ = [item for item in keyed.job(encryption_key=KEY).examine().checks if item.step == "encryption"]
    assert "which show no deny policy" in first.evidence
    assert "a folder or the organisation might grant it" in third.evidence


@pytest.mark.parametrize(
    "wanted",
    [
        {"encryption_key": KEY.replace("us-central1", "europe-west1")},
        {"encryption_key": KEY.replace("us-central1", "global")},
        {"network": SHARED, "subnet": SUBNET.replace("us-central1", "us-east4")},
    ],
)
def test_a_key_or_a_subnet_of_another_region_is_refused(keyed: Site, wanted: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="and the service in us-central1"):
        keyed.job(**wanted).plan()


# Networks.


@pytest.mark.parametrize(("access", "answer"), [(True, "yes"), (False, "no")])
def test_a_subnet_without_private_google_access_is_named(keyed: Site, access: bool, answer: str) -> None:
    """All traffic goes through it: without the access nothing reaches the model's bucket."""
    own = "projects/demo-project/regions/us-central1/subnetworks/shop"
    keyed.world.subnets[own] = {"privateIpGoogleAccess": access}
    report = keyed.job(network="shop-net", subnet="shop").examine()
    found = check(report, "subnet shop has Private Google Access")
    assert found.answer == answer
    if answer == "no":
        assert "update shop --region=us-central1 --project=demo-project --enable" in str(found.mend)
    assert about(report, "network") == [answer]


def test_a_service_behind_a_network_sends_everything_through_it(ready: Site) -> None:
    ready.deploy(network="shop-net", subnet="shop")
    access = ready.service()["template"]["vpcAccess"]
    assert access == {
        "egress": "ALL_TRAFFIC",
        "networkInterfaces": [{"network": "shop-net", "subnetwork": "shop"}],
    }
    assert any("Private Google Access" in text for text in ready.job(network="shop-net").plan().warnings)


def test_a_shared_network_wants_the_agent_on_its_subnet_and_its_project(keyed: Site) -> None:
    keyed.world.iam.grant(project("host-project"), "roles/owner", ADMIN)
    keyed.world.iam.grant(project("demo-project"), "roles/owner", ADMIN)
    wanted = {"network": SHARED, "subnet": SUBNET}
    report = keyed.job(ADMIN, **wanted).examine()
    assert about(report, "network") == ["no", "no", "yes"]
    with pytest.raises(DeployError, match="VPC Access subnetwork"):
        keyed.deploy(ADMIN, **wanted)
    fixed = mend(keyed, ADMIN, **wanted)
    assert {(item.role, str(item.resource)) for item in fixed.added if "compute" in item.role} == {
        ("roles/compute.networkUser", "subnet shared"),
        ("roles/compute.networkViewer", "project host-project"),
    }
    assert about(fixed.report, "network") == ["yes", "yes", "yes"]
    keyed.deploy(ADMIN, **wanted)
    undone = fix.undo_script(fixed.added, fixed.report.target)
    assert "subnets remove-iam-policy-binding shared" in undone
    assert "--region=us-central1 --project=host-project" in undone


def test_a_shared_network_that_the_caller_may_not_see_is_unknown(keyed: Site) -> None:
    report = keyed.job(network=SHARED, subnet=SUBNET).examine()
    assert about(report, "network") == ["unknown"] * 3
