"""The body of POST /v1/responses, without what needs a server that remembers: a field for that admits only null.

https://platform.openai.com/docs/api-reference/responses/create. Hosted tools and items that other servers made are
refused by their type.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from coldstream.serve.api.schema import (
    Body,
    Description,
    Fraction,
    Image,
    Inputs,
    Json,
    Label,
    Positive,
    Temperature,
    Text,
    Whole,
)
from coldstream.serve.openai.schema import MOST_MESSAGES, Detail, Effort, HintedPart, Labels, Name, SentBack


class InputText(HintedPart):
    """A text that a user, a system or a tool said."""

    type: Literal["input_text"]
    text: Text


class InputImage(HintedPart):
    """An image in a user's turn, by its URL; a file that was uploaded before would have to be kept here."""

    type: Literal["input_image"]
    image_url: Image = Field(description="A data URL, or an https:// or gs:// URL that this server fetches")
    detail: Detail | None = None
    file_id: None = None


class OutputText(SentBack):
    """A text that the model said."""

    type: Literal["output_text"]
    text: Text


class OutputRefusal(SentBack):
    """A refusal that the model said."""

    type: Literal["refusal"]
    refusal: Text

    @property
    def text(self) -> str:
        """What it said."""
        return self.refusal


SaidPart = Annotated[InputText | InputImage | OutputText | OutputRefusal, Field(discriminator="type")]


class MessageItem(SentBack):
    """A turn; an answer's own item may be sent back as it came."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | Annotated[list[SaidPart], Field(max_length=4096, fail_fast=True)]


class CallItem(SentBack):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Label
    name: Label
    arguments: Text


class OutputItem(SentBack):
    """What a called function answered."""

    type: Literal["function_call_output"]
    call_id: Label
    output: Text | Annotated[list[InputText], Field(max_length=4096, fail_fast=True)]


class ReasoningText(SentBack):
    """A piece of what a model thought."""

    text: Text


class ReasoningItem(SentBack):
    """What a model thought before its next turn; goes to chat templates that show it. What is encrypted is not read."""

    type: Literal["reasoning"]
    content: Annotated[list[ReasoningText], Field(max_length=4096, fail_fast=True)] | None = None


def _kind(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else "message"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: Description | None = None
    parameters: Json | None = None
    strict: bool | None = None


class NamedTool(Body):
    """One of the tools."""

    type: Literal["function"]
    name: Label


class ResponseAllowedTools(Body):
    """A part of the tools, and whether one must be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=128, fail_fast=True)]


class ResponseText(Body):
    """Plain text, the default."""

    type: Literal["text"]


class ResponseJsonObject(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class ResponseJsonSchema(Body):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]
    name: Name
    description: Description | None = None
    schema_: Json = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    """The form of the answer."""

    format: Annotated[ResponseText | ResponseJsonObject | ResponseJsonSchema, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Body):
    """`effort` is a variable of the chat template. No item here is reasoning, so there is nothing to summarise."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(Body):
    """What a stream carries besides the text."""

    include_obfuscation: Literal[False] | None = None


_Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponsesRequest(Body):
    """POST /v1/responses."""

    model: Label = Field(description="A model or a task")
    input: Text | Annotated[list[Item], Field(max_length=MOST_MESSAGES, fail_fast=True)]
    instructions: Text | None = None
    max_output_tokens: Positive | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    temperature: Temperature | None = None
    text: TextConfig | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | ResponseAllowedTools | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128, fail_fast=True)] | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    top_p: Fraction | None = None
    include: Annotated[list[_Included], Field(max_length=16, fail_fast=True)] | None = None
    # Labels and hints that ask nothing of the answer
    max_tool_calls: Positive | None = Field(None, description="Counts calls of hosted tools, of which there are none")
    metadata: Labels | None = None
    prompt_cache_key: Label | None = None
    safety_identifier: Label | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: bool | None = Field(None, description="Nothing is kept, whatever it says: the answer's own `store` is false")
    truncation: Literal["disabled"] | None = None
    user: Label | None = None
    # What needs a server that remembers, or tools of its own
    background: Literal[False] | None = None
    context_management: None = None
    conversation: None = None
    moderation: None = None
    previous_response_id: None = None
    prompt: None = None
    prompt_cache_options: None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    # Ours and vLLM's
    chat_template_kwargs: Json | None = None
    inputs: Inputs | None = Field(None, description="Where `model` is a task: the variables of its template")
