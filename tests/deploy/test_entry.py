"""Who gets in: the line that is printed, API keys from Secret Manager, an OpenAI client, tokens."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from coldstream.deploy import fix, lifecycle, show, smoke
from coldstream.errors import PermissionRefused, SettingsError
from coldstream.serve.middleware.auth import read_keys
from coldstream.settings import ServerSettings, Settings
from tests.deploy.conftest import ME, Site, one_model, prepare
from tests.deploy.test_cli import runner
from tests.deploy.test_doctor import check, unmet

CI = "serviceAccount:ci@demo-project.iam.gserviceaccount.com"


def keyed(secret: str = "model-keys") -> Settings:
    return replace(one_model(), server=ServerSettings(api_keys_secret=secret))


def mend_keyed(site: Site) -> None:
    job = site.job(chosen=keyed())
    fixed = fix.apply(job.session.google, job.examine, job.examine(), clock=site.world.clock, tell=lambda _: None)
    assert unmet(fixed.report) == []


def stored_key(site: Site) -> str:
    (secret,) = site.world.secrets.values()
    return base64.b64decode(secret["versions"][-1]).decode()


@pytest.mark.parametrize("caller", [ME, CI])
def test_the_curl_line_that_is_printed_works_with_what_was_granted(site: Site, tmp_path: Path, caller: str) -> None:
    """Run by a shell; `coldstream` on its path makes the token as the command does, by the same caller."""
    prepare(site, caller)
    site.world.iam.grant(site.world.project_name, "roles/run.invoker", _invoker(site))
    site.world.iam.grant(site.world.project_name, "roles/serviceusage.serviceUsageConsumer", caller)
    result = site.deploy(caller)
    job = site.job(caller)
    token = lifecycle.token(job.session.google, job.target)
    line = show.curl(result.url, job.target, {"type": "text", "prompt": "it's $HOME `id`"})
    assert _shell(line, tmp_path, coldstream=token) == site.world.container.default_answer


def _invoker(site: Site) -> str:
    return f"serviceAccount:{site.job().target.invoker_account}"


# For machines without curl: the two options that are printed, and the address.
CURL = """#!{python}
import sys, urllib.request
words, headers, data = iter(sys.argv[1:]), {{}}, None
for word in words:
    if word == "-H":
        name, _, value = next(words).partition(": ")
        headers[name] = value
    elif word == "-d":
        data = next(words).encode()
    else:
        url = word
print(urllib.request.urlopen(urllib.request.Request(url, data, headers)).read().decode())
"""


def _shell(line: str, folder: Path, **programs: str) -> object:
    """What a shell prints when some programs print fixed texts."""
    texts = {name: f"#!/bin/sh\nprintf %s '{text}'\n" for name, text in programs.items()}
    if shutil.which("curl") is None:
        texts["curl"] = CURL.format(python=sys.executable)
    for name, text in texts.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "no_proxy": "127.0.0.1"}
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_public_service_is_asked_without_a_token(ready: Site, tmp_path: Path) -> None:
    result = ready.deploy(public=True)
    line = show.curl(result.url, ready.job(public=True).target, {"type": "text", "prompt": "hi"})
    assert "token" not in line
    assert _shell(line, tmp_path) == ready.world.container.default_answer


def test_token_prints_a_token_that_opens_the_door(ready: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = ready.deploy().url
    token = runner(ready)("token", "--project", "demo-project").stdout.strip()
    headers = {"Authorization": f"Bearer {token}"}
    assert requests.get(f"{url}/ready", headers=headers, timeout=10).status_code == 200
    assert requests.get(f"{url}/ready", timeout=10).status_code == 403


def test_a_token_is_not_made_for_who_may_not(ready: Site) -> None:
    ready.deploy()
    other = "user:other@example.com"
    ready.world.iam.grant(ready.world.project_name, "roles/run.viewer", other)
    ready.world.iam.grant(ready.world.project_name, "roles/serviceusage.serviceUsageConsumer", other)
    job = ready.job(other)
    with pytest.raises(PermissionRefused, match="getOpenIdToken"):
        lifecycle.token(job.session.google, job.target)


# API keys.


def test_keys_are_made_by_a_fix_mounted_and_asked_for_by_the_smoke_test(owned: Site) -> None:
    """The secret, its grant to the runtime account alone among the accounts, the variable, both headers."""
    mend_keyed(owned)
    key = stored_key(owned)
    owned.world.container.key = key
    owned.deploy(chosen=keyed())
    container = owned.service()["template"]["containers"][0]
    named = {item["name"]: item for item in container["env"]}
    reference = named["COLDSTREAM_API_KEYS"]["valueSource"]["secretKeyRef"]
    assert reference == {"secret": "projects/demo-project/secrets/model-keys", "version": "latest"}
    assert 'api_keys_env = "COLDSTREAM_API_KEYS"' in named["COLDSTREAM_TOML"]["value"]
    asked = [heard for heard in owned.world.container.heard if "Authorization" in heard]
    assert all(heard["Authorization"] == f"Bearer {key}" for heard in asked)
    assert all(heard["X-Serverless-Authorization"].startswith("Bearer id-token.") for heard in asked)


def test_no_key_is_told_to_anybody(owned: Site) -> None:
    mend_keyed(owned)
    owned.world.container.key = stored_key(owned)
    owned.deploy(chosen=keyed())
    key = stored_key(owned)
    assert key not in " ".join(event.text for event in owned.events)
    assert key not in repr(smoke.Door("u", None, key))
    assert key not in json.dumps(owned.world.services) + json.dumps([path for _, path in owned.world.requests])


def test_a_secret_that_is_there_keeps_its_keys(owned: Site) -> None:
    mend_keyed(owned)
    before = stored_key(owned)
    mend_keyed(owned)
    assert stored_key(owned) == before
    assert len(next(iter(owned.world.secrets.values()))["versions"]) == 1


def test_a_secret_that_is_missing_stops_before_a_build(ready: Site) -> None:
    found = check(ready.job(chosen=keyed()).examine(), "secret model-keys is there")
    assert found.answer == "no"
    assert "--fix" in found.evidence


def test_an_openai_client_gets_in_with_a_key_and_a_token_in_the_header_beside_it(owned: Site) -> None:
    """`OpenAI(api_key=KEY, default_headers={"X-Serverless-Authorization": ...})`: what it sends, sent."""
    mend_keyed(owned)
    key = owned.world.container.key = stored_key(owned)
    url = owned.deploy(chosen=keyed()).url
    job = owned.job(chosen=keyed())
    token = lifecycle.token(job.session.google, job.target)
    body = {"model": "gemma", "messages": [{"role": "user", "content": "hi"}]}
    place = f"{url}/v1/chat/completions"
    for headers, status in (
        (smoke.headers(token, key), 200),
        ({"Authorization": f"Bearer {key}"}, 403),
        (smoke.headers(token, "wrong"), 401),
    ):
        assert requests.post(place, json=body, headers=headers, timeout=10).status_code == status


def test_without_keys_a_token_is_an_openai_clients_api_key(ready: Site) -> None:
    """`OpenAI(api_key=TOKEN)`: the client sends it as the bearer token that Cloud Run wants."""
    url = ready.deploy().url
    job = ready.job()
    headers = {"Authorization": f"Bearer {lifecycle.token(job.session.google, job.target)}"}
    answer = requests.post(f"{url}/v1/chat/completions", json={"messages": []}, headers=headers, timeout=10)
    assert answer.json()["choices"][0]["message"]["content"] == ready.world.container.default_answer


def test_a_secrets_name_that_is_none_is_refused(ready: Site) -> None:
    with pytest.raises(SettingsError, match=r"server\.api_keys_secret"):
        _ = ready.job(chosen=keyed("a b; rm")).target


def test_a_server_here_does_not_open_its_door_for_a_secret_that_it_cannot_read() -> None:
    with pytest.raises(SettingsError, match=r"server\.api_keys_secret is what `coldstream deploy` mounts"):
        read_keys(ServerSettings(api_keys_secret="model-keys"), {})
