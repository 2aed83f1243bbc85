"""What each method does and which permission it wants; Cloud Run and Cloud Build are in run.py and build.py."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import google_crc32c

from tests.fakecloud.iam import roles, takes
from tests.fakecloud.world import AGENTS, ALWAYS_ON, Bucket, CloudError, Operation, World, image_repository


@dataclass
class Call:
    """One request: who asks for what."""

    world: World
    method: str
    path: dict[str, str]
    query: dict[str, list[str]]
    body: dict[str, Any]
    principal: str
    raw: bytes = b""
    content_type: str = ""

    def need(self, permission: str, resource: str) -> None:
        """Refuse the call unless its maker holds the permission there, now."""
        if not self.world.iam.allowed(self.principal, permission, resource):
            message = f"Permission '{permission}' denied on resource '{resource}' (or it may not exist)."
            raise CloudError(403, "PERMISSION_DENIED", message, reason="IAM_PERMISSION_DENIED")

    def first(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return self.query.get(name, [default])[0]


Handler = Callable[[Call], Any]


def hidden(permission: str, what: str) -> CloudError:
    text = f"Permission '{permission}' denied on resource '{what}' (or it may not exist)."
    return CloudError(403, "PERMISSION_DENIED", text, reason="IAM_PERMISSION_DENIED")


def missing(what: str) -> CloudError:
    return CloudError(404, "NOT_FOUND", f"Resource '{what}' was not found")


def already(what: str) -> CloudError:
    return CloudError(409, "ALREADY_EXISTS", f"Resource '{what}' already exists")


def start_operation(world: World, name: str, seconds: float, finish: Callable[[], dict[str, Any]]) -> Operation:
    operation = Operation(name, world.clock.now() + seconds, finish)
    world.operations[name] = operation
    return operation


def show_operation(world: World, operation: Operation) -> dict[str, Any]:
    """The operation as it stands; finishing it when its time has come."""
    if operation.answer is None and operation.error is None and world.clock.now() >= operation.done_at:
        try:
            operation.answer = operation.finish()
        except CloudError as error:
            operation.error = error
    shown: dict[str, Any] = {"name": operation.name}
    if operation.metadata is not None:
        shown["metadata"] = operation.metadata
    if operation.error is not None:
        code = {"INVALID_ARGUMENT": 3, "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9}.get(
            operation.error.status, 13
        )
        return {**shown, "done": True, "error": {"code": code, "message": operation.error.message}}
    if operation.answer is not None:
        return {**shown, "done": True, "response": operation.answer}
    return shown


def get_operation(call: Call) -> Any:
    name = f"operations/{call.path['operationsId']}"
    if "projectsId" in call.path:
        name = f"projects/{call.path['projectsId']}/locations/{call.path['locationsId']}/{name}"
    if name not in call.world.operations:
        raise missing(name)
    if call.method.startswith("run."):
        call.need("run.operations.get", call.world.project_name)
    return show_operation(call.world, call.world.operations[name])


# Service Usage


def batch_get_services(call: Call) -> Any:
    call.need("serviceusage.services.get", call.world.project_name)
    return {"services": [_api(call.world, name.rsplit("/", 1)[1]) for name in call.query.get("names", [])]}


def batch_enable_services(call: Call) -> Any:
    call.need("serviceusage.services.enable", call.world.project_name)
    if not call.world.billing:
        raise CloudError(400, "FAILED_PRECONDITION", "Billing account for project is not found.")
    ids = call.body["serviceIds"]
    if len(ids) > 20:
        raise CloudError(400, "INVALID_ARGUMENT", "at most 20 services")

    def finish() -> dict[str, Any]:
        for name in set(ids) - call.world.apis:
            call.world.enabled_at[name] = call.world.clock.now()
        call.world.apis.update(ids)
        kind = "type.googleapis.com/google.api.serviceusage.v1.BatchEnableServicesResponse"
        return {"@type": kind, "services": [_api(call.world, name) for name in ids]}

    name = f"operations/acf.p2-{call.world.number}-{call.world.next_generation()}"
    return show_operation(call.world, start_operation(call.world, name, 20.0, finish))


def _api(world: World, name: str) -> dict[str, Any]:
    state = "ENABLED" if name in world.apis | ALWAYS_ON else "DISABLED"
    full = f"projects/{world.number}/services/{name}"
    return {"name": full, "parent": f"projects/{world.number}", "state": state, "config": {"name": name}}


# Resource Manager, Billing, organisation policies, quotas


def get_project(call: Call) -> Any:
    call.need("resourcemanager.projects.get", call.world.project_name)
    return {
        "name": f"projects/{call.world.number}",
        "projectId": call.world.project,
        "state": "ACTIVE",
        "parent": "organizations/42",
    }


def test_permissions(resource: Callable[[Call], str]) -> Handler:
    def answer(call: Call) -> Any:
        try:
            place = resource(call)
        except CloudError as error:
            return _of_what_is_not_there(call, error)
        asked = call.body.get("permissions") or call.query.get("permissions", [])
        return {"permissions": [item for item in asked if call.world.iam.allowed(call.principal, item, place)]}

    return answer


def _of_what_is_not_there(call: Call, error: CloudError) -> Any:
    """Services differ; the generic contract of testIamPermissions promises an empty set."""
    mode = call.world.absent.get(call.method.partition(".")[0], "404")
    if mode == "empty":
        return {"permissions": []}
    raise error if mode == "404" else hidden("testIamPermissions", error.message)


def get_policy(permission: str, resource: Callable[[Call], str]) -> Handler:
    def answer(call: Call) -> Any:
        place = resource(call)
        call.need(permission, place)
        return call.world.iam.policy(place)

    return answer


def set_policy(permission: str, resource: Callable[[Call], str]) -> Handler:
    def answer(call: Call) -> Any:
        place = resource(call)
        call.need(permission, place)
        policy = call.body.get("policy", call.body)
        if policy.get("etag") and policy["etag"] != call.world.iam.etag(place):
            raise CloudError(409, "ABORTED", "There were concurrent policy changes. Please retry with a fresh etag.")
        for binding in policy.get("bindings", []):
            _refuse_unknown_members(call.world, place, binding)
        call.world.iam.replace(place, policy)
        return call.world.iam.policy(place)

    return answer


def _refuse_unknown_members(world: World, place: str, binding: dict[str, Any]) -> None:
    role = binding["role"]
    if role not in roles() or not takes(place, role):
        raise CloudError(400, "INVALID_ARGUMENT", f"Role {role} is not supported for this resource.")
    for member in binding["members"]:
        kind, _, name = member.partition(":")
        ours = name.endswith(world.email("").partition("@")[2])
        agents = {world.agent_email(api): api for api in AGENTS}
        unknown = (ours and not world.seen(name)) or (name in agents and not world.agent(agents[name]))
        if kind == "serviceAccount" and unknown:
            raise CloudError(400, "INVALID_ARGUMENT", f"Service account {name} does not exist.")


def project_of(call: Call) -> str:
    return call.world.resource_of_project(call.path["projectsId"])


def bucket_of(call: Call) -> str:
    """A bucket's name is the whole world's: that it is not there is no secret."""
    if call.path["bucket"] not in call.world.buckets:
        raise missing(f"b/{call.path['bucket']}")
    return call.world.bucket_name(call.path["bucket"])


def account_of(call: Call) -> str:
    """An account that was not made, or that is not known everywhere yet."""
    email = call.path["serviceAccountsId"]
    if not call.world.seen(email):
        raise missing_or_hidden(call, "iam.serviceAccounts.get", f"Service account {email} does not exist.")
    return call.world.account_name(email)


def missing_or_hidden(call: Call, permission: str, what: str, project: str = "") -> CloudError:
    """404 for who may look in the project, 403 for everybody else."""
    if call.world.iam.allowed(call.principal, permission, project or call.world.project_name):
        return CloudError(404, "NOT_FOUND", what)
    return hidden(permission, what)


def repository_of(call: Call) -> str:
    name = "projects/{projectsId}/locations/{locationsId}/repositories/{repositoriesId}".format(**call.path)
    if name not in call.world.repositories:
        raise missing_or_hidden(call, "artifactregistry.repositories.get", f"Repository '{name}' was not found")
    return call.world.repository_name(name)


def service_of(call: Call) -> str:
    name = "projects/{projectsId}/locations/{locationsId}/services/{servicesId}".format(**call.path)
    if name not in call.world.services:
        raise missing_or_hidden(call, "run.services.get", f"Resource '{name}' was not found")
    return call.world.service_name(name)


def secret_of(call: Call) -> str:
    name = "projects/{projectsId}/secrets/{secretsId}".format(**call.path)
    if name not in call.world.secrets:
        raise missing_or_hidden(call, "secretmanager.secrets.get", f"Secret [{name}] not found.")
    return call.world.secret_name(name)


def key_of(call: Call) -> str:
    """A key, or a ring, whose existence is told to who may look in its project."""
    name = "projects/{projectsId}/locations/{locationsId}/keyRings/{keyRingsId}".format(**call.path)
    if "cryptoKeysId" in call.path:
        name += f"/cryptoKeys/{call.path['cryptoKeysId']}"
    place = call.world.key_name(name)
    if not any(key == name or key.startswith(f"{name}/") for key in call.world.keys):
        raise missing_or_hidden(call, "cloudkms.cryptoKeys.get", f"{name} not found.", project_of(call))
    return place


def get_key(call: Call) -> Any:
    place = key_of(call)
    call.need("cloudkms.cryptoKeys.get", place)
    return {"name": place.removeprefix("//cloudkms.googleapis.com/"), "purpose": "ENCRYPT_DECRYPT"}


def billing_info(call: Call) -> Any:
    call.need("resourcemanager.projects.get", call.world.project_name)
    account = "billingAccounts/000000-111111-222222" if call.world.billing else ""
    return {
        "name": f"projects/{call.world.project}/billingInfo",
        "projectId": call.world.project,
        "billingAccountName": account,
        "billingEnabled": call.world.billing,
    }


def effective_policy(call: Call) -> Any:
    call.need("orgpolicy.policy.get", call.world.project_name)
    name = call.path["policiesId"]
    spec = call.world.organisation_policies.get(name, {"rules": [{"allowAll": True}]})
    return {"name": f"projects/{call.world.number}/policies/{name}", "spec": spec}


def quota_info(call: Call) -> Any:
    call.need("cloudquotas.quotas.get", call.world.project_name)
    name = call.path["quotaInfosId"]
    known = {
        "CpuAllocPerProjectRegion": ("milli-vCPU", 20_000),
        "MemAllocPerProjectRegion": ("By", 40 * 1024**3),
        "NvidiaL4GpuAllocNoZonalRedundancyPerProjectRegion": ("1", 0),
        "NvidiaL4GpuAllocPerProjectRegion": ("1", 0),
        "NvidiaRtxPro6000GpuAllocNoZonalRedundancyPerProjectRegion": ("1", 0),
        "NvidiaRtxPro6000GpuAllocPerProjectRegion": ("1", 0),
    }
    if name not in known or name in call.world.unlisted_quotas:
        raise missing(f"quotaInfos/{name}")
    unit, default = known[name]
    value = call.world.quotas.get(name, default)
    place = f"projects/{call.world.number}/locations/global/services/run.googleapis.com/quotaInfos/{name}"
    info = {"dimensions": {"region": call.world.region}, "details": {"value": str(value)}}
    info["applicableLocations"] = [call.world.region]
    answer = {"name": place, "quotaId": name, "metricUnit": unit, "dimensions": ["region"], "dimensionsInfos": [info]}
    if value == 0:
        reason = {"isEligible": False, "ineligibilityReason": "NOT_ENOUGH_USAGE_HISTORY"}
        answer["quotaIncreaseEligibility"] = reason
    return answer


# IAM: accounts, roles, troubleshooter, tokens


def create_account(call: Call) -> Any:
    call.need("iam.serviceAccounts.create", call.world.project_name)
    email = call.world.email(call.body["accountId"])
    if email in call.world.accounts:
        raise already(email)
    account = {**call.body.get("serviceAccount", {}), **_account(call.world, email)}
    call.world.accounts[email] = {**account, "seenAt": call.world.clock.now() + call.world.account_delay}
    return account


def _account(world: World, email: str) -> dict[str, Any]:
    return {
        "name": f"projects/{world.project}/serviceAccounts/{email}",
        "projectId": world.project,
        "email": email,
        "uniqueId": str(100000 + len(world.accounts)),
    }


def add_account(world: World, email: str) -> None:
    """An account that was there before."""
    world.accounts[email] = _account(world, email)


def get_account(call: Call) -> Any:
    call.need("iam.serviceAccounts.get", account_of(call))
    account = call.world.accounts[call.path["serviceAccountsId"]]
    return {key: value for key, value in account.items() if key != "seenAt"}


def delete_account(call: Call) -> Any:
    place = account_of(call)
    call.need("iam.serviceAccounts.delete", place)
    del call.world.accounts[call.path["serviceAccountsId"]]
    call.world.iam.policies.pop(place, None)
    call.world.iam.forget(f"serviceAccount:{call.path['serviceAccountsId']}")
    return {}


def get_role(call: Call) -> Any:
    name = f"roles/{call.path['rolesId']}"
    if name not in roles():
        raise missing(name)
    return {"name": name, "includedPermissions": sorted(roles()[name])}


def troubleshoot(call: Call) -> Any:
    asked = call.body["accessTuple"]
    world = call.world
    place = asked["fullResourceName"]
    root = place
    while root in world.iam.parents:
        root = world.iam.parents[root]
    may_look = world.iam.allowed(call.principal, "resourcemanager.projects.getIamPolicy", root)
    email = asked["principal"]
    member = f"serviceAccount:{email}" if email.endswith(".gserviceaccount.com") else f"user:{email}"
    access = world.iam.troubleshoot(member, asked["permission"], place, may_look=may_look)
    return {"overallAccessState": access, "accessTuple": asked}


def id_token(call: Call) -> Any:
    place = account_of(call)
    call.need("iam.serviceAccounts.getOpenIdToken", place)
    claims = json.dumps({"email": call.path["serviceAccountsId"], "aud": call.body["audience"]})
    return {"token": "id-token." + base64.urlsafe_b64encode(claims.encode()).decode()}


def userinfo(call: Call) -> Any:
    if call.principal.startswith("principal"):
        # A federated identity has no address.
        raise CloudError(401, "UNAUTHENTICATED", "Invalid Credentials")
    return {"id": "1", "email": call.principal.partition(":")[2], "verified_email": True}


# Artifact Registry


def create_repository(call: Call) -> Any:
    world = call.world
    call.need("artifactregistry.repositories.create", world.project_name)
    place = "projects/{projectsId}/locations/{locationsId}".format(**call.path)
    name = f"{place}/repositories/{call.first('repositoryId')}"
    if name in world.repositories:
        raise already(name)
    key = call.body.get("kmsKeyName")
    if key is not None and not world.uses_key("artifactregistry.googleapis.com", key):
        raise _no_use_of_key(world, "artifactregistry.googleapis.com", key)
    world.repositories[name] = {**call.body, "name": name, "createTime": world.timestamp()}
    kind = "type.googleapis.com/google.devtools.artifactregistry.v1.Repository"
    operation = f"{place}/operations/{world.next_generation()}"
    finish: Callable[[], dict[str, Any]] = lambda: {"@type": kind, **world.repositories[name]}  # noqa: E731
    return show_operation(world, start_operation(world, operation, 5.0, finish))


def _no_use_of_key(world: World, api: str, key: str) -> CloudError:
    text = f"Permission denied on Cloud KMS key {key}. Please ensure that {world.agent_email(api)} has been authorized."
    return CloudError(403, "PERMISSION_DENIED", text)


def get_repository(call: Call) -> Any:
    place = repository_of(call)
    call.need("artifactregistry.repositories.get", place)
    return call.world.repositories[place.removeprefix("//artifactregistry.googleapis.com/")]


def delete_repository(call: Call) -> Any:
    world = call.world
    place = repository_of(call)
    call.need("artifactregistry.repositories.delete", place)
    name = place.removeprefix("//artifactregistry.googleapis.com/")
    del world.repositories[name]
    world.iam.policies.pop(place, None)
    for image in [item for item in world.images if image_repository(item) == name]:
        del world.images[image]
    location = "projects/{projectsId}/locations/{locationsId}".format(**call.path)
    operation = f"{location}/operations/{world.next_generation()}"
    empty = {"@type": "type.googleapis.com/google.protobuf.Empty"}
    return show_operation(world, start_operation(world, operation, 3.0, lambda: empty))


def get_tag(call: Call) -> Any:
    place = repository_of(call)
    call.need("artifactregistry.tags.get", place)
    p = call.path
    project = p["projectsId"].replace(":", "/")
    image = f"{p['locationsId']}-docker.pkg.dev/{project}/{p['repositoriesId']}/{p['packagesId']}:{p['tagsId']}"
    name = "projects/{projectsId}/locations/{locationsId}/repositories/{repositoriesId}/packages/{packagesId}".format(
        **p
    )
    if image not in call.world.images:
        raise missing(f"{name}/tags/{p['tagsId']}")
    return {"name": f"{name}/tags/{p['tagsId']}", "version": f"{name}/versions/{call.world.images[image]}"}


# Cloud Storage


def create_bucket(call: Call) -> Any:
    call.need("storage.buckets.create", call.world.project_name)
    name = call.body["name"]
    if name in call.world.buckets:
        theirs = "The requested bucket name is not available."
        ours = "Your previous request to create the named bucket succeeded and you already own it."
        raise CloudError(409, "conflict", ours if call.world.buckets[name].owner is None else theirs)
    key = call.body.get("encryption", {}).get("defaultKmsKeyName")
    if key is not None and not call.world.uses_key("storage.googleapis.com", key):
        raise _no_use_of_key(call.world, "storage.googleapis.com", key)
    made = Bucket(call.body.get("location", "US").upper(), call.body.get("labels", {}))
    made.settings = {key: call.body[key] for key in ("lifecycle", "encryption") if key in call.body}
    call.world.add_bucket(name, made)
    return show_bucket(call.world, name)


def show_bucket(world: World, name: str) -> dict[str, Any]:
    bucket = world.buckets[name]
    kind = "region" if "-" in bucket.location else "dual-region" if bucket.location[-1].isdigit() else "multi-region"
    placed = {"customPlacementConfig": {"dataLocations": list(bucket.data_locations)}} if bucket.data_locations else {}
    return {
        **bucket.settings,
        **placed,
        "billing": {"requesterPays": bucket.requester_pays},
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        "location": bucket.location,
        "locationType": kind,
        "labels": bucket.labels,
        "projectNumber": bucket.owner or world.number,
    }


def get_bucket(call: Call) -> Any:
    call.need("storage.buckets.get", bucket_of(call))
    return show_bucket(call.world, call.path["bucket"])


def delete_bucket(call: Call) -> Any:
    place = bucket_of(call)
    call.need("storage.buckets.delete", place)
    if call.world.buckets[call.path["bucket"]].objects:
        raise CloudError(409, "conflict", "The bucket you tried to delete is not empty.")
    del call.world.buckets[call.path["bucket"]]
    call.world.iam.policies.pop(place, None)
    return {}


def list_objects(call: Call) -> Any:
    call.need("storage.objects.list", bucket_of(call))
    bucket, prefix = call.world.buckets[call.path["bucket"]], call.first("prefix")
    items = [_object(call.path["bucket"], name, *value) for name, value in sorted(bucket.objects.items())]
    return {"kind": "storage#objects", "items": [item for item in items if item["name"].startswith(prefix)]}


def get_object(call: Call) -> Any:
    place = bucket_of(call)
    call.need("storage.objects.get", place)
    bucket = call.world.buckets[call.path["bucket"]]
    if call.path["object"] not in bucket.objects:
        raise missing(f"b/{call.path['bucket']}/o/{call.path['object']}")
    data, generation = bucket.objects[call.path["object"]]
    if call.first("generation") not in ("", str(generation)):
        raise missing(f"b/{call.path['bucket']}/o/{call.path['object']}")
    return data if call.first("alt") == "media" else _object(call.path["bucket"], call.path["object"], data, generation)


def delete_object(call: Call) -> Any:
    place = bucket_of(call)
    call.need("storage.objects.delete", place)
    if call.world.buckets[call.path["bucket"]].objects.pop(call.path["object"], None) is None:
        raise missing(f"b/{call.path['bucket']}/o/{call.path['object']}")
    return {}


def insert_object(call: Call) -> Any:
    """A multipart upload: metadata and bytes in one body (uploadType=multipart)."""
    place = bucket_of(call)
    call.need("storage.objects.create", place)
    boundary = b"--" + call.content_type.split("boundary=")[1].strip('"').encode()
    _, meta, media, _ = call.raw.split(boundary)
    name = json.loads(meta.split(b"\r\n\r\n", 1)[1])["name"]
    bucket = call.world.buckets[call.path["bucket"]]
    there = bucket.objects[name][1] if name in bucket.objects else 0
    if call.first("ifGenerationMatch") and call.first("ifGenerationMatch") != str(there):
        raise CloudError(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
    data = media.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
    bucket.objects[name] = (data, call.world.next_generation())
    return _object(call.path["bucket"], name, *bucket.objects[name])


def _object(bucket: str, name: str, data: bytes, generation: int) -> dict[str, Any]:
    return {
        "kind": "storage#object",
        "name": name,
        "bucket": bucket,
        "generation": str(generation),
        "size": str(len(data)),
        "crc32c": base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode(),
    }


# Secret Manager and Compute Engine


def create_secret(call: Call) -> Any:
    call.need("secretmanager.secrets.create", call.world.project_name)
    name = f"projects/{call.path['projectsId']}/secrets/{call.first('secretId')}"
    if name in call.world.secrets:
        raise already(name)
    call.world.secrets[name] = {**call.body, "name": name, "versions": []}
    return show_secret(call.world, name)


def show_secret(world: World, name: str) -> dict[str, Any]:
    return {key: value for key, value in world.secrets[name].items() if key != "versions"}


def get_secret(call: Call) -> Any:
    place = secret_of(call)
    call.need("secretmanager.secrets.get", place)
    return show_secret(call.world, place.removeprefix("//secretmanager.googleapis.com/"))


def add_version(call: Call) -> Any:
    place = secret_of(call)
    call.need("secretmanager.versions.add", place)
    name = place.removeprefix("//secretmanager.googleapis.com/")
    call.world.secrets[name]["versions"].append(call.body["payload"]["data"])
    return {"name": f"{name}/versions/{len(call.world.secrets[name]['versions'])}", "state": "ENABLED"}


def access_version(call: Call) -> Any:
    place = secret_of(call)
    call.need("secretmanager.versions.access", place)
    versions = call.world.secrets[place.removeprefix("//secretmanager.googleapis.com/")]["versions"]
    if not versions:
        raise missing("versions/latest")
    return {"payload": {"data": versions[-1]}}


def subnet_of(call: Call) -> str:
    """Methods on a subnet call it by two names of a variable."""
    project = call.path["project"]
    short = call.path.get("subnetwork") or call.path["resource"]
    name = f"projects/{project}/regions/{call.path['region']}/subnetworks/{short}"
    if name not in call.world.subnets:
        root = call.world.resource_of_project(project)
        raise missing_or_hidden(call, "compute.subnetworks.get", f"The resource '{name}' was not found", root)
    return call.world.subnet_name(name)


def get_subnet(call: Call) -> Any:
    place = subnet_of(call)
    call.need("compute.subnetworks.get", place)
    return {"name": call.path["subnetwork"], **call.world.subnets[place.removeprefix("//compute.googleapis.com/")]}


# Logging: entries.list with the few comparisons that a caller of ours may write.


def list_entries(call: Call) -> Any:
    call.need("logging.logEntries.list", call.world.project_name)
    terms = [term.strip() for term in call.body.get("filter", "").split(" AND ") if term.strip()]
    shown = [item["entry"] for item in call.world.logs if item["at"] <= call.world.clock.now()]
    found = [entry for entry in shown if all(_matches(entry, term) for term in terms)]
    found.sort(key=lambda entry: (entry["timestamp"], entry["insertId"]))
    if call.body.get("orderBy") == "timestamp desc":
        found.reverse()
    return {"entries": found[: call.body.get("pageSize", 50)]}


def _matches(entry: dict[str, Any], term: str) -> bool:
    for sign in (">=", "=", ">"):
        if sign in term:
            path, _, text = term.partition(sign)
            value: Any = entry
            for part in (quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|([^."]+)', path.strip())):
                value = value.get(part, {}) if isinstance(value, dict) else {}
            text = text.strip().strip('"')
            return {"=": value == text, ">": value > text, ">=": value >= text}[sign]
    raise CloudError(400, "INVALID_ARGUMENT", f"Unparseable filter: {term}")


_REPOSITORY = "artifactregistry.projects.locations.repositories"
_ACCOUNT = "iam.projects.serviceAccounts"
_SECRET = "secretmanager.projects.secrets"
_KEY = "cloudkms.projects.locations.keyRings.cryptoKeys"

HANDLERS: dict[str, Handler] = {
    "serviceusage.services.batchGet": batch_get_services,
    "serviceusage.services.batchEnable": batch_enable_services,
    "serviceusage.operations.get": get_operation,
    "cloudresourcemanager.projects.get": get_project,
    "cloudresourcemanager.projects.testIamPermissions": test_permissions(project_of),
    "cloudresourcemanager.projects.getIamPolicy": get_policy("resourcemanager.projects.getIamPolicy", project_of),
    "cloudresourcemanager.projects.setIamPolicy": set_policy("resourcemanager.projects.setIamPolicy", project_of),
    "cloudbilling.projects.getBillingInfo": billing_info,
    "orgpolicy.projects.policies.getEffectivePolicy": effective_policy,
    "cloudquotas.projects.locations.services.quotaInfos.get": quota_info,
    f"{_ACCOUNT}.create": create_account,
    f"{_ACCOUNT}.get": get_account,
    f"{_ACCOUNT}.delete": delete_account,
    f"{_ACCOUNT}.testIamPermissions": test_permissions(account_of),
    f"{_ACCOUNT}.getIamPolicy": get_policy("iam.serviceAccounts.getIamPolicy", account_of),
    f"{_ACCOUNT}.setIamPolicy": set_policy("iam.serviceAccounts.setIamPolicy", account_of),
    "iam.roles.get": get_role,
    "policytroubleshooter.iam.troubleshoot": troubleshoot,
    "iamcredentials.projects.serviceAccounts.generateIdToken": id_token,
    "oauth2.userinfo.get": userinfo,
    f"{_REPOSITORY}.create": create_repository,
    f"{_REPOSITORY}.get": get_repository,
    f"{_REPOSITORY}.delete": delete_repository,
    f"{_REPOSITORY}.testIamPermissions": test_permissions(repository_of),
    f"{_REPOSITORY}.getIamPolicy": get_policy("artifactregistry.repositories.getIamPolicy", repository_of),
    f"{_REPOSITORY}.setIamPolicy": set_policy("artifactregistry.repositories.setIamPolicy", repository_of),
    f"{_REPOSITORY}.packages.tags.get": get_tag,
    "artifactregistry.projects.locations.operations.get": get_operation,
    "storage.buckets.insert": create_bucket,
    "storage.buckets.get": get_bucket,
    "storage.buckets.delete": delete_bucket,
    "storage.buckets.testIamPermissions": test_permissions(bucket_of),
    "storage.buckets.getIamPolicy": get_policy("storage.buckets.getIamPolicy", bucket_of),
    "storage.buckets.setIamPolicy": set_policy("storage.buckets.setIamPolicy", bucket_of),
    "storage.objects.list": list_objects,
    "storage.objects.get": get_object,
    "storage.objects.delete": delete_object,
    "storage.objects.insert": insert_object,
    "logging.entries.list": list_entries,
    f"{_SECRET}.create": create_secret,
    f"{_SECRET}.get": get_secret,
    f"{_SECRET}.addVersion": add_version,
    f"{_SECRET}.versions.access": access_version,
    f"{_SECRET}.testIamPermissions": test_permissions(secret_of),
    f"{_SECRET}.getIamPolicy": get_policy("secretmanager.secrets.getIamPolicy", secret_of),
    f"{_SECRET}.setIamPolicy": set_policy("secretmanager.secrets.setIamPolicy", secret_of),
    f"{_KEY}.get": get_key,
    f"{_KEY}.testIamPermissions": test_permissions(key_of),
    f"{_KEY}.getIamPolicy": get_policy("cloudkms.cryptoKeys.getIamPolicy", key_of),
    f"{_KEY}.setIamPolicy": set_policy("cloudkms.cryptoKeys.setIamPolicy", key_of),
    "cloudkms.projects.locations.keyRings.getIamPolicy": get_policy("cloudkms.keyRings.getIamPolicy", key_of),
    "compute.subnetworks.get": get_subnet,
    "compute.subnetworks.testIamPermissions": test_permissions(subnet_of),
    "compute.subnetworks.getIamPolicy": get_policy("compute.subnetworks.getIamPolicy", subnet_of),
    "compute.subnetworks.setIamPolicy": set_policy("compute.subnetworks.setIamPolicy", subnet_of),
}
