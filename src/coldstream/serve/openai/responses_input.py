"""A request to /v1/responses as the chat request that asks the same, and errors about the one as errors about the
other. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from coldstream.errors import ColdstreamError, InvalidRequest, PromptTooLong
from coldstream.serve.openai import responses_schema as asked
from coldstream.serve.openai import schema as chat

_FIELDS = {
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "max_tokens": "max_output_tokens",
    "prompt": "input",
}
"""By the name of a chat request's field, or a prompt's."""


@dataclass(frozen=True, slots=True)
class Converted:
    """`places[i]` is where the chat request's message `i` stands in the request to /v1/responses."""

    body: chat.ChatRequest
    places: tuple[str, ...]

    def in_its_words(self, error: ColdstreamError) -> ColdstreamError:
        """An error about the chat request, about the fields that were sent."""
        if type(error) not in (InvalidRequest, PromptTooLong):
            return error
        assert isinstance(error, InvalidRequest | PromptTooLong)
        named = error.field
        if named is None or (meant := self._meant(named)) == named:
            return error
        message = str(error).replace(named, meant)
        return type(error)(message, field=meant, allowed=error.allowed, schema=error.schema)

    def _meant(self, named: str) -> str:
        in_message = re.fullmatch(r"messages\.(\d+)(?P<rest>.*)", named)
        if in_message is not None:
            rest = in_message["rest"].removesuffix(".url")
            return self.places[int(in_message[1])] + rest
        return "input" if named == "messages" else _FIELDS.get(named, named)


@dataclass(slots=True)
class _Conversation:
    """Messages as they are gathered from items: an answer's text, its thoughts and its calls are one turn of a chat."""

    messages: list[chat.Message] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    thought: str = ""

    def add(self, message: chat.Message, place: str) -> None:
        self.messages.append(message)
        self.places.append(place)

    def answer(self, content: str, place: str) -> None:
        self.add(chat.AssistantMessage(role="assistant", content=content, reasoning_content=self._thoughts()), place)

    def call(self, item: asked.CallItem, place: str) -> None:
        called = chat.CalledFunction(name=item.name, arguments=item.arguments)
        call = chat.ToolCall(id=item.call_id, type="function", function=called)
        last = self.messages[-1] if self.messages else None
        if isinstance(last, chat.AssistantMessage) and not self.thought:
            self.messages[-1] = last.model_copy(update={"tool_calls": [*(last.tool_calls or ()), call]})
        else:
            thoughts = self._thoughts()
            self.add(chat.AssistantMessage(role="assistant", tool_calls=[call], reasoning_content=thoughts), place)

    def _thoughts(self) -> str | None:
        thought, self.thought = self.thought, ""
        return thought or None


def converted(body: asked.ResponsesRequest) -> Converted:
    """The chat request.

    Raises:
        InvalidRequest: there is no turn in it, or an image in a turn that is not the user's.
    """
    talk = _Conversation()
    if body.instructions:
        talk.add(chat.SystemMessage(role="system", content=body.instructions), "instructions")
    if isinstance(body.input, str):
        talk.add(chat.UserMessage(role="user", content=body.input), "input")
    else:
        for place, item in enumerate(body.input):
            _take(talk, item, f"input.{place}")
    if not talk.messages:
        raise InvalidRequest("input is empty; send a text, or items with at least one turn", field="input")
    request = chat.ChatRequest(
        model=body.model,
        messages=talk.messages,
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        logprobs=_logprobs(body),
        top_logprobs=body.top_logprobs,
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        response_format=_format(body.text),
        tools=_tools(body.tools),
        tool_choice=_choice(body.tool_choice) if body.tools or body.tool_choice not in _HARMLESS else None,
        parallel_tool_calls=body.parallel_tool_calls if body.tools else None,
        stream=body.stream,
        chat_template_kwargs=body.chat_template_kwargs,
        inputs=body.inputs,
    )
    return Converted(request, tuple(talk.places))


def _take(talk: _Conversation, item: asked.Item, place: str) -> None:
    match item:
        case asked.CallItem():
            talk.call(item, place)
        case asked.OutputItem():
            text = _text(item.output)
            talk.add(chat.ToolMessage(role="tool", tool_call_id=item.call_id, content=text), place)
        case asked.ReasoningItem():
            talk.thought += "".join(part.text for part in item.content or ())
        case asked.MessageItem(role="user"):
            talk.add(chat.UserMessage(role="user", content=_user_content(item.content)), place)
        case asked.MessageItem():
            _check_text(item, place)
            if item.role == "assistant":
                talk.answer(_text(item.content), place)
            else:
                talk.add(chat.SystemMessage(role="system", content=_text(item.content)), place)


def _check_text(item: asked.MessageItem, place: str) -> None:
    for index, part in enumerate(() if isinstance(item.content, str) else item.content):
        if isinstance(part, asked.InputImage):
            where = f"{place}.content.{index}"
            raise InvalidRequest(f"{where}: an image can stand in a user's turn only", field=where)


def _text(content: str | Sequence[asked.SaidPart]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content if not isinstance(part, asked.InputImage))


def _user_content(content: str | Sequence[asked.SaidPart]) -> chat.UserContent:
    if isinstance(content, str):
        return content
    return [
        chat.ImagePart(type="image_url", image_url=chat.ImageUrl(url=part.image_url, detail=part.detail))
        if isinstance(part, asked.InputImage)
        else chat.Part(type="text", text=part.text)
        for part in content
    ]


def _logprobs(body: asked.ResponsesRequest) -> bool | None:
    wanted = "message.output_text.logprobs" in (body.include or ())
    return True if wanted or body.top_logprobs is not None else None


def _format(text: asked.TextConfig | None) -> chat.ResponseFormat | None:
    wanted = text.format if text is not None else None
    if isinstance(wanted, asked.JsonSchemaFormat):
        schema = chat.JsonSchema(name=wanted.name, schema=wanted.schema_)
        return chat.JsonSchemaFormat(type="json_schema", json_schema=schema)
    return chat.JsonObjectFormat(type="json_object") if isinstance(wanted, asked.JsonObjectFormat) else None


def _tools(tools: Sequence[asked.FunctionTool] | None) -> list[chat.Tool] | None:
    if tools is None:
        return None
    return [chat.Tool(type="function", function=chat.Function(**tool.model_dump(exclude={"type"}))) for tool in tools]


_Word = Literal["none", "auto", "required"]
_HARMLESS = (None, "none", "auto")
"""What clients choose also where they have no tools."""


def _choice(
    choice: _Word | asked.NamedTool | asked.AllowedTools | None,
) -> _Word | chat.ToolChoice | chat.AllowedChoice | None:
    if isinstance(choice, asked.NamedTool):
        return _named(choice)
    if isinstance(choice, asked.AllowedTools):
        allowed = chat.AllowedTools(mode=choice.mode, tools=[_named(tool) for tool in choice.tools])
        return chat.AllowedChoice(type="allowed_tools", allowed_tools=allowed)
    return choice


def _named(tool: asked.NamedTool) -> chat.ToolChoice:
    return chat.ToolChoice(type="function", function=chat.ChosenFunction(name=tool.name))
