"""The request bodies of OpenAI's API, as types: a field that we cannot honour admits only the value that asks nothing.

`suffix: None` says both what is accepted and, in its error, what is refused. Fields that are not OpenAI's
have the names that vLLM gave them (`top_k`, `ignore_eos`, `structured_outputs`, and `guided_*`, their older names);
`inputs` fills the variables of a task.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidatorFunctionWrapHandler, WrapValidator

from coldstream.serve.api.schema import (
    Body,
    Count,
    Description,
    Fraction,
    Image,
    Inputs,
    Int64,
    Json,
    Label,
    Penalty,
    Positive,
    RepetitionPenalty,
    Stops,
    Temperature,
    Text,
    Whole,
    few,
)

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Labels = Json
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Detail = Literal["auto", "low", "high", "original"]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_LAST_ID = 2**31 - 1
_TokenId = Annotated[int, Field(ge=0, le=_LAST_ID)]


def _ids(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """A list of ids by a few calls that each look at all of it; one that is none goes on, to be told what is wrong."""
    if not isinstance(value, list):
        return validate(value)
    if float in set(map(type, value)):  # JSON has one kind of number
        value = [int(item) if type(item) is float and item.is_integer() else item for item in value]
    if set(map(type, value)) != {int} or min(value) < 0 or max(value) > _LAST_ID or len(value) > _MOST_IDS:
        return validate(value)
    return value


_MOST_IDS = 500_000
_Ids = Annotated[list[_TokenId], Field(max_length=_MOST_IDS, fail_fast=True), WrapValidator(_ids)]


class SentBack(Body):
    """What a server once answered and a client returns, with the notes that clients and servers make on it (`parsed`,
    `index`, `id`, `annotations`, `provider_specific_fields`, ...): they are no part of the conversation, and not read.
    """

    model_config = ConfigDict(extra="ignore")


class HintedPart(Body):
    """`cache_control` and `prompt_cache_breakpoint` are hints to caches; ours keeps every prompt's beginning anyway."""

    cache_control: Json | None = None
    prompt_cache_breakpoint: Json | None = None


class Part(HintedPart):
    """A text in a message's content."""

    type: Literal["text"]
    text: Text


class RefusalPart(SentBack):
    """A model's refusal, in the content of its turn."""

    type: Literal["refusal"]
    refusal: Text

    @property
    def text(self) -> str:
        """What it said."""
        return self.refusal


class ImageUrl(Body):
    """An image. `detail` asks nothing: the vision tower sees every image at one size, which is its best."""

    url: Image = Field(description="A data URL, or an https:// or gs:// URL that this server fetches")
    detail: Detail | None = None


class ImagePart(HintedPart):
    """An image in a user's turn."""

    type: Literal["image_url"]
    image_url: ImageUrl


_MOST_PARTS = 4096
_Few = Field(max_length=_MOST_PARTS, fail_fast=True)
Content = Text | Annotated[list[Part], _Few]
UserContent = Text | Annotated[list[Annotated[Part | ImagePart, Field(discriminator="type")]], _Few]
AssistantContent = Text | Annotated[list[Annotated[Part | RefusalPart, Field(discriminator="type")]], _Few]


class SystemMessage(Body):
    """What the model is told first; `developer` is the newer name."""

    role: Literal["system", "developer"]
    content: Content
    name: Label | None = None
    cache_control: Json | None = None


class UserMessage(Body):
    """A user's turn."""

    role: Literal["user"]
    content: UserContent
    name: Label | None = None
    cache_control: Json | None = None


class CalledFunction(SentBack):
    """A function's name and its arguments, as JSON in a string; a model may have written what is no JSON."""

    name: Label
    arguments: Text | Json | None = None


class ToolCall(SentBack):
    """A call that the model made in an earlier turn."""

    id: Label
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(SentBack):
    """An earlier answer. `function_call` is the older form of a call; `audio` would have to be kept by the server."""

    role: Literal["assistant"]
    content: AssistantContent | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=256, fail_fast=True)] | None = None
    name: Label | None = None
    refusal: Text | None = None
    reasoning_content: Text | None = Field(default=None, description="Goes to chat templates that show it")
    function_call: CalledFunction | None = None
    audio: None = None


class ToolMessage(SentBack):
    """What a called function answered."""

    role: Literal["tool"]
    content: Content | None
    tool_call_id: Label
    name: Label | None = None


class FunctionMessage(SentBack):
    """The older form of a tool's message."""

    role: Literal["function"]
    content: Content | None
    name: Label


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage, Field(discriminator="role")
]


class Function(Body):
    """A function that the model may call; `parameters` is a JSON Schema, and without one there are no arguments."""

    name: Name
    description: Description | None = None
    parameters: Json | None = None
    strict: bool | None = Field(default=None, description="Arguments are held to the schema by grammar")
    cache_control: Json | None = None


class Tool(Body):
    """A tool; only functions."""

    type: Literal["function"]
    function: Function
    cache_control: Json | None = None


class ChosenFunction(Body):
    """The function that must be called."""

    name: Label


class ToolChoice(Body):
    """Forces one function."""

    type: Literal["function"]
    function: ChosenFunction


class AllowedTools(Body):
    """A part of the tools, and whether one must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolChoice], Field(min_length=1, max_length=128, fail_fast=True)]


class AllowedChoice(Body):
    """Admits a part of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class JsonSchema(Body):
    """`json_schema` of a response format."""

    name: Name
    description: Description | None = None
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
Choices = Annotated[list[Description], Field(min_length=1, max_length=4096, fail_fast=True)]


_Program = Annotated[str, Field(max_length=2**20)]
"""A schema, an expression or a grammar as a text."""


class StructuredOutputs(Body):
    """vLLM's way to constrain the output; exactly one of them."""

    model_config = ConfigDict(populate_by_name=True)

    json_: Json | _Program | None = Field(default=None, alias="json", description="A JSON Schema")
    regex: _Program | None = None
    choice: Choices | None = None
    grammar: _Program | None = Field(default=None, description="A grammar in Lark's syntax")
    json_object: Literal[True] | None = None


MOST_MESSAGES = 4096
_MOST_BIASED = 1024
_LogitBias = Annotated[dict[Label, _Bias], Field(max_length=_MOST_BIASED), few(_MOST_BIASED)]


class ChatStreamOptions(Body):
    """What a stream carries besides the text."""

    include_usage: bool = False
    continuous_usage_stats: bool | None = Field(default=None, description="The usage so far, in every chunk")
    include_obfuscation: Literal[False] | None = None


class _Shared(Body):
    """What the two endpoints have in common."""

    model: Label = Field(description="A model or a task")
    frequency_penalty: Penalty | None = None
    logit_bias: _LogitBias | None = Field(
        default=None, description="Token ids (as text) to what is added to their logits"
    )
    n: Annotated[Whole, Field(ge=1, le=128)] | None = None
    presence_penalty: Penalty | None = None
    seed: Int64 | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: ChatStreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = Field(default=None, description="0 leaves the likeliest token only")
    # Labels and hints that ask nothing of the answer
    metadata: Labels | None = None
    prompt_cache_key: Label | None = None
    safety_identifier: Label | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: Label | None = None
    # vLLM's
    guided_choice: Choices | None = None
    guided_grammar: _Program | None = None
    guided_json: Json | _Program | None = None
    guided_regex: _Program | None = None
    ignore_eos: bool | None = None
    min_p: Fraction | None = None
    repetition_penalty: RepetitionPenalty | None = None
    stop_token_ids: Annotated[_Ids, Field(max_length=256)] | None = None
    structured_outputs: StructuredOutputs | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=2**31 - 1)] | None = Field(
        default=None, description="0 and -1 switch it off"
    )
    # vLLM's, of which only the value that asks for nothing is taken
    guided_decoding_backend: Literal["auto", "guidance"] | None = None
    guided_whitespace_pattern: None = None
    include_stop_str_in_output: Literal[False] | None = None
    length_penalty: Annotated[float, Field(ge=1, le=1)] | None = None
    min_tokens: Annotated[Whole, Field(ge=0, le=0)] | None = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: Literal[True] | None = None
    use_beam_search: Literal[False] | None = None
    # Ours
    inputs: Inputs | None = Field(default=None, description="Where `model` is a task: the variables of its template")


class ChatRequest(_Shared):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    logprobs: bool | None = None
    max_completion_tokens: Positive | None = None
    max_tokens: Positive | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = Field(
        default=None, description="A variable of the chat template; `none` also switches `enable_thinking` off there"
    )
    response_format: ResponseFormat | None = None
    store: bool | None = Field(
        default=None, description="Nothing is kept, whatever it says; see the paths that would read it"
    )
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | AllowedChoice | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    # vLLM's
    add_generation_prompt: bool | None = None
    chat_template_kwargs: Json | None = Field(
        default=None, description="Variables of the model's chat template; those that it does not read change nothing"
    )
    continue_final_message: bool | None = Field(
        default=None, description="Go on with the last message's text; the default where that is the assistant's"
    )
    # Only the value that asks for nothing
    add_special_tokens: Literal[False] | None = None
    audio: None = None
    echo: Literal[False] | None = None
    function_call: None = None
    functions: None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=16, fail_fast=True)] | None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_options: None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None


MOST_PROMPTS = 256


def _kind(prompt: Any) -> str:
    """What a prompt is meant to be, by its first item, so that none is held against all four."""
    if not isinstance(prompt, list):
        return "text"
    first = prompt[0] if prompt else None
    return "ids" if isinstance(first, int | float) else "many ids" if isinstance(first, list) else "texts"


Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True), Tag("texts")]
    | Annotated[_Ids, Tag("ids")]
    | Annotated[list[_Ids], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True), Tag("many ids")],
    Discriminator(_kind),
]


class CompletionRequest(_Shared):
    """POST /v1/completions."""

    prompt: Prompt
    best_of: Annotated[Whole, Field(ge=1, le=1)] | None = None
    echo: bool | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=100)] | None = None
    max_tokens: Count | None = None
    suffix: None = None
