"""The body of POST /generate, and what request bodies have in common: strict types, no unknown field."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)


def _whole(value: Any) -> Any:
    """JSON has one kind of number (RFC 8259, section 6): 16.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def small(value: Any) -> Any:
    """The value, if it is nested no deeper than our own and others' recursive code can follow, and of bounded size.

    Raises:
        ValueError: it is not.
    """
    level = [value] if isinstance(value, dict | list) else []
    depth = values = characters = 0
    while level:
        depth += 1
        items = [item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer)]
        values += len(items)
        characters += sum(len(name) for outer in level if isinstance(outer, dict) for name in outer)
        characters += sum(len(item) for item in items if isinstance(item, str))
        if depth > _DEEPEST:
            raise ValueError(f"JSON of at most {_DEEPEST} levels")
        if values > _MOST_VALUES or characters > _LONGEST:
            raise ValueError(f"JSON of at most {_MOST_VALUES:,} values and {_LONGEST:,} characters")
        if not all(math.isfinite(item) for item in items if isinstance(item, float)):
            raise ValueError("JSON, whose numbers are finite")
        level = [item for item in items if isinstance(item, dict | list)]
    return value


def few(most: int) -> BeforeValidator:
    """Counts before anything of it is looked at: pydantic looks at all of an object's members first."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise ValueError(f"an object of at most {most} members, not {len(value)}")
        return value

    return BeforeValidator(check)


_DEEPEST = 100
_MOST_VALUES = 20_000
_LONGEST = 1024 * 1024
_MOST_FIELDS = 256

Text = Annotated[str, Field(max_length=2**24)]
"""What may be a whole prompt."""
Image = Annotated[str, Field(max_length=2**28)]
"""Base64, or a URL; the settings' limits are nearer."""
Label = Annotated[str, Field(max_length=1024)]
"""A name, an id, a note."""
Description = Annotated[str, Field(max_length=2**16)]
Inputs = Annotated[dict[Label, Text], Field(max_length=_MOST_FIELDS), few(_MOST_FIELDS)]
Json = Annotated[dict[str, Any], AfterValidator(small)]
Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[Whole, Field(ge=1, le=2**31 - 1)]
Int64 = Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=100)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Stops = StopString | Annotated[list[StopString], Field(max_length=16, fail_fast=True)]


class Body(BaseModel):
    """A request body. Numbers are finite, `"5"` is no number, and what is unknown is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, value: Any) -> Any:
        """Each field that is unknown would be an error of its own."""
        if isinstance(value, dict) and len(value) > _MOST_FIELDS:
            raise ValueError(f"an object of at most {_MOST_FIELDS} fields, not {len(value)}")
        return value


class GenerateRequest(Body):
    """POST /generate."""

    type: Label | None = Field(None, description="The task; may be left out where the server has only one.")
    prompt: Text | None = Field(None, description="Fills the task's `prompt_input` variable.")
    inputs: Inputs = Field(default_factory=dict, description="The task's template variables; see GET /v1/tasks.")
    image: Image | None = Field(
        None, description="An image: base64, a data URL, or an https:// or gs:// URL that this server fetches."
    )
    images: Annotated[list[Image], Field(max_length=256, fail_fast=True)] | None = Field(
        None, description="Several images, in order; instead of `image`."
    )
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
