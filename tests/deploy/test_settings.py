"""`[deploy]`, the names it leads to, and the configuration that travels with the service."""

from __future__ import annotations

import base64
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream import settings as configuration
from coldstream.cli.deploy import Instances, KindOptions, SizeOptions
from coldstream.deploy import plan, service
from coldstream.deploy.target import target
from coldstream.errors import SettingsError
from coldstream.settings import (
    DeploySettings,
    EngineSettings,
    ImageSettings,
    InputSettings,
    ModelSettings,
    SamplingSettings,
    ServerSettings,
    Settings,
    TaskSettings,
    reference,
)
from coldstream.settings.parse import record
from tests.deploy.conftest import MODEL, one_model, small_context


@pytest.mark.parametrize(
    ("wanted", "models", "says"),
    [
        (DeploySettings(), ("gs://a/b",), "deploy.project is missing"),
        (DeploySettings(project="My Project"), ("gs://a/b",), "is not a project id"),
        (DeploySettings(project="demo-project", service="A"), ("gs://a/b",), "deploy.service"),
        (DeploySettings(project="demo-project"), ("s3://a/b",), "only a gs:// model can be deployed"),
        (DeploySettings(project="demo-project"), ("/data/model",), "only a gs:// model can be deployed"),
    ],
)
def test_a_target_that_cannot_be_is_refused(wanted: DeploySettings, models: tuple[str, ...], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        target(wanted, models)


OPTIONS = [
    (item.name, get_type_hints(group)[item.name])
    for group in (KindOptions, SizeOptions, Instances)
    for item in fields(group)
]


def said(action: Callable[[], DeploySettings]) -> str:
    try:
        return repr(action())
    except SettingsError as refused:
        return str(refused)


@given(
    given=st.fixed_dictionaries(
        {},
        optional={
            name: st.booleans()
            if hint is bool
            else st.integers(-3, 9)
            if hint == (int | None)
            else st.sampled_from(("l4", "h100", ""))
            for name, hint in OPTIONS
        },
    )
)
def test_an_option_of_the_command_line_is_read_as_the_key_of_the_file(given: dict[str, Any]) -> None:
    """The same value, or the same words, for every option that says what a service is."""
    table = dict(given)
    assert said(lambda: DeploySettings().overridden(**given)) == said(lambda: record(DeploySettings, table, "deploy"))


def test_instances_at_least_are_not_more_than_at_most() -> None:
    wanted = DeploySettings(project="demo-project").overridden(min_instances=5, max_instances=2)
    with pytest.raises(SettingsError, match=r"deploy\.min_instances = 5 is more than max_instances = 2"):
        target(wanted, ("gs://a/b",))


VALID = {
    "project": "example.com:demo-project",
    "region": "us-central1",
    "service": "shop",
    "repository": "images",
    "source_bucket": "a-bucket",
    "build_account": "b@p.iam.gserviceaccount.com",
    "runtime_account": "r@p.iam.gserviceaccount.com",
    "invoker_account": "i@p.iam.gserviceaccount.com",
    "build_region": "europe-west1",
    "build_pool": "projects/p/locations/r/workerPools/w",
    "caller": "principal://iam.googleapis.com/projects/1/x",
    "image": "us-docker.pkg.dev/p/r/i:1",
    "network": "projects/h/global/networks/n",
    "subnet": "projects/h/regions/us-central1/subnetworks/s",
    "encryption_key": "projects/k/locations/us-central1/keyRings/r/cryptoKeys/c",
}
UGLY = st.text("ab-1._@:/;&|$`'\"\\\n\r \t(){}<>*?!#~=%\x1b\u0085\u2028\u202eä\ud800", min_size=1, max_size=3)
SAFE = re.compile(r"[A-Za-z0-9._:@/%+-]*")


@given(name=st.sampled_from(sorted(VALID)), ugly=UGLY, at=st.integers(0, 60), whole=st.booleans())
def test_a_name_is_refused_or_safe_in_a_shell_line(name: str, ugly: str, at: int, whole: bool) -> None:
    """With anything in it, or nothing else: what passes has no character that a shell, a path or a terminal reads."""
    changed = ugly if whole else VALID[name][:at] + ugly + VALID[name][at:]
    wanted = DeploySettings(**{**VALID, name: changed})  # type: ignore[arg-type]
    try:
        made = target(wanted, ("gs://models/gemma",), ("photos",), "keys")
    except SettingsError as exc:
        refused = str(exc)
    else:
        refused = ""
    if refused:
        assert f"deploy.{name}" in refused
        return
    told = [value for value in asdict(made).values() if isinstance(value, str)]
    told += [*made.accounts, made.service_name, made.repository_name, made.image, made.job_name]
    assert [value for value in told if not SAFE.fullmatch(value)] == []


@given(uri=st.text("ab/:.;$`'\"\n |&(){}", max_size=12))
def test_a_models_uri_in_a_shell_line_is_one_word(uri: str) -> None:
    for wrong in (f"s3://{uri}", f"/{uri}"):
        with pytest.raises(SettingsError) as refused:
            target(DeploySettings(project="demo-project"), (wrong,))
        line = str(refused.value).partition("copy it with `")[2].rpartition("`")[0]
        assert shlex.split(line) == ["gcloud", "storage", "cp", "-r", wrong, "gs://..."]


def test_every_service_has_accounts_of_its_own_for_reading_and_invoking() -> None:
    """Two long names with one beginning share neither; an account's id has at most 30 characters."""
    wanted = DeploySettings(project="demo-project", service="a-service-with-a-very-long-name-one")
    one, two = target(wanted, ()), target(replace(wanted, service="a-service-with-a-very-long-name-two"), ())
    assert one.build_account == two.build_account
    assert one.runtime_account != two.runtime_account
    assert one.invoker_account != two.invoker_account
    assert all(len(email.partition("@")[0]) <= 30 for email in (*one.accounts, *two.accounts))
    assert all(one.dedicated(email) for email in one.accounts)
    assert not one.dedicated(two.runtime_account)


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
NAME = st.text("abcdefghijklmnopqrstuvwxyz_-0123456789é ", min_size=1, max_size=8)
SAMPLING = st.builds(
    SamplingSettings,
    max_tokens=st.none() | st.integers(1, 100),
    temperature=st.none() | st.floats(0, 2, allow_nan=False),
    stop=st.lists(TEXT, max_size=3).map(tuple),
)


@given(
    models=st.dictionaries(NAME, TEXT, min_size=1, max_size=3),
    task=NAME,
    system=st.none() | TEXT.map(lambda text: text.replace("{", "{{").replace("}", "}}")),
    help_text=TEXT,
    sampling=SAMPLING,
    default=st.none() | TEXT,
    words=st.dictionaries(TEXT, TEXT, max_size=2),
    sequences=st.integers(1, 64),
)
def test_what_travels_with_the_service_is_read_as_it_was_written(
    models: dict[str, str],
    task: str,
    system: str | None,
    help_text: str,
    sampling: SamplingSettings,
    default: str | None,
    words: dict[str, str],
    sequences: int,
) -> None:
    """config_text and settings.load are inverse to each other, for everything but host and port."""
    first = next(iter(models))
    made = TaskSettings(
        name=task,
        model=first,
        prompt="{question}",
        prompt_input="question",
        system=system,
        help=help_text,
        help_in=words,
        answer="markdown",
        examples={title: {"question": text} for title, text in words.items()} | {"": {}},
        inputs={"question": InputSettings(default=default, help_in=words)},
        sampling=sampling,
    )
    wanted = Settings(
        models={name: ModelSettings(name=name, uri=uri) for name, uri in models.items()},
        tasks={task: made},
        server=ServerSettings(max_queue=7),
        engine=EngineSettings(max_sequences=sequences),
        images=ImageSettings(max_count=2, formats=("png",), buckets=("photos",), fetch_seconds=2.5),
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "coldstream.toml"
        path.write_text(service.config_text(wanted), encoding="utf-8", newline="\n")
        assert configuration.load(path, environ={}) == wanted


@pytest.mark.parametrize("table", ["server", "load", "engine", "images"])
def test_every_key_of_a_table_travels_with_the_service(table: str, tmp_path: Path) -> None:
    """Of those that are the deployer's machine's or Cloud Run's alone the next tests speak."""
    (section,) = (item for item in reference.sections() if item.name == table)
    left_out = ("host", "port", "api_keys_secret")
    lines = [f"{item.name} = {_other(item)}" for item in section.entries if item.name not in left_out]
    wanted = replace(
        configuration.for_uri("gs://a/b"),
        **{
            table: record(
                type(getattr(configuration.for_uri("gs://a/b"), table)), tomllib.loads("\n".join(lines)), table
            )
        },
    )
    path = tmp_path / "coldstream.toml"
    path.write_text(service.config_text(wanted), encoding="utf-8")
    assert getattr(configuration.load(path, environ={}), table) == getattr(wanted, table)
    carried = tomllib.loads(path.read_text("utf-8"))[table]
    assert set(carried) == {item.name for item in section.entries} - set(left_out)


def _other(entry: reference.Entry) -> str:
    """A value that is not the key's default."""
    if entry.key.example:
        return entry.key.example
    if entry.key.known:
        return json.dumps(entry.key.known[:1])
    if "`" in entry.type:
        return json.dumps(entry.type.rpartition(", ")[2].strip("`"))
    if entry.default in ("true", "false"):
        return "false" if entry.default == "true" else "true"
    number = float(entry.default)
    most = entry.key.at_most
    return str(number + 1 if most is None or number + 1 <= most else number / 2).removesuffix(".0")


def test_the_servers_keys_come_from_the_variable_that_the_service_mounts() -> None:
    wanted = replace(configuration.for_uri("gs://a/b"), server=ServerSettings(api_keys_secret="model-keys"))
    assert tomllib.loads(service.config_text(wanted))["server"] == {"api_keys_env": service.KEYS_VARIABLE}


def test_a_default_image_that_is_a_file_travels_as_a_data_url(tmp_path: Path) -> None:
    """The container has not the deployer's files, and would refuse to start without one that it is told of."""
    photo = tmp_path / "mug.jpg"
    photo.write_bytes(b"\xff\xd8\xff of a mug")
    inputs = {"photo": InputSettings(kind="image", default=str(photo))}
    wanted = replace(configuration.for_uri("gs://a/b"), tasks={"t": TaskSettings(name="t", model="m", inputs=inputs)})
    carried = tomllib.loads(service.config_text(wanted))["tasks"]["t"]["inputs"]["photo"]["default"]
    label, _, data = carried.partition(",")
    assert (label, base64.b64decode(data)) == ("data:image/jpeg;base64", photo.read_bytes())
    photo.unlink()
    with pytest.raises(SettingsError, match=r"tasks\.t\.inputs\.photo\.default: .*mug\.jpg cannot be read"):
        service.config_text(wanted)


def test_host_and_port_are_cloud_runs_to_choose() -> None:
    wanted = replace(configuration.for_uri("gs://a/b"), server=ServerSettings(host="127.0.0.1", port=9000))
    text = service.config_text(wanted)
    assert "host" not in text
    assert "port" not in text


@pytest.mark.parametrize("name", ["api_keys_env", "api_keys_file"])
def test_api_keys_that_would_not_be_there_are_refused_before_anything_is_built(name: str) -> None:
    wanted = replace(one_model(), server=ServerSettings(**{name: "x"}))  # type: ignore[arg-type]
    deploy = DeploySettings(project="demo-project")
    with pytest.raises(SettingsError, match=f"server.{name}: .*roles/run.invoker"):
        plan.make_plan(wanted, deploy, target(deploy, (MODEL,)), (), limits={}, deployed=None, context=small_context)
