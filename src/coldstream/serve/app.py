"""The application: routes, errors and what surrounds them. Importing it imports FastAPI; the door answers until then.

POST /generate              a task
POST /v1/chat/completions   OpenAI; POST /v1/completions, POST /v1/responses, GET /v1/models
GET  /v1/tasks              the tasks, with a JSON Schema of their inputs
GET  /metrics               Prometheus
GET  /healthz, /readyz      for an application that stands alone; behind the door, the door answers them
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client.core import Metric
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from coldstream.errors import ColdstreamError
from coldstream.serve import documented, failures, metrics, tasks
from coldstream.serve.generate import generate
from coldstream.serve.heads import Heads
from coldstream.serve.inference import Inference
from coldstream.serve.middleware import CheckKey, Observe, WholeBody
from coldstream.serve.multipart import Form
from coldstream.serve.openai import chat as openai_chat
from coldstream.serve.openai import completions as openai_completions
from coldstream.serve.openai import responses as openai_responses
from coldstream.serve.openai.responses_schema import ResponsesRequest
from coldstream.serve.openai.schema import ChatRequest, CompletionRequest
from coldstream.serve.schema import GenerateRequest
from coldstream.serve.sse import JsonReply
from coldstream.serve.state import ServedModel, ServerState
from coldstream.serve.tracing import Tracing, from_environment
from coldstream.serve.trail import SCOPE_KEY

_BODIES: Mapping[str, tuple[str, ...]] = {
    "/generate": tuple(GenerateRequest.model_fields),
    openai_chat.PATH: tuple(ChatRequest.model_fields),
    openai_completions.PATH: tuple(CompletionRequest.model_fields),
    openai_responses.PATH: tuple(ResponsesRequest.model_fields),
}


def create_app(
    state: ServerState, *, environ: Mapping[str, str] = os.environ, tracing: Tracing | None = None
) -> FastAPI:
    """The application that serves `state`.

    `environ` may name the Google Cloud project of its logs' traces, and a collector of spans; `tracing` takes the
    place of the latter.

    Raises:
        MissingExtra: it names a collector, and OpenTelemetry is not installed.
    """
    measured = metrics.Metrics()
    inference = Inference(state, measured)
    measured.collect_from(lambda: _gauges(state, inference))
    app = FastAPI(
        title="Coldstream",
        version=version("coldstream"),
        docs_url=None,  # their pages come from a CDN
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # its logs would hold what users sent
    )
    _add_generate(app, state, inference)
    _add_openai(app, state, inference)
    _add_reads(app, state, measured)
    _add_failures(app)
    app.add_middleware(Heads)
    app.add_middleware(Form)
    app.add_middleware(WholeBody, state=state)
    app.add_middleware(CheckKey, state=state)
    app.add_middleware(
        Observe,
        state=state,
        metrics=measured,
        project=environ.get("GOOGLE_CLOUD_PROJECT"),
        tracing=tracing or from_environment(environ),
    )
    _add_cors(app, state)
    return app


def _add_generate(app: FastAPI, state: ServerState, inference: Inference) -> None:
    @app.post("/generate", response_model=None, responses=documented.GENERATE, openapi_extra=documented.GENERATE_FORM)
    async def generate_route(body: GenerateRequest, request: Request) -> Response:
        """Answer a task: a JSON string, an object with `details`, server-sent events with `stream`."""
        return await generate(state, inference, body, request.scope[SCOPE_KEY])


def _add_openai(app: FastAPI, state: ServerState, inference: Inference) -> None:
    @app.post(openai_chat.PATH, response_model=None, responses=documented.CHAT)
    async def chat_route(body: ChatRequest, request: Request) -> Response:
        """OpenAI's chat completions; `model` names a model or a task."""
        return await openai_chat.chat(state, inference, body, request.scope[SCOPE_KEY])

    @app.post(openai_completions.PATH, response_model=None, responses=documented.COMPLETIONS)
    async def completions_route(body: CompletionRequest, request: Request) -> Response:
        """OpenAI's text completions; with echo and logprobs they score a text."""
        return await openai_completions.complete(state, inference, body, request.scope[SCOPE_KEY])

    @app.post(openai_responses.PATH, response_model=None, responses=documented.RESPONSES)
    async def responses_route(body: ResponsesRequest, request: Request) -> Response:
        """OpenAI's responses, without what needs a server that remembers; `model` names a model or a task."""
        return await openai_responses.respond(state, inference, body, request.scope[SCOPE_KEY])

    for stored in (openai_chat.PATH, openai_responses.PATH):
        app.add_route(f"{stored}/{{rest:path}}", _not_stored, list(_ANY_METHOD), include_in_schema=False)
    app.add_route(openai_chat.PATH, _not_stored, ["GET"], include_in_schema=False)


_ANY_METHOD = ("GET", "POST", "DELETE")


async def _not_stored(request: Request) -> Response:
    message = (
        f"{request.method} {request.url.path}: this server keeps no answers, so that none can be listed, read, "
        "cancelled or deleted later; send the whole conversation with each request"
    )
    raise failures.HttpError(message, status=404)


def _add_reads(app: FastAPI, state: ServerState, measured: metrics.Metrics) -> None:
    @app.get("/v1/models", response_model=None, responses=documented.MODELS)
    async def models() -> Response:
        """The models and the tasks; both names are good for `model`."""
        return JsonReply({"object": "list", "data": _model_objects(state)})

    @app.get("/v1/models/{name:path}", response_model=None, responses=documented.MODEL)
    async def model(name: str) -> Response:
        """One model or task."""
        return JsonReply(_model_object(state, name))

    @app.get("/v1/tasks", response_model=None, responses=documented.TASKS)
    async def task_list() -> Response:
        """The tasks, each with a JSON Schema of its inputs."""
        described = [tasks.describe(task) for task in state.settings.tasks.values()]
        return JsonReply({"object": "list", "data": described})

    @app.get("/metrics", response_class=PlainTextResponse, responses=documented.METRICS)
    async def exposition() -> Response:
        """Prometheus metrics."""
        return Response(measured.text(), headers={"content-type": metrics.CONTENT_TYPE})

    @app.get("/healthz", response_model=None, responses=documented.HEALTH)
    async def healthz() -> Response:
        """200 as long as the process answers."""
        return JsonReply({"status": "ok"})

    @app.get("/readyz", response_model=None, responses=documented.READY)
    async def readyz() -> Response:
        """200 when every model is ready."""
        return _readiness(state)


def _readiness(state: ServerState) -> Response:
    waiting = [model for model in state.models.values() if not model.is_ready]
    body = {"models": {name: "ready" if model.is_ready else "loading" for name, model in state.models.items()}}
    if not waiting and not state.lifecycle.closing:
        return JsonReply({"status": "ready", **body})
    status = "closing" if state.lifecycle.closing else "loading"
    seconds = math.ceil(max([model.retry_after() for model in waiting], default=1.0))
    return JsonReply({"status": status, **body}, status_code=503, headers={"retry-after": str(seconds)})


def _model_objects(state: ServerState) -> list[dict[str, Any]]:
    named = [_card(name, model) for name, model in state.models.items()]
    by_task = [
        _card(name, state.models[task.model]) | {"parent": task.model}
        for name, task in state.settings.tasks.items()
        if name not in state.models
    ]
    return [*named, *by_task]


def _model_object(state: ServerState, name: str) -> dict[str, Any]:
    for card in _model_objects(state):
        if card["id"] == name:
            return card
    raise tasks.unknown_model(state.settings, name)


def _card(name: str, model: ServedModel) -> dict[str, Any]:
    """OpenAI's model object, with vLLM's `root` and `max_model_len`, which clients read to size their prompts."""
    card = {"id": name, "object": "model", "created": model.created, "owned_by": "coldstream", "root": model.uri}
    if not model.is_ready:
        return card | {"status": "loading"}
    chat = model.tokenizer.has_chat_template
    return card | {"status": "ready", "max_model_len": model.max_context, "revision": model.revision, "chat": chat}


def _add_failures(app: FastAPI) -> None:
    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, ColdstreamError)
        request.scope[SCOPE_KEY].error = type(error).__name__
        return failures.reply(error, request.url.path)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        path = request.url.path
        kind = request.headers.get("content-type", "")
        refusal = failures.from_validation(error.errors(), _BODIES.get(path, ()), kind, error.body)
        return await known(request, refusal)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return await known(request, failures.HttpError(message, status=error.status_code, headers=error.headers))

    app.add_exception_handler(ColdstreamError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _add_cors(app: FastAPI, state: ServerState) -> None:
    origins = state.settings.server.cors_origins
    if not origins:
        return
    from starlette.middleware.cors import CORSMiddleware

    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )


def _gauges(state: ServerState, inference: Inference) -> Iterator[Metric]:
    gates = inference.gates.items()
    yield from metrics.gauges(
        "",
        "The server",
        {
            "model_ready": {name: float(model.is_ready) for name, model in state.models.items()},
            "open_sequences": {name: gate.sequences for name, gate in gates},
            "queue_sequences": {name: gate.waiting for name, gate in gates},
            "queue_tokens": {name: gate.waiting_tokens for name, gate in gates},
        },
    )
    by_name: dict[str, dict[str, float]] = {}
    for name, model in state.models.items():
        if model.is_ready:
            for key, value in metrics.numbers(model.engine.stats()).items():
                by_name.setdefault(key, {})[name] = value
    yield from metrics.gauges("engine_", "The engine", by_name)
