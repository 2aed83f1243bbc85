"""POST /v1/responses: OpenAI's newer API, as far as it needs no server that remembers.

A request is understood as the chat that asks the same; what differs is the form of the answer, which is a list of
items: a message, calls of functions.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from coldstream.errors import ColdstreamError
from coldstream.serve.api import sse
from coldstream.serve.middleware import errors as failures
from coldstream.serve.middleware.record import RequestRecord
from coldstream.serve.openai.answer import Speaker, choice
from coldstream.serve.openai.asked import AskedChat, understand
from coldstream.serve.openai.chat import job, note
from coldstream.serve.openai.common import scores, usage
from coldstream.serve.openai.responses_input import Converted, converted
from coldstream.serve.openai.responses_schema import ResponsesRequest
from coldstream.serve.requests.inference import Inference
from coldstream.serve.state import ServerState

PATH = "/v1/responses"
Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ResponseEnvelope:
    """What every state of one answer has in common."""

    body: ResponsesRequest
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(24)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, status: str, output: Sequence[Item] = (), **more: Any) -> dict[str, Any]:
        """The answer in this state; `store` is false, and there is no earlier one, whatever was asked."""
        body = self.body
        text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": list(output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}} | text,
            "tool_choice": _plain(body.tool_choice) or "auto",
            "tools": [_plain(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
            **more,
        }

    def ended(self, finish: str, output: Sequence[Item], counted: Mapping[str, Any]) -> dict[str, Any]:
        """The answer when it is over; `counted` is a chat's usage."""
        cut_off = {"incomplete_details": {"reason": "max_output_tokens"}} if finish == "length" else {}
        return self.wrap(_status(finish), output, usage=_usage(counted), **cut_off)


async def respond(state: ServerState, inference: Inference, body: ResponsesRequest, record: RequestRecord) -> Response:
    """Answer the request."""
    meant = converted(body)
    try:
        asked = understand(state, meant.body, inference.images)
        note(state, asked, record)
        frame = ResponseEnvelope(body)
        if body.stream:
            return await sse.opened(_frames(asked, meant, frame, inference, record))
        async with inference.start(job(asked), record) as running:
            results = await running.collect()
    except ColdstreamError as error:
        raise meant.in_its_words(error) from error

    def written() -> bytes:
        made = choice(asked, 0, results[0])
        return sse.dumps_long(frame.ended(made["finish_reason"], _items(made), usage(running.job, results)))

    return sse.json_reply(await sse.made(scores(results, meant.body.top_logprobs), written))


def _items(made: Mapping[str, Any]) -> list[Item]:
    """The items of a chat's choice: its text, where it has one or nothing else, and its calls."""
    message, status = made["message"], _status(made["finish_reason"])
    calls = message.get("tool_calls", ())
    scored = made["logprobs"]["content"] if made["logprobs"] else []
    said = [_message(status, message["content"] or "", scored)] if message["content"] or not calls else []
    return [*said, *(_call(status, call["id"], **call["function"]) for call in calls)]


def _status(finish: str) -> str:
    return "incomplete" if finish == "length" else "completed"


def _message(status: str, text: str, scored: Sequence[Any] = ()) -> Item:
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": list(scored)}
    return {"id": _id("msg"), "type": "message", "role": "assistant", "status": status, "content": [content]}


def _call(status: str, number: str, name: str, arguments: str) -> Item:
    called = {"call_id": number, "name": name, "arguments": arguments}
    return {"id": _id("fc"), "type": "function_call", "status": status, **called}


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value


def _usage(counted: Mapping[str, Any]) -> dict[str, Any]:
    cached = counted["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": counted["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": counted["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted["total_tokens"],
    }


# -- streams -----------------------------------------------------------------------------------------------------------


class _Narrator:
    """Tells a chat's deltas as events about items: each is opened, grows, and is closed before the next one opens."""

    def __init__(self) -> None:
        self.output: list[Item] = []
        self.finish = "stop"
        self._open: Item | None = None
        self._count = 0
        self._scored: list[Any] = []

    def event(self, kind: str, **fields: Any) -> bytes:
        """The next event."""
        data = {"type": kind, "sequence_number": self._count, **fields}
        self._count += 1
        return b"event: " + kind.encode() + b"\n" + sse.frame(data)

    def told(self, chunk: Mapping[str, Any]) -> bytes:
        """The events of one chunk of the chat."""
        delta, made = chunk["delta"], b""
        self._scored += chunk["logprobs"]["content"] if chunk["logprobs"] else []
        if delta.get("content"):
            made += self._text(delta["content"])
        for call in delta.get("tool_calls", ()):
            made += self._called(call)
        if chunk["finish_reason"] is not None:
            self.finish = chunk["finish_reason"]
            if not self.output:
                made += self._opened(_message("in_progress", ""))
            made += self._closed(_status(self.finish))
        return made

    def _text(self, text: str) -> bytes:
        made = b"" if self._is_open("message") else self._opened(_message("in_progress", ""))
        part = self.output[-1]["content"][0]
        part["text"] += text
        scored, self._scored = self._scored, []
        part["logprobs"] += scored
        return made + self._about("response.output_text.delta", content_index=0, delta=text, logprobs=scored)

    def _called(self, call: Mapping[str, Any]) -> bytes:
        made, arguments = b"", call["function"].get("arguments", "")
        if "id" in call:
            made += self._opened(_call("in_progress", call["id"], call["function"]["name"], ""))
        self.output[-1]["arguments"] += arguments
        return made + (self._about("response.function_call_arguments.delta", delta=arguments) if arguments else b"")

    def _is_open(self, kind: str) -> bool:
        return self._open is not None and self._open["type"] == kind

    def _opened(self, item: Item) -> bytes:
        made = self._closed("completed")
        self.output.append(item)
        self._open = item
        begun = item | {"content": []} if item["type"] == "message" else item
        made += self.event("response.output_item.added", output_index=len(self.output) - 1, item=begun)
        if item["type"] == "message":
            made += self._about("response.content_part.added", content_index=0, part=item["content"][0])
        return made

    def _closed(self, status: str) -> bytes:
        item, self._open = self._open, None
        if item is None:
            return b""
        item["status"] = status
        return self._ended(item) + self.event("response.output_item.done", output_index=len(self.output) - 1, item=item)

    def _ended(self, item: Item) -> bytes:
        if item["type"] == "function_call":
            whole = {"name": item["name"], "arguments": item["arguments"]}
            return self._about("response.function_call_arguments.done", **whole)
        part = item["content"][0]
        part["logprobs"] += self._scored
        whole = {"text": part["text"], "logprobs": part["logprobs"]}
        made = self._about("response.output_text.done", content_index=0, **whole)
        return made + self._about("response.content_part.done", content_index=0, part=part)

    def _about(self, kind: str, **fields: Any) -> bytes:
        item = self.output[-1]
        return self.event(kind, item_id=item["id"], output_index=len(self.output) - 1, **fields)


async def _frames(
    asked: AskedChat, meant: Converted, frame: ResponseEnvelope, inference: Inference, record: RequestRecord
) -> AsyncGenerator[bytes, None]:
    told, begun = _Narrator(), False
    try:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(inference.start(job(asked), record))
            speaker = Speaker(asked, 0)
            opening = frame.wrap("in_progress")
            made = told.event("response.created", response=opening)
            made += told.event("response.in_progress", response=opening)
            async for batch in running.events:
                made += b"".join(told.told(chunk) for _, event in batch for chunk in speaker.chunks(event))
                yield made
                begun, made = True, b""
            whole = frame.ended(told.finish, told.output, usage(running.job, [speaker.result]))
            yield told.event(f"response.{whole['status']}", response=whole)
    except ColdstreamError as error:
        if not begun:
            raise meant.in_its_words(error) from error
        record.error = type(error).__name__
        said = failures.body(error, PATH)["error"]
        broken = {"code": "server_error", "message": said["message"]}
        yield told.event("response.failed", response=frame.wrap("failed", told.output, error=broken))
