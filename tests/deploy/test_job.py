"""A script run once on a card: with the deployment's image, and removed again."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.deploy import job
from coldstream.deploy.job import Script
from coldstream.errors import DeployError, SettingsError
from tests.deploy.conftest import Site
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
    with pytest.raises(SettingsError, match=r"gpu\.py has 40000 bytes"):
        Script("gpu.py", "#" * 40_000)


def test_the_command_prints_what_the_script_printed(ready: Site, folder: Path) -> None:
    (folder / "gpu.py").write_text("print('hi')")
    result = runner(ready)("job", "--script", "gpu.py")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "42 tokens/s"
    missing = runner(ready)("job", "--script", "none.py")
    assert "none.py" in str(missing.exception)
