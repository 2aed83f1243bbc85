"""A script run once on a card: with the deployment's image, and removed again."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coldstream.deploy import job, lifecycle
from coldstream.deploy.job import Script
from coldstream.deploy.target import LABELS
from coldstream.errors import DeployError, PermissionRefused, ResourceConflict, SettingsError
from tests.deploy.conftest import KEY, ME, MODEL, Site
from tests.deploy.test_cli import folder, runner

__all__ = ["folder"]


def run(site: Site, script: Script) -> tuple[str, ...]:
    work = site.job()
    google, clock = work.session.google, site.world.clock
    return job.run(google, work.plan(), work.wanted, script, clock=clock, tell=site.events.append)


def test_a_script_is_run_once_on_the_card_and_leaves_no_job(ready: Site) -> None:
    assert run(ready, Script("gpu.py", "print('hi')", ("--quick",))) == ("42 tokens/s",)
    assert ready.world.jobs == {}
    assert ready.world.services == {}
    assert ready.asked("builds.create") == 1


def test_a_job_has_the_services_machine_account_and_driver(ready: Site) -> None:
    made = job.spec(ready.job().plan(), Script("gpu.py", "print()"), "image:1")
    task = made["template"]["template"]
    assert task["node_selector"] == {"accelerator": "nvidia-l4"}
    assert task["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert task["service_account"] == ready.job().target.runtime_account
    assert task["max_retries"] == 0


def test_a_script_that_fails_says_its_last_lines_and_leaves_no_job(ready: Site) -> None:
    ready.world.job_fails = "ValueError: no such model"
    with pytest.raises(DeployError, match=r"(?s)exited with 1.*ValueError: no such model"):
        run(ready, Script("gpu.py", "print()"))
    assert ready.world.jobs == {}


def test_a_script_that_is_larger_than_a_variable_is_refused(ready: Site) -> None:
    Script("gpu.py", "print('hi')\n" * 40_000)
    with pytest.raises(SettingsError, match=r"gpu\.py has \d{5} bytes, compressed; a job carries 32768"):
        Script("gpu.py", secrets.token_hex(40_000))


def test_what_travels_runs_as_it_was_written(ready: Site) -> None:
    """The container's own command, run here: arguments, a dataclass, `__main__`, and an exit code."""
    text = SCRIPT_TEXT
    (container,) = job.spec(ready.job().plan(), Script("gpu.py", text, ("--quick", "a b")), "i:1")["template"][
        "template"
    ]["containers"]
    environment = {item["name"]: item["value"] for item in container["env"]}
    done = subprocess.run([sys.executable, *container["args"]], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("Run(words=['--quick', 'a b'], ä=1)\n", 3)


SCRIPT_TEXT = """
import sys
from dataclasses import dataclass

@dataclass
class Run:
    words: list[str]
    ä: int

if __name__ == "__main__":
    print(Run(sys.argv[1:], 1))
    sys.exit(3)
"""


def test_a_second_run_prints_its_own_lines_alone(ready: Site) -> None:
    """A job's name is the same each time; its executions tell the lines apart."""
    run(ready, Script("gpu.py", "print()"))
    ready.world.job_prints = ["first", "second"]
    assert run(ready, Script("gpu.py", "print()")) == ("first", "second")


def test_lines_that_come_late_are_waited_for(ready: Site) -> None:
    ready.world.log_delay = 9.0
    assert run(ready, Script("gpu.py", "print()")) == ("42 tokens/s",)


def left_behind(site: Site, execution: dict[str, Any] | None = None, **labels: str) -> str:
    """The job of a run that was ended by force."""
    name = site.job().target.job_name
    made = {"name": name, "labels": labels or LABELS, "template": {}}
    site.world.jobs[name] = made if execution is None else {**made, "latestCreatedExecution": execution}
    return name


def test_a_job_that_an_earlier_run_left_is_replaced(ready: Site) -> None:
    left_behind(ready, {"name": "x", "completionTime": "2026-11-22T12:00:00Z"})
    assert run(ready, Script("gpu.py", "print()")) == ("42 tokens/s",)
    assert ready.world.jobs == {}


@pytest.mark.parametrize(
    ("execution", "labels", "says"),
    [
        ({"name": "x", "createTime": "2026-11-22T12:00:00Z"}, {}, "runs already"),
        (None, {"team": "shop"}, "was not made by coldstream"),
    ],
)
def test_a_job_that_runs_or_is_somebodys_is_left_alone(
    ready: Site, execution: dict[str, Any] | None, labels: dict[str, str], says: str
) -> None:
    name = left_behind(ready, execution, **labels)
    with pytest.raises(ResourceConflict, match=says):
        run(ready, Script("gpu.py", "print()"))
    assert name in ready.world.jobs
    assert ready.asked("builds.create") == 0


def test_destroy_removes_a_job_that_was_left(ready: Site) -> None:
    left_behind(ready)
    google, clock = ready.google(), ready.world.clock
    items, _ = lifecycle.inventory(google, ready.job().target, clock=clock, tell=lambda _: None)
    assert "job coldstream-job" in [item.what for item in items]
    lifecycle.destroy(items, tell=lambda _: None)
    assert ready.world.jobs == {}


def test_who_may_not_run_jobs_is_told_before_anything_is_built(ready: Site) -> None:
    ready.world.iam.denied.add((ME, "run.jobs.create"))
    with pytest.raises(PermissionRefused, match=r"run\.jobs\.create.*roles/run\.developer has them"):
        run(ready, Script("gpu.py", "print()"))
    assert ready.asked("builds.create") == 0
    report = ready.job().examine()
    assert {item.answer for item in report.checks if item.step == "job"} == {"warning", "yes"}


def test_a_job_whose_account_may_not_read_the_model_says_so(ready: Site) -> None:
    ready.world.iam.policies[ready.world.bucket_name("models")] = []
    with pytest.raises(DeployError, match=r"storage\.objects\.get is missing for coldstream-runtime"):
        run(ready, Script("gpu.py", "print()", (MODEL,)))


def test_a_job_has_the_key_and_the_policy_of_the_service(ready: Site) -> None:
    made = job.spec(ready.job(encryption_key=KEY, binary_authorization=True).plan(), Script("g", ""), "image:1")
    assert made["template"]["template"]["encryption_key"] == KEY
    assert made["binary_authorization"] == {"use_default": True}


def test_the_command_prints_what_the_script_printed(ready: Site, folder: Path) -> None:
    (folder / "gpu.py").write_text("print('hi')")
    result = runner(ready)("job", "--script", "gpu.py")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "42 tokens/s"
    missing = runner(ready)("job", "--script", "none.py")
    assert "none.py" in str(missing.exception)
