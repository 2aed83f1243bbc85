"""The application: routes and what reads their bodies. Importing it imports FastAPI; the surface answers until then.

POST /generate              a task
POST /v1/chat/completions   OpenAI; POST /v1/completions, POST /v1/responses, GET /v1/models
GET  /v1/tasks              the tasks, with a JSON Schema of their inputs
GET  /metrics               Prometheus

Probes, keys, records and errors are the surface's (serve/surface.py), around it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client.core import Metric
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from coldstream.serve.api import openapi as documented
from coldstream.serve.api import tasks
from coldstream.serve.api.generate import generate
from coldstream.serve.api.schema import GenerateRequest
from coldstream.serve.api.sse import JsonReply
from coldstream.serve.images.multipart import Form
from coldstream.serve.middleware import errors as failures
from coldstream.serve.middleware.body import WholeBody
from coldstream.serve.middleware.errors import RenderErrors
from coldstream.serve.middleware.heads import Heads
from coldstream.serve.middleware.json_body import PARSED, LargeBodies, ReadJson
from coldstream.serve.middleware.record import SCOPE_KEY
from coldstream.serve.observe import metrics
from coldstream.serve.openai import chat as openai_chat
from coldstream.serve.openai import completions as openai_completions
from coldstream.serve.openai import responses as openai_responses
from coldstream.serve.openai.responses_schema import ResponsesRequest
from coldstream.serve.openai.schema import ChatRequest, CompletionRequest
from coldstream.serve.requests.inference import Inference
from coldstream.serve.state import ServedModel, ServerState

_BODIES: Mapping[str, tuple[str, ...]] = {
    "/generate": tuple(GenerateRequest.model_fields),
    openai_chat.PATH: tuple(ChatRequest.model_fields),
    openai_completions.PATH: tuple(CompletionRequest.model_fields),
    openai_responses.PATH: tuple(ResponsesRequest.model_fields),
}


def create_app(state: ServerState, measured: metrics.Metrics) -> FastAPI:
    """The application that serves `state`, for a `Surface` to open to; `measured` reads it at a scrape."""
    inference = Inference(state, measured)
    measured.collect_from(lambda: _gauges(state, inference))
    app = FastAPI(
        title="Coldstream",
        version=version("coldstream"),
        docs_url=None,  # their pages come from a CDN; /docs is the surface's
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # its logs would hold what users sent
    )
    app.router.route_class = _ReadRoute
    _add_generate(app, state, inference)
    _add_openai(app, state, inference)
    _add_reads(app, state, measured)
    _add_samples(app, state, inference)
    _raise_our_errors(app)
    _describe_probes(app)
    app.add_middleware(Heads)
    bodies = LargeBodies()
    app.add_middleware(ReadJson, bodies=bodies)
    app.add_middleware(Form, bodies=bodies)
    app.add_middleware(WholeBody, state=state, bodies=bodies)
    app.add_middleware(RenderErrors)  # before starlette's own, which answers the unexpected in its own way
    return app


class _Read(Request):
    """A request whose body `ReadJson` or `Form` has read."""

    async def json(self) -> Any:
        return self.scope[PARSED] if PARSED in self.scope else await super().json()


class _ReadRoute(APIRoute):
    """FastAPI's way to another class of requests: https://fastapi.tiangolo.com/how-to/custom-request-and-route/."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_Read(request.scope, request.receive))

        return handle


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


def _add_samples(app: FastAPI, state: ServerState, inference: Inference) -> None:
    @app.get("/v1/tasks/{task:path}/inputs/{name}", response_class=Response, responses=documented.SAMPLE)
    async def sample(task: str, name: str) -> Response:
        """The picture that stands for an image input of a task when none is sent."""
        image = tasks.sample(state.settings, task, name)
        kind, data = await inference.images.file(inference.images.default(image.text, image.field))
        return Response(data, headers={"content-type": kind, "x-content-type-options": "nosniff"})


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


def _raise_our_errors(app: FastAPI) -> None:
    """FastAPI's and Starlette's errors become ours, and are rendered where ours are."""

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        known, kind = _BODIES.get(request.url.path, ()), request.headers.get("content-type", "")
        raise failures.from_validation(error.errors(), known, kind, error.body)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        raise failures.HttpError(message, status=error.status_code, headers=error.headers)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _describe_probes(app: FastAPI) -> None:
    """The surface answers them, but /openapi.json is the application's."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generated()
        schema["paths"].update(documented.PROBES)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _gauges(state: ServerState, inference: Inference) -> Iterator[Metric]:
    gates = inference.gates.items()
    yield metrics.worker_deaths(state.workers.deaths())
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
