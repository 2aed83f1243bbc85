"""What an image is made of and where it lies: the repository, the source's bucket, Cloud Build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coldstream.deploy.google.clients import TIMEOUT, Clients
from coldstream.deploy.google.mapping import called, mapped, module
from coldstream.deploy.google.operations import Pending, pending, plain
from coldstream.errors import ResourceNotFound


class ArtifactCalls(Clients):
    """Artifact Registry, Cloud Storage and Cloud Build."""

    # Artifact Registry

    @called
    def repository(self, name: str) -> Mapping[str, Any]:
        """The repository."""
        return plain(self._registry().get_repository(name=name, timeout=TIMEOUT))

    @called
    def create_repository(self, name: str, labels: Mapping[str, str]) -> Pending:
        """Make a Docker repository."""
        parent, _, short = name.partition("/repositories/")
        repository = {"format_": "DOCKER", "labels": dict(labels), "description": "images built by coldstream deploy"}
        request = {"parent": parent, "repository_id": short, "repository": repository}
        return pending("making the repository", self._registry().create_repository(request, timeout=TIMEOUT))

    @called
    def delete_repository(self, name: str) -> Pending:
        """Remove a repository with its images."""
        return pending("removing the repository", self._registry().delete_repository(name=name, timeout=TIMEOUT))

    def image_digest(self, repository: str, tag: str) -> str | None:
        """The digest behind a tag of the image `coldstream`; None when there is none."""
        name = f"{repository}/packages/coldstream/tags/{tag}"
        try:
            with mapped():
                return str(self._registry().get_tag(request={"name": name}, timeout=TIMEOUT).version.rsplit("/", 1)[1])
        except ResourceNotFound:
            return None

    # Cloud Storage

    @called
    def bucket(self, name: str) -> Mapping[str, Any]:
        """`{"location", "labels"}`; the location in capitals."""
        bucket = self._storage().get_bucket(name, timeout=TIMEOUT)
        return {"location": str(bucket.location), "labels": dict(bucket.labels)}

    @called
    def create_bucket(self, project: str, name: str, region: str, labels: Mapping[str, str]) -> None:
        """Make a private bucket with uniform access."""
        bucket = self._bucket(name)
        bucket.labels = dict(labels)
        bucket.iam_configuration.uniform_bucket_level_access_enabled = True
        bucket.iam_configuration.public_access_prevention = "enforced"
        self._storage().create_bucket(bucket, project=project, location=region, timeout=TIMEOUT)

    @called
    def delete_bucket(self, name: str) -> None:
        """Remove an empty bucket."""
        self._bucket(name).delete(timeout=TIMEOUT)

    @called
    def objects(self, bucket: str, prefix: str = "") -> tuple[str, ...]:
        """The names below a prefix."""
        return tuple(item.name for item in self._storage().list_blobs(bucket, prefix=prefix, timeout=TIMEOUT))

    def object_exists(self, bucket: str, name: str) -> bool:
        """Whether the object is there."""
        try:
            with mapped():
                self._bucket(bucket).blob(name).reload(timeout=TIMEOUT)
        except ResourceNotFound:
            return False
        return True

    @called
    def upload(self, bucket: str, name: str, data: bytes) -> None:
        """Write an object that is not there yet.

        Raises:
            ResourceExists: it is.
        """
        blob = self._bucket(bucket).blob(name)
        blob.upload_from_string(data, content_type="application/gzip", if_generation_match=0, timeout=TIMEOUT)

    @called
    def delete_object(self, bucket: str, name: str) -> None:
        """Remove an object."""
        self._bucket(bucket).blob(name).delete(timeout=TIMEOUT)

    # Cloud Build

    @called
    def create_build(self, location: str, build: Mapping[str, Any]) -> str:
        """Start a build; its id."""
        cloudbuild_v1 = module("google.cloud.devtools.cloudbuild_v1")
        # With `project_id` the REST transport chooses the older path without a location, and another set of builds.
        request = {"parent": location, "build": cloudbuild_v1.Build(dict(build))}
        operation = self._build().create_build(cloudbuild_v1.CreateBuildRequest(request), timeout=TIMEOUT)
        return str(operation.metadata.build.id)

    @called
    def build(self, location: str, identity: str) -> Mapping[str, Any]:
        """The build as it stands."""
        cloudbuild_v1 = module("google.cloud.devtools.cloudbuild_v1")
        names = {"name": f"{location}/builds/{identity}"}
        return plain(self._build().get_build(cloudbuild_v1.GetBuildRequest(names), timeout=TIMEOUT))

    @called
    def builds(self, location: str, tag: str) -> tuple[Mapping[str, Any], ...]:
        """Builds with a tag, the newest first."""
        cloudbuild_v1 = module("google.cloud.devtools.cloudbuild_v1")
        names = {"parent": location, "filter": f'tags="{tag}"', "page_size": 10}
        found = self._build().list_builds(cloudbuild_v1.ListBuildsRequest(names), timeout=TIMEOUT)
        return tuple(plain(item) for item in next(iter(found.pages)).builds)

    @called
    def default_build_account(self, location: str) -> str:
        """The account that Cloud Build uses when none is named."""
        name = f"{location}/defaultServiceAccount"
        answer = self._build().get_default_service_account(name=name, timeout=TIMEOUT)
        return str(answer.service_account_email).rsplit("/", 1)[-1]
