"""The body of POST /generate, and what request bodies have in common: strict types, no unknown field."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
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
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="0 switches it off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Int64 | None = None
    stop: Stops | None = None
    stream: bool = Field(False, description="Answer with server-sent events that end in `data: [DONE]`.")
    echo: bool = Field(False, description="Put the decoded prompt before the text.")
    details: bool = Field(False, description="Answer with an object rather than the text alone.")


def stops(value: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings, however they were sent."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
