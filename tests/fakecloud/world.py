"""The state of the fake: projects, their buckets, accounts, repository, builds, services, and what time it is.

The default is a new project as Google makes one: small quotas, no quota for a card, nothing known everywhere at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from tests.fakecloud.iam import Iam

EPOCH = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ALWAYS_ON = frozenset({"serviceusage.googleapis.com", "storage.googleapis.com", "logging.googleapis.com"})
# gcloud's own project, which a user's calls are charged to when they name none; our APIs are off there.
GCLOUD_PROJECT = "764086051850"
AGENTS = {
    "run.googleapis.com": "serverless-robot-prod",
    "artifactregistry.googleapis.com": "gcp-sa-artifactregistry",
    "storage.googleapis.com": "gs-project-accounts",
}
Absent = Literal["404", "empty", "403"]
"""What testIamPermissions answers about a resource that does not exist."""
GIB = 1024**3


class CloudError(Exception):
    """An answer in Google's error format."""

    def __init__(self, code: int, status: str, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.code, self.status, self.message, self.reason = code, status, message, reason


class SimClock:
    """Simulated time, in seconds; `sleep` moves it and wakes the waiters whose moment has come."""

    def __init__(self) -> None:
        self._now = 0.0
        self.sleeps: list[float] = []

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self._now += seconds


@dataclass
class Bucket:
    """Objects by name; `location` in capitals, as the API answers it. `owner` is another project's number.

    `settings` are the rest of what the API has of it, as it was sent.
    """

    location: str
    labels: dict[str, str] = field(default_factory=dict)
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    owner: str | None = None
    data_locations: tuple[str, ...] = ()
    requester_pays: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Operation:
    """Something that is finished at a moment of the world's clock."""

    name: str
    done_at: float
    finish: Callable[[], dict[str, Any]]
    metadata: dict[str, Any] | None = None
    answer: dict[str, Any] | None = None
    error: CloudError | None = None


@dataclass
class Container:
    """How the deployed server behaves. `answers` maps a task to what /generate says.

    `server` starts a real one instead: from the revision's COLDSTREAM_TOML to its address, when it is ready.
    """

    start_seconds: float = 30.0
    ready: bool = True
    answers: dict[str, Any] = field(default_factory=dict)
    default_answer: Any = "Paris is the capital of France."
    status: int = 200
    server: Callable[[str], str] | None = None
    cuda: tuple[int, int] | None = None
    key: str | None = None
    heard: list[dict[str, str]] = field(default_factory=list)


@dataclass
class World:
    """One project and everything in it; tests turn its knobs before and while the tool runs.

    `absent` is what testIamPermissions says of what is not there, by service. Every `hiccup`-th read is answered with
    429 or 503 in turn. New accounts are seen after `account_delay` seconds, service agents `agent_delay` after their
    API was turned on.
    """

    clock: SimClock = field(default_factory=SimClock)
    project: str = "demo-project"
    number: str = "123456789012"
    region: str = "us-central1"
    apis: set[str] = field(default_factory=lambda: set(ALWAYS_ON))
    billing: bool = True
    organisation_policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    quotas: dict[str, int] = field(default_factory=dict)
    unlisted_quotas: set[str] = field(default_factory=set)
    quota_auto_grant: bool = True
    absent: dict[str, Absent] = field(
        default_factory=lambda: {
            "storage": "404",
            "iam": "404",
            "artifactregistry": "403",
            "run": "empty",
            "secretmanager": "empty",
            "cloudkms": "404",
            "compute": "404",
        }
    )
    hiccup: int = 23
    reads: int = 0
    account_delay: float = 20.0
    agent_delay: float = 45.0
    enabled_at: dict[str, float] = field(default_factory=dict)
    other_projects: dict[str, str] = field(default_factory=dict)
    perimeter: set[str] = field(default_factory=set)
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    subnets: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    masks: list[str] = field(default_factory=list)
    job_prints: list[str] = field(default_factory=lambda: ["42 tokens/s"])
    job_fails: str | None = None
    log_delay: float = 4.0
    barred_build_regions: set[str] = field(default_factory=set)
    build_pools: set[str] | None = None
    source_checked_at_once: bool = True
    image_cuda: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    buckets: dict[str, Bucket] = field(default_factory=dict)
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    builds: dict[str, dict[str, Any]] = field(default_factory=dict)
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    revisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    logs: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    build_seconds: float = 180.0
    build_breaks: str | None = None
    provisioning_failure: str | None = None
    container: Container = field(default_factory=Container)
    on_request: Callable[[str], None] | None = None
    base_url: str = ""
    generation: int = 1000

    def __post_init__(self) -> None:
        self.iam = Iam(now=self.clock.now)

    # Full resource names, as the policy troubleshooter writes them.

    @property
    def project_name(self) -> str:
        return f"//cloudresourcemanager.googleapis.com/projects/{self.project}"

    def bucket_name(self, bucket: str) -> str:
        owner = self.buckets[bucket].owner if bucket in self.buckets else None
        return self._under_project(f"//storage.googleapis.com/projects/_/buckets/{bucket}", owner)

    def hiccups(self) -> int | None:
        """The status that this read fails with, now and then; None when it is answered."""
        self.reads += 1
        if not self.hiccup or self.reads % self.hiccup:
            return None
        return 429 if self.reads // self.hiccup % 2 else 503

    def project_number(self, project: str) -> str | None:
        """The number of a project, by its id or number; None for one that is not there."""
        known = {self.project: self.number, **self.other_projects}
        return known.get(project) or (project if project in known.values() else None)

    def resource_of_project(self, project: str) -> str:
        """The full name of a project's resource, by its id or number."""
        known = {self.number: self.project, **{number: name for name, number in self.other_projects.items()}}
        return f"//cloudresourcemanager.googleapis.com/projects/{known.get(project, project)}"

    def seen(self, email: str) -> bool:
        """Whether an account is known everywhere by now."""
        account = self.accounts.get(email)
        return account is not None and self.clock.now() >= account.get("seenAt", 0.0)

    def agent(self, api: str) -> bool:
        """Whether the service agent of an API is there by now."""
        return self.clock.now() >= self.enabled_at.get(api, -self.agent_delay) + self.agent_delay

    def agent_email(self, api: str) -> str:
        """The address of an API's service agent (https://cloud.google.com/iam/docs/service-agents)."""
        return f"service-{self.number}@{AGENTS[api]}.iam.gserviceaccount.com"

    def uses_key(self, api: str, key: str) -> bool:
        """Whether an API's agent may encrypt with a key of the customer's."""
        member, use = f"serviceAccount:{self.agent_email(api)}", "cloudkms.cryptoKeyVersions.useToEncrypt"
        return key in self.keys and self.iam.allowed(member, use, self.key_name(key))

    def add_bucket(self, name: str, bucket: Bucket) -> None:
        """A bucket with the policy it is born with (https://cloud.google.com/storage/docs/access-control/iam-roles)."""
        self.buckets[name] = bucket
        place = self.bucket_name(name)
        if bucket.owner is not None:
            return
        for basic, legacy in (("projectOwner", "Owner"), ("projectEditor", "Owner"), ("projectViewer", "Reader")):
            self.iam.grant(place, f"roles/storage.legacyBucket{legacy}", f"{basic}:{self.project}")
            self.iam.grant(place, f"roles/storage.legacyObject{legacy}", f"{basic}:{self.project}")

    def email(self, account_id: str) -> str:
        """The address of a service account; a project that belongs to a domain is written backwards."""
        domain, _, name = self.project.rpartition(":")
        return f"{account_id}@{f'{name}.{domain}' if domain else name}.iam.gserviceaccount.com"

    def account_name(self, email: str) -> str:
        return self._under_project(f"//iam.googleapis.com/projects/{self.project}/serviceAccounts/{email}")

    def repository_name(self, name: str) -> str:
        return self._under_project(f"//artifactregistry.googleapis.com/{name}", name.split("/")[1])

    def secret_name(self, name: str) -> str:
        return self._under_project(f"//secretmanager.googleapis.com/{name}")

    def key_name(self, name: str) -> str:
        """Of a key, or of its ring, which a key inherits from."""
        ring, _, key = name.partition("/cryptoKeys/")
        under = self._under_project(f"//cloudkms.googleapis.com/{ring}", name.split("/")[1])
        if not key:
            return under
        self.iam.parents[f"//cloudkms.googleapis.com/{name}"] = under
        return f"//cloudkms.googleapis.com/{name}"

    def subnet_name(self, name: str) -> str:
        return self._under_project(f"//compute.googleapis.com/{name}", name.split("/")[1])

    def service_name(self, name: str) -> str:
        return self._under_project(f"//run.googleapis.com/{name}")

    def _under_project(self, name: str, project: str | None = None) -> str:
        self.iam.parents[name] = self.project_name if project is None else self.resource_of_project(project)
        return name

    def timestamp(self, at: float | None = None) -> str:
        moment = EPOCH + timedelta(seconds=self.clock.now() if at is None else at)
        return moment.isoformat().replace("+00:00", "Z")

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def log(
        self,
        resource: dict[str, Any],
        text: str,
        *,
        at: float | None = None,
        severity: str = "INFO",
        labels: dict[str, str] | None = None,
    ) -> None:
        """An entry that becomes visible when its moment has come."""
        when = self.clock.now() if at is None else at
        entry = {
            "logName": f"projects/{self.project}/logs/{resource['type']}",
            "resource": resource,
            "labels": labels or {},
            "timestamp": self.timestamp(when),
            "severity": severity,
            "insertId": f"{len(self.logs):08d}",
            "textPayload": text,
        }
        self.logs.append({"at": when, "entry": entry})


def image_repository(image: str) -> str | None:
    """The repository of an image in Artifact Registry, as its API names it."""
    pattern = r"([a-z0-9-]+)-docker\.pkg\.dev/((?:[a-z0-9-]+(?:\.[a-z0-9-]+)+/)?[a-z0-9-]+)/([a-z0-9-]+)/"
    found = re.match(pattern, image)
    return f"projects/{found[2].replace('/', ':')}/locations/{found[1]}/repositories/{found[3]}" if found else None
