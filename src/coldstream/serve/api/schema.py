"""The body of POST /generate, and what request bodies have in common: strict types, no unknown field."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints


def _whole(value: Any) -> Any:
    """JSON has one kind of number (RFC 8259, section 6): 16.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shallow(value: Any) -> Any:
    """The value, if it is nested no deeper than our own and others' recursive code can follow.

    Raises:
        ValueError: it is.
    """
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"JSON of at most {_DEEPEST} levels")
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
    return value


_DEEPEST = 100
Json = Annotated[dict[str, Any], AfterValidator(shallow)]
Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[Whole, Field(ge=1, le=2**31 - 1)]
Int64 = Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=100)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Stops = StopString | Annotated[list[StopString], Field(max_length=16)]


class Body(BaseModel):
    """A request body. Numbers are finite, `"5"` is no number, and what is unknown is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class GenerateRequest(Body):
    """POST /generate."""

    type: str | None = Field(None, description="The task; may be left out where the server has only one.")
    prompt: str | None = Field(None, description="Fills the task's `prompt_input` variable.")
    inputs: dict[str, str] = Field(
        default_factory=dict, description="The task's template variables; see GET /v1/tasks."
    )
    image: str | None = Field(
        None, description="An image: base64, a data URL, or an https:// or gs:// URL that this server fetches."
    )
    images: list[str] | None = Field(None, description="Several images, in order; instead of `image`.")
    max_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = Field(None, description="0 leaves the likeliest token only.")
    top_k: Count | None = Field(None, description="0 switches it off.")
    min_p: Fraction | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Int64 | None = None
    stop: Stops | None = None
    stream: bool = Field(False, description="Answer with server-sent events that end in `data: [DONE]`.")
    echo: bool = Field(False, description="Put the decoded prompt before the text.")
    details: bool = Field(False, description="Answer with an object rather than the text alone.")


def stops(value: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings, however they were sent."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
