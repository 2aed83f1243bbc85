"""A fake Google Cloud, a caller on it, and a deployment of one small model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from coldstream.deploy import access, apply, smoke
from coldstream.deploy.apply import Deployed
from coldstream.deploy.google import Endpoints, Google
from coldstream.deploy.google.transcript import Transcript
from coldstream.deploy.image import Context, Variant
from coldstream.deploy.session import DeployJob, Session
from coldstream.deploy.steps import Event
from coldstream.deploy.target import LABELS, Kind
from coldstream.errors import ObjectNotFound
from coldstream.settings import DeploySettings, ModelSettings, Settings, TaskSettings
from coldstream.settings.parse import record
from tests.fakecloud import Bucket, FakeCloud, World, add_account

ME = "user:me@example.com"
ADMIN = "user:admin@example.com"
MODEL = "gs://models/gemma"
KEY = "projects/demo-project/locations/us-central1/keyRings/r/cryptoKeys/k"
SHARED = "projects/host-project/global/networks/shared"

GEMMA_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 131072,
    },
}
GEMMA_270M = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 32768,
}


@dataclass(frozen=True)
class Opened:
    """A checkpoint's headers, as the plan reads them: the 4b model that most people come with."""

    config: dict[str, Any] = field(default_factory=lambda: dict(GEMMA_4B))
    total_bytes: int = 8_600_158_944
    total_parameters: int = 4_300_079_472
    revision: str = "0011223344556677"


SMALL: dict[str, Any] = {
    "config": GEMMA_270M,
    "total_bytes": 536_223_056,
    "total_parameters": 268_098_176,
}
"""The 270m model, which a service without a card serves."""


@dataclass
class Shelf:
    """Which models there are; a test may exchange or remove one."""

    models: dict[str, Opened] = field(default_factory=lambda: {MODEL: Opened()})

    def open(self, uri: str) -> Opened:
        if uri not in self.models:
            raise ObjectNotFound(f"{uri}: no such folder")
        return self.models[uri]


@dataclass(repr=False)
class Site:
    """The fake with everything that a test of the wing needs."""

    world: World
    cloud: FakeCloud
    shelf: Shelf
    events: list[Event] = field(default_factory=list)
    callers: dict[str, Google] = field(default_factory=dict)
    transcript: Path | None = None

    def google(self, who: str = ME) -> Google:
        if who not in self.callers:
            credentials = Credentials(token=f"token-of:{who}")
            endpoints = Endpoints(self.cloud.url, self.cloud.grpc_target)
            project, clock = self.world.project, self.world.clock
            heard = None if self.transcript is None else Transcript(self.transcript)
            self.callers[who] = Google(
                credentials, quota_project=project, endpoints=endpoints, clock=clock, transcript=heard
            )
        return self.callers[who]

    def session(self, who: str = ME) -> Session:
        return Session(self.google(who), self.world.clock, self.shelf.open, small_context)

    def job(self, who: str = ME, *, chosen: Settings | None = None, **wanted: Any) -> DeployJob:
        read = record(DeploySettings, {"project": self.world.project, **wanted}, "deploy")
        return DeployJob(self.session(who), chosen or one_model(), read)

    def deploy(
        self,
        who: str = ME,
        *,
        canary: int = 100,
        tell: Callable[[Event], None] | None = None,
        chosen: Settings | None = None,
        **wanted: Any,
    ) -> Deployed:
        """What `coldstream deploy` does after its checks."""
        job = self.job(who, chosen=chosen, **wanted)
        asked = smoke.questions(job.settings, job.wanted.smoke)
        google, clock = job.session.google, self.world.clock
        hear = tell or self.events.append
        return apply.apply(google, job.plan(), job.wanted, asked, canary=canary, clock=clock, tell=hear)

    def steps(self, mark: str) -> list[str]:
        return [event.step for event in self.events if event.mark == mark]

    def asked(self, method: str) -> int:
        """How often a method was called."""
        return sum(1 for name, _ in self.world.requests if name.endswith(method))

    def service(self) -> dict[str, Any]:
        return next(iter(self.world.services.values()))

    def shares(self) -> dict[str, int]:
        return {item["revision"]: item["percent"] for item in self.service()["traffic"] if item.get("percent")}


def small_context(variant: Variant) -> Context:
    """A build context that is small, and the same whatever is being edited meanwhile."""
    files = {"Dockerfile": b"FROM scratch", "entry.py": b"pass", "torch.txt": b"torch==2.13.0\n"}
    return Context(variant, files)


def one_model(**model: Any) -> Settings:
    """One model and one task."""
    wanted = ModelSettings(**{"name": "gemma", "uri": MODEL, **model})
    return Settings(models={"gemma": wanted}, tasks={"text": TaskSettings(name="text", model="gemma")})


@pytest.fixture
def world() -> World:
    """A project with billing, an owner, and a model's bucket in the region; the basic APIs are on."""
    made = World()
    made.apis |= {"cloudresourcemanager.googleapis.com", "iam.googleapis.com", "policytroubleshooter.googleapis.com"}
    made.add_bucket("models", Bucket("US-CENTRAL1"))
    return made


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    """The running fake; a request that the published schemas do not allow fails the test."""
    with FakeCloud(world) as cloud:
        yield Site(world, cloud, Shelf())
    assert world.violations == []


@pytest.fixture
def owned(site: Site) -> Site:
    """The caller owns the project."""
    site.world.iam.grant(site.world.project_name, "roles/owner", ME)
    return site


@pytest.fixture
def ready(owned: Site) -> Site:
    """As `doctor --fix` leaves a project: everything made, every need granted on its own resource."""
    prepare(owned)
    return owned


def prepare(site: Site, caller: str = ME) -> None:
    """Make what a deployment stands on, and grant the access graph row by row."""
    world, target = site.world, site.job().target
    world.apis |= set(access.apis(target))
    for email in target.accounts:
        add_account(world, email)
    world.repositories[target.repository_name] = {"name": target.repository_name, "labels": LABELS, "format": "DOCKER"}
    world.add_bucket(target.source_bucket, Bucket("US-CENTRAL1", dict(LABELS)))
    for place in (world.repository_name(target.repository_name), *map(world.account_name, target.accounts)):
        world.iam.policies.setdefault(place, [])
    for need, resource in access.needs(target):
        if resource.kind is not Kind.SERVICE:
            world.iam.grant(resource.full_name, need.role, access.principal_member(need.principal, target, caller))
