"""Cloud Run in the fake: services, revisions that become ready or do not, traffic, and the deployed server itself."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import requests

from coldstream.deploy.service import CONFIG_VARIABLE
from tests.fakecloud import discovery
from tests.fakecloud.methods import (
    Call,
    Handler,
    already,
    get_operation,
    get_policy,
    missing,
    service_of,
    set_policy,
    show_operation,
    start_operation,
    test_permissions,
)
from tests.fakecloud.world import GIB, CloudError, World, image_repository


@dataclass(frozen=True)
class Card:
    """What Google's page says of a card (https://cloud.google.com/run/docs/configuring/services/gpu, 2026-11-29)."""

    quota: str
    unit: int
    least_cpu: int
    least_gib: int
    cuda: tuple[int, int]
    regions: frozenset[str]


CARDS = {
    "nvidia-l4": Card(
        "NvidiaL4GpuAlloc",
        1,
        4,
        16,
        (12, 2),
        frozenset({"us-central1", "us-east4", "europe-west1", "europe-west4", "asia-southeast1"}),
    ),
    "nvidia-rtx-pro-6000": Card(
        "NvidiaRtxPro6000GpuAlloc",
        1000,
        20,
        80,
        (13, 0),
        frozenset({"us-central1", "europe-west4", "asia-southeast1", "asia-south2"}),
    ),
}
# What a template has but its revision's name; what is not set is filled in.
FILLED_IN = {"launchStage": "GA", "ingress": "INGRESS_TRAFFIC_ALL"}


def _limits(template: dict[str, Any]) -> tuple[float, float, int]:
    """vCPU, GiB, GPUs of one instance."""
    limits = template["containers"][0].get("resources", {}).get("limits", {})
    cpu = limits.get("cpu", "1")
    cores = float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)
    memory = limits.get("memory", "512Mi")
    gib = float(memory[:-2]) / (1 if memory.endswith("Gi") else 1024)
    return cores, gib, int(limits.get("nvidia.com/gpu", "0"))


def _check(call: Call, template: dict[str, Any], *, beside: float = 0.0) -> None:
    """What Cloud Run refuses at once."""
    world = call.world
    cores, gib, gpus = _limits(template)
    problems = [*_card_problems(call, template, cores, gib, gpus), *_probe_problems(template, gpus)]
    if not 1 <= template.get("maxInstanceRequestConcurrency", 80) <= 1000:
        problems.append("max_instance_request_concurrency must be 1-1000.")
    if problems:
        raise CloudError(400, "INVALID_ARGUMENT", " ".join(problems))
    _check_quota(world, template, cores, gib, gpus, beside)
    email = template.get("serviceAccount", "")
    if not world.seen(email):
        raise CloudError(404, "NOT_FOUND", f"Service account {email} does not exist.")
    call.need("iam.serviceAccounts.actAs", world.account_name(email))
    _check_image(call, template)
    _check_secrets(world, template, email)
    _check_key(world, template)
    _check_network(call, template)


def _card_problems(call: Call, template: dict[str, Any], cores: float, gib: float, gpus: int) -> list[str]:
    if not gpus:
        return []
    kind = template.get("nodeSelector", {}).get("accelerator", "")
    card = CARDS.get(kind)
    if card is None:
        return ["nvidia.com/gpu requires node_selector.accelerator."]
    problems = []
    if cores < card.least_cpu or gib < card.least_gib:
        problems.append(f"GPU {kind} requires at least {card.least_cpu} CPU and {card.least_gib}Gi memory.")
    if call.path["locationsId"] not in card.regions:
        problems.append(f"Accelerator {kind} is not available in region {call.path['locationsId']}.")
    return problems


def _probe_problems(template: dict[str, Any], gpus: int) -> list[str]:
    problems = []
    probe = template["containers"][0].get("startupProbe", {})
    budget = probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10)
    if budget > (1800 if gpus else 240) or probe.get("periodSeconds", 10) > 240:
        problems.append("startup_probe: failure_threshold x period_seconds is out of range.")
    for name in ("startupProbe", "livenessProbe"):
        probe = template["containers"][0].get(name, {})
        if probe.get("timeoutSeconds", 1) >= probe.get("periodSeconds", 10):
            problems.append(f"{name}: timeout_seconds must be smaller than period_seconds.")
    return problems


def _check_quota(world: World, template: dict[str, Any], cores: float, gib: float, gpus: int, beside: float) -> None:
    """The service's own maximum, and what an old revision's instance takes beside it while the new one starts."""
    most = template.get("scaling", {}).get("maxInstanceCount", 100)
    if gpus:
        card = CARDS[template["nodeSelector"]["accelerator"]]
        single = bool(template.get("gpuZonalRedundancyDisabled"))
        name = f"{card.quota}{'NoZonalRedundancy' if single else ''}PerProjectRegion"
        if single and world.quotas.get(name, 0) == 0 and world.quota_auto_grant:
            world.quotas[name] = 3 * card.unit
        if most * card.unit > world.quotas.get(name, 0):
            kind = "without" if single else "with"
            text = f"You do not have quota for using GPUs {kind} zonal redundancy."
            raise CloudError(400, "FAILED_PRECONDITION", text)
    violated = []
    for name, asked, default in (
        ("CpuAllocPerProjectRegion", (most + beside) * cores * 1000, 20_000),
        ("MemAllocPerProjectRegion", (most + beside) * gib * GIB, 40 * GIB),
    ):
        allowed = world.quotas.get(name, default)
        if asked > allowed:
            violated.append(f"- {name} requested: {asked:.0f} allowed: {allowed}")
    if violated:
        text = "Max instances must be set lower to set the requested total CPU. Quota violated:\n" + "\n".join(violated)
        raise CloudError(400, "FAILED_PRECONDITION", text)


def _check_image(call: Call, template: dict[str, Any]) -> None:
    """Cloud Run's own agent reads the image: it comes late after its API, and needs a grant in other projects."""
    world, image = call.world, template["containers"][0]["image"]
    agent = world.agent_email("run.googleapis.com")
    refusal = CloudError(
        403,
        "PERMISSION_DENIED",
        f"Google Cloud Run Service Agent {agent} must have permission to read the image, {image}. Ensure that the "
        "provided container image URL is correct and that the above account has permission to access the image. If "
        "you just enabled the Cloud Run API, the permissions might take a few minutes to propagate.",
    )
    if not world.agent("run.googleapis.com"):
        raise refusal
    repository = image_repository(image)
    if repository is not None and repository.split("/")[1] != world.project:
        member, permission = f"serviceAccount:{agent}", "artifactregistry.repositories.downloadArtifacts"
        if not world.iam.allowed(member, permission, world.repository_name(repository)):
            raise refusal
    if call.first("validateOnly") != "true" and not _there(world, image):
        raise CloudError(404, "NOT_FOUND", f"Image '{image}' not found.")


def _there(world: World, image: str) -> bool:
    name, _, digest = image.partition("@")
    if digest:
        return any(key.startswith(f"{name}:") and value == digest for key, value in world.images.items())
    return image in world.images


def _check_secrets(world: World, template: dict[str, Any], email: str) -> None:
    for item in template["containers"][0].get("env", []):
        name = item.get("valueSource", {}).get("secretKeyRef", {}).get("secret")
        if name is None:
            continue
        place = world.secret_name(name) if name.startswith("projects/") else name
        if not world.iam.allowed(f"serviceAccount:{email}", "secretmanager.versions.access", place):
            text = f"Permission denied on secret: {name} for Revision service account {email}."
            raise CloudError(400, "FAILED_PRECONDITION", text)


def _check_key(world: World, template: dict[str, Any]) -> None:
    key, api = template.get("encryptionKey"), "run.googleapis.com"
    if key is not None and not world.uses_key(api, key):
        text = f"Permission denied on Cloud KMS key {key}: {world.agent_email(api)} may not use it."
        raise CloudError(400, "FAILED_PRECONDITION", text)


def _check_network(call: Call, template: dict[str, Any]) -> None:
    """Its agent uses networks of its own project; in another one it wants grants on the subnet and on the project."""
    world, member = call.world, f"serviceAccount:{call.world.agent_email('run.googleapis.com')}"
    for interface in template.get("vpcAccess", {}).get("networkInterfaces", []):
        named = next((name for name in map(interface.get, ("subnetwork", "network")) if name and "/" in name), None)
        project = call.path["projectsId"] if named is None else named.split("/")[1]
        if project == world.project:
            continue
        short = (interface.get("subnetwork") or interface["network"]).rsplit("/", 1)[-1]
        subnet = f"projects/{project}/regions/{call.path['locationsId']}/subnetworks/{short}"
        host = world.resource_of_project(project)
        may = world.iam.allowed(member, "compute.subnetworks.use", world.subnet_name(subnet)) and world.iam.allowed(
            member, "compute.networks.get", host
        )
        if subnet not in world.subnets or not may:
            text = f"VPC Access subnetwork {subnet} cannot be used: {member} lacks permission, or it does not exist."
            raise CloudError(400, "FAILED_PRECONDITION", text)


def create_service(call: Call) -> Any:
    world = call.world
    call.need("run.services.create", world.project_name)
    place = "projects/{projectsId}/locations/{locationsId}".format(**call.path)
    name = f"{place}/services/{call.first('serviceId')}"
    if name in world.services:
        raise already(name)
    _check(call, call.body["template"])
    if call.first("validateOnly") == "true":
        return {"name": f"{place}/operations/validate", "done": True, "response": _typed({"name": name})}
    made = {"name": name, "creator": call.principal, "createTime": world.timestamp()}
    world.services[name] = {**FILLED_IN, **call.body, **made}
    return _apply(world, name, call.body)


def patch_service(call: Call) -> Any:
    world = call.world
    place = service_of(call)
    call.need("run.services.update", place)
    name = place.removeprefix("//run.googleapis.com/")
    before = world.services[name]
    if call.body.get("etag") and call.body["etag"] != before["etag"]:
        raise CloudError(
            409, "ABORTED", f"Conflict for resource '{name}': version '{call.body['etag']}' was specified."
        )
    world.masks.append(call.first("updateMask"))
    after = _updated(before, call.body, call.first("updateMask"))
    if after.get("template") != before.get("template"):
        _check(call, after["template"], beside=0.0 if _stopped(before) else 1.0)
    if call.first("validateOnly") == "true":
        return {"name": f"{name}/operations/validate", "done": True, "response": _typed({"name": name})}
    world.services[name] = after
    return _apply(world, name, after)


SETTABLE = frozenset(
    name
    for name, field in discovery.document("run")["schemas"]["GoogleCloudRunV2Service"]["properties"].items()
    if not field.get("readOnly") and name not in ("name", "etag")
)


def _updated(before: dict[str, Any], body: dict[str, Any], mask: str) -> dict[str, Any]:
    """The service after an update. Without a mask it is replaced: what the body leaves out is cleared."""
    paths = sorted(SETTABLE) if mask in ("", "*") else mask.split(",")
    after = copy.deepcopy(before)
    for path in paths:
        _set(after, copy.deepcopy(body), path.split("."))
    filled = {key: value for key, value in FILLED_IN.items() if key not in after}
    return {**after, **filled}


def _set(after: dict[str, Any], body: dict[str, Any], path: list[str]) -> None:
    name, *rest = path
    if rest:
        _set(after.setdefault(name, {}), body.get(name, {}), rest)
    elif name in body:
        after[name] = body[name]
    else:
        after.pop(name, None)


def _stopped(service: dict[str, Any]) -> bool:
    scaling = service.get("scaling", {})
    return scaling.get("scalingMode") == "MANUAL" and not scaling.get("manualInstanceCount")


def _apply(world: World, name: str, body: dict[str, Any]) -> Any:
    service, template = world.services[name], body["template"]
    revision = (
        f"{name}/revisions/{template.get('revision') or name.rsplit('/', 1)[1] + '-' + str(world.next_generation())}"
    )
    known = world.revisions.get(revision)
    if known is not None and _content(known["template"]) != _content(template):
        raise CloudError(409, "ALREADY_EXISTS", f"Revision named '{revision.rsplit('/', 1)[1]}' already exists.")
    names = {item.rsplit("/", 1)[1] for item in world.revisions if item.startswith(f"{name}/")} | {
        revision.rsplit("/", 1)[1]
    }
    for target in body.get("traffic", []):
        if target.get("revision") and target["revision"] not in names:
            raise CloudError(400, "INVALID_ARGUMENT", f"Revision {target['revision']} in traffic does not exist.")
    if sum(target.get("percent", 0) for target in body.get("traffic", [])) not in (0, 100):
        raise CloudError(400, "INVALID_ARGUMENT", "traffic percentages must add up to 100")
    service["etag"] = f'"{world.next_generation()}"'
    service["updateTime"] = world.timestamp()
    service["latestCreatedRevision"] = revision
    service["uri"] = f"{world.base_url}/app/{name.rsplit('/', 1)[1]}"
    ready_in = 2.0
    if known is None:
        world.revisions[revision] = {"template": template, "at": world.clock.now(), "state": "PENDING", "message": ""}
        ready_in = _ready_in(world, template)
    location = name.rsplit("/services/", 1)[0]

    def finish() -> dict[str, Any]:
        state = settle(world, revision)
        if state["state"] == "FAILED":
            raise CloudError(400, "FAILED_PRECONDITION", state["message"])
        service["latestReadyRevision"] = revision
        return _typed(show_service(world, name))

    operation = start_operation(world, f"{location}/operations/{world.next_generation()}", ready_in, finish)
    operation.metadata = _typed(show_service(world, name))
    return show_operation(world, operation)


def _content(template: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in template.items() if key not in ("client", "clientVersion")}


def _typed(service: dict[str, Any]) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.cloud.run.v2.Service", **service}


def _probe_budget(template: dict[str, Any]) -> float:
    probe = template["containers"][0].get("startupProbe", {})
    return float(probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10))


def _model_bucket(template: dict[str, Any]) -> str | None:
    container = template["containers"][0]
    text = " ".join([*container.get("args", []), *(item.get("value", "") for item in container.get("env", []))])
    found = re.search(r"gs://([^/\s\"]+)", text)
    return found.group(1) if found else None


def _refusal(world: World, template: dict[str, Any]) -> str | None:
    """Why the container cannot start, in the words of its log."""
    bucket = _model_bucket(template)
    if bucket is None:
        return _driver_refusal(world, template)
    account = f"serviceAccount:{template['serviceAccount']}"
    if bucket in world.buckets and world.buckets[bucket].requester_pays:
        return f"gs://{bucket}: Bucket is a requester pays bucket but no user project provided."
    if bucket not in world.buckets or not world.iam.allowed(account, "storage.objects.get", world.bucket_name(bucket)):
        return f"AccessDenied: gs://{bucket}: storage.objects.get is missing for {template['serviceAccount']}"
    return _driver_refusal(world, template)


def _driver_refusal(world: World, template: dict[str, Any]) -> str | None:
    card = CARDS.get(template.get("nodeSelector", {}).get("accelerator", ""))
    name = template["containers"][0]["image"]
    known = {
        **world.image_cuda,
        **{
            f"{key.rpartition(':')[0]}@{world.images[key]}": value
            for key, value in world.image_cuda.items()
            if key in world.images
        },
    }
    needed = known.get(name)
    if card is None or needed is None or needed[0] <= card.cuda[0]:
        return None
    return f"RuntimeError: The NVIDIA driver on your system is too old (found version {card.cuda[0]}0{card.cuda[1]}0)."


def _ready_in(world: World, template: dict[str, Any]) -> float:
    if world.provisioning_failure is not None:
        return 600.0
    if _refusal(world, template) is not None or not world.container.ready:
        return _probe_budget(template)
    return min(world.container.start_seconds, _probe_budget(template))


def settle(world: World, revision: str) -> dict[str, Any]:
    """The revision as it stands now."""
    state = world.revisions[revision]
    template = state["template"]
    if state["state"] != "PENDING" or world.clock.now() < state["at"] + _ready_in(world, template):
        return state
    service, name = revision.split("/")[5], revision.rsplit("/", 1)[1]
    labels = {"service_name": service, "revision_name": name}
    resource = {"type": "cloud_run_revision", "labels": labels}
    refusal = _refusal(world, template)
    if world.provisioning_failure is not None:
        state |= {"state": "FAILED", "reason": "MIN_INSTANCES_NOT_PROVISIONED", "message": world.provisioning_failure}
    elif refusal or not world.container.ready or world.container.start_seconds > _probe_budget(template):
        text = (
            f"Revision '{name}' is not ready and cannot serve traffic. The user-provided container failed the "
            "configured startup probe checks. Logs for this revision might contain more information."
        )
        world.log(resource, refusal or "coldstream: still loading", severity="ERROR")
        state |= {"state": "FAILED", "reason": "HEALTH_CHECK_CONTAINER_ERROR", "message": text}
    else:
        world.log(resource, "coldstream: ready")
        state |= {"state": "READY", "message": ""}
    return state


def show_service(world: World, name: str) -> dict[str, Any]:
    service = dict(world.services[name])
    short = name.rsplit("/", 1)[1]
    statuses = []
    for target in service.get("traffic", []):
        status = dict(target)
        if target.get("tag"):
            status["uri"] = f"{world.base_url}/app/{target['tag']}---{short}"
        statuses.append(status)
    service["trafficStatuses"] = statuses
    service["urls"] = [service["uri"]]
    latest = settle(world, service["latestCreatedRevision"])
    service["terminalCondition"] = _condition(latest)
    service["reconciling"] = latest["state"] == "PENDING"
    return service


def _condition(state: dict[str, Any]) -> dict[str, Any]:
    shown = {"READY": "CONDITION_SUCCEEDED", "FAILED": "CONDITION_FAILED", "PENDING": "CONDITION_RECONCILING"}
    condition = {"type": "Ready", "state": shown[state["state"]], "message": state["message"]}
    if state.get("reason"):
        condition["revisionReason"] = state["reason"]
    return condition


def get_service(call: Call) -> Any:
    call.need("run.services.get", service_of(call))
    return show_service(call.world, service_of(call).removeprefix("//run.googleapis.com/"))


def delete_service(call: Call) -> Any:
    world = call.world
    place = service_of(call)
    call.need("run.services.delete", place)
    name = place.removeprefix("//run.googleapis.com/")
    gone = _typed(show_service(world, name))
    del world.services[name]
    world.iam.policies.pop(place, None)
    for revision in [item for item in world.revisions if item.startswith(f"{name}/")]:
        del world.revisions[revision]
    location = name.rsplit("/services/", 1)[0]
    operation = f"{location}/operations/{world.next_generation()}"
    return show_operation(world, start_operation(world, operation, 5.0, lambda: gone))


def show_revision(world: World, name: str) -> dict[str, Any]:
    state = settle(world, name)
    template = {key: value for key, value in state["template"].items() if key != "revision"}
    shown = {"name": name, "service": name.rsplit("/revisions/", 1)[0], "conditions": [_condition(state)]}
    return {**template, **shown, "createTime": world.timestamp(state["at"]), "reconciling": state["state"] == "PENDING"}


def get_revision(call: Call) -> Any:
    call.need("run.revisions.get", service_of(call))
    name = service_of(call).removeprefix("//run.googleapis.com/") + f"/revisions/{call.path['revisionsId']}"
    if name not in call.world.revisions:
        raise missing(name)
    return show_revision(call.world, name)


def list_revisions(call: Call) -> Any:
    place = service_of(call)
    call.need("run.revisions.list", place)
    prefix = place.removeprefix("//run.googleapis.com/") + "/"
    names = [item for item in call.world.revisions if item.startswith(prefix)]
    return {"revisions": [show_revision(call.world, item) for item in reversed(names)]}


def list_services(call: Call) -> Any:
    call.need("run.services.list", call.world.project_name)
    location = "projects/{projectsId}/locations/{locationsId}".format(**call.path)
    if location.endswith("/-"):
        raise CloudError(400, "INVALID_ARGUMENT", 'Location must be a valid region, and cannot be the "-" wildcard.')
    names = [name for name in call.world.services if name.startswith(f"{location}/")]
    return {"services": [show_service(call.world, name) for name in names]}


# Jobs


def create_job(call: Call) -> Any:
    world = call.world
    call.need("run.jobs.create", world.project_name)
    place = "projects/{projectsId}/locations/{locationsId}".format(**call.path)
    name = f"{place}/jobs/{call.first('jobId')}"
    if name in world.jobs:
        raise already(name)
    task = call.body["template"]["template"]
    _check(call, {**task, "scaling": {"maxInstanceCount": call.body["template"].get("taskCount", 1)}})
    world.jobs[name] = {**call.body, "name": name}
    answer = {"@type": "type.googleapis.com/google.cloud.run.v2.Job", **world.jobs[name]}
    operation = f"{place}/operations/{world.next_generation()}"
    return show_operation(world, start_operation(world, operation, 2.0, lambda: answer))


def job_of(call: Call) -> str:
    name = "projects/{projectsId}/locations/{locationsId}/jobs/{jobsId}".format(**call.path)
    if name not in call.world.jobs:
        raise missing(name)
    return name


def run_job(call: Call) -> Any:
    world, name = call.world, job_of(call)
    call.need("run.jobs.run", world.project_name)
    place, short = name.split("/jobs/")
    execution = f"{short}-{world.next_generation()}"
    kind = {"@type": "type.googleapis.com/google.cloud.run.v2.Execution"}
    world.jobs[name]["latestCreatedExecution"] = {"name": execution, "createTime": world.timestamp()}

    def finish() -> dict[str, Any]:
        resource = {"type": "cloud_run_job", "labels": {"job_name": short}}
        labels = {"run.googleapis.com/execution_name": execution}
        task = world.jobs[name]["template"]["template"]
        world.jobs[name]["latestCreatedExecution"]["completionTime"] = world.timestamp()
        refusal = _refusal(world, task) or world.job_fails
        for line in world.job_prints if refusal is None else [refusal]:
            world.log(resource, line, labels=labels, at=world.clock.now() + world.log_delay)
        if refusal is not None:
            raise CloudError(400, "FAILED_PRECONDITION", "Task task0 failed with message: The container exited with 1.")
        return {**kind, "name": f"{name}/executions/{execution}"}

    operation = start_operation(world, f"{place}/operations/{world.next_generation()}", 60.0, finish)
    operation.metadata = {**kind, "name": f"{name}/executions/{execution}"}
    return show_operation(world, operation)


def get_job(call: Call) -> Any:
    call.need("run.jobs.get", call.world.project_name)
    return call.world.jobs[job_of(call)]


def delete_job(call: Call) -> Any:
    world, name = call.world, job_of(call)
    call.need("run.jobs.delete", world.project_name)
    gone = {"@type": "type.googleapis.com/google.cloud.run.v2.Job", **world.jobs.pop(name)}
    operation = f"{name.split('/jobs/')[0]}/operations/{world.next_generation()}"
    return show_operation(world, start_operation(world, operation, 2.0, lambda: gone))


def application(world: World, http: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
    """The deployed server behind its door: (status, JSON). Google's front end keeps /healthz to itself."""
    _, _, host, *rest = path.split("/")
    if rest == ["healthz"]:
        return 404, "<html><title>Error 404 (Not Found)!!1</title>"
    tag, _, short = host.rpartition("---")
    name = next((item for item in world.services if item.endswith(f"/services/{short}")), None)
    if name is None:
        return 404, {"error": "no such service"}
    # X-Serverless-Authorization is looked at first, and then Authorization is the server's alone.
    given = headers.get("X-Serverless-Authorization") or headers.get("Authorization", "")
    refused = _door(world, name, given)
    if refused is not None:
        return refused, {"error": "the invoker is not allowed"}
    world.container.heard.append(dict(headers))
    service = world.services[name]
    wanted = [item for item in service.get("traffic", []) if (item.get("tag") == tag if tag else item.get("percent"))]
    if not wanted:
        return 404, {"error": "no traffic"}
    revision = (
        f"{name}/revisions/{wanted[0]['revision']}" if wanted[0].get("revision") else service["latestCreatedRevision"]
    )
    if settle(world, revision)["state"] != "READY":
        return 503, {"error": "not ready"}
    if world.container.server is not None:
        return _passed_on(world.container.server(_config(world.revisions[revision])), http, "/".join(rest), body)
    if rest and rest[-1] in ("ready", "readyz", "health", "live", "ping"):
        return 200, {"status": "ready"}
    if world.container.key is not None and headers.get("Authorization") != f"Bearer {world.container.key}":
        return 401, {"error": "the API key is not one of this server's"}
    if rest == ["v1", "chat", "completions"] and http == "POST":
        return 200, {"choices": [{"message": {"role": "assistant", "content": world.container.default_answer}}]}
    if rest == ["generate"] and http == "POST":
        task = json.loads(body)["type"]
        return world.container.status, world.container.answers.get(task, world.container.default_answer)
    return 404, {"error": "no such path"}


def _config(state: dict[str, Any]) -> str:
    (value,) = (item["value"] for item in state["template"]["containers"][0]["env"] if item["name"] == CONFIG_VARIABLE)
    return str(value)


def _passed_on(url: str, http: str, path: str, body: bytes) -> tuple[int, Any]:
    answer = requests.request(
        http, f"{url}/{path}", data=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    return answer.status_code, answer.json()


def _door(world: World, name: str, authorization: str) -> int | None:
    service = world.services[name]
    if service.get("invokerIamDisabled"):
        return None
    if not authorization.startswith("Bearer id-token."):
        return 403
    claims = json.loads(base64.urlsafe_b64decode(authorization.removeprefix("Bearer id-token.")))
    if claims["aud"] != service["uri"]:
        return 401
    member = f"serviceAccount:{claims['email']}"
    return None if world.iam.allowed(member, "run.routes.invoke", world.service_name(name)) else 403


_SERVICE = "run.projects.locations.services"
HANDLERS: dict[str, Handler] = {
    f"{_SERVICE}.create": create_service,
    f"{_SERVICE}.patch": patch_service,
    f"{_SERVICE}.get": get_service,
    f"{_SERVICE}.list": list_services,
    f"{_SERVICE}.delete": delete_service,
    f"{_SERVICE}.testIamPermissions": test_permissions(service_of),
    f"{_SERVICE}.getIamPolicy": get_policy("run.services.getIamPolicy", service_of),
    f"{_SERVICE}.setIamPolicy": set_policy("run.services.setIamPolicy", service_of),
    f"{_SERVICE}.revisions.get": get_revision,
    f"{_SERVICE}.revisions.list": list_revisions,
    "run.projects.locations.operations.get": get_operation,
    "run.projects.locations.jobs.create": create_job,
    "run.projects.locations.jobs.get": get_job,
    "run.projects.locations.jobs.run": run_job,
    "run.projects.locations.jobs.delete": delete_job,
}
