"""What a request may ask for; everything out of range is refused by the field's name."""

from __future__ import annotations

from coldstream.engine.request import Request, SamplingParams
from coldstream.errors import InvalidRequest, PromptTooLong

MAX_LOGPROBS = 100
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 1024


def check(request: Request, *, vocab_size: int, max_context: int) -> None:
    """Raise what is wrong with the request.

    Raises:
        PromptTooLong: the prompt leaves no room for a token.
        InvalidRequest: a value is out of range.
    """
    length = len(request.prompt_ids)
    if not length:
        raise InvalidRequest("the prompt has no tokens; send at least one", field="prompt")
    if length >= max_context:
        raise PromptTooLong(
            f"the prompt has {length} tokens; this model's context here is {max_context}, "
            "one of which must be left for the answer",
            field="prompt",
        )
    if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocab_size:
        wrong = next(token for token in request.prompt_ids if not 0 <= token < vocab_size)
        raise InvalidRequest(f"token id {wrong} is outside the vocabulary of {vocab_size}", field="prompt")
    _check_sampling(request.sampling, vocab_size)


def _check_sampling(params: SamplingParams, vocab_size: int) -> None:
    for name, is_right, allowed in (*_numbers(params), *_lists(params, vocab_size)):
        if not is_right:
            raise InvalidRequest(f"{name} = {getattr(params, name)!r}; allowed: {allowed}", field=name)


def _numbers(params: SamplingParams) -> tuple[tuple[str, bool, str], ...]:
    logprobs = f"between 0 and {MAX_LOGPROBS}"
    return (
        ("max_tokens", params.max_tokens >= 1, "at least 1"),
        ("temperature", 0.0 <= params.temperature <= 100.0, "between 0 and 100"),
        ("top_p", 0.0 <= params.top_p <= 1.0, "between 0 and 1"),
        ("top_k", params.top_k >= 0, "0 (off) or more"),
        ("min_p", 0.0 <= params.min_p <= 1.0, "between 0 and 1"),
        ("repetition_penalty", 0.0 < params.repetition_penalty <= 100.0, "above 0 and at most 100"),
        ("presence_penalty", -100.0 <= params.presence_penalty <= 100.0, "between -100 and 100"),
        ("frequency_penalty", -100.0 <= params.frequency_penalty <= 100.0, "between -100 and 100"),
        ("seed", params.seed is None or -(1 << 63) <= params.seed < 1 << 64, "a 64-bit whole number"),
        ("logprobs", params.logprobs is None or 0 <= params.logprobs <= MAX_LOGPROBS, logprobs),
        ("prompt_logprobs", params.prompt_logprobs is None or 0 <= params.prompt_logprobs <= MAX_LOGPROBS, logprobs),
    )


def _lists(params: SamplingParams, vocab_size: int) -> tuple[tuple[str, bool, str], ...]:
    return (
        (
            "stop",
            len(params.stop) <= MAX_STOP_STRINGS and all(0 < len(text) <= MAX_STOP_CHARACTERS for text in params.stop),
            f"at most {MAX_STOP_STRINGS} texts of 1 to {MAX_STOP_CHARACTERS} characters",
        ),
        (
            "stop_token_ids",
            all(0 <= token < vocab_size for token in params.stop_token_ids),
            f"token ids below {vocab_size}",
        ),
        (
            "logit_bias",
            all(0 <= token < vocab_size and -100.0 <= bias <= 100.0 for token, bias in params.logit_bias),
            f"token ids below {vocab_size} with values between -100 and 100",
        ),
        (
            "ignore_eos",
            not (params.ignore_eos and params.grammar is not None),
            "false with a grammar, which decides where the output ends",
        ),
    )
