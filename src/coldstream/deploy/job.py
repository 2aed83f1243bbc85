"""A script run once on a card of Cloud Run, with the image of a deployment; what it prints comes back from the logs.

The script's text travels in an environment variable, compressed, so that it need not be in the image.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

from coldstream.deploy import ground
from coldstream.deploy.access import NEEDS
from coldstream.deploy.apply import IMAGE_STEPS
from coldstream.deploy.build import built_digest
from coldstream.deploy.clock import Clock
from coldstream.deploy.google import Google, wait
from coldstream.deploy.plan import MOST_CONFIG, Plan
from coldstream.deploy.steps import Deployment, Event, Tell, follow
from coldstream.deploy.target import LABELS, Kind, Target
from coldstream.errors import (
    CloudUnavailable,
    ColdstreamError,
    DeployError,
    PermissionRefused,
    ResourceConflict,
    SettingsError,
)
from coldstream.settings import DeploySettings

SCRIPT_VARIABLE = "COLDSTREAM_SCRIPT"
PYTHON = "/opt/coldstream/bin/python"
_RUN = (
    "import base64, os, zlib; "
    f"exec(compile(zlib.decompress(base64.b64decode(os.environ['{SCRIPT_VARIABLE}'])), 'script', 'exec'))"
)
TIMEOUT = 3600
MOST_LINES = 1000
# Cloud Logging shows a line some seconds after it was written.
LATE_LINES = 30.0


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
        if len(self.carried) > MOST_CONFIG:
            raise SettingsError(
                f"{self.name} has {len(self.carried)} bytes, compressed; a job carries {MOST_CONFIG} at most"
            )

    @property
    def carried(self) -> str:
        """The text as it travels."""
        return base64.b64encode(zlib.compress(self.text.encode(), 9)).decode()


def spec(plan: Plan, script: Script, image: str) -> dict[str, Any]:
    """The job: the service's machine and account, one task, no second try."""
    template = plan.template
    container = {
        "image": image,
        "command": [PYTHON],
        "args": ["-c", _RUN, *script.arguments],
        "env": [{"name": SCRIPT_VARIABLE, "value": script.carried}],
        "resources": {"limits": template["containers"][0]["resources"]["limits"]},
    }
    shared = (
        "service_account",
        "execution_environment",
        "node_selector",
        "gpu_zonal_redundancy_disabled",
        "vpc_access",
        "encryption_key",
    )
    task: dict[str, Any] = {key: template[key] for key in shared if key in template}
    task |= {"containers": [container], "max_retries": 0, "timeout": f"{TIMEOUT}s"}
    authorization = {"binary_authorization": {"use_default": True}} if plan.options.binary_authorization else {}
    return {"labels": dict(LABELS), **authorization, "template": {"task_count": 1, "template": task}}


def run(
    google: Google, plan: Plan, wanted: DeploySettings, script: Script, *, clock: Clock, tell: Tell
) -> tuple[str, ...]:
    """Build the image where it is not there, run the script once, remove the job; the lines that it printed.

    Raises:
        DeployError: the image could not be built, or the script ended with an error; its last lines are in the message.
        PermissionRefused: the caller may not run jobs; said before anything is built.
        ResourceConflict: the job of another run is there, and runs still or is not ours.
    """
    name = plan.target.job_name
    _refuse_without_permission(google, plan.target)
    _clear(google, name, clock=clock, tell=tell)
    work = follow(Deployment(google, clock, plan, wanted, (), 100, tell), IMAGE_STEPS)
    made = ground.patiently(
        "the job", lambda: google.create_job(name, spec(plan, script, _image(work))), clock=clock, tell=work.note
    )
    try:
        wait(made, clock=clock, limit=300, tick=lambda waited: work.note(f"making the job: {waited:.0f} s"))
        return _execute(work, name)
    finally:
        _remove(work, name)


def _refuse_without_permission(google: Google, target: Target) -> None:
    needs = [need for need in NEEDS if need.step == "job"]
    held = google.test_permissions(target.resource(Kind.PROJECT), [need.permission for need in needs])
    missing = [need for need in needs if need.permission not in held]
    if missing:
        names = ", ".join(need.permission for need in missing)
        raise PermissionRefused(f"a job needs {names} on project {target.project}: {missing[0].role} has them")


def _clear(google: Google, name: str, *, clock: Clock, tell: Tell) -> None:
    """Remove the job that a run which was ended by force left behind."""
    left = google.job(name)
    if left is None:
        return
    short, last = name.rsplit("/", 1)[1], left.get("latest_created_execution", {})
    if not dict(left.get("labels", {})).items() >= LABELS.items():
        raise ResourceConflict(
            f"job {short} is there, and was not made by coldstream; remove it, or rename the service"
        )
    if last and not last.get("completion_time"):
        raise ResourceConflict(f"job {short} runs already; wait for it, or remove it with `coldstream destroy`")
    tell(Event("apis", "note", f"removing the job {short}, which an earlier run left"))
    wait(google.delete_job(name), clock=clock, limit=300, tick=lambda waited: None)


def _image(work: Deployment) -> str:
    digest = None if work.plan.context is None else built_digest(work)
    return work.plan.image if digest is None else f"{work.target.image}@{digest}"


def _execute(work: Deployment, name: str) -> tuple[str, ...]:
    failed: DeployError | None = None
    execution, pending = work.google.run_job(name)
    try:
        wait(
            pending,
            clock=work.clock,
            limit=TIMEOUT + 600,
            every=5.0,
            tick=lambda waited: work.note(f"the script runs: {waited:.0f} s"),
        )
    except CloudUnavailable:
        raise
    except DeployError as exc:
        failed = exc
    lines = _printed(work, execution)
    if failed is not None:
        last = "".join(f"\n    {line}" for line in lines[-10:])
        raise DeployError(f"{failed}{last}") from failed
    return lines


def _printed(work: Deployment, execution: str) -> tuple[str, ...]:
    """The lines of one execution, once two looks agree: a job of the same name may have run before."""
    short = execution.rsplit("/", 1)[1]
    place = f'resource.type="cloud_run_job" AND labels."run.googleapis.com/execution_name"="{short}"'
    begun, seen = work.clock.now(), None
    while True:
        work.clock.sleep(5.0)
        entries = work.google.log_entries(work.target.project, place, newest=MOST_LINES)
        if len(entries) == seen or work.clock.now() - begun >= LATE_LINES:
            break
        seen = len(entries)
    if len(entries) == MOST_LINES:
        work.note(f"the last {MOST_LINES} lines; `gcloud logging read` has the others")
    return tuple(str(entry["text"]) for entry in entries)


def _remove(work: Deployment, name: str) -> None:
    try:
        pending = work.google.delete_job(name)
        wait(pending, clock=work.clock, limit=300, tick=lambda waited: work.note(f"removing the job: {waited:.0f} s"))
    except ColdstreamError as exc:
        work.tell(Event(work.step, "note", f"the job {name.rsplit('/', 1)[1]} is still there: {exc}"))
