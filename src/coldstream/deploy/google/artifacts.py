"""What an image is made of and where it lies: the repository, the source's bucket, Cloud Build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coldstream.deploy.google.clients import ONCE, TIMEOUT, Clients
from coldstream.deploy.google.mapping import asked, called, module
from coldstream.deploy.google.operations import Pending, pending, plain
from coldstream.errors import ResourceNotFound


class ArtifactCalls(Clients):
    """Artifact Registry, Cloud Storage and Cloud Build."""

    # Artifact Registry

    @asked
    def repository(self, name: str) -> Mapping[str, Any]:
        """The repository."""
        return plain(self._registry().get_repository(name=name, **ONCE))

    @called
    def create_repository(
        self, name: str, labels: Mapping[str, str], policies: Mapping[str, Any], *, key: str | None
    ) -> Pending:
        """Make a Docker repository with cleanup policies, encrypted with a key of the customer's where one is named."""
        parent, _, short = name.partition("/repositories/")
        repository = {
            "format_": "DOCKER",
            "labels": dict(labels),
            "description": "images built by coldstream deploy",
            "cleanup_policies": dict(policies),
            **({} if key is None else {"kms_key_name": key}),
        }
        request = {"parent": parent, "repository_id": short, "repository": repository}
        return pending("making the repository", self._registry().create_repository(request, **ONCE))

    @called
    def delete_repository(self, name: str) -> Pending:
        """Remove a repository with its images."""
        return pending("removing the repository", self._registry().delete_repository(name=name, **ONCE))

    def image_digest(self, repository: str, package: str, tag: str) -> str | None:
        """The digest behind an image's tag; None when there is none."""
        try:
            return self._tag(f"{repository}/packages/{package.replace('/', '%2F')}/tags/{tag}")
        except ResourceNotFound:
            return None

    @asked
    def _tag(self, name: str) -> str:
        return str(self._registry().get_tag(request={"name": name}, **ONCE).version.rsplit("/", 1)[1])

    # Cloud Storage

    @asked
    def bucket(self, name: str) -> Mapping[str, Any]:
        """`{"location", "locations", "labels", "project_number", "requester_pays"}`; locations in capitals.

        `locations` are the two regions of a configurable dual-region.
        """
        bucket = self._storage().get_bucket(name, **ONCE)
        return {
            "location": str(bucket.location),
            "locations": tuple(bucket.data_locations or ()),
            "labels": dict(bucket.labels),
            "project_number": str(bucket.project_number),
            "requester_pays": bool(bucket.requester_pays),
        }

    @called
    def create_bucket(
        self, project: str, name: str, region: str, labels: Mapping[str, str], *, days: int, key: str | None
    ) -> None:
        """Make a private bucket with uniform access whose objects are removed after some days."""
        bucket = self._bucket(name)
        bucket.labels = dict(labels)
        bucket.iam_configuration.uniform_bucket_level_access_enabled = True
        bucket.iam_configuration.public_access_prevention = "enforced"
        bucket.add_lifecycle_delete_rule(age=days)
        if key is not None:
            bucket.default_kms_key_name = key
        self._storage().create_bucket(bucket, project=project, location=region, **ONCE)

    @called
    def delete_bucket(self, name: str) -> None:
        """Remove an empty bucket."""
        self._bucket(name).delete(**ONCE)

    @asked
    def objects(self, bucket: str, prefix: str = "") -> tuple[str, ...]:
        """The names below a prefix."""
        return tuple(item.name for item in self._storage().list_blobs(bucket, prefix=prefix, **ONCE))

    def generation(self, bucket: str, name: str) -> int | None:
        """The object's generation; None when there is no object."""
        try:
            return self._generation(bucket, name)
        except ResourceNotFound:
            return None

    @asked
    def _generation(self, bucket: str, name: str) -> int:
        blob = self._bucket(bucket).blob(name)
        blob.reload(**ONCE)
        return int(blob.generation)

    @asked
    def content(self, bucket: str, name: str, generation: int) -> bytes:
        """The bytes of one generation of an object."""
        return bytes(self._bucket(bucket).blob(name, generation=generation).download_as_bytes(**ONCE))

    @called
    def upload(self, bucket: str, name: str, data: bytes, *, over: int) -> int:
        """Write an object over the generation `over`, where 0 stands for none; its own generation.

        Raises:
            ResourceExists: another generation is there.
        """
        blob = self._bucket(bucket).blob(name)
        blob.upload_from_string(
            data, content_type="application/gzip", if_generation_match=over, timeout=TIMEOUT, retry=None
        )
        return int(blob.generation)

    @called
    def delete_object(self, bucket: str, name: str) -> None:
        """Remove an object."""
        self._bucket(bucket).blob(name).delete(**ONCE)

    # Cloud Build

    @called
    def create_build(self, location: str, build: Mapping[str, Any]) -> str:
        """Start a build; its id."""
        cloudbuild_v1 = module("google.cloud.devtools.cloudbuild_v1")
        # With `project_id` the REST transport chooses the older path without a location, and another set of builds.
        request = {"parent": location, "build": cloudbuild_v1.Build(dict(build))}
        operation = self._build().create_build(cloudbuild_v1.CreateBuildRequest(request), **ONCE)
        return str(operation.metadata.build.id)

    @asked
    def build(self, location: str, identity: str) -> Mapping[str, Any]:
        """The build as it stands."""
        cloudbuild_v1 = module("google.cloud.devtools.cloudbuild_v1")
        names = {"name": f"{location}/builds/{identity}"}
        return plain(self._build().get_build(cloudbuild_v1.GetBuildRequest(names), **ONCE))

    @asked
    def builds(self, location: str, tag: str) -> tuple[Mapping[str, Any], ...]:
        """Builds with a tag, the newest first."""
        cloudbuild_v1 = module("google.cloud.devtools.cloudbuild_v1")
        names = {"parent": location, "filter": f'tags="{tag}"', "page_size": 10}
        found = self._build().list_builds(cloudbuild_v1.ListBuildsRequest(names), **ONCE)
        return tuple(plain(item) for item in next(iter(found.pages)).builds)

    @asked
    def default_build_account(self, location: str) -> str:
        """The account that Cloud Build uses when none is named."""
        name = f"{location}/defaultServiceAccount"
        answer = self._build().get_default_service_account(name=name, **ONCE)
        return str(answer.service_account_email).rsplit("/", 1)[-1]
