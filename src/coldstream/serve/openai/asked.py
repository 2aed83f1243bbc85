"""A chat request that has been understood: what can be refused before a tokenizer is there has been refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coldstream.engine.request import Grammar
from coldstream.errors import InvalidRequest
from coldstream.serve.api.generate import sources
from coldstream.serve.images.decode import ImageLoader, ImageSource
from coldstream.serve.openai.common import Target, sampling, target, text_of
from coldstream.serve.openai.constraint import constraint
from coldstream.serve.openai.messages import images
from coldstream.serve.openai.schema import AssistantMessage, ChatRequest
from coldstream.serve.openai.tool_choice import Tools, chosen_tools
from coldstream.serve.state import ServerState

_NO_VARIABLES = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
)
"""Arguments of transformers' `apply_chat_template` that are no variables of a template, or have fields of their own."""


@dataclass(frozen=True, slots=True)
class Asked:
    """`answer`: what an answer that is no call must obey. `continues`: the prompt ends within the last message."""

    body: ChatRequest
    target: Target
    tools: Tools
    answer: Grammar | None = None
    continues: bool = False
    images: tuple[ImageSource, ...] = ()

    @property
    def given(self) -> dict[str, Any]:
        """The sampling parameters that the request sets."""
        return sampling(self.body) | {"max_tokens": _max_tokens(self.body), "logprobs": _logprobs(self.body)}

    @property
    def variables(self) -> dict[str, Any]:
        """Variables of the chat template."""
        effort = self.body.reasoning_effort
        by_effort: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
        if effort == "none":
            by_effort["enable_thinking"] = False
        return by_effort | (self.body.chat_template_kwargs or {})

    @property
    def adds_generation_prompt(self) -> bool:
        """Whether the prompt ends in the beginning of the assistant's turn."""
        return not self.continues and self.body.add_generation_prompt is not False


def understand(state: ServerState, body: ChatRequest, loader: ImageLoader) -> Asked:
    """Everything that can be refused before a tokenizer is there.

    Raises:
        UnknownTask, InvalidRequest: naming the field.
    """
    chosen = chosen_tools(body)
    answer = constraint(body)
    if chosen.forced and answer is not None:
        if answer.field != "response_format":
            raise InvalidRequest(f"{answer.field} and a forced tool_choice exclude each other", field="tool_choice")
        answer = None  # a format is that of an answer, and the output will be a call
    _check_options(body)
    named = target(state, body)
    found = images(named.task, body.messages, body.inputs or {})
    return Asked(body, named, chosen, answer, _continues(body), sources(loader, found))


def _check_options(body: ChatRequest) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream = true", field="stream_options")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs = true", field="top_logprobs")
    for name in _NO_VARIABLES:
        if name in (body.chat_template_kwargs or {}):
            field = f"chat_template_kwargs.{name}"
            raise InvalidRequest(f"{field} is no variable of a chat template here", field=field)


def _continues(body: ChatRequest) -> bool:
    """Whether the answer goes on where the last message ends; by itself where that is the assistant's."""
    last, wanted = body.messages[-1], body.continue_final_message
    if wanted and body.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other"
        raise InvalidRequest(message, field="continue_final_message")
    has_calls = isinstance(last, AssistantMessage) and bool(last.tool_calls or last.function_call)
    if wanted and (has_calls or not text_of(last.content)):
        message = "continue_final_message needs text in the last message, and no calls"
        raise InvalidRequest(message, field="continue_final_message")
    if wanted is not None or body.add_generation_prompt:
        return bool(wanted)
    return isinstance(last, AssistantMessage) and not has_calls and bool(text_of(last.content))


def _max_tokens(body: ChatRequest) -> int | None:
    both = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(both) > 1:
        raise InvalidRequest("max_tokens and max_completion_tokens differ; send one", field="max_tokens")
    return next(iter(both), None)


def _logprobs(body: ChatRequest) -> int | None:
    return (body.top_logprobs or 0) if body.logprobs else None
