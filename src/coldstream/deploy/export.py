"""The plan in other tools' words: Knative YAML, Terraform, a GKE Deployment, a KServe InferenceService; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from coldstream.deploy.plan import Plan
from coldstream.deploy.service import INGRESS, KEYS_VARIABLE, LIVE, READY, Options

GPU_LIMIT = "nvidia.com/gpu"


def knative(plan: Plan) -> str:
    """For `gcloud run services replace` (https://cloud.google.com/run/docs/reference/yaml/v1)."""
    template, options = plan.template, plan.options
    annotations = {
        "autoscaling.knative.dev/maxScale": str(plan.scaling.max_instances),
        "run.googleapis.com/execution-environment": "gen2",
        "run.googleapis.com/cpu-throttling": "false",
        "run.googleapis.com/startup-cpu-boost": "true",
        **_knative_options(options),
    }
    if plan.size.gpu:
        annotations["run.googleapis.com/gpu-zonal-redundancy-disabled"] = str(_single_zone(plan)).lower()
    container = _container(plan, probe=_probe(plan), keys=_knative_keys(plan))
    if options.liveness:
        container["livenessProbe"] = _liveness()
    spec: dict[str, Any] = {
        "containerConcurrency": plan.size.concurrency,
        "timeoutSeconds": plan.scaling.request_timeout,
        "serviceAccountName": plan.target.runtime_account,
        "containers": [container],
    }
    if plan.size.gpu:
        spec["nodeSelector"] = {"run.googleapis.com/accelerator": _accelerator(plan)}
    service_annotations = {
        "run.googleapis.com/ingress": options.ingress or "all",
        "run.googleapis.com/minScale": str(plan.scaling.min_instances),
        "run.googleapis.com/invoker-iam-disabled": str(plan.target.public).lower(),
        **({"run.googleapis.com/binary-authorization": "default"} if options.binary_authorization else {}),
    }
    labels = {**template["labels"], "cloud.googleapis.com/location": plan.target.region}
    return yaml(
        {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {"name": plan.target.service, "labels": labels, "annotations": service_annotations},
            "spec": {
                "template": {
                    "metadata": {"labels": dict(template["labels"]), "annotations": annotations},
                    "spec": spec,
                }
            },
        }
    )


def _knative_options(options: Options) -> dict[str, str]:
    """https://cloud.google.com/run/docs/reference/yaml/v1 and the pages of each feature."""
    found: dict[str, str] = {}
    if options.network is not None:
        interface = {"network": options.network} | ({"subnetwork": options.subnet} if options.subnet else {})
        found["run.googleapis.com/network-interfaces"] = json.dumps([interface])
        found["run.googleapis.com/vpc-access-egress"] = "all-traffic"
    if options.session_affinity is not None:
        found["run.googleapis.com/sessionAffinity"] = str(options.session_affinity).lower()
    if options.encryption_key is not None:
        found["run.googleapis.com/encryption-key"] = options.encryption_key
    return found


def _knative_keys(plan: Plan) -> list[dict[str, Any]]:
    if plan.target.secret is None:
        return []
    reference = {"name": plan.target.secret.rsplit("/", 1)[1], "key": "latest"}
    return [{"name": KEYS_VARIABLE, "valueFrom": {"secretKeyRef": reference}}]


def _kubernetes_keys(plan: Plan) -> list[dict[str, Any]]:
    """A Secret of the cluster with the same name; Secret Manager's does not come by itself."""
    if plan.target.secret is None:
        return []
    name = plan.target.secret.rsplit("/", 1)[1].lower().replace("_", "-")
    return [{"name": KEYS_VARIABLE, "valueFrom": {"secretKeyRef": {"name": name, "key": "keys"}}}]


def _left_out(plan: Plan) -> str:
    """Comments that name what a cluster has no counterpart for, or has to be given by hand."""
    options = plan.options
    wanted = ("ingress", "network", "subnet", "session_affinity", "encryption_key", "binary_authorization")
    names = [name for name in wanted if getattr(options, name) is not None]
    lines = [f"# not carried over, since it is Cloud Run's: {', '.join(names)}"] if names else []
    if plan.target.secret is not None:
        lines.append("# the Secret with the API keys, under `keys`, is yours to make")
    return "".join(f"{line}\n" for line in lines)


def _liveness() -> dict[str, Any]:
    return {"httpGet": {"path": LIVE, "port": 8080}, "periodSeconds": 30, "timeoutSeconds": 10, "failureThreshold": 4}


def _accelerator(plan: Plan) -> str:
    return "" if plan.size.card is None else plan.size.card.accelerator


def _single_zone(plan: Plan) -> bool:
    return bool(plan.template.get("gpu_zonal_redundancy_disabled"))


def _probe(plan: Plan) -> dict[str, Any]:
    return {
        "httpGet": {"path": READY, "port": 8080},
        "periodSeconds": plan.size.probe_period,
        "timeoutSeconds": max(1, plan.size.probe_period - 1),
        "failureThreshold": plan.size.probe_failures,
    }


def _limits(plan: Plan) -> dict[str, str]:
    return dict(plan.template["containers"][0]["resources"]["limits"])


def _environment(plan: Plan) -> list[dict[str, Any]]:
    """What is set as it is; keys come from a secret, which each tool names in its own way."""
    return [dict(item) for item in plan.template["containers"][0]["env"] if "value" in item]


def _container(plan: Plan, *, probe: dict[str, Any], keys: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": "coldstream",
        "image": plan.image,
        "ports": [{"name": "http1", "containerPort": 8080}],
        "env": [*_environment(plan), *keys],
        "resources": {"limits": _limits(plan)},
        "startupProbe": probe,
    }


def gke(plan: Plan) -> str:
    """A Deployment, its Service and its ServiceAccount (workload identity) for a GKE cluster."""
    name, labels = plan.target.service, {"app": plan.target.service}
    container = _container(plan, probe=_probe(plan), keys=_kubernetes_keys(plan))
    container["resources"] = {"limits": _limits(plan), "requests": _limits(plan)}
    container["readinessProbe"] = {"httpGet": {"path": READY, "port": 8080}, "periodSeconds": 5}
    container["livenessProbe"] = {"httpGet": {"path": LIVE, "port": 8080}, "periodSeconds": 20}
    pod: dict[str, Any] = {"serviceAccountName": name, "terminationGracePeriodSeconds": 30, "containers": [container]}
    if plan.size.gpu:
        pod["nodeSelector"] = {"cloud.google.com/gke-accelerator": _accelerator(plan)}
        pod["tolerations"] = [{"key": GPU_LIMIT, "operator": "Exists", "effect": "NoSchedule"}]
    template = {"metadata": {"labels": labels}, "spec": pod}
    replicas = max(1, plan.scaling.min_instances)
    identity = {"iam.gke.io/gcp-service-account": plan.target.runtime_account}
    documents: list[dict[str, Any]] = [
        _object("v1", "ServiceAccount", name, annotations=identity),
        _object(
            "apps/v1",
            "Deployment",
            name,
            spec={"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
        ),
        _object("v1", "Service", name, spec={"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}),
    ]
    return _left_out(plan) + "---\n".join(yaml(item) for item in documents)


def kserve(plan: Plan) -> str:
    """A KServe InferenceService (https://kserve.github.io/website/docs/reference/crd-api)."""
    container = {**_container(plan, probe=_probe(plan), keys=_kubernetes_keys(plan)), "name": "kserve-container"}
    predictor: dict[str, Any] = {
        "minReplicas": plan.scaling.min_instances,
        "maxReplicas": plan.scaling.max_instances,
        "containerConcurrency": plan.size.concurrency,
        "timeout": plan.scaling.request_timeout,
        "serviceAccountName": plan.target.service,
        "containers": [container],
    }
    if plan.size.gpu:
        predictor["nodeSelector"] = {"cloud.google.com/gke-accelerator": _accelerator(plan)}
    kind = "InferenceService"
    body = _object("serving.kserve.io/v1beta1", kind, plan.target.service, spec={"predictor": predictor})
    return _left_out(plan) + yaml(body)


def _object(
    version: str,
    kind: str,
    name: str,
    *,
    spec: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": {"app": name, "managed-by": "coldstream"}}
    if annotations is not None:
        metadata["annotations"] = dict(annotations)
    made: dict[str, Any] = {"apiVersion": version, "kind": kind, "metadata": metadata}
    return made if spec is None else {**made, "spec": dict(spec)}


def terraform(plan: Plan) -> str:
    """The service, its account and its grants (registry.terraform.io/providers/hashicorp/google, v6 or newer)."""
    target = plan.target
    container: list[str] = [
        f"image = {_hcl(plan.image)}",
        *_block("ports", ["container_port = 8080"]),
        *[line for item in _environment(plan) for line in _env_block(item)],
        *_terraform_keys(plan),
        *_block("resources", _resources(plan)),
        *_block("startup_probe", _terraform_probe(plan)),
        *(_block("liveness_probe", _terraform_liveness()) if plan.options.liveness else []),
    ]
    template = [
        f"service_account = {_hcl(target.runtime_account)}",
        f'timeout = "{plan.scaling.request_timeout}s"',
        f"max_instance_request_concurrency = {plan.size.concurrency}",
        'execution_environment = "EXECUTION_ENVIRONMENT_GEN2"',
        *([f"gpu_zonal_redundancy_disabled = {_hcl(_single_zone(plan))}"] if plan.size.gpu else []),
        *_block("scaling", [f"max_instance_count = {plan.scaling.max_instances}"]),
        *_terraform_options(plan.options),
        *(_block("node_selector", [f"accelerator = {_hcl(_accelerator(plan))}"]) if plan.size.gpu else []),
        *_block("containers", container),
    ]
    lines = [
        f"project = {_hcl(target.project)}",
        f"name = {_hcl(target.service)}",
        f"location = {_hcl(target.region)}",
        f"ingress = {_hcl(INGRESS[plan.options.ingress or 'all'])}",
        f"invoker_iam_disabled = {_hcl(target.public)}",
        *_block("scaling", [f"min_instance_count = {plan.scaling.min_instances}"]),
        *(_block("binary_authorization", ["use_default = true"]) if plan.options.binary_authorization else []),
        *_block("labels =", [f"{_hcl(key)} = {_hcl(value)}" for key, value in plan.template["labels"].items()]),
        *_block("template", template),
    ]
    resources = [*_block('resource "google_cloud_run_v2_service" "coldstream"', lines), "", *_terraform_grants(plan)]
    return "\n".join(resources) + "\n"


def _terraform_options(options: Options) -> list[str]:
    lines: list[str] = []
    if options.session_affinity is not None:
        lines.append(f"session_affinity = {_hcl(options.session_affinity)}")
    if options.encryption_key is not None:
        lines.append(f"encryption_key = {_hcl(options.encryption_key)}")
    if options.network is not None:
        interface = [f"network = {_hcl(options.network)}"]
        interface += [f"subnetwork = {_hcl(options.subnet)}"] if options.subnet else []
        lines += _block("vpc_access", ['egress = "ALL_TRAFFIC"', *_block("network_interfaces", interface)])
    return lines


def _terraform_keys(plan: Plan) -> list[str]:
    if plan.target.secret is None:
        return []
    reference = [f"secret = {_hcl(plan.target.secret)}", 'version = "latest"']
    source = _block("value_source", _block("secret_key_ref", reference))
    return _block("env", [f"name = {_hcl(KEYS_VARIABLE)}", *source])


def _terraform_liveness() -> list[str]:
    timing = ["period_seconds = 30", "timeout_seconds = 10", "failure_threshold = 4"]
    return [*timing, *_block("http_get", [f"path = {_hcl(LIVE)}", "port = 8080"])]


def _terraform_probe(plan: Plan) -> list[str]:
    return [
        f"period_seconds = {plan.size.probe_period}",
        f"timeout_seconds = {max(1, plan.size.probe_period - 1)}",
        f"failure_threshold = {plan.size.probe_failures}",
        *_block("http_get", [f"path = {_hcl(READY)}", "port = 8080"]),
    ]


def _resources(plan: Plan) -> list[str]:
    limits = [f"{_hcl(key)} = {_hcl(value)}" for key, value in _limits(plan).items()]
    return ["limits = {", *(f"  {line}" for line in limits), "}", "cpu_idle = false", "startup_cpu_boost = true"]


def _terraform_grants(plan: Plan) -> list[str]:
    lines: list[str] = []
    target = plan.target
    for index, bucket in enumerate(dict.fromkeys((*target.model_buckets, *target.photo_buckets))):
        lines += _block(
            f'resource "google_storage_bucket_iam_member" "read_{index}"',
            [
                f"bucket = {_hcl(bucket)}",
                'role = "roles/storage.objectViewer"',
                f"member = {_hcl('serviceAccount:' + plan.target.runtime_account)}",
            ],
        )
        lines.append("")
    if target.secret is not None:
        lines += _block(
            'resource "google_secret_manager_secret_iam_member" "keys"',
            [
                f"secret_id = {_hcl(target.secret)}",
                'role = "roles/secretmanager.secretAccessor"',
                f"member = {_hcl('serviceAccount:' + target.runtime_account)}",
            ],
        )
        lines.append("")
    lines += _block(
        'resource "google_cloud_run_v2_service_iam_member" "invoker"',
        [
            f"project = {_hcl(plan.target.project)}",
            f"location = {_hcl(plan.target.region)}",
            "name = google_cloud_run_v2_service.coldstream.name",
            'role = "roles/run.invoker"',
            f"member = {_hcl('serviceAccount:' + plan.target.invoker_account)}",
        ],
    )
    return lines


def _env_block(item: Mapping[str, str]) -> list[str]:
    return _block("env", [f"name = {_hcl(item['name'])}", f"value = {_hcl(item['value'])}"])


def _block(head: str, lines: list[str]) -> list[str]:
    return [f"{head} {{", *(f"  {line}" for line in lines), "}"]


def _hcl(value: Any) -> str:
    """A literal; `${` and `%{` would start a template in HCL."""
    return json.dumps(value, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")


def yaml(value: Any, indent: int = 0) -> str:
    """Block-style YAML of plain data; strings are JSON's, which YAML reads as they are."""
    pad = "  " * indent
    if isinstance(value, Mapping):
        return (
            "".join(f"{pad}{_scalar(key)}:{_below(item, indent + 1)}" for key, item in value.items()) or f"{pad}{{}}\n"
        )
    if isinstance(value, list):
        return "".join(f"{pad}-{_item(item, indent + 1)}" for item in value) or f"{pad}[]\n"
    return f"{pad}{_scalar(value)}\n"


def _below(value: Any, indent: int) -> str:
    if isinstance(value, (Mapping, list)) and value:
        return f"\n{yaml(value, indent)}"
    return f" {_inline(value)}\n"


def _item(value: Any, indent: int) -> str:
    if isinstance(value, Mapping) and value:
        return f" {yaml(value, indent).lstrip()}"
    return f" {_inline(value)}\n"


def _inline(value: Any) -> str:
    return "{}" if value == {} else "[]" if value == [] else _scalar(value)


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and value.replace("-", "").replace("_", "").isalpha() and value.isascii()
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
    return value if plain and value.lower() not in words else _escaped(json.dumps(value, ensure_ascii=False))


def _escaped(text: str) -> str:
    """JSON's text with what YAML takes for a line's end, or forbids, as the escapes that both know.

    YAML 1.1 ends lines at U+0085, U+2028 and U+2029, and neither version has C0, DEL, C1, surrogates or U+FFFE as they
    are (https://yaml.org/spec/1.2.2/#51-character-set).
    """
    return _UNWRITABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_UNWRITABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
