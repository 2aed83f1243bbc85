"""A service that is there already: what others set on it stays, and a new revision finds room beside the old one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.cloud import run_v2
from google.protobuf.json_format import ParseError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldstream.deploy import image
from coldstream.deploy.image import Context
from coldstream.errors import DeployError, SettingsError
from tests.deploy.conftest import KEY, MODEL, Opened, Site, small_context
from tests.deploy.test_apply import OWN, other_repository
from tests.deploy.test_keys import opened_key
from tests.fakecloud import discovery

SERVICE_WIDE = {
    "description": "the shop's",
    "ingress": "INGRESS_TRAFFIC_INTERNAL_ONLY",
    "iapEnabled": True,
    "customAudiences": ["https://shop.example.com"],
    "binaryAuthorization": {"useDefault": True},
}
OF_THE_TEMPLATE = {
    "sessionAffinity": True,
    "vpcAccess": {"egress": "PRIVATE_RANGES_ONLY", "networkInterfaces": [{"network": "shop"}]},
    "encryptionKey": KEY,
}


def somebody_sets(site: Site) -> None:
    """In the console: on the service, on its template, and a variable of the container."""
    opened_key(site.world, KEY)
    service = site.service()
    service |= SERVICE_WIDE
    service["labels"]["team"] = "shop"
    service["template"] |= OF_THE_TEMPLATE
    service["template"]["labels"]["team"] = "shop"
    service["template"]["containers"][0]["env"].append({"name": "HTTPS_PROXY", "value": "http://proxy"})


def kept(site: Site) -> None:
    service = site.service()
    assert {key: service.get(key) for key in SERVICE_WIDE} == SERVICE_WIDE
    assert {key: service["template"].get(key) for key in OF_THE_TEMPLATE} == OF_THE_TEMPLATE
    assert service["labels"]["team"] == service["template"]["labels"]["team"] == "shop"
    assert {"name": "HTTPS_PROXY", "value": "http://proxy"} in service["template"]["containers"][0]["env"]


def test_what_somebody_set_survives_a_new_revision_and_is_in_the_plan(ready: Site) -> None:
    ready.deploy()
    somebody_sets(ready)
    told = " ".join(ready.job(concurrency=3).plan().kept)
    assert all(
        word in told for word in ("the shop's", "INTERNAL_ONLY", "iap_enabled", "session_affinity", "HTTPS_PROXY")
    )
    ready.deploy(concurrency=3)
    kept(ready)
    assert ready.service()["template"]["maxInstanceRequestConcurrency"] == 3


def test_what_somebody_set_survives_traffic_and_a_rollback(ready: Site) -> None:
    ready.deploy()
    ready.shelf.models[MODEL] = Opened(revision="ffeeddccbbaa9988")
    somebody_sets(ready)
    ready.deploy(canary=20)
    kept(ready)


def test_a_deployment_upon_somebodys_settings_changes_nothing_the_second_time(ready: Site) -> None:
    ready.deploy()
    somebody_sets(ready)
    ready.deploy()
    made = len(ready.world.revisions)
    ready.events.clear()
    ready.deploy()
    assert ready.steps("done") == []
    assert len(ready.world.revisions) == made


def test_every_update_names_its_fields(ready: Site) -> None:
    """Google clears what an update without a mask leaves out."""
    ready.deploy()
    ready.deploy(concurrency=3)
    assert ready.world.masks
    assert all(mask and "*" not in mask for mask in ready.world.masks)
    assert ready.world.masks[-1] == "annotations,traffic"


def test_what_is_wanted_goes_before_what_somebody_set(ready: Site) -> None:
    ready.deploy()
    somebody_sets(ready)
    ready.deploy(ingress="all", session_affinity=False, network="other", labels={"team": "search"})
    service = ready.service()
    assert service["ingress"] == "INGRESS_TRAFFIC_ALL"
    assert not service["template"].get("sessionAffinity")
    assert service["template"]["vpcAccess"]["networkInterfaces"] == [{"network": "other"}]
    assert service["labels"]["team"] == "search"


def test_a_field_that_the_installed_client_cannot_read_is_refused_and_not_lost(ready: Site) -> None:
    ready.deploy()
    ready.service()["template"]["somethingNew"] = {"a": 1}
    with pytest.raises(DeployError, match=r"(?s)somethingNew.*pip install --upgrade google-cloud-run"):
        ready.deploy(concurrency=3)
    assert ready.service()["template"]["somethingNew"] == {"a": 1}


def test_a_sidecar_stays_where_it_is(ready: Site) -> None:
    ready.deploy()
    sidecar = {"name": "proxy", "image": "us-docker.pkg.dev/proxy/proxy/proxy:1"}
    ready.service()["template"]["containers"].append(sidecar)
    ready.deploy(concurrency=3)
    assert ready.service()["template"]["containers"][1] == sidecar


# Whatever the published document lets anybody set.

NAMES = st.text("abcdefgh", min_size=1, max_size=4)


def values(schema: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """What a schema of run.v2 allows, small, and never a default."""
    if "$ref" in schema:
        fields = discovery.document("run")["schemas"][schema["$ref"]].get("properties", {})
        open_ = {name: field for name, field in fields.items() if not field.get("readOnly") and depth < 3}
        made = {name: values(field, depth + 1) for name, field in open_.items()}
        return st.fixed_dictionaries({}, optional=made).filter(bool)
    if "enum" in schema:
        return st.sampled_from(schema["enum"][1:])
    if schema.get("format") in ("google-duration", "int64"):
        return st.integers(1, 9).map(lambda number: f"{number}s" if schema["format"] != "int64" else str(number))
    if schema["type"] == "array":
        return st.lists(values(schema["items"], depth + 1), min_size=1, max_size=2)
    if schema["type"] == "object":
        return st.dictionaries(
            NAMES, values(schema.get("additionalProperties", {"type": "string"}), depth + 1), min_size=1
        )
    return {"boolean": st.just(True), "integer": st.integers(1, 9)}.get(schema["type"], NAMES)


def settable(schema: str, ours: set[str], message: Any) -> st.SearchStrategy[dict[str, Any]]:
    """One to three fields that are not ours, as the installed client reads them."""
    fields = discovery.document("run")["schemas"][schema]["properties"]
    known = {name: field for name, field in fields.items() if not field.get("readOnly") and name not in ours}
    one = st.sampled_from(sorted(known)).flatmap(lambda name: values(known[name]).map(lambda value: {name: value}))
    read = one.filter(lambda field: readable(message, field))
    return st.lists(read, max_size=2).map(lambda found: {key: value for field in found for key, value in field.items()})


def readable(message: Any, field: dict[str, Any]) -> bool:
    try:
        message.from_json(json.dumps(field))
    except ParseError:
        return False
    return True


def plainly(message: Any, fields: dict[str, Any]) -> Any:
    return message.to_dict(message.from_json(json.dumps(fields)))


OURS = {"template", "traffic", "scaling", "invokerIamDisabled", "annotations", "labels", "client", "clientVersion"}
OURS_OF_TEMPLATE = {
    *("annotations", "labels", "serviceAccount", "executionEnvironment", "timeout", "maxInstanceRequestConcurrency"),
    *("scaling", "containers", "nodeSelector", "gpuZonalRedundancyDisabled", "revision", "client", "clientVersion"),
    # It has to be a key that there is.
    "encryptionKey",
}
OURS_OF_CONTAINER = {"name", "image", "ports", "env", "resources", "startupProbe", "livenessProbe", "buildInfo"}


@pytest.fixture
def deployed(ready: Site) -> Callable[[], Site]:
    """The site as it stood after its first deployment, as often as it is asked for."""
    ready.deploy()
    first = json.dumps([ready.world.services, ready.world.revisions])

    def again() -> Site:
        ready.world.services, ready.world.revisions = json.loads(first)
        return ready

    return again


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    wide=settable("GoogleCloudRunV2Service", {*OURS, "name", "etag"}, run_v2.Service),
    of_template=settable("GoogleCloudRunV2RevisionTemplate", OURS_OF_TEMPLATE, run_v2.RevisionTemplate),
    of_container=settable("GoogleCloudRunV2Container", OURS_OF_CONTAINER, run_v2.Container),
    labels=st.dictionaries(NAMES, NAMES, max_size=2),
    concurrency=st.none() | st.integers(2, 9),
)
def test_what_anybody_may_set_survives_and_a_second_deployment_changes_nothing(
    deployed: Callable[[], Site],
    wide: dict[str, Any],
    of_template: dict[str, Any],
    of_container: dict[str, Any],
    labels: dict[str, str],
    concurrency: int | None,
) -> None:
    """Of the service, of its template and its container; what serves in the end has it."""
    site, wanted = deployed(), {} if concurrency is None else {"concurrency": concurrency}
    service = site.service()
    service |= wide
    service["template"] |= of_template
    service["template"]["labels"] |= labels
    service["template"]["containers"][0] |= of_container
    site.deploy(**wanted)
    service, (serving,) = site.service(), site.shares()
    template = site.world.revisions[f"{service['name']}/revisions/{serving}"]["template"]
    container = template["containers"][0]
    for message, set_, found in (
        (run_v2.Service, wide, service),
        (run_v2.RevisionTemplate, of_template, service["template"]),
        (run_v2.RevisionTemplate, of_template, template),
        (run_v2.Container, of_container, container),
    ):
        assert plainly(message, {key: found.get(key) for key in set_}) == plainly(message, set_)
    assert template["labels"].items() >= labels.items()
    made, masks = len(site.world.revisions), len(site.world.masks)
    site.events.clear()
    site.deploy(**wanted)
    assert site.steps("done") == []
    assert (len(site.world.revisions), len(site.world.masks)) == (made, masks)


# Room for two revisions.

LARGE: dict[str, Any] = {"cpu": 8, "memory_gib": 32}


def test_a_service_that_fills_the_quota_is_deployed_the_first_time(ready: Site) -> None:
    """8 vCPU and 32 GiB of a new project's 40 GiB: nothing is there to overlap with."""
    result = ready.deploy(**LARGE)
    assert ready.shares() == {result.revision: 100}
    assert ready.job(**LARGE).plan().warnings != ()


def test_a_second_revision_without_room_fails_and_leaves_the_first(ready: Site) -> None:
    first = ready.deploy(**LARGE)
    with pytest.raises(DeployError, match="Quota violated"):
        ready.deploy(**LARGE, concurrency=3)
    assert ready.shares() == {first.revision: 100}


def test_without_overlap_the_old_instances_go_first_and_the_new_revision_gets_their_room(ready: Site) -> None:
    ready.deploy(**LARGE)
    second = ready.deploy(**LARGE, concurrency=3, overlap=False)
    assert ready.shares() == {second.revision: 100}
    assert ready.service()["scaling"].get("scalingMode") != "MANUAL"
    assert ready.world.masks[-3:] == ["scaling", ready.world.masks[-2], "annotations,traffic"]


def test_a_failure_without_overlap_brings_the_old_instances_back(ready: Site) -> None:
    first = ready.deploy(**LARGE)
    ready.world.container.ready = False
    with pytest.raises(DeployError, match="startup probe"):
        ready.deploy(**LARGE, concurrency=3, overlap=False)
    assert ready.shares() == {first.revision: 100}
    assert ready.service()["scaling"].get("scalingMode") != "MANUAL"


# Images.


def test_a_revision_names_its_image_by_digest(ready: Site) -> None:
    ready.deploy()
    assert "@sha256:" in ready.service()["template"]["containers"][0]["image"]


def test_another_image_under_the_same_tag_of_ones_own_is_another_revision(ready: Site) -> None:
    other_repository(ready, readable=True)
    first = ready.deploy(image=OWN)
    ready.world.images[OWN] = "sha256:2"
    second = ready.deploy(image=OWN)
    assert first.revision != second.revision
    assert ready.service()["template"]["containers"][0]["image"].endswith("@sha256:2")


def test_tags_that_cannot_be_moved_are_not_moved(ready: Site) -> None:
    """A second build in a repository with immutable tags: no tag that means the last one."""
    next(iter(ready.world.repositories.values()))["dockerConfig"] = {"immutableTags": True}
    ready.deploy()
    session = replace(ready.session(), context=lambda variant: Context(variant, {"Dockerfile": b"FROM other"}))
    job = replace(ready.job(), session=session)
    assert job.plan().context is not None
    tags = {name.rpartition(":")[2] for name in ready.world.images}
    assert not [tag for tag in tags if tag.endswith("-cache")]


def test_todays_base_is_another_image_and_is_built_without_a_cache() -> None:
    plain = small_context("gpu")
    fresh = replace(plain, base_of="2026-11-29")
    assert fresh.tag != plain.tag
    target = _target()
    request = image.build_request(target, fresh, "s", 7, immutable=False, wanted=_wanted())
    words = request["steps"][0]["args"]
    assert {"--pull", "--no-cache"} <= set(words)
    assert "--cache-from" not in words


def _wanted() -> Any:
    from coldstream.settings import DeploySettings

    return DeploySettings(project="demo-project")


def _target() -> Any:
    from coldstream.deploy.target import target

    return target(_wanted(), (MODEL,))


def test_an_image_for_a_newer_cuda_than_the_driver_is_refused_by_the_plan(ready: Site) -> None:
    other_repository(ready, readable=True)
    with pytest.raises(DeployError, match=r"CUDA 13\.0, and NVIDIA L4 on Cloud Run has driver 535.* CUDA 12\.2"):
        ready.job(image=OWN, image_cuda="13.0").plan()
    assert ready.job(image=OWN, image_cuda="12.6").plan().warnings == ()
    with pytest.raises(SettingsError, match="write it as"):
        ready.job(image=OWN, image_cuda="latest").plan()


def test_an_image_whose_cuda_nobody_named_is_warned_of(ready: Site) -> None:
    other_repository(ready, readable=True)
    assert "deploy.image_cuda" in " ".join(ready.job(image=OWN).plan().warnings)


@pytest.mark.parametrize(
    ("engine", "argument"),
    [("native", "TORCH_INDEX=https://download.pytorch.org/whl/cu12"), ("vllm", "BASE=docker.io/vllm/vllm-openai:v")],
)
def test_a_build_takes_a_cuda_for_the_driver_of_its_card(ready: Site, engine: str, argument: str) -> None:
    """torch of PyPI and vLLM's plain image are for CUDA 13, which an L4's driver does not run: it would not start."""
    ready.deploy(engine=engine)
    (build,) = (item["build"] for item in ready.world.builds.values())
    (word,) = (word for word in build["steps"][0]["args"] if word.startswith(argument))
    assert "cu12" in word
