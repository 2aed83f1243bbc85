"""The body of POST /v1/responses, without what needs a server that remembers: a field for that admits only null.

https://platform.openai.com/docs/api-reference/responses/create. Hosted tools and items that other servers made are
refused by their type.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from coldstream.serve.api.schema import Body, Fraction, Json, Positive, Temperature, Whole
from coldstream.serve.openai.schema import Detail, Effort, HintedPart, Labels, Name, SentBack


class InputText(HintedPart):
    """A text that a user, a system or a tool said."""

    type: Literal["input_text"]
    text: str


class InputImage(HintedPart):
    """An image in a user's turn, by its URL; a file that was uploaded before would have to be kept here."""

    type: Literal["input_image"]
    image_url: str = Field(description="A data URL, or an https:// or gs:// URL that this server fetches")
    detail: Detail | None = None
    file_id: None = None


class OutputText(SentBack):
    """A text that the model said."""

    type: Literal["output_text"]
    text: str


class OutputRefusal(SentBack):
    """A refusal that the model said."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """What it said."""
        return self.refusal


SaidPart = Annotated[InputText | InputImage | OutputText | OutputRefusal, Field(discriminator="type")]


class MessageItem(SentBack):
    """A turn; an answer's own item may be sent back as it came."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[SaidPart]


class CallItem(SentBack):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class OutputItem(SentBack):
    """What a called function answered."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]


class ReasoningText(SentBack):
    """A piece of what a model thought."""

    text: str


class ReasoningItem(SentBack):
    """What a model thought before its next turn; goes to chat templates that show it. What is encrypted is not read."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None


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
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class NamedTool(Body):
    """One of the tools."""

    type: Literal["function"]
    name: str


class AllowedTools(Body):
    """A part of the tools, and whether one must be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=128)]


class TextFormat(Body):
    """Plain text, the default."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]
    name: Name
    description: str | None = None
    schema_: Json = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    """The form of the answer."""

    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Body):
    """`effort` is a variable of the chat template. No item here is reasoning, so there is nothing to summarise."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(Body):
    """What a stream carries besides the text."""

    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(Body):
    """POST /v1/responses."""

    model: str = Field(description="A model or a task")
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    temperature: Temperature | None = None
    text: TextConfig | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    top_p: Fraction | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    # Labels and hints that ask nothing of the answer
    max_tool_calls: Positive | None = Field(None, description="Counts calls of hosted tools, of which there are none")
    metadata: Labels | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: bool | None = Field(None, description="Nothing is kept, whatever it says: the answer's own `store` is false")
    truncation: Literal["disabled"] | None = None
    user: str | None = None
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
    inputs: dict[str, str] | None = Field(None, description="Where `model` is a task: the variables of its template")
