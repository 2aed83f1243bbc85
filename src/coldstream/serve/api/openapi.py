"""The answers as /openapi.json describes them: plain JSON Schema, so that nothing is built at start."""

from __future__ import annotations

from typing import Any

from coldstream.serve.health import LIVENESS, READINESS
from coldstream.settings.schema import IMAGE_FORMATS

Schema = dict[str, Any]


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    properties = required | (optional or {})
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SECONDS: Schema = _or_null({"type": "number"})
_ANY: Schema = {}

_OUR_ERROR = _object(
    {
        "error": _object(
            {"type": _TEXT, "message": _TEXT, "field": _or_null(_TEXT), "allowed": _list(_TEXT)},
            {"schema": {"type": "object"}},
        )
    }
)
"""`schema` is there when an input of a task is missing: the task's inputs as JSON Schema."""
_OPENAI_ERROR = _object(
    {"error": _object({"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)})}
)
_DETAILS = _object(
    {
        "text": _TEXT,
        "finish_reason": {"enum": ["stop", "length"]},
        "usage": _object({"prompt_tokens": _COUNT, "cached_tokens": _COUNT, "completion_tokens": _COUNT}),
        "timings": _object(
            {
                "queued_seconds": {"type": "number"},
                "first_token_seconds": _SECONDS,
                "total_seconds": {"type": "number"},
                "tokens_per_second": _SECONDS,
            }
        ),
        "model": _TEXT,
        "revision": _TEXT,
        "task": _TEXT,
        "inputs_defaulted": _list(_TEXT),
    }
)
_USAGE = _object(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
    }
)
_TOKEN = {"token": _TEXT, "logprob": {"type": "number"}, "bytes": _list({"type": "integer"})}
_CHAT_LOGPROBS = _object(
    {"content": _list(_object({**_TOKEN, "top_logprobs": _list(_object(_TOKEN))})), "refusal": {"type": "null"}}
)
_CALL = _object({"id": _TEXT, "type": {"const": "function"}, "function": _object({"name": _TEXT, "arguments": _TEXT})})
_MESSAGE = _object(
    {"role": {"const": "assistant"}, "content": _or_null(_TEXT), "refusal": {"type": "null"}},
    {"tool_calls": _list(_CALL)},
)
_LOGPROBS = _object(
    {
        "tokens": _list(_TEXT),
        "token_logprobs": _list(_or_null({"type": "number"})),
        "top_logprobs": _list(_or_null({"type": "object", "additionalProperties": {"type": "number"}})),
        "text_offset": _list(_COUNT),
    }
)
_CARD = _object(
    {"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT, "root": _TEXT},
    {
        "status": {"enum": ["loading", "ready"]},
        "max_model_len": _COUNT,
        "revision": _TEXT,
        "chat": {"type": "boolean"},
        "parent": _TEXT,
    },
)
_NUMBER: Schema = {"type": "number"}
_SWITCH: Schema = {"type": "boolean"}
_FRACTIONS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_COUNTS = ("max_tokens", "top_k")
_SAMPLING: Schema = {
    **dict.fromkeys(_FRACTIONS, _NUMBER),
    **dict.fromkeys(_COUNTS, _COUNT),
    "seed": {"type": "integer"},
}
_TASK = _object(
    {
        "type": _TEXT,
        "model": _TEXT,
        "help": _TEXT,
        "help_in": {"type": "object", "additionalProperties": _TEXT},
        "answer": {"enum": ["text", "markdown"]},
        "examples": _list(_object({"name": _TEXT, "inputs": {"type": "object", "additionalProperties": _TEXT}})),
        "prompt_input": _or_null(_TEXT),
        "images": _COUNT,
        "inputs": {"type": "object"},
        "sampling": _object({}, {**_SAMPLING, "stop": _list(_TEXT)}),
    }
)
_FILE: Schema = {
    "type": "string",
    "contentMediaType": "application/octet-stream",
    "description": "A picture's file, or a text as in JSON.",
}
_FORM: Schema = {
    "type": "object",
    "properties": {
        "type": _TEXT,
        "prompt": _TEXT,
        "image": _FILE,
        "images": _list(_FILE),
        "inputs": {"type": "object", "additionalProperties": _TEXT, "description": "Written as JSON."},
        **_SAMPLING,
        "stop": _list(_TEXT),
        **dict.fromkeys(("stream", "echo", "details"), _SWITCH),
    },
    "patternProperties": {r"^inputs\..": _FILE | {"description": "An input of the task: a text, or a picture's file."}},
    "additionalProperties": False,
}
GENERATE_FORM: Schema = {"requestBody": {"content": {"multipart/form-data": {"schema": _FORM}}}}
"""What /generate takes beside JSON; `serve.multipart` reads it. Numbers, true and false are written as in JSON."""


def _envelope(kind: str, choice: Schema) -> Schema:
    return _object(
        {
            "id": _TEXT,
            "object": {"const": kind},
            "created": _COUNT,
            "model": _TEXT,
            "system_fingerprint": _TEXT,
            "choices": _list(choice),
            "usage": _USAGE,
        }
    )


_GENERATED: Schema = {"anyOf": [_TEXT, _DETAILS]}
_CHAT = _envelope(
    "chat.completion",
    _object(
        {
            "index": _COUNT,
            "message": _MESSAGE,
            "logprobs": _or_null(_CHAT_LOGPROBS),
            "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
        }
    ),
)
_COMPLETION = _envelope(
    "text_completion",
    _object(
        {
            "index": _COUNT,
            "text": _TEXT,
            "logprobs": _or_null(_LOGPROBS),
            "finish_reason": {"enum": ["stop", "length"]},
        }
    ),
)

Responses = dict[int | str, dict[str, Any]]


def _ok(schema: Schema, *, streams: bool = False) -> Responses:
    content: Schema = {"application/json": {"schema": schema}}
    return {200: {"description": "The answer", "content": content | ({"text/event-stream": {}} if streams else {})}}


def _errors(schema: Schema, *statuses: int) -> Responses:
    content = {"application/json": {"schema": schema}}
    description = "Says which field is wrong and what is allowed"
    return {status: {"description": description, "content": content} for status in statuses}


_REFUSALS = (400, 401, 404, 413, 415, 422, 429, 500, 503, 504)

GENERATE = _ok(_GENERATED, streams=True) | _errors(_OUR_ERROR, *_REFUSALS)
CHAT = _ok(_CHAT, streams=True) | _errors(_OPENAI_ERROR, *_REFUSALS)
_RESPONSE: Schema = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "object": {"const": "response"},
        "status": {"enum": ["completed", "incomplete"]},
        "output": _list({"type": "object", "properties": {"type": {"enum": ["message", "function_call"]}}}),
        "store": {"const": False},
        "usage": {"type": "object"},
    },
    "required": ["id", "object", "status", "output", "store", "usage"],
}
RESPONSES = _ok(_RESPONSE, streams=True) | _errors(_OPENAI_ERROR, *_REFUSALS)
COMPLETIONS = _ok(_COMPLETION, streams=True) | _errors(_OPENAI_ERROR, *_REFUSALS)
MODELS = _ok(_object({"object": {"const": "list"}, "data": _list(_CARD)})) | _errors(_OPENAI_ERROR, 401)
MODEL = _ok(_CARD) | _errors(_OPENAI_ERROR, 401, 404, 422)
TASKS = _ok(_object({"object": {"const": "list"}, "data": _list(_TASK)})) | _errors(_OPENAI_ERROR, 401)
_PICTURE: Schema = {"schema": {"type": "string", "format": "binary"}}
SAMPLE: Responses = {
    200: {"description": "The picture", "content": {f"image/{name}": _PICTURE for name in IMAGE_FORMATS}},
    **_errors(_OPENAI_ERROR, 401, 404, 422),
}
METRICS: Responses = {
    200: {"description": "The exposition format", "content": {"text/plain": {"schema": _TEXT}}},
    **_errors(_OUR_ERROR, 401),
}
_READINESS = {
    "type": "object",
    "properties": {
        "status": {"enum": ["ready", "degraded", "loading", "failed", "closing"]},
        "models": {"type": "object"},
    },
    "required": ["status"],
}
_LIVENESS = _object({"status": {"enum": ["ok", "stuck"]}})


def _probe(summary: str, body: Schema, refusal: str) -> Schema:
    refused = {503: {"description": refusal, "content": {"application/json": {"schema": body}}}}
    answers = {str(status): answer for status, answer in (_ok(body) | refused).items()}
    return {"get": {"summary": summary, "responses": answers}}


_LIVE = _probe("Whether the process answers and its engines make steps.", _LIVENESS, "An engine stands still")
_READY = _probe("Whether a model can be asked, and how far its load is.", _READINESS, "Not yet, or no longer")
PROBES: Schema = dict.fromkeys(LIVENESS, _LIVE) | dict.fromkeys(READINESS, _READY)
"""Path items of what `serve.health` answers, which the application does not know."""
