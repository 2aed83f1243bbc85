"""The plan in other tools' words: parsed again, and held against the plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coldstream.deploy import export, plan
from coldstream.deploy.models import Model
from coldstream.deploy.plan import Plan
from coldstream.deploy.sizing import Weights, shape
from coldstream.deploy.target import target
from coldstream.settings import DeploySettings, ServerSettings
from tests.deploy.conftest import GEMMA_270M, MODEL, one_model, small_context
from tests.fakecloud import discovery


def made(**wanted: object) -> Plan:
    settings = DeploySettings(project="demo-project", **wanted)  # type: ignore[arg-type]
    model = Model("gemma", Weights(MODEL, 536_000_000, 268_000_000, shape(GEMMA_270M)), "0011")
    place = target(settings, (MODEL,))
    return plan.make_plan(one_model(), settings, place, (model,), limits={}, deployed=None, context=small_context)


@pytest.mark.parametrize("cpu_only", [False, True])
def test_knative_is_what_cloud_runs_v1_api_publishes(cpu_only: bool) -> None:
    """Held against the discovery document of run.v1."""
    body = yaml.safe_load(export.knative(made(cpu_only=cpu_only)))
    document = json.loads(discovery.text("run.v1"))
    found = discovery.schema_violations(document["schemas"], {"$ref": "Service"}, body, "Service")
    assert list(found) == []
    container = body["spec"]["template"]["spec"]["containers"][0]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) is not cpu_only
    assert container["startupProbe"]["httpGet"]["path"] == "/ready"


def test_knative_says_what_the_plan_says() -> None:
    wanted = made(min_instances=1, max_instances=2)
    body = yaml.safe_load(export.knative(wanted))
    template = body["spec"]["template"]
    assert template["metadata"]["annotations"]["autoscaling.knative.dev/maxScale"] == "2"
    assert template["spec"]["containerConcurrency"] == wanted.size.concurrency
    assert template["spec"]["serviceAccountName"] == wanted.target.runtime_account


def test_a_gke_deployment_asks_for_one_l4_and_probes_readiness() -> None:
    account, deployment, service = yaml.safe_load_all(export.gke(made()))
    pod = deployment["spec"]["template"]["spec"]
    assert [item["kind"] for item in (account, deployment, service)] == ["ServiceAccount", "Deployment", "Service"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert pod["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]


def test_a_kserve_inference_service_has_the_plans_container() -> None:
    body = yaml.safe_load(export.kserve(made(max_instances=2)))
    predictor = body["spec"]["predictor"]
    assert (body["kind"], predictor["maxReplicas"]) == ("InferenceService", 2)
    assert predictor["containers"][0]["env"][0]["name"] == "COLDSTREAM_TOML"


def test_terraform_has_balanced_blocks_and_the_plans_values() -> None:
    text = export.terraform(made())
    assert text.count("{") - text.count("${") == text.count("}")
    assert 'resource "google_cloud_run_v2_service" "coldstream" {' in text
    assert "gpu_zonal_redundancy_disabled = true" in text
    assert '"nvidia.com/gpu" = "1"' in text
    assert "roles/storage.objectViewer" in text


KEY = "projects/demo-project/locations/us-central1/keyRings/r/cryptoKeys/k"
OPTIONS = {
    "ingress": "internal",
    "network": "shop",
    "subnet": "shop-a",
    "session_affinity": True,
    "encryption_key": KEY,
    "binary_authorization": True,
    "labels": {"team": "shop"},
}


def keyed(**wanted: object) -> Plan:
    """A plan whose API keys lie in a secret."""
    settings = DeploySettings(project="demo-project", **wanted)  # type: ignore[arg-type]
    chosen = replace(one_model(), server=ServerSettings(api_keys_secret="model-keys"))
    model = Model("gemma", Weights(MODEL, 536_000_000, 268_000_000, shape(GEMMA_270M)), "0011")
    place = target(settings, (MODEL,), (), "model-keys")
    return plan.make_plan(chosen, settings, place, (model,), limits={}, deployed=None, context=small_context)


def test_knative_and_terraform_say_every_option_of_a_service() -> None:
    body = yaml.safe_load(export.knative(keyed(**OPTIONS)))
    document = json.loads(discovery.text("run.v1"))
    assert list(discovery.schema_violations(document["schemas"], {"$ref": "Service"}, body, "Service")) == []
    text = export.terraform(keyed(**OPTIONS))
    for word in ("shop-a", KEY, "model-keys", "/live", "team", "COLDSTREAM_API_KEYS"):
        assert word in json.dumps(body)
        assert word in text
    assert body["metadata"]["annotations"]["run.googleapis.com/ingress"] == "internal"
    assert "INGRESS_TRAFFIC_INTERNAL_ONLY" in text
    assert text.count("{") - text.count("${") == text.count("}")


@pytest.mark.parametrize("write", [export.gke, export.kserve])
def test_what_a_cluster_has_no_counterpart_for_is_named(write: Callable[[Plan], str]) -> None:
    text = write(keyed(**OPTIONS))
    assert text.startswith("# not carried over, since it is Cloud Run's: ingress, network")
    assert "the Secret with the API keys" in text
    assert list(yaml.safe_load_all(text))


def test_an_rtx_pro_6000_is_exported_as_one() -> None:
    assert "nvidia-rtx-pro-6000" in export.knative(made(card="rtx-pro-6000"))
    assert "nvidia-rtx-pro-6000" in export.terraform(made(card="rtx-pro-6000"))


def test_a_template_in_a_prompt_is_no_template_in_terraform() -> None:
    assert export._hcl("${a} %{b}") == '"$${a} %%{b}"'


# Everything that JSON can say, as keys and as values; YAML 1.1 has other ideas of a line's end.
TEXT = st.text(max_size=12) | st.text("a\x7f\x85\u2028\u2029\ufeff\x00\n: #-", max_size=4)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(value=PLAIN)
def test_yaml_that_is_written_is_read_as_it_was(value: object) -> None:
    """Against PyYAML; JSON's escapes are YAML's."""
    assert yaml.safe_load(export.yaml(value)) == value
