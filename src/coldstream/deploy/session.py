"""What a command works with: a caller on Google Cloud, a clock, and a way to open models. Tests bring their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from coldstream.deploy import doctor, image, lifecycle, plan
from coldstream.deploy.clock import Clock, SystemClock
from coldstream.deploy.doctor import Report
from coldstream.deploy.google import Google, default_credentials
from coldstream.deploy.plan import MakeContext, OpenModel, Plan
from coldstream.deploy.target import Target, target
from coldstream.errors import ResourceNotFound
from coldstream.settings import DeploySettings, Settings


@dataclass(frozen=True, slots=True)
class Session:
    """The seams of the whole wing."""

    google: Google
    clock: Clock
    open_model: OpenModel = plan.open_model
    context: MakeContext = image.context


def open_session() -> Session:
    """The real ones: application default credentials, the real clock.

    Raises:
        PermissionRefused: there are no credentials.
    """
    return Session(Google(default_credentials()), SystemClock())


@dataclass(frozen=True)
class Job:
    """One configuration in one session."""

    session: Session
    settings: Settings
    wanted: DeploySettings

    @cached_property
    def target(self) -> Target:
        """Where it goes; asks Cloud Build whose account builds, where the settings say "default"."""
        wanted, google = self.wanted, self.session.google
        if wanted.build_account == "default":
            place = f"projects/{wanted.project}/locations/{wanted.region}"
            wanted = wanted.overridden(build_account=google.default_build_account(place))
        return target(wanted, tuple(model.uri for model in self.settings.models.values()), self.settings.images.buckets)

    def examine(self) -> Report:
        """`coldstream doctor`."""
        session = self.session
        return doctor.examine(session.google, self.settings, self.wanted, self.target, open_model=session.open_model)

    def plan(self) -> Plan:
        """`coldstream plan`. Quotas that nobody may see count as unknown, an unseen service as not deployed."""
        google, place = self.session.google, self.target
        models = plan.read_models(self.settings, self.session.open_model)
        limits = {name: said.value for name, said in plan.limits(google, place.project, place.region).items()}
        deployed = self._deployed()
        context = self.session.context
        return plan.make_plan(
            self.settings, self.wanted, place, models, limits=limits, deployed=deployed, context=context
        )

    def _deployed(self) -> dict[str, object] | None:
        try:
            return dict(lifecycle.deployed_service(self.session.google, self.target))
        except ResourceNotFound:
            return None
