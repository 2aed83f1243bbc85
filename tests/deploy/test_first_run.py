"""tools/first_run.sh, as far as a fake can take it: what it runs, what it writes down, and what it leaves out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coldstream.deploy import access
from coldstream.deploy.apply import STEPS
from coldstream.errors import ColdstreamError
from tests.deploy.conftest import ME, MODEL, SMALL, Opened, Site
from tests.deploy.test_cli import runner
from tests.deploy.test_entry import keyed, mend_keyed, stored_key

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "first_run.sh"
MUST = ("--project", "demo-project", "--model", MODEL)


def run(folder: Path, *words: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", str(script), *words, "--out", str(folder / "out")]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def installed(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """`coldstream` on the path: a program that has this process run the command, on the fake, with a small model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    site.shelf.models[MODEL] = Opened(**SMALL)
    # Where the script's variable names it: opened by the first call, when the folder is there.
    site.transcript = tmp_path / "out" / "transcript.jsonl"
    with ThreadingHTTPServer(("127.0.0.1", 0), _commands(site)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        program = PROGRAM.format(python=sys.executable, port=server.server_address[1])
        (tmp_path / "coldstream").write_text(program)
        (tmp_path / "coldstream").chmod(0o755)
        yield site
        server.shutdown()
        thread.join()


PROGRAM = """#!/bin/sh
exec {python} -S -c '
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", {port})
connection.request("POST", "/", json.dumps(sys.argv[1:]))
said = json.load(connection.getresponse())
print(said["text"], end="")
sys.exit(said["code"])
' "$@"
"""


def _commands(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            words = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            result = runner(site)(*words)
            error = result.exception
            known = isinstance(error, ColdstreamError)
            said = {"text": result.output, "code": result.exit_code}
            if known:
                said = {"text": f"{result.output}error: {error}\n", "code": error.exit_code}  # type: ignore[union-attr]
            data = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    return Handler


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model", MODEL), "--project is missing"),
        (("--project", "p"), "--model is missing"),
        (("--project", "p", "--model", "/tmp/model"), "only a gs:// model can be deployed"),
        ((*MUST, "--l4"), "--l4 costs money"),
        ((*MUST, "--everything"), "--everything is unknown"),
    ],
)
def test_what_is_wrong_in_the_arguments_is_named_before_anything_runs(
    tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    done = run(tmp_path, *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_l4_job_without_its_script_is_refused_by_name(tmp_path: Path) -> None:
    copied = tmp_path / "tools" / "first_run.sh"
    copied.parent.mkdir()
    copied.write_text(SCRIPT.read_text())
    done = run(tmp_path, *MUST, "--for-real", "--l4", script=copied)
    assert (done.returncode, "bench/gpu.py" in done.stderr) == (2, True)


def test_without_for_real_nothing_is_changed(installed: Site, tmp_path: Path) -> None:
    """An empty project; what is missing is an answer, and no failure."""
    site = installed
    site.world.iam.grant(site.world.project_name, "roles/owner", ME)
    (tmp_path / "out").mkdir()
    site.world.apis |= set(access.apis(site.job().target))
    done = run(tmp_path, *MUST)
    assert done.returncode == 0, done.stdout + done.stderr
    world = site.world
    assert (world.services, world.builds, world.jobs, world.accounts) == ({}, {}, {}, {})
    report = (tmp_path / "out" / "report.txt").read_text()
    for name in ("== doctor", "== plan", "== dry run", "cannot judge the service before"):
        assert name in report


@pytest.mark.more
def test_for_real_it_deploys_twice_rolls_back_runs_a_job_and_removes_it_all(installed: Site, tmp_path: Path) -> None:
    """On a project where nothing is there; the report has what was answered, and no person's address or token."""
    site = installed
    site.world.iam.grant(site.world.project_name, "roles/owner", ME)
    done = run(tmp_path, *MUST, "--for-real", "--l4")
    report = (tmp_path / "out" / "report.txt").read_text()
    assert done.returncode == 0, report
    assert (site.world.services, site.world.accounts, site.world.jobs) == ({}, {}, {})
    assert "42 tokens/s" in report
    assert '"method": "PATCH"' in report.partition("== what Google was asked")[2]
    assert report.count("as it should be") >= len(STEPS)
    for secret in (ME.partition(":")[2], "token-of:", "demo-project", "id-token.", site.world.number):
        assert secret not in report
    assert "remove-iam-policy-binding" in (tmp_path / "out" / "coldstream-undo.sh").read_text()


def test_what_google_was_asked_and_answered_is_written_down_without_secrets(owned: Site, tmp_path: Path) -> None:
    """A service with keys: neither they, nor a token, nor the source is in it; masks and refusals are."""
    owned.transcript = tmp_path / "heard.jsonl"
    mend_keyed(owned)
    owned.world.container.key = stored_key(owned)
    owned.deploy(chosen=keyed())
    owned.deploy(chosen=keyed(), concurrency=3)
    text = owned.transcript.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(set(line) == {"method", "url", "asked", "status", "answered"} for line in lines)
    assert any("updateMask=" in line["url"] for line in lines)
    assert {404, 200} <= {line["status"] for line in lines}
    for secret in (
        stored_key(owned),
        next(iter(owned.world.secrets.values()))["versions"][0],
        "id-token.",
        "token-of:",
    ):
        assert secret not in text
