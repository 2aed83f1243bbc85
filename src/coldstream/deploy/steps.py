"""A deployment under way: what is known of it, what it says, and how its steps are followed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from coldstream.deploy import service
from coldstream.deploy.clock import Clock
from coldstream.deploy.google import Google
from coldstream.deploy.plan import Plan
from coldstream.deploy.smoke import Question
from coldstream.deploy.target import Target
from coldstream.errors import CloudUnavailable, ColdstreamError, DeployError
from coldstream.settings import DeploySettings

Mark = Literal["begin", "note", "log", "done", "kept", "failed"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something to show. A step ends as `done`, as `kept` where everything was as it should be, or as `failed`."""

    step: str
    mark: Mark
    text: str


Tell = Callable[[Event], None]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment under way. `made` grows with what this run makes; `deployed` is the service as last seen.

    `source` is the generation of the build context's object.
    """

    google: Google
    clock: Clock
    plan: Plan
    wanted: DeploySettings
    questions: tuple[Question, ...]
    canary: int
    tell: Tell
    step: str = ""
    made: list[str] = field(default_factory=list)
    deployed: Mapping[str, Any] | None = None
    revision: str = ""
    source: int | None = None

    @property
    def target(self) -> Target:
        return self.plan.target

    def note(self, text: str) -> None:
        self.tell(Event(self.step, "note", text))

    def making(self, *names: str) -> Deployment:
        """Named at once: a step that fails later still says what it made."""
        self.made.extend(names)
        return self


Steps = tuple[tuple[str, Callable[[Deployment], Deployment]], ...]


def follow(work: Deployment, steps: Steps) -> Deployment:
    """Take steps in order, and say of each what it made.

    Raises:
        DeployError: as `apply`.
    """
    for name, step in steps:
        work = replace(work, step=name)
        work.tell(Event(name, "begin", ""))
        before = len(work.made)
        try:
            work = step(work)
        except ColdstreamError as exc:
            work.tell(Event(name, "failed", str(exc).splitlines()[0]))
            kind = type(exc) if isinstance(exc, DeployError) else DeployError
            raise kind(_report(work, name, exc)) from exc
        made = work.made[before:]
        work.tell(Event(name, "done" if made else "kept", ", ".join(made)))
    return work


def _report(work: Deployment, step: str, exc: Exception) -> str:
    made = ", ".join(work.made) or "nothing"
    after = "mend it and run the same command; what is made is kept"
    return f"{step}: {exc}\n  made by this run: {made}\n  traffic: {_flow(work)}\n  next: {after}"


def _flow(work: Deployment) -> str:
    try:
        deployed = work.google.service(work.target.service_name)
    except ColdstreamError as exc:
        return f"not known ({exc})"
    shares = {} if deployed is None else service.serving(deployed)
    return (
        ", ".join(f"{percent} % on {name}" for name, percent in shares.items()) or "none; the service is not deployed"
    )


def poll(look: Callable[[], _T], otherwise: _T) -> _T:
    """What a look says; `otherwise` when Google did not answer, which says nothing about what is waited for."""
    try:
        return look()
    except CloudUnavailable:
        return otherwise
