"""What a command works with: a caller on Google Cloud, a clock, and a way to open models. Tests bring their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from coldstream.deploy import doctor, image, plan
from coldstream.deploy.clock import Clock, SystemClock
from coldstream.deploy.doctor import Report
from coldstream.deploy.evidence import ask
from coldstream.deploy.google import Google, default_credentials
from coldstream.deploy.google.transcript import Transcript
from coldstream.deploy.models import FindCopy, OpenModel, find_copy, open_model, read_models
from coldstream.deploy.plan import MakeContext, Plan
from coldstream.deploy.target import Target, check_names, image_parts, target
from coldstream.errors import ApiDisabled
from coldstream.settings import DeploySettings, Settings

PLACEHOLDER = "your-project"
TRANSCRIPT_VARIABLE = "COLDSTREAM_TRANSCRIPT"


@dataclass(frozen=True, slots=True)
class Session:
    """The seams of the whole wing. Without `find_copy` a plan says nothing of packed copies."""

    google: Google
    clock: Clock
    open_model: OpenModel = open_model
    context: MakeContext = image.context
    find_copy: FindCopy | None = None


def open_session(project: str | None, *, environ: Mapping[str, str] = os.environ) -> Session:
    """The real ones: application default credentials, charged to the project, and the real clock.

    `$COLDSTREAM_TRANSCRIPT` names a file that hears what Google is asked and answers.

    Raises:
        PermissionRefused: there are no credentials.
        SettingsError: the transcript's file cannot be written.
    """
    path = environ.get(TRANSCRIPT_VARIABLE)
    transcript = Transcript(Path(path)) if path else None
    google = Google(default_credentials(), quota_project=project, transcript=transcript)
    return Session(google, SystemClock(), find_copy=find_copy)


@dataclass(frozen=True)
class DeployJob:
    """One configuration in one session."""

    session: Session
    settings: Settings
    wanted: DeploySettings

    @cached_property
    def target(self) -> Target:
        """Where it goes; asks Cloud Build whose account builds, where the settings say "default"."""
        wanted, google = self.wanted, self.session.google
        if wanted.build_account == "default":
            check_names(wanted)
            place = f"projects/{wanted.project}/locations/{wanted.region}"
            wanted = wanted.overridden(build_account=google.default_build_account(place))
        return named(self.settings, wanted)

    def examine(self) -> Report:
        """`coldstream doctor`."""
        session = self.session
        return doctor.examine(session.google, self.settings, self.wanted, self.target, open_model=session.open_model)

    def plan(self) -> Plan:
        """`coldstream plan`. Quotas that may not be seen count as unknown; an API that is off has deployed nothing."""
        google, place = self.session.google, self.target
        copies = self.session.find_copy if self.wanted.cpu_only else None
        models = read_models(self.settings, self.session.open_model, copies)
        said = plan.limits(google, place.project, plan.quota_names(self.wanted))
        return plan.make_plan(
            self.settings,
            self.wanted,
            place,
            models,
            limits=plan.of_region(said, place.region),
            deployed=self._deployed(),
            context=self.session.context,
            digest_of=self._digest_of,
        )

    def _deployed(self) -> Mapping[str, Any] | None:
        try:
            return self.session.google.service(self.target.service_name)
        except ApiDisabled:
            return None

    def _digest_of(self, image: str) -> str | None:
        """The digest behind a tag in Artifact Registry; None where there is none, or it may not be seen."""
        place, parts = self.target, image_parts(image)
        repository = place.repository_name
        if place.own_image is not None and place.image_repository is not None:
            repository = place.image_repository.name
        if parts is None:
            return None
        return ask("tags.get", lambda: self.session.google.image_digest(repository, *parts)).value


def named(settings: Settings, wanted: DeploySettings) -> Target:
    """Where it goes, from settings alone."""
    places = (place for model in settings.models.values() for place in (model.uri, model.packed))
    models = tuple(place for place in places if place not in ("auto", "off"))
    return target(wanted, models, settings.images.buckets, settings.server.api_keys_secret)


def on_todays_base(session: Session) -> Session:
    """The session whose images are built anew on today's base image."""
    today = date.today().isoformat()
    return replace(session, context=lambda variant: replace(session.context(variant), base_of=today))


def offline_plan(settings: Settings, wanted: DeploySettings, session: Session | None) -> Plan:
    """The plan without Google: quotas are not asked for, nor what is deployed already.

    A model may lie on this machine; such a plan is about its size, and cannot be deployed as it is.
    """
    here = [model.uri for model in settings.models.values() if "://" not in model.uri]
    away = replace(settings, models={name: item for name, item in settings.models.items() if item.uri not in here})
    place = named(away, replace(wanted, project=wanted.project or PLACEHOLDER))
    opener = open_model if session is None else session.open_model
    context = image.context if session is None else session.context
    copies = find_copy if session is None else session.find_copy
    models = read_models(settings, opener, copies if wanted.cpu_only else None)
    made = plan.make_plan(settings, wanted, place, models, limits={}, deployed=None, context=context)
    notes = [f"{uri} lies on this machine: copy it to a bucket before it is deployed" for uri in here]
    notes += [] if wanted.project else [f"no project was named: {PLACEHOLDER} stands for yours"]
    return replace(made, warnings=(*made.warnings, *notes))
