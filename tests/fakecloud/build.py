"""Cloud Build in the fake: what becomes of a build follows from what its account may do."""

from __future__ import annotations

import re
from typing import Any

from tests.fakecloud.methods import Call, Handler, missing
from tests.fakecloud.world import CloudError, World, image_repository

LOGGING_WITH_OWN_ACCOUNT = {"CLOUD_LOGGING_ONLY", "NONE"}


def create_build(call: Call) -> Any:
    world, body = call.world, call.body
    call.need("cloudbuild.builds.create", world.project_name)
    email = _account(world, body)
    if "serviceAccount" in body:
        if not world.seen(email):
            raise CloudError(404, "NOT_FOUND", f"service account {email} does not exist")
        call.need("iam.serviceAccounts.actAs", world.account_name(email))
        if body.get("options", {}).get("logging") not in LOGGING_WITH_OWN_ACCOUNT and "logsBucket" not in body:
            text = (
                "if 'build.service_account' is specified, the build must either (a) specify 'build.logs_bucket', "
                "(b) use the REGIONAL_USER_OWNED_BUCKET build.options.default_logs_bucket_behavior option, or "
                "(c) use either CLOUD_LOGGING_ONLY / NONE logging options"
            )
            raise CloudError(400, "INVALID_ARGUMENT", text)
    _refuse_at_once(call, email)
    identity = f"{world.next_generation():08x}-0000-4000-8000-000000000000"
    place = "projects/{projectsId}/locations/{locationsId}".format(**call.path)
    build = {**body, "id": identity, "name": f"{place}/builds/{identity}", "projectId": world.project}
    build |= {"status": "QUEUED", "createTime": world.timestamp()}
    build["logUrl"] = f"https://console.cloud.google.com/cloud-build/builds/{identity}"
    world.builds[identity] = {"build": build, "at": world.clock.now(), "account": email, "settled": False}
    _write_logs(world, identity)
    kind = "type.googleapis.com/google.devtools.cloudbuild.v1.BuildOperationMetadata"
    return {"name": f"{place}/operations/build-{identity}", "metadata": {"@type": kind, "build": build}}


def _refuse_at_once(call: Call, email: str) -> None:
    """What Cloud Build says no to before there is a build."""
    world, body = call.world, call.body
    region = call.path["locationsId"]
    if not world.agent("cloudbuild.googleapis.com"):
        agent = f"service-{world.number}@gcp-sa-cloudbuild.iam.gserviceaccount.com"
        raise CloudError(400, "FAILED_PRECONDITION", f"Cloud Build service agent {agent} does not exist.")
    if region in world.barred_build_regions:
        text = (
            "due to quota restrictions, cannot run builds in this region, see "
            "https://cloud.google.com/build/docs/locations#restricted_regions_for_some_projects"
        )
        raise CloudError(400, "FAILED_PRECONDITION", text)
    pool = body.get("options", {}).get("pool", {}).get("name")
    if world.build_pools is not None and pool not in world.build_pools:
        text = f"Constraint constraints/cloudbuild.allowedWorkerPools violated for projects/{world.project}."
        raise CloudError(400, "FAILED_PRECONDITION", text)
    source = body["source"]["storageSource"]
    member, place = f"serviceAccount:{email}", world.bucket_name(source["bucket"])
    if world.source_checked_at_once and not world.iam.allowed(member, "storage.objects.get", place):
        text = (
            f"could not resolve source: googleapi: Error 403: {email} does not have storage.objects.get access to the "
            "Google Cloud Storage object. Permission 'storage.objects.get' denied on resource (or it may not exist)., "
            "forbidden"
        )
        raise CloudError(400, "INVALID_ARGUMENT", text)


def _write_logs(world: World, identity: str) -> None:
    resource = {"type": "build", "labels": {"build_id": identity, "project_id": world.project}}
    record = world.builds[identity]
    if not world.iam.allowed(f"serviceAccount:{record['account']}", "logging.logEntries.create", world.project_name):
        return
    lines = ("FETCHSOURCE", "BUILD", "Step 1/9 : FROM python:3.11-slim", "PUSH", "DONE")
    for index, line in enumerate(lines):
        world.log(resource, line, at=record["at"] + world.build_seconds * index / len(lines))


def _account(world: World, body: dict[str, Any]) -> str:
    named = body.get("serviceAccount")
    return named.rsplit("/", 1)[1] if named else f"{world.number}-compute@developer.gserviceaccount.com"


def settle(world: World, identity: str) -> dict[str, Any]:
    """The build as it stands now; deciding its outcome when its time has come."""
    record = world.builds[identity]
    build, age = record["build"], world.clock.now() - record["at"]
    if record["settled"]:
        return build
    if age < world.build_seconds:
        build["status"] = "QUEUED" if age < 5 else "WORKING"
        return build
    record["settled"] = True
    failure = _failure(world, record)
    build["finishTime"] = world.timestamp()
    if failure is None:
        build["status"] = "SUCCESS"
        digest = f"sha256:{world.next_generation():064x}"
        for image in build.get("images", []):
            world.images[image] = digest
            world.image_cuda[image] = _cuda(build)
    elif failure[0] in ("TIMEOUT", "CANCELLED", "EXPIRED", "INTERNAL_ERROR"):
        build["status"] = failure[0]
        build["statusDetail"] = failure[1]
    else:
        build["status"] = "FAILURE"
        build["failureInfo"] = {"type": failure[0], "detail": failure[1]}
    return build


def _failure(world: World, record: dict[str, Any]) -> tuple[str, str] | None:
    account, build = f"serviceAccount:{record['account']}", record["build"]
    source = build["source"]["storageSource"]
    bucket = world.bucket_name(source["bucket"])
    if not world.iam.allowed(account, "storage.objects.get", bucket):
        return "FETCH_SOURCE_FAILED", f"{record['account']} does not have storage.objects.get access to the object."
    objects = world.buckets[source["bucket"]].objects
    if source["object"] not in objects or str(objects[source["object"]][1]) != source.get("generation"):
        return "FETCH_SOURCE_FAILED", f"gs://{source['bucket']}/{source['object']} not found"
    if not world.iam.allowed(account, "logging.logEntries.create", world.project_name):
        return "LOGGING_FAILURE", f"The service account {record['account']} does not have permission to write logs."
    if world.build_breaks is not None:
        return world.build_breaks, "Build step failure: build step 0 failed: step exited with non-zero status: 1"
    for image in build.get("images", []):
        name = image_repository(image) or image
        if name not in world.repositories:
            return "PUSH_FAILED", f"repository {name} not found"
        if world.repositories[name].get("dockerConfig", {}).get("immutableTags") and image in world.images:
            return "PUSH_FAILED", f"manifest invalid: cannot update tag {image.rpartition(':')[2]}: tags are immutable"
        if not world.iam.allowed(account, "artifactregistry.repositories.uploadArtifacts", world.repository_name(name)):
            return "PUSH_NOT_AUTHORIZED", "Permission 'artifactregistry.repositories.uploadArtifacts' denied"
    return None


def _cuda(build: dict[str, Any]) -> tuple[int, int] | None:
    """Of the image: by the index that its torch comes from, or vLLM's image under it; PyPI's is for CUDA 13."""
    arguments = " ".join(word for step in build["steps"] for word in step.get("args", []))
    found = re.search(r"TORCH_INDEX=\S+/cu(\d\d)(\d)", arguments)
    if found is not None:
        return int(found[1]), int(found[2])
    found = re.search(r"BASE=\S+vllm-openai:v[\d.]+(?:-cu(\d\d)(\d))?", arguments)
    if found is not None:
        return (int(found[1]), int(found[2])) if found[1] else (13, 0)
    return (13, 0) if ":gpu-" in " ".join(build.get("images", [])) else None


def get_build(call: Call) -> Any:
    call.need("cloudbuild.builds.get", call.world.project_name)
    if call.path["buildsId"] not in call.world.builds:
        raise missing(call.path["buildsId"])
    return settle(call.world, call.path["buildsId"])


def list_builds(call: Call) -> Any:
    call.need("cloudbuild.builds.list", call.world.project_name)
    tags = re.findall(r'tags="([^"]+)"', call.first("filter"))
    builds = [settle(call.world, identity) for identity in call.world.builds]
    found = [build for build in builds if all(tag in build.get("tags", []) for tag in tags)]
    return {"builds": list(reversed(found))}


def default_account(call: Call) -> Any:
    call.need("cloudbuild.builds.get", call.world.project_name)
    place = "projects/{projectsId}/locations/{locationsId}/defaultServiceAccount".format(**call.path)
    email = f"{call.world.number}-compute@developer.gserviceaccount.com"
    return {"name": place, "serviceAccountEmail": f"projects/{call.world.project}/serviceAccounts/{email}"}


HANDLERS: dict[str, Handler] = {
    "cloudbuild.projects.locations.builds.create": create_build,
    "cloudbuild.projects.locations.builds.get": get_build,
    "cloudbuild.projects.locations.builds.list": list_builds,
    "cloudbuild.projects.locations.getDefaultServiceAccount": default_account,
}
