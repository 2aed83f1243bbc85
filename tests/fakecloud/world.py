"""The state of the fake: one project, its buckets, accounts, repository, builds, services, and what time it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.fakecloud.iam import Iam

EPOCH = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ALWAYS_ON = frozenset({"serviceusage.googleapis.com", "storage.googleapis.com", "logging.googleapis.com"})
GIB = 1024**3


class CloudError(Exception):
    """An answer in Google's error format."""

    def __init__(self, code: int, status: str, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.code, self.status, self.message, self.reason = code, status, message, reason


class SimClock:
    """Simulated time, in seconds; `sleep` moves it and wakes whoever waits for a moment."""

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
    """Objects by name; `location` in capitals, as the API answers it."""

    location: str
    labels: dict[str, str] = field(default_factory=dict)
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)


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


@dataclass
class World:
    """One project and everything in it; tests turn its knobs before and while the tool runs."""

    clock: SimClock = field(default_factory=SimClock)
    project: str = "demo-project"
    number: str = "123456789012"
    region: str = "us-central1"
    apis: set[str] = field(default_factory=lambda: set(ALWAYS_ON))
    billing: bool = True
    organisation_policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    quotas: dict[str, int] = field(default_factory=dict)
    quota_auto_grant: bool = True
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
        return self._under_project(f"//storage.googleapis.com/projects/_/buckets/{bucket}")

    def add_bucket(self, name: str, bucket: Bucket) -> None:
        """A bucket with the policy it is born with (https://cloud.google.com/storage/docs/access-control/iam-roles)."""
        self.buckets[name] = bucket
        place = self.bucket_name(name)
        for basic, legacy in (("projectOwner", "Owner"), ("projectEditor", "Owner"), ("projectViewer", "Reader")):
            self.iam.grant(place, f"roles/storage.legacyBucket{legacy}", f"{basic}:{self.project}")
            self.iam.grant(place, f"roles/storage.legacyObject{legacy}", f"{basic}:{self.project}")

    def account_name(self, email: str) -> str:
        return self._under_project(f"//iam.googleapis.com/projects/{self.project}/serviceAccounts/{email}")

    def repository_name(self, name: str) -> str:
        return self._under_project(f"//artifactregistry.googleapis.com/{name}")

    def service_name(self, name: str) -> str:
        return self._under_project(f"//run.googleapis.com/{name}")

    def _under_project(self, name: str) -> str:
        self.iam.parents[name] = self.project_name
        return name

    def timestamp(self, at: float | None = None) -> str:
        moment = EPOCH + timedelta(seconds=self.clock.now() if at is None else at)
        return moment.isoformat().replace("+00:00", "Z")

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def log(self, resource: dict[str, Any], text: str, *, at: float | None = None, severity: str = "INFO") -> None:
        """An entry that becomes visible when its moment has come."""
        when = self.clock.now() if at is None else at
        entry = {
            "logName": f"projects/{self.project}/logs/{resource['type']}",
            "resource": resource,
            "timestamp": self.timestamp(when),
            "severity": severity,
            "insertId": f"{len(self.logs):08d}",
            "textPayload": text,
        }
        self.logs.append({"at": when, "entry": entry})
