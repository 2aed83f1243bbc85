"""What goes into the engine and what comes out: Request, SamplingParams, TokenEvent.

Every submitted request ends in exactly one terminal event: the one whose `finish_reason` is not None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from coldstream.errors import ColdstreamError

if TYPE_CHECKING:
    from coldstream.model.image_processor import Pixels

JSON_BLANKS = r"[\x20\x0A\x0D\x09]{0,16}"
"""What may stand between the parts of generated JSON. A small model left alone with it would write blanks for ever."""

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the output must obey; `field` is the part of the request that asked for it, for messages.

    `value` is the text of a JSON Schema, a regular expression (Rust's syntax) or a Lark grammar; for "choice", the
    texts to choose from. Any JSON object is the schema `{"type": "object"}`.
    """

    kind: Literal["json_schema", "regex", "choice", "lark"]
    value: str | tuple[str, ...]
    field: str = "response_format"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. The defaults are greedy and free of penalties.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch the filter off. `repetition_penalty` as in
    CTRL (Keskar et al. 2019, prompt and output), presence and frequency penalties as OpenAI defines them (output only).
    `seed` None draws one; the same seed gives the same text in any batch. A string in `stop` may be, or hold, the name
    of a control token. `stop_token_ids` end the text and are not part of it. `shown_tokens` are control tokens whose
    names are part of the text. `logprobs` None gives none, n >= 0 the chosen token's and the n best ones' before any
    filter. With a `grammar` the output ends when nothing can be added to it.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    shown_tokens: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PromptImage:
    """An image in a prompt: `prompt_ids[start:end]` are its tokens. `pixels` uint8 `[height, width, 3]`.

    `digest` stands for exactly these pixels; the prefix cache tells images apart by it.
    """

    start: int
    end: int
    pixels: Pixels
    digest: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate. `deadline` is on the `time.monotonic()` clock; None means none. `salt`, of at most 64
    bytes: what requests of different salts have in common is computed for each, so that neither learns of the other.

    Sampling the same prompt n times is n requests; the prefix cache makes the prompt cost once.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    deadline: float | None = None
    images: tuple[PromptImage, ...] = ()
    salt: bytes = b""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its text, its log probability (nats), and the best alternatives, best first, which have none themselves.

    `raw` are the bytes that it stands for, which may be a part of a character (None: those of `text`); `offset` is the
    character of the output at which it begins, or whose part it is.
    """

    token_id: int
    text: str
    logprob: float
    top: Sequence[TokenLogprob] = ()
    raw: bytes | None = None
    offset: int = 0

    @property
    def spelled(self) -> bytes:
        """The token's own bytes."""
        return self.text.encode() if self.raw is None else self.raw


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; `cached_tokens` of the prompt came from the prefix cache. Times in seconds from submit."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queued_seconds: float = 0.0
    first_token_seconds: float | None = None
    total_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Some text became certain (`text`, never half a character, never part of a stop string), or the request ended.

    `usage` is set on the terminal event, `error` when `finish_reason` is "error".
    """

    request_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: FinishReason | None = None
    stop_match: str | int | None = None
    usage: Usage | None = None
    error: ColdstreamError | None = field(default=None, compare=False)


Deliver = Callable[[TokenEvent], None]
"""Takes the events of a request, on a thread of the engine's; what it raises cancels the request."""
