"""Who needs what: the steps of a deployment x the principals x their permissions, as data; pure.

`NEEDS` is the table. A need that is not met is mended by its own `role` on its own resource, so what a fix grants is
what a check asked for, and nothing else. Permissions and roles: https://cloud.google.com/iam/docs/roles-permissions;
tests/fakecloud/roles.json holds what the roles contained, and on which day.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

from coldstream.deploy.target import Kind, Resource, Target

# "warning": a comfort is lost and a deployment works; "unknown": it cannot be known from here.
Answer = Literal["yes", "warning", "no", "unknown"]

_APIS = (
    "run.googleapis.com",
    "cloudbuild.googleapis.com",
    "artifactregistry.googleapis.com",
    "storage.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "serviceusage.googleapis.com",
    "logging.googleapis.com",
)
# What the checks themselves read with; without one of them an answer is unknown, and a deployment works.
_HELPERS = (
    "policytroubleshooter.googleapis.com",
    "cloudquotas.googleapis.com",
    "orgpolicy.googleapis.com",
    "cloudbilling.googleapis.com",
)


def helpers(target: Target) -> tuple[str, ...]:
    """The APIs that checks alone read with; a key and a network may belong to a project that has theirs on anyway."""
    key = () if target.encryption_key is None else ("cloudkms.googleapis.com",)
    network = () if target.subnet is None else ("compute.googleapis.com",)
    return (*_HELPERS, *key, *network)


def apis(target: Target) -> tuple[str, ...]:
    """The APIs of a deployment and of its checks."""
    secret = () if target.secret is None else ("secretmanager.googleapis.com",)
    return (*_APIS, *secret, *helpers(target))


# Stands for a caller whose credentials do not say whose they are; nothing can be granted to it but by a person.
NOBODY = "user:CALLER"


class Principal(StrEnum):
    """Who acts."""

    CALLER = "caller"
    BUILD = "build account"
    RUNTIME = "runtime account"
    INVOKER = "invoker"
    AGENT = "Cloud Run's service agent"
    REGISTRY_AGENT = "Artifact Registry's service agent"
    STORAGE_AGENT = "Cloud Storage's service agent"


class Place(StrEnum):
    """On what; resolved for a target by `resources`."""

    PROJECT = "project"
    SOURCE_BUCKET = "source bucket"
    MODEL_BUCKET = "model bucket"
    PHOTO_BUCKET = "photo bucket"
    REPOSITORY = "repository"
    BUILD_ACCOUNT = "build account"
    RUNTIME_ACCOUNT = "runtime account"
    INVOKER_ACCOUNT = "invoker account"
    SERVICE = "service"
    IMAGE_REPOSITORY = "repository of the image"
    SECRET = "secret"  # noqa: S105  the place, not one
    KEY = "encryption key"
    SUBNET = "subnet of another project"
    HOST_PROJECT = "project of the network"


@dataclass(frozen=True, slots=True)
class Need:
    """A row of the table. `role` is what mends it.

    `public` rows count for a public service only, `build` rows where an image is built; without a `comfort` row a
    deployment works, and shows less.
    """

    step: str
    principal: Principal
    permission: str
    place: Place
    role: str
    public: bool = False
    build: bool = False
    comfort: bool = False


_C, _B, _R, _I, _A = Principal.CALLER, Principal.BUILD, Principal.RUNTIME, Principal.INVOKER, Principal.AGENT
_BUILDS = {"build": True}


def _uses_key(principal: Principal, *, build: bool) -> tuple[Need, Need]:
    """Both halves of a key's use (https://cloud.google.com/kms/docs/cmek); the role has both."""
    use, role = "cloudkms.cryptoKeyVersions", "roles/cloudkms.cryptoKeyEncrypterDecrypter"
    return (
        Need("encryption", principal, f"{use}.useToEncrypt", Place.KEY, role, build=build),
        Need("encryption", principal, f"{use}.useToDecrypt", Place.KEY, role, build=build),
    )


# Who encrypts with a key of the customer's: each service with an agent of its own.
_KEY_NEEDS = (
    *_uses_key(Principal.AGENT, build=False),
    *_uses_key(Principal.REGISTRY_AGENT, build=True),
    *_uses_key(Principal.STORAGE_AGENT, build=True),
)

NEEDS = (
    Need("apis", _C, "serviceusage.services.use", Place.PROJECT, "roles/serviceusage.serviceUsageConsumer"),
    Need("apis", _C, "serviceusage.services.get", Place.PROJECT, "roles/serviceusage.serviceUsageConsumer"),
    Need("apis", _C, "resourcemanager.projects.get", Place.PROJECT, "roles/browser"),
    Need(
        "repository",
        _C,
        "artifactregistry.repositories.get",
        Place.REPOSITORY,
        "roles/artifactregistry.reader",
        **_BUILDS,
    ),
    Need("repository", _C, "artifactregistry.tags.get", Place.REPOSITORY, "roles/artifactregistry.reader", **_BUILDS),
    Need("source bucket", _C, "storage.buckets.get", Place.SOURCE_BUCKET, "roles/storage.bucketViewer", **_BUILDS),
    Need("source bucket", _C, "storage.objects.create", Place.SOURCE_BUCKET, "roles/storage.objectUser", **_BUILDS),
    Need("source bucket", _C, "storage.objects.get", Place.SOURCE_BUCKET, "roles/storage.objectUser", **_BUILDS),
    Need("source bucket", _B, "storage.objects.get", Place.SOURCE_BUCKET, "roles/storage.objectViewer", **_BUILDS),
    Need("build", _C, "cloudbuild.builds.create", Place.PROJECT, "roles/cloudbuild.builds.editor", **_BUILDS),
    Need("build", _C, "cloudbuild.builds.get", Place.PROJECT, "roles/cloudbuild.builds.editor", **_BUILDS),
    Need("build", _C, "cloudbuild.builds.list", Place.PROJECT, "roles/cloudbuild.builds.editor", **_BUILDS),
    Need(
        "push",
        _B,
        "artifactregistry.repositories.uploadArtifacts",
        Place.REPOSITORY,
        "roles/artifactregistry.writer",
        **_BUILDS,
    ),
    Need(
        "push",
        _B,
        "artifactregistry.repositories.downloadArtifacts",
        Place.REPOSITORY,
        "roles/artifactregistry.writer",
        **_BUILDS,
    ),
    Need("logs", _B, "logging.logEntries.create", Place.PROJECT, "roles/logging.logWriter", **_BUILDS),
    Need("logs", _C, "logging.logEntries.list", Place.PROJECT, "roles/logging.viewer", comfort=True),
    Need("act as", _C, "iam.serviceAccounts.actAs", Place.BUILD_ACCOUNT, "roles/iam.serviceAccountUser", **_BUILDS),
    Need("act as", _C, "iam.serviceAccounts.actAs", Place.RUNTIME_ACCOUNT, "roles/iam.serviceAccountUser"),
    Need("deploy", _C, "run.services.create", Place.PROJECT, "roles/run.developer"),
    Need("deploy", _C, "run.services.get", Place.PROJECT, "roles/run.developer"),
    Need("deploy", _C, "run.services.update", Place.PROJECT, "roles/run.developer"),
    Need("deploy", _C, "run.operations.get", Place.PROJECT, "roles/run.developer"),
    Need("deploy", _C, "run.revisions.get", Place.PROJECT, "roles/run.developer"),
    Need("deploy", _C, "run.revisions.list", Place.PROJECT, "roles/run.developer"),
    Need("deploy", _C, "run.services.setIamPolicy", Place.PROJECT, "roles/run.admin", public=True),
    *(
        Need("job", _C, f"run.jobs.{verb}", Place.PROJECT, "roles/run.developer", comfort=True)
        for verb in ("create", "run", "get", "delete")
    ),
    Need(
        "image",
        _A,
        "artifactregistry.repositories.downloadArtifacts",
        Place.IMAGE_REPOSITORY,
        "roles/artifactregistry.reader",
    ),
    *_KEY_NEEDS,
    Need("network", _A, "compute.subnetworks.use", Place.SUBNET, "roles/compute.networkUser"),
    Need("network", _A, "compute.networks.get", Place.HOST_PROJECT, "roles/compute.networkViewer"),
    Need("keys", _C, "secretmanager.versions.access", Place.SECRET, "roles/secretmanager.secretAccessor"),
    Need("keys", _R, "secretmanager.versions.access", Place.SECRET, "roles/secretmanager.secretAccessor"),
    Need("read the model", _C, "storage.buckets.get", Place.MODEL_BUCKET, "roles/storage.bucketViewer", comfort=True),
    Need("read the model", _C, "storage.objects.get", Place.MODEL_BUCKET, "roles/storage.objectViewer"),
    Need("read the model", _C, "storage.objects.list", Place.MODEL_BUCKET, "roles/storage.objectViewer"),
    Need("read the model", _R, "storage.objects.get", Place.MODEL_BUCKET, "roles/storage.objectViewer"),
    Need("read the model", _R, "storage.objects.list", Place.MODEL_BUCKET, "roles/storage.objectViewer"),
    Need("read photos", _R, "storage.objects.get", Place.PHOTO_BUCKET, "roles/storage.objectViewer"),
    Need(
        "invoke",
        _C,
        "iam.serviceAccounts.getOpenIdToken",
        Place.INVOKER_ACCOUNT,
        "roles/iam.serviceAccountOpenIdTokenCreator",
    ),
    Need("invoke", _I, "run.routes.invoke", Place.SERVICE, "roles/run.invoker"),
)

# On what besides a project a role may be granted, by the lowest resource that Google's list names for it
# (https://cloud.google.com/iam/docs/roles-permissions); a role that is not in here goes on a project alone.
GRANTABLE: Mapping[str, frozenset[Kind]] = MappingProxyType(
    {
        "roles/artifactregistry.reader": frozenset({Kind.REPOSITORY}),
        "roles/artifactregistry.writer": frozenset({Kind.REPOSITORY}),
        "roles/storage.bucketViewer": frozenset({Kind.BUCKET}),
        "roles/storage.objectUser": frozenset({Kind.BUCKET}),
        "roles/storage.objectViewer": frozenset({Kind.BUCKET}),
        "roles/iam.serviceAccountUser": frozenset({Kind.ACCOUNT}),
        "roles/iam.serviceAccountOpenIdTokenCreator": frozenset({Kind.ACCOUNT}),
        "roles/run.invoker": frozenset({Kind.SERVICE}),
        "roles/run.developer": frozenset({Kind.SERVICE}),
        "roles/run.admin": frozenset({Kind.SERVICE}),
        "roles/secretmanager.secretAccessor": frozenset({Kind.SECRET}),
        "roles/cloudkms.cryptoKeyEncrypterDecrypter": frozenset({Kind.KEY}),
        "roles/compute.networkUser": frozenset({Kind.SUBNET}),
    }
)


def grantable(role: str, kind: Kind) -> bool:
    """Whether a resource of the kind takes the role in its policy."""
    return kind is Kind.PROJECT or kind in GRANTABLE.get(role, frozenset())


# What the checks themselves read, and what lets a caller mend things; asked for, never granted.
GRANTING = {
    Kind.PROJECT: "resourcemanager.projects.setIamPolicy",
    Kind.BUCKET: "storage.buckets.setIamPolicy",
    Kind.REPOSITORY: "artifactregistry.repositories.setIamPolicy",
    Kind.ACCOUNT: "iam.serviceAccounts.setIamPolicy",
    Kind.SERVICE: "run.services.setIamPolicy",
    Kind.SECRET: "secretmanager.secrets.setIamPolicy",
    Kind.KEY: "cloudkms.cryptoKeys.setIamPolicy",
    Kind.SUBNET: "compute.subnetworks.setIamPolicy",
}
MAKING = {
    "apis": "serviceusage.services.enable",
    Kind.REPOSITORY: "artifactregistry.repositories.create",
    Kind.BUCKET: "storage.buckets.create",
    Kind.ACCOUNT: "iam.serviceAccounts.create",
    Kind.SECRET: "secretmanager.secrets.create",
}


@dataclass(frozen=True, slots=True)
class Grant:
    """One role for one member on one resource."""

    role: str
    member: str
    resource: Resource

    def __str__(self) -> str:
        return f"{self.role} on {self.resource} for {self.member.partition(':')[2]}"


@dataclass(frozen=True, slots=True)
class Make:
    """A resource that has to be made; `apis` are those to turn on, where it is that."""

    resource: Resource
    apis: tuple[str, ...] = ()
    region: str = ""

    def __str__(self) -> str:
        return f"turn on {', '.join(self.apis)}" if self.apis else f"make {self.resource}"


@dataclass(frozen=True, slots=True)
class Check:
    """One question with its answer, the call that said so, and what mends it (a grant, something to make, advice)."""

    step: str
    question: str
    answer: Answer
    evidence: str
    mend: Grant | Make | str | None = None

    @property
    def met(self) -> bool:
        return self.answer == "yes"


# The domains of service agents (https://cloud.google.com/iam/docs/service-agents).
AGENTS: Mapping[Principal, str] = MappingProxyType(
    {
        Principal.AGENT: "serverless-robot-prod",
        Principal.REGISTRY_AGENT: "gcp-sa-artifactregistry",
        Principal.STORAGE_AGENT: "gs-project-accounts",
    }
)


def _agent_email(domain: str, target: Target) -> str:
    # NUMBER stands where the project does not say it.
    return f"service-{target.number or 'NUMBER'}@{domain}.iam.gserviceaccount.com"


def principal_member(principal: Principal, target: Target, caller: str) -> str:
    """The IAM member behind a principal; `caller` is one already."""
    email = {
        Principal.BUILD: target.build_account,
        Principal.RUNTIME: target.runtime_account,
        Principal.INVOKER: target.invoker_account,
        **{agent: _agent_email(domain, target) for agent, domain in AGENTS.items()},
    }.get(principal)
    return caller if email is None else f"serviceAccount:{email}"


def resources(place: Place, target: Target) -> tuple[Resource, ...]:
    """The resources that a place means; a target may read from several buckets, or from none."""
    buckets = {Place.MODEL_BUCKET: target.model_buckets, Place.PHOTO_BUCKET: target.photo_buckets}
    if place in buckets:
        return tuple(target.resource(Kind.BUCKET, name) for name in buckets[place])
    if place is Place.SECRET:
        return () if target.secret is None else (target.resource(Kind.SECRET),)
    if place is Place.KEY:
        return () if target.key is None else (target.key,)
    if place in (Place.SUBNET, Place.HOST_PROJECT):
        return _of_the_host(place, target)
    if place is Place.IMAGE_REPOSITORY:
        # What lies in the project itself its agent reads anyway.
        repository = target.image_repository
        return () if repository is None or repository.project == target.project else (repository,)
    single = {
        Place.PROJECT: (Kind.PROJECT, None),
        Place.SOURCE_BUCKET: (Kind.BUCKET, target.source_bucket),
        Place.REPOSITORY: (Kind.REPOSITORY, None),
        Place.BUILD_ACCOUNT: (Kind.ACCOUNT, target.build_account),
        Place.RUNTIME_ACCOUNT: (Kind.ACCOUNT, target.runtime_account),
        Place.INVOKER_ACCOUNT: (Kind.ACCOUNT, target.invoker_account),
        Place.SERVICE: (Kind.SERVICE, None),
    }[place]
    return (target.resource(*single),)


def _of_the_host(place: Place, target: Target) -> tuple[Resource, ...]:
    """What lies in the project of a shared network; in its own project Cloud Run's agent may use networks anyway."""
    subnet = target.subnet
    if subnet is None or subnet.project == target.project:
        return ()
    return (subnet,) if place is Place.SUBNET else (Resource(Kind.PROJECT, subnet.project, subnet.project),)


def needs(target: Target) -> Iterator[tuple[Need, Resource]]:
    """Every need of a target with the resource it is about."""
    for need in NEEDS:
        if (need.public and not target.public) or (need.build and target.own_image is not None):
            continue
        for resource in resources(need.place, target):
            yield need, resource


def made_resources(target: Target) -> tuple[Resource, ...]:
    """What a deployment makes when it is not there: the accounts that are ours, the repository, the source bucket.

    An image of one's own needs neither of the latter two, nor an account that builds. A secret is made by a fix alone.
    """
    builds = target.own_image is None
    emails = [email for email in target.accounts if target.dedicated(email)]
    accounts = [target.resource(Kind.ACCOUNT, email) for email in emails if builds or email != target.build_account]
    bucket = target.resource(Kind.BUCKET, target.source_bucket)
    return (
        *accounts,
        *((target.resource(Kind.REPOSITORY), bucket) if builds else ()),
        *resources(Place.SECRET, target),
    )


def asked_of_caller(target: Target) -> dict[Resource, tuple[str, ...]]:
    """For each resource, every permission to test for the caller: one call a resource."""
    asked: dict[Resource, list[str]] = {}
    for need, resource in needs(target):
        if need.principal is Principal.CALLER:
            asked.setdefault(resource, []).append(need.permission)
    project = target.resource(Kind.PROJECT)
    foreign = (Place.PHOTO_BUCKET, Place.IMAGE_REPOSITORY, Place.KEY, Place.SUBNET, Place.HOST_PROJECT)
    others = tuple(resource for place in foreign for resource in resources(place, target))
    granted_on = (*made_resources(target), *others, target.resource(Kind.SERVICE))
    for resource in (*asked, *granted_on):
        asked.setdefault(resource, []).append(GRANTING[resource.kind])
    # What a resource that does not exist yet would inherit is asked of the project.
    inherited = [permission for resource in list(asked) for permission in asked[resource]]
    making = [permission for kind, permission in MAKING.items() if kind is not Kind.SECRET or target.secret]
    asked[project] += [*making, *inherited]
    return {resource: tuple(dict.fromkeys(permissions)) for resource, permissions in asked.items()}
