"""The commands as typed, on the fake: tables for people, --json for machines, exit codes, files that are written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from coldstream.cli import deploy as commands
from coldstream.demo.bucket import LocalBucket
from coldstream.deploy import models, show
from coldstream.deploy.steps import Event
from coldstream.errors import DeployError, PermissionRefused, SettingsError
from tests.deploy.conftest import ME, MODEL, SMALL, Opened, Site, one_model
from tests.support import packs, tiny

CONFIG = """
[models.gemma]
uri = "gs://models/gemma"
[tasks.text]
model = "gemma"
[deploy]
project = "demo-project"
"""

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a coldstream.toml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "coldstream.toml").write_text(CONFIG)
    return tmp_path


def runner(site: Site, who: str = ME) -> Run:
    app = typer.Typer()
    commands.register(app)

    def run(*words: str, answer: str | None = None) -> Result:
        return CliRunner().invoke(app, list(words), obj=site.session(who), input=answer)

    return run


GPU_QUOTA = "NvidiaL4GpuAllocNoZonalRedundancyPerProjectRegion"


def test_doctor_exits_with_0_when_nothing_is_in_the_way(ready: Site, folder: Path) -> None:
    ready.world.quotas[GPU_QUOTA] = 3
    result = runner(ready)("doctor")
    assert result.exit_code == 0
    assert "0 no, 0 unknown" in result.stdout


def test_doctor_exits_with_1_and_a_table_when_something_is_missing(site: Site, folder: Path) -> None:
    for role in ("roles/browser", "roles/serviceusage.serviceUsageConsumer"):
        site.world.iam.grant(site.world.project_name, role, ME)
    result = runner(site)("doctor")
    assert result.exit_code == 1
    assert "roles/cloudbuild.builds.editor" in result.stdout.replace("\n", "")
    assert "doctor --fix" in result.stdout


def test_doctor_exits_with_2_when_something_could_not_be_found_out(ready: Site, folder: Path) -> None:
    assert runner(ready)("doctor").exit_code == 2


def test_doctor_as_data_has_every_check(ready: Site, folder: Path) -> None:
    ready.world.quotas[GPU_QUOTA] = 3
    data = json.loads(runner(ready)("doctor", "--json").stdout)
    assert data["exit_code"] == 0
    assert len(data["checks"]) >= 40
    assert set(data["checks"][0]) == {"step", "question", "answer", "evidence", "mend"}


def test_fix_shows_asks_grants_and_writes_how_to_undo_it(owned: Site, folder: Path) -> None:
    owned.world.quotas[GPU_QUOTA] = 3
    result = runner(owned)("doctor", "--fix", answer="y\n")
    assert result.exit_code == 0, result.stdout
    assert (
        result.stdout.index("to be made and granted") < result.stdout.index("Go on?") < result.stdout.index("granted ")
    )
    assert "remove-iam-policy-binding" in (folder / "coldstream-undo.sh").read_text()
    assert not (folder / "coldstream-grants.sh").exists()


def test_fix_that_is_declined_changes_nothing(owned: Site, folder: Path) -> None:
    runner(owned)("doctor", "--fix", answer="n\n")
    assert owned.world.accounts == {}
    assert owned.asked("setIamPolicy") == 0
    assert not (folder / "coldstream-undo.sh").exists()


def test_fix_by_a_caller_who_may_not_writes_a_script(site: Site, folder: Path) -> None:
    for role in ("roles/browser", "roles/serviceusage.serviceUsageConsumer"):
        site.world.iam.grant(site.world.project_name, role, ME)
    result = runner(site)("doctor", "--fix")
    assert result.exit_code == 1
    assert "gcloud projects add-iam-policy-binding demo-project" in (folder / "coldstream-grants.sh").read_text()


def test_plan_prints_figures_assumptions_and_a_diff(ready: Site, folder: Path) -> None:
    run = runner(ready)
    first = run("plan")
    assert first.exit_code == 0
    for text in (
        "startup probe",
        "GET /ready",
        "an hour and instance",
        "per million tokens",
        "assumed",
        "not deployed yet",
    ):
        assert text in first.stdout
    ready.deploy()
    assert "nothing would change" in run("plan").stdout
    assert "max_instance_request_concurrency" in run("plan", "--concurrency", "3").stdout


def test_plan_as_data(ready: Site, folder: Path) -> None:
    data = json.loads(runner(ready)("plan", "--json", "--cpu").stdout)
    assert data["size"]["gpu"] is False
    assert data["scaling"]["max_instances"] >= 1
    assert data["template"]["containers"][0]["startup_probe"]["http_get"]["path"] == "/ready"


def test_plan_proposes_what_fits_the_quota(ready: Site, folder: Path) -> None:
    ready.shelf.models[MODEL] = Opened(total_bytes=8 * 1024**3, total_parameters=4 * 1024**3)
    text = runner(ready)("plan", "--max-instances", "3").stdout
    assert "instead" in text
    assert "ask for more of" in text


def test_deploy_ends_with_the_address_and_a_curl_line(ready: Site, folder: Path) -> None:
    result = runner(ready)("deploy")
    assert result.exit_code == 0, result.stdout
    assert f"{ready.cloud.url}/app/coldstream" in result.stdout
    assert 'curl -H "Authorization: Bearer $(coldstream token --project=demo-project' in result.stdout


def test_deploy_of_a_uri_without_a_file(ready: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner(ready)("deploy", MODEL, "--project", "demo-project")
    assert result.exit_code == 0, result.stdout


def test_deploy_stops_before_it_begins_when_a_check_says_no(owned: Site, folder: Path) -> None:
    result = runner(owned)("deploy")
    assert isinstance(result.exception, DeployError)
    assert "doctor --fix" in str(result.exception)
    assert owned.asked("services.create") == owned.asked("builds.create") == 0


def test_a_dry_run_changes_nothing(ready: Site, folder: Path) -> None:
    ready.world.quotas[GPU_QUOTA] = 3
    result = runner(ready)("deploy", "--dry-run")
    assert result.exit_code == 0
    assert "Cloud Run accepts the service" in result.stdout
    assert (ready.world.services, ready.world.builds) == ({}, {})
    assert ready.asked("objects.insert") == 0


def test_a_dry_run_of_a_service_that_cloud_run_refuses_says_why(ready: Site, folder: Path) -> None:
    """validate_only: the real judge, and nothing is made."""
    ready.deploy()
    before = dict(ready.service())
    result = runner(ready)("deploy", "--dry-run", "--concurrency", "5")
    assert result.exit_code == 0
    ready.world.quotas["CpuAllocPerProjectRegion"] = 0
    refused = runner(ready)("deploy", "--dry-run", "--concurrency", "5")
    assert isinstance(refused.exception, DeployError)
    assert "Quota violated" in str(refused.exception)
    assert ready.service() == before


def test_public_says_what_it_means(ready: Site, folder: Path) -> None:
    text = runner(ready)("deploy", "--public", "--dry-run").stdout
    assert "PUBLIC: anybody who knows the address may use it, at your expense" in text


def test_status_logs_rollback_and_destroy(ready: Site, folder: Path) -> None:
    run = runner(ready)
    first = ready.deploy()
    ready.shelf.models[MODEL] = Opened(revision="ffeeddccbbaa9988")
    ready.deploy()
    assert first.revision in run("status").stdout
    assert json.loads(run("status", "--json").stdout)["access"] == "private"
    assert "coldstream: ready" in run("logs").stdout
    assert f"all traffic is on {first.revision}" in run("rollback").stdout
    declined = run("destroy", answer="n\n")
    assert declined.exit_code == 1
    assert ready.world.services
    assert "left alone" in declined.stdout
    assert run("destroy", "--yes").exit_code == 0
    assert ready.world.services == {}
    assert "nothing of this deployment is left" in run("destroy", "--yes").stdout


@pytest.mark.parametrize("form", ["knative", "terraform", "k8s", "kserve"])
def test_export_writes_every_form(ready: Site, folder: Path, form: str) -> None:
    result = runner(ready)("export", form)
    assert result.exit_code == 0
    assert "coldstream" in result.stdout


def test_a_typo_in_the_deploy_table_is_named(ready: Site, folder: Path) -> None:
    (folder / "coldstream.toml").write_text(CONFIG + "reigon = 'x'\n")
    result = runner(ready)("doctor")
    assert isinstance(result.exception, SettingsError)
    assert "deploy.reigon is unknown" in str(result.exception)


# Without Google.


def alone() -> Run:
    """The commands without a session: credentials are looked for, and there are none."""
    app = typer.Typer()
    commands.register(app)
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without credentials, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "command", [("doctor",), ("plan",), ("export", "knative"), ("deploy",), ("status",), ("token",)]
)
def test_what_is_wrong_in_the_arguments_is_said_before_anybody_looks_for_credentials(
    nobody: Path, command: tuple[str, ...]
) -> None:
    (nobody / "coldstream.toml").write_text(CONFIG.replace("demo-project", "Not A Project"))
    result = alone()(*command)
    assert isinstance(result.exception, SettingsError)
    assert "is not a project id" in str(result.exception)


def test_with_good_arguments_it_is_the_credentials_that_are_missing(nobody: Path) -> None:
    (nobody / "coldstream.toml").write_text(CONFIG)
    assert isinstance(alone()("doctor").exception, PermissionRefused)


@pytest.fixture
def checkpoint() -> Iterator[Path]:
    """A checkpoint on this machine."""
    with as_file(files("coldstream.demo") / "sql_model") as path:
        yield path


def test_a_plan_of_a_model_on_this_machine_asks_nobody(nobody: Path, checkpoint: Path) -> None:
    result = alone()("plan", str(checkpoint), "--cpu")
    assert result.exit_code == 0, result.exception
    for text in ("an hour and instance", "lies on this machine", "no project was named"):
        assert text in result.stdout


@pytest.mark.parametrize("form", ["knative", "terraform", "k8s", "kserve"])
def test_an_export_of_a_model_on_this_machine_asks_nobody(nobody: Path, checkpoint: Path, form: str) -> None:
    result = alone()("export", form, str(checkpoint), "--project", "demo-project")
    assert result.exit_code == 0, result.exception
    assert "coldstream" in result.stdout


def test_an_offline_plan_counts_on_no_quota(ready: Site, folder: Path) -> None:
    ready.world.requests.clear()
    result = runner(ready)("plan", "--offline")
    assert result.exit_code == 0
    assert "the limit is unknown" in result.stdout
    assert ready.world.requests == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--min-instances", "5", "--max-instances", "2"), "deploy.min_instances = 5 is more than max_instances = 2"),
        (("--min-instances", "-1"), "deploy.min_instances = -1 must be at least 0"),
        (("--max-instances", "0"), "deploy.max_instances = 0 must be at least 1"),
        (("--concurrency", "0"), "deploy.concurrency = 0 must be at least 1"),
        (("--memory", "0"), "deploy.memory_gib = 0 must be at least 1"),
        (("--card", "h100"), "deploy.card = 'h100'; allowed: l4, rtx-pro-6000"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_every_command_that_takes_it(
    ready: Site, folder: Path, words: tuple[str, ...], says: str
) -> None:
    for command in (("plan",), ("deploy",), ("export", "terraform")):
        result = runner(ready)(*command, *words)
        assert isinstance(result.exception, SettingsError)
        assert says in str(result.exception)
    assert ready.world.requests == []


def test_watching_on_no_terminal_is_lines_and_on_one_a_table_that_lives(ready: Site, folder: Path) -> None:
    text = runner(ready)("deploy", "--watch").stdout
    assert "smoke test" in text
    console = Console(force_terminal=True, highlight=False, width=100, file=io.StringIO())
    with show.progress(console, live=True) as tell:
        tell(Event("build", "begin", ""))
        tell(Event("build", "log", "Step 1/9"))
        tell(Event("build", "note", "build 7"))
        tell(Event("build", "done", "image x"))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in written for word in ("working", "Step 1/9", "build 7", "image x", "to come"))


def test_the_table_says_which_step_failed(ready: Site) -> None:
    """And stands as it was when the error comes."""
    ready.world.build_breaks = "FAILURE"
    console = Console(force_terminal=True, highlight=False, width=100, file=io.StringIO())
    with pytest.raises(DeployError), show.progress(console, live=True) as tell:
        ready.deploy(tell=tell)
    last = console.file.getvalue().rpartition("working")[2]  # type: ignore[attr-defined]
    assert "failed" in last
    assert "to come" in last


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('region = "us central1; rm"', "deploy.region"),
        ('repository = "a b"', "deploy.repository"),
        ('source_bucket = "gs://x"', "deploy.source_bucket"),
        ('runtime_account = "me`id`@x.iam.gserviceaccount.com"', "deploy.runtime_account"),
        ('invoker_account = "$(id)@x.com"', "deploy.invoker_account"),
        ('build_account = "x"', "deploy.build_account"),
        ('image = "a;b"', "deploy.image"),
        ('caller = "user:a b"', "deploy.caller"),
        ('build_pool = "pool"', "deploy.build_pool"),
        ('encryption_key = "key"', "deploy.encryption_key"),
        ('network = "a b"', "deploy.network"),
        ('subnet = "a"', "deploy.subnet without deploy.network"),
        ('ingress = "some"', "deploy.ingress"),
        ('labels = {Team = "x"}', "deploy.labels.Team"),
        ('card = "h100"', "deploy.card"),
        ('image_cuda = "12.6"', "deploy.image_cuda is about deploy.image"),
    ],
)
def test_a_name_that_its_resource_cannot_have_is_refused_by_its_key(
    ready: Site, folder: Path, line: str, says: str
) -> None:
    """None of it reaches a shell line, a path or Google."""
    (folder / "coldstream.toml").write_text(CONFIG + line + "\n")
    result = runner(ready)("plan", "--offline")
    assert isinstance(result.exception, SettingsError)
    assert says in str(result.exception)


@pytest.fixture
def in_a_bucket(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalBucket]:
    """The model's objects, where the packed copy is written."""
    model = packs.write(tmp_path_factory.mktemp("model"), tiny.llama())
    with LocalBucket() as bucket:
        bucket.add("models", "gemma", model)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        yield bucket


def test_deploy_packs_first_and_the_plan_says_what_a_start_reads(
    ready: Site, folder: Path, in_a_bucket: LocalBucket
) -> None:
    ready.shelf.models[MODEL] = Opened(**SMALL)
    session = replace(ready.session(), find_copy=models.find_copy)
    app = typer.Typer()
    commands.register(app)

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), obj=session)

    assert "none; --pack writes one" in run("plan", "--cpu").stdout
    dry = run("deploy", "--cpu", "--pack", "--dry-run")
    assert not in_a_bucket.objects("models", "gemma/packed"), dry.stdout
    result = run("deploy", "--cpu", "--pack")
    assert result.exit_code == 0, result.output
    assert {item.name for item in in_a_bucket.objects("models", "gemma/packed")} == {
        f"gemma/packed/{name}" for name in (packs.MANIFEST, packs.TEXT)
    }
    assert "in gs://models/gemma/packed, which a start reads" in result.stdout
    assert ready.shares() == {str(ready.service()["template"]["revision"]): 100}
    again = run("plan", "--cpu", "--json")
    assert "which a start reads" in json.loads(again.stdout)["models"][0]["packed"]


@pytest.mark.parametrize(
    ("words", "model", "told"),
    [
        ((), "", "add --cpu"),
        (("--cpu", "--engine", "vllm"), "", "add --cpu"),
        (("--cpu",), 'precision = "float32"', "nothing would read"),
        (("--cpu",), 'packed = "off"', "nothing would read"),
    ],
)
def test_deploy_refuses_to_pack_what_nothing_would_read(
    ready: Site, folder: Path, words: tuple[str, ...], model: str, told: str
) -> None:
    (folder / "coldstream.toml").write_text(CONFIG.replace("[tasks.text]", f"{model}\n[tasks.text]"))
    result = runner(ready)("deploy", "--pack", *words)
    assert isinstance(result.exception, SettingsError)
    assert told in str(result.exception)
    assert ready.world.services == {}


def test_a_packed_copy_elsewhere_is_a_bucket_that_the_service_reads(ready: Site) -> None:
    job = ready.job(chosen=one_model(packed="gs://copies/gemma"))
    assert job.target.model_buckets == ("models", "copies")
