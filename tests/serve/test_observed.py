"""Metrics, logs, request ids, CORS, and what the other routes say."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coldstream.serve.observe import logs
from coldstream.settings import InputSettings, LogFormat, SamplingSettings, ServerSettings, TaskSettings, for_uri
from tests.serve.api.test_generate import with_tasks
from tests.support.production import stack
from tests.support.scripted import LetterTokenizer, ScriptedModel


async def samples(served) -> dict[tuple[str, ...], float]:
    reply = await served.client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


async def test_metrics_count_requests_tokens_and_times(serve, engine) -> None:
    served = await serve(ScriptedModel(engine("hello")))
    await served.client.post("/generate", json={"prompt": "hi"})
    await served.client.post("/generate", json={})
    found = await samples(served)
    assert found["coldstream_http_requests_total", "/generate", "200"] == 1
    assert found["coldstream_http_requests_total", "/generate", "422"] == 1
    assert found["coldstream_tokens_total", "prompt", "default"] == 14
    assert found["coldstream_tokens_total", "completion", "default"] == 5
    assert found["coldstream_sequences_total", "stop", "default"] == 1
    assert found["coldstream_time_to_first_token_seconds_count", "default"] == 1
    assert found["coldstream_model_ready", "default"] == 1
    assert found["coldstream_open_sequences", "default"] == 0
    assert found["coldstream_engine_blocks_total", "default"] == 64


async def test_two_applications_in_a_process_do_not_share_their_metrics(serve, engine) -> None:
    one, other = await serve(ScriptedModel(engine())), await serve(ScriptedModel(engine()))
    await one.client.post("/generate", json={"prompt": "hi"})
    assert ("coldstream_sequences_total", "stop", "default") in await samples(one)
    assert ("coldstream_sequences_total", "stop", "default") not in await samples(other)


async def test_unknown_paths_do_not_become_labels(serve, engine) -> None:
    served = await serve(ScriptedModel(engine()))
    for name in ("/a", "/b"):
        reply = await served.client.get(name)
        assert (reply.status_code, reply.json()["error"]["type"]) == (404, "HttpError")
    assert (await samples(served))["coldstream_http_requests_total", "other", "404"] == 2


def lines_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def log():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    logger = logging.getLogger(logs.LOGGER)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_a_log_line_joins_trace_and_request_and_holds_no_prompt(serve, engine, log) -> None:
    served = await serve(ScriptedModel(engine()), environ={"GOOGLE_CLOUD_PROJECT": "p-1"})
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": "mine-1"}
    reply = await served.client.post("/generate", json={"prompt": "secret plans"}, headers=headers)
    assert reply.headers["x-request-id"] == "mine-1"
    (line,) = lines_of(log.getvalue())
    assert line["severity"] == "INFO"
    assert line["logging.googleapis.com/trace"] == f"projects/p-1/traces/{trace}"
    assert (line["request_id"], line["model"], line["task"]) == ("mine-1", "default", "text")
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish_reasons"]) == (24, 5, ["stop"])
    assert line["httpRequest"]["status"] == 200
    assert "secret plans" not in log.getvalue()


@pytest.mark.parametrize("rest", ["", "/123", "/123;o=1", "/123;o=0"])
async def test_a_log_line_joins_googles_own_trace(serve, engine, log, rest: str) -> None:
    """X-Cloud-Trace-Context, which Cloud Run's own request log goes by."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    served = await serve(ScriptedModel(engine()), environ={"GOOGLE_CLOUD_PROJECT": "p-1"})
    await served.client.post("/generate", json={"prompt": "x"}, headers={"x-cloud-trace-context": f"{trace}{rest}"})
    assert lines_of(log.getvalue())[0]["logging.googleapis.com/trace"] == f"projects/p-1/traces/{trace}"


async def test_prompts_are_logged_where_that_is_asked_for(serve, engine, log) -> None:
    settings = replace(for_uri("gs://b/m"), server=ServerSettings(log_prompts=True))
    served = await serve(ScriptedModel(engine()), settings)
    await served.client.post("/generate", json={"prompt": "plans\nmore"})
    assert lines_of(log.getvalue())[0]["prompt"] == "plans\nmore"


async def test_a_request_id_that_could_forge_a_log_line_is_replaced(serve, engine, log) -> None:
    served = await serve(ScriptedModel(engine()))
    reply = await served.client.get("/v1/models", headers={"x-request-id": 'a"} {"severity": "x'})
    assert reply.headers["x-request-id"].startswith("req-")


class Broken(LetterTokenizer):
    """Fails where it is least expected."""

    def encode(self, text, *, add_special_tokens=True):
        raise ZeroDivisionError("secret detail")


async def test_an_unexpected_error_is_a_500_whose_details_are_only_in_the_log(serve, engine, log) -> None:
    served = await serve(ScriptedModel(engine(), tokenizer=Broken()))
    reply = await served.client.post("/generate", json={"prompt": "x"}, headers={"x-request-id": "r1"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "EngineError")
    assert "secret detail" not in reply.text
    broken, access = lines_of(log.getvalue())
    assert (broken["severity"], broken["request_id"]) == ("ERROR", "r1")
    assert "ZeroDivisionError: secret detail" in broken["stack_trace"]
    assert (access["severity"], access["error"]) == ("ERROR", "ZeroDivisionError")


async def test_cors_is_off_unless_an_origin_is_allowed(serve, engine) -> None:
    ask = {"origin": "https://app.example", "access-control-request-method": "POST"}
    closed = await serve(ScriptedModel(engine()))
    reply = await closed.client.options("/generate", headers=ask)
    assert "access-control-allow-origin" not in reply.headers
    settings = replace(for_uri("gs://b/m"), server=ServerSettings(cors_origins=("https://app.example",)))
    opened = await serve(ScriptedModel(engine()), settings)
    reply = await opened.client.options("/generate", headers=ask)
    assert reply.headers["access-control-allow-origin"] == "https://app.example"
    other = await opened.client.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


async def test_readiness_follows_the_models(serve, engine) -> None:
    model = ScriptedModel(engine(), loading=True)
    served = await serve(model)
    loading = await served.client.get("/readyz")
    assert (loading.status_code, loading.headers["retry-after"]) == (503, "8")
    assert (await served.client.get("/v1/models")).json()["data"][0]["status"] == "loading"
    model.loaded()
    assert (await served.client.get("/readyz")).json()["models"] == {"default": {"phase": "ready"}}


async def test_tasks_describe_their_inputs_as_json_schema(serve, engine) -> None:
    task = TaskSettings(
        "t",
        "default",
        prompt="{a} {b} {c}",
        prompt_input="a",
        help="What it does",
        inputs={"b": InputSettings(default="x", help="B"), "c": InputSettings("choice", choices=("1", "2"))},
        sampling=SamplingSettings(temperature=0.0, max_tokens=64, stop=("\n",)),
    )
    served = await serve(ScriptedModel(engine()), with_tasks(task))
    (described,) = (await served.client.get("/v1/tasks")).json()["data"]
    assert described == {
        "type": "t",
        "model": "default",
        "help": "What it does",
        "help_in": {},
        "answer": "text",
        "examples": [],
        "prompt_input": "a",
        "images": 0,
        "inputs": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "a": {"type": "string"},
                "b": {"type": "string", "default": "x", "description": "B"},
                "c": {"type": "string", "enum": ["1", "2"]},
            },
            "required": ["a", "c"],
            "additionalProperties": False,
        },
        "sampling": {"temperature": 0.0, "max_tokens": 64, "stop": ["\n"]},
    }


@pytest.fixture
def loggers() -> Iterator[None]:
    """What `configure` changes, as it was before."""
    names = (logs.LOGGER, logs.REQUESTS, "uvicorn", "uvicorn.error", "uvicorn.access")
    before = {
        name: (logger.handlers, logger.level, logger.propagate, logger.disabled)
        for name in names
        for logger in [logging.getLogger(name)]
    }
    yield
    for name, (handlers, level, propagate, disabled) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.level, logger.propagate, logger.disabled = handlers, level, propagate, disabled


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize("form", ["json", "auto"])
def test_without_a_terminal_the_logs_are_json_for_us_and_for_uvicorn(form: LogFormat) -> None:
    stream = io.StringIO()
    logs.configure(stream, form=form)
    logging.getLogger("coldstream.http").warning("one %s", "two", extra={"fields": {"model": "m"}})
    logging.getLogger("uvicorn.error").info("up")
    logging.getLogger("uvicorn.access").info("never")
    first, second = lines_of(stream.getvalue())
    assert (first["severity"], first["message"], first["model"]) == ("WARNING", "one two", "m")
    assert second["message"] == "up"


class Terminal(io.StringIO):
    """A person looks on."""

    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize(("stream", "form"), [(Terminal(), "auto"), (io.StringIO(), "text")])
def test_on_a_terminal_they_are_lines_for_people_that_no_terminal_obeys(stream: io.StringIO, form: LogFormat) -> None:
    logs.configure(stream, form=form)
    fields = {"request_id": "r", "httpRequest": {"status": 200, "latency": "0.5s"}, "model": "m"}
    logging.getLogger("coldstream.http").info("GET /\x1b[2J\nnew line 200", extra={"fields": fields})
    try:
        raise OSError("broken")
    except OSError:
        logging.getLogger("coldstream.engine").exception("a step")
    said = stream.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d GET /.*new line 200  0.5s  request_id=r  model=m", said[0])
    assert said[1].endswith(" error: a step")
    assert said[-1] == "OSError: broken"
    assert "\x1b" not in stream.getvalue()


@pytest.mark.usefixtures("loggers")
def test_without_an_access_log_a_request_has_a_line_where_the_server_failed() -> None:
    stream = io.StringIO()
    logs.configure(stream, access_log=False)
    for status in (200, 404, 500, 503):
        logging.getLogger(logs.REQUESTS).log(logs.severity(status), "GET / %d", status)
    logging.getLogger("coldstream.loading").info("model m: ready")
    assert [line["message"] for line in lines_of(stream.getvalue())] == ["GET / 500", "model m: ready"]


def test_an_application_can_be_made_without_a_loop_and_twice(engine) -> None:
    made = stack(ScriptedModel(engine())).open(), stack(ScriptedModel(engine())).open()
    assert made[0].metrics is not made[1].metrics
