"""The names of everything that a deployment touches; pure.

Resource names follow https://cloud.google.com/iam/docs/full-resource-names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from urllib.parse import urlsplit

from coldstream.errors import SettingsError
from coldstream.settings import DeploySettings

LABELS = {"managed-by": "coldstream"}
PROJECT = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
SERVICE = re.compile(r"[a-z]([a-z0-9-]{0,37}[a-z0-9])?")


class Kind(StrEnum):
    """What may carry an IAM policy of its own."""

    PROJECT = "project"
    BUCKET = "bucket"
    REPOSITORY = "repository"
    ACCOUNT = "account"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing on Google Cloud. `name` is what its own API calls it: an id, a bucket, an e-mail, a path."""

    kind: Kind
    name: str
    project: str

    @property
    def full_name(self) -> str:
        """The full resource name, as the policy troubleshooter wants it."""
        return {
            Kind.PROJECT: f"//cloudresourcemanager.googleapis.com/projects/{self.name}",
            Kind.BUCKET: f"//storage.googleapis.com/projects/_/buckets/{self.name}",
            Kind.REPOSITORY: f"//artifactregistry.googleapis.com/{self.name}",
            Kind.ACCOUNT: f"//iam.googleapis.com/projects/{self.project}/serviceAccounts/{self.name}",
            Kind.SERVICE: f"//run.googleapis.com/{self.name}",
        }[self.kind]

    def __str__(self) -> str:
        return f"{self.kind} {self.name.rsplit('/', 1)[-1]}"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a deployment goes. Accounts are e-mail addresses.

    `model_buckets` are the gs:// buckets that it starts from, `photo_buckets` those that requests may name photos in.
    """

    project: str
    region: str
    service: str
    repository: str
    source_bucket: str
    build_account: str
    runtime_account: str
    invoker_account: str
    model_buckets: tuple[str, ...]
    public: bool = False
    photo_buckets: tuple[str, ...] = ()

    @property
    def location(self) -> str:
        return f"projects/{self.project}/locations/{self.region}"

    @property
    def service_name(self) -> str:
        return f"{self.location}/services/{self.service}"

    @property
    def repository_name(self) -> str:
        return f"{self.location}/repositories/{self.repository}"

    @property
    def image(self) -> str:
        """The image without its tag."""
        return f"{self.region}-docker.pkg.dev/{self.project}/{self.repository}/coldstream"

    @property
    def accounts(self) -> tuple[str, ...]:
        """Build, runtime, invoker; each once."""
        return tuple(dict.fromkeys((self.build_account, self.runtime_account, self.invoker_account)))

    def dedicated(self, email: str) -> bool:
        """Whether the account is one that Coldstream makes (and destroys) itself."""
        return email in {
            f"{role}@{self.project}.iam.gserviceaccount.com" for role in _account_ids(self.service).values()
        }

    def resource(self, kind: Kind, name: str | None = None) -> Resource:
        """The project's resource of a kind; buckets and accounts need their name."""
        default = {Kind.PROJECT: self.project, Kind.REPOSITORY: self.repository_name, Kind.SERVICE: self.service_name}
        return Resource(kind, name or default[kind], self.project)


def target(settings: DeploySettings, models: tuple[str, ...], photos: tuple[str, ...] = ()) -> Target:
    """Every name, from the settings, the models' URIs and the buckets that photos are read from.

    Raises:
        SettingsError: no project, an impossible name, or a model that does not lie in a bucket.
    """
    if settings.project is None:
        raise SettingsError('deploy.project is missing; add project = "..." under [deploy] or pass --project')
    if not PROJECT.fullmatch(settings.project):
        raise SettingsError(f"deploy.project = {settings.project!r} is not a project id (not the name, not the number)")
    if not SERVICE.fullmatch(settings.service):
        raise SettingsError(f"deploy.service = {settings.service!r}: use a-z, 0-9 and -, at most 39 characters")
    ids = _account_ids(settings.service)
    emails = {role: f"{name}@{settings.project}.iam.gserviceaccount.com" for role, name in ids.items()}
    return Target(
        project=settings.project,
        region=settings.region,
        service=settings.service,
        repository=settings.repository,
        source_bucket=settings.source_bucket or f"{settings.project}-coldstream-source",
        build_account=settings.build_account or emails["build"],
        runtime_account=settings.runtime_account or emails["runtime"],
        invoker_account=settings.invoker_account or emails["invoker"],
        model_buckets=tuple(dict.fromkeys(bucket_of(uri) for uri in models)),
        public=settings.public,
        photo_buckets=photos,
    )


def bucket_of(uri: str) -> str:
    """The bucket of a gs:// URI.

    Raises:
        SettingsError: the URI is of another scheme; Cloud Run reaches gs:// with its own account and nothing else.
    """
    parts = urlsplit(uri)
    if parts.scheme != "gs" or not parts.netloc:
        raise SettingsError(
            f"{uri}: only a gs:// model can be deployed; copy it with `gcloud storage cp -r {uri} gs://...`"
        )
    return parts.netloc


def _account_ids(service: str) -> dict[str, str]:
    # Account ids end at 30 characters. One build account serves every service of the project; what reads the model
    # and what may call the service belong to one service each, so that granting one never opens another.
    stem = service if len(service) <= 22 else f"{service[:15].rstrip('-')}-{sha256(service.encode()).hexdigest()[:6]}"
    return {"build": "coldstream-build", "runtime": f"{stem}-runtime", "invoker": f"{stem}-invoker"}
