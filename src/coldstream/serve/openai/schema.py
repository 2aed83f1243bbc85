"""The request bodies of OpenAI's API, as types: a field that we cannot honour admits only the value that asks nothing.

`store: Literal[False]` says both what is accepted and, in its error, what is refused. Fields that are not OpenAI's have
the names that vLLM gave them (`top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, `structured_outputs`); `inputs`
fills the variables of a task.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from coldstream.serve.api.schema import Body, Int64, Stops

_Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Bias = Annotated[float, Field(ge=-100, le=100)]
Json = dict[str, Any]


class Part(Body):
    """A text in a message's content."""

    type: Literal["text"]
    text: str


class ImageUrl(Body):
    """An image; `detail` can only be "auto", because the vision tower sees every image at one size."""

    url: str = Field(description="A data URL, or an https:// or gs:// URL that this server fetches")
    detail: Literal["auto"] | None = None


class ImagePart(Body):
    """An image in a user's turn."""

    type: Literal["image_url"]
    image_url: ImageUrl


Content = str | list[Part]
UserContent = str | list[Annotated[Part | ImagePart, Field(discriminator="type")]]


class SystemMessage(Body):
    """What the model is told first; `developer` is the newer name."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    """A user's turn."""

    role: Literal["user"]
    content: UserContent
    name: str | None = None


class CalledFunction(Body):
    """A function's name and its arguments, as JSON in a string."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call that the model made in an earlier turn."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Body):
    """An earlier answer. Clients send back what they got, so what we answer with null is accepted as null."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Body):
    """What a called function answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Body):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: Json = Field(default_factory=dict)
    strict: bool | None = None


class Tool(Body):
    """A tool; only functions."""

    type: Literal["function"]
    function: Function


class ChosenFunction(Body):
    """The function that must be called."""

    name: str


class ToolChoice(Body):
    """Forces one function."""

    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(Body):
    """`json_schema` of a response format."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Json = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    """Plain text, the default."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Body):
    """vLLM's way to constrain the output; exactly one of them."""

    model_config = ConfigDict(populate_by_name=True)

    json_: Json | str | None = Field(None, alias="json", description="A JSON Schema")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = Field(None, description="A grammar in Lark's syntax")
    json_object: Literal[True] | None = None


class StreamOptions(Body):
    """What a stream carries besides the text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class _Shared(Body):
    """What the two endpoints have in common."""

    model: str = Field(description="A model or a task")
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, _Bias] | None = Field(
        None, description="Token ids (as text) to what is added to their logits"
    )
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    presence_penalty: _Penalty | None = None
    seed: Int64 | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    user: str | None = Field(None, description="Whose request it is; asks nothing of the answer")
    # Not OpenAI's
    ignore_eos: bool | None = None
    inputs: dict[str, str] | None = Field(None, description="Where `model` is a task: the variables of its template")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    structured_outputs: StructuredOutputs | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = Field(None, description="0 and -1 switch it off")


class ChatRequest(_Shared):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: bool | None = None
    max_completion_tokens: _Positive | None = None
    max_tokens: _Positive | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # Hints and labels that ask nothing of the answer
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    # Only the value that asks for nothing
    audio: None = None
    function_call: None = None
    functions: None = None
    metadata: None = None
    modalities: list[Literal["text"]] | None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_options: None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    reasoning_effort: Literal["none"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None


_Ids = list[Annotated[int, Field(ge=0, le=2**31 - 1)]]


class CompletionRequest(_Shared):
    """POST /v1/completions."""

    prompt: str | list[str] | _Ids | list[_Ids]
    best_of: Literal[1] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    suffix: None = None
