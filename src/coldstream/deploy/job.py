"""A script run once on a card of Cloud Run, with the image of a deployment; what it prints comes back from the logs.

The script's text travels in an environment variable, so that it need not be in the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coldstream.deploy import ground
from coldstream.deploy.apply import IMAGE_STEPS
from coldstream.deploy.build import built_digest
from coldstream.deploy.clock import Clock
from coldstream.deploy.google import Google, wait
from coldstream.deploy.plan import MOST_CONFIG, Plan
from coldstream.deploy.steps import Event, Tell, Work, follow
from coldstream.deploy.target import LABELS, Target
from coldstream.errors import CloudUnavailable, ColdstreamError, DeployError, SettingsError
from coldstream.settings import DeploySettings

SCRIPT_VARIABLE = "COLDSTREAM_SCRIPT"
PYTHON = "/opt/coldstream/bin/python"
_RUN = f"import os; exec(compile(os.environ['{SCRIPT_VARIABLE}'], 'script', 'exec'))"
TIMEOUT = 3600


@dataclass(frozen=True, slots=True)
class Script:
    """What is run, with which arguments.

    Raises:
        SettingsError: it is larger than an environment variable may be.
    """

    name: str
    text: str
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.text.encode()) > MOST_CONFIG:
            raise SettingsError(f"{self.name} has {len(self.text.encode())} bytes; a job carries {MOST_CONFIG} at most")


def job_name(target: Target) -> str:
    """One job a service: it is made, run and removed."""
    return f"{target.location}/jobs/{target.service}-job"


def spec(plan: Plan, script: Script, image: str) -> dict[str, Any]:
    """The job: the service's machine and account, one task, no second try."""
    template = plan.template
    container = {
        "image": image,
        "command": [PYTHON],
        "args": ["-c", _RUN, *script.arguments],
        "env": [{"name": SCRIPT_VARIABLE, "value": script.text}],
        "resources": {"limits": template["containers"][0]["resources"]["limits"]},
    }
    shared = (
        "service_account",
        "execution_environment",
        "node_selector",
        "gpu_zonal_redundancy_disabled",
        "vpc_access",
    )
    task: dict[str, Any] = {key: template[key] for key in shared if key in template}
    task |= {"containers": [container], "max_retries": 0, "timeout": f"{TIMEOUT}s"}
    return {"labels": dict(LABELS), "template": {"task_count": 1, "template": task}}


def run(
    google: Google, plan: Plan, wanted: DeploySettings, script: Script, *, clock: Clock, tell: Tell
) -> tuple[str, ...]:
    """Build the image where it is not there, run the script once, remove the job; the lines that it printed.

    Raises:
        DeployError: the image could not be built, or the script ended with an error; its last lines are in the message.
    """
    work = follow(Work(google, clock, plan, wanted, (), 100, tell), IMAGE_STEPS)
    name, image = job_name(plan.target), _image(work)
    made = ground.patiently(
        "the job", lambda: google.create_job(name, spec(plan, script, image)), clock=clock, tell=work.note
    )
    try:
        wait(made, clock=clock, limit=300, tick=lambda waited: work.note(f"making the job: {waited:.0f} s"))
        return _execute(work, name)
    finally:
        _remove(work, name)


def _image(work: Work) -> str:
    digest = None if work.plan.context is None else built_digest(work)
    return work.plan.image if digest is None else f"{work.target.image}@{digest}"


def _execute(work: Work, name: str) -> tuple[str, ...]:
    failed: DeployError | None = None
    try:
        wait(
            work.google.run_job(name),
            clock=work.clock,
            limit=TIMEOUT + 600,
            every=5.0,
            tick=lambda waited: work.note(f"the script runs: {waited:.0f} s"),
        )
    except CloudUnavailable:
        raise
    except DeployError as exc:
        failed = exc
    lines = _printed(work, name)
    if failed is not None:
        last = "".join(f"\n    {line}" for line in lines[-10:])
        raise DeployError(f"{failed}{last}") from failed
    return lines


def _printed(work: Work, name: str) -> tuple[str, ...]:
    place = f'resource.type="cloud_run_job" AND resource.labels.job_name="{name.rsplit("/", 1)[1]}"'
    # The last lines are written after the container has ended.
    work.clock.sleep(5.0)
    entries: tuple[Mapping[str, Any], ...] = work.google.log_entries(work.target.project, place, newest=1000)
    return tuple(str(entry["text"]) for entry in entries)


def _remove(work: Work, name: str) -> None:
    try:
        pending = work.google.delete_job(name)
        wait(pending, clock=work.clock, limit=300, tick=lambda waited: work.note(f"removing the job: {waited:.0f} s"))
    except ColdstreamError as exc:
        work.tell(Event(work.step, "note", f"the job {name.rsplit('/', 1)[1]} is still there: {exc}"))
