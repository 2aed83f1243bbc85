"""coldstream.toml: what is read, and what is refused by name."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from coldstream.errors import SettingsError
from coldstream.settings import DeploySettings, Settings, for_uri, load, reference, template_variables

GOOD = """
[server]
port = 9000
api_keys_env = "KEYS"
[models.gemma]
uri = "gs://bucket/gemma"
precision = "int8"
device = "cpu"
[tasks.sql]
model = "gemma"
prompt = "Schema: {context} Question: {question}"
prompt_input = "question"
[tasks.sql.inputs.context]
default = "none"
[tasks.sql.sampling]
temperature = 0
stop = [";"]
"""


def read(tmp_path: Path, text: str, **environ: str) -> Settings:
    file = tmp_path / "coldstream.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environ=environ)


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    settings = read(tmp_path, GOOD)
    task = settings.tasks["sql"]
    assert settings.server.port == 9000
    assert settings.models["gemma"].precision == "int8"
    assert settings.models["gemma"].device == "cpu"
    assert task.variables == ("context", "question")
    assert task.inputs["context"].default == "none"
    assert (task.sampling.temperature, task.sampling.stop) == (0.0, (";",))


def test_the_environments_port_wins_over_the_files(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD, PORT="1234").server.port == 1234


def test_a_uri_alone_gives_the_one_task_text() -> None:
    settings = for_uri("gs://bucket/model")
    assert list(settings.tasks) == ["text"]
    assert settings.tasks["text"].model == "default"


def test_models_without_tasks_give_the_task_text(tmp_path: Path) -> None:
    settings = read(tmp_path, '[models.a]\nuri = "gs://b/a"\n')
    assert settings.tasks["text"].model == "a"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("port = 9000", "prot = 9000"), "server.prot is unknown"),
        (("port = 9000", 'port = "9000"'), "server.port must be a whole number"),
        (("port = 9000", "port = true"), "server.port must be a whole number"),
        (('uri = "gs://bucket/gemma"', ""), "models.gemma.uri is missing"),
        (('precision = "int8"', 'weights = "both"'), "models.gemma.weights = 'both'; allowed: index, file"),
        (('precision = "int8"', 'precision = "int4"'), "models.gemma.precision = 'int4'; allowed: auto"),
        (('model = "gemma"', 'model = "llama"'), "tasks.sql.model = 'llama', but the models are: gemma"),
        (("{context}", "{context.__class__}"), "only plain names stand in braces"),
        (("{context}", "{context"), "braces"),
        (("inputs.context", "inputs.contxt"), "no {contxt} in the template"),
        (('stop = [";"]', "stop = [1]"), "tasks.sql.sampling.stop must be a list of strings"),
        (("[server]", "[sever]"), "sever is unknown"),
        (("[server]", "[server"), "not valid TOML"),
        (
            ('prompt_input = "question"', 'sql_schema = "tables"'),
            "tasks.sql.sql_schema = 'tables' is not in the template",
        ),
        (('default = "none"', 'kind = "choice"'), "needs choices"),
    ],
)
def test_a_mistake_is_refused_by_name(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, GOOD.replace(*change))
    assert words in str(caught.value)
    assert "coldstream.toml" in str(caught.value)


@pytest.mark.parametrize("port", ["http", "70000", "-1", "٣"])
def test_a_port_in_the_environment_that_is_none_is_refused(tmp_path: Path, port: str) -> None:
    with pytest.raises(SettingsError, match="PORT"):
        read(tmp_path, GOOD, PORT=port)


def test_a_file_that_is_not_there_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--config"):
        load(tmp_path / "nothing.toml")


def test_doubled_braces_are_literal() -> None:
    assert template_variables('{{"a": {b}}}') == ("b",)


MODEL = '[models.gemma]\nuri = "gs://bucket/gemma"\n'


def test_the_deploy_table_is_read_with_the_rest(tmp_path: Path) -> None:
    text = MODEL + '[deploy]\nproject = "demo-project"\nmax_instances = 2\n[deploy.smoke.sql]\nexpect = "SELECT"\n'
    deploy = read(tmp_path, text).deploy
    assert (deploy.project, deploy.max_instances, deploy.smoke["sql"].expect) == ("demo-project", 2, "SELECT")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[deploy]\nprojekt = "x"', "deploy.projekt is unknown"),
        ('[deploy]\nmax_instances = "2"', "deploy.max_instances must be a whole number"),
        ("[deploy]\nmax_instances = true", "deploy.max_instances must be a whole number"),
        ("[deploy]\nmax_instances = 0", "deploy.max_instances = 0 must be at least 1"),
        ("[deploy]\nmin_instances = 3\nmax_instances = 2", "is more than max_instances"),
        ('[deploy]\npublic = "yes"', "deploy.public must be a true or false"),
        ('[deploy.smoke.sql]\nwant = "SELECT"', "deploy.smoke.sql.want is unknown"),
        ("[deploy.smoke.sql]\ninputs = { a = 1 }", "deploy.smoke.sql.inputs.a must be a string"),
        ("[deploy]\nsmoke = []", "deploy.smoke must be a table"),
        ('[deploy]\ncard = "h100"', "deploy.card = 'h100'; allowed: l4, rtx-pro-6000"),
        ('[deploy]\ningress = "some"', "deploy.ingress = 'some'; allowed: all, internal,"),
        ('[deploy]\nliveness = "no"', "deploy.liveness must be a true or false"),
        ("[deploy]\nlabels = { team = 1 }", "deploy.labels.team must be a string"),
        ('[deploy]\nlabels = "team"', "deploy.labels must be a table"),
        ("[server]\nport = 70000", "server.port = 70000 must be at least 0 and at most 65535"),
        ("[server]\nmax_queue = 0", "server.max_queue = 0 must be at least 1"),
        ("[server]\nrequest_timeout = 0", "server.request_timeout = 0.0 must be more than 0"),
        ("[engine]\nstep_tokens = -1", "engine.step_tokens = -1 must be at least 1"),
        ("[load]\nconcurrency = 0", "load.concurrency = 0 must be at least 1"),
        ('[images]\nformats = ["tiff"]', "images.formats: 'tiff' is unknown; known here: jpeg"),
        (
            "[tasks.t.sampling]\ntemperature = 2.5",
            "tasks.t.sampling.temperature = 2.5 must be at least 0 and at most 2",
        ),
        ("[tasks.t.sampling]\ntop_p = 0", "tasks.t.sampling.top_p = 0.0 must be more than 0 and at most 1"),
        ("[tasks]\nt = 1", "tasks.t must be a table"),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, MODEL + text)
    assert words in str(caught.value)


def test_every_default_of_the_schema_is_in_its_own_range() -> None:
    for section in reference.sections():
        for entry in section.entries:
            if entry.default:
                entry.key.check(tomllib.loads(f"value = {entry.default}")["value"], entry.name)


def test_every_key_says_what_it_is_and_has_an_example_or_a_default() -> None:
    for section in reference.sections():
        for entry in section.entries:
            assert entry.key.help, (section.name, entry.name)
            tomllib.loads(f"value = {entry.key.example or entry.default or 0}")
            assert entry.key.example or entry.default or entry.is_required, (section.name, entry.name)


def test_the_reference_in_the_documents_is_the_schemas() -> None:
    """`coldstream config reference` writes it; docs/configuration.md holds it as it is."""
    assert reference.markdown() in (Path(__file__).parents[1] / "docs" / "configuration.md").read_text("utf-8")


def test_options_of_the_command_line_are_in_the_ranges_of_the_file() -> None:
    with pytest.raises(SettingsError, match=r"deploy\.cpu = 0 must be at least 1"):
        DeploySettings().overridden(cpu=0)
    assert DeploySettings().overridden(cpu=4, memory_gib=None).cpu == 4
