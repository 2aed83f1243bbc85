"""A request's sampling parameters as vLLM's `SamplingParams` takes them, or refused by name. No vllm here.

Tokens come as ids: text, stop strings and the names of control tokens are ours (`engine.tokenizer.detokenize`), the
same ones for both engines. `FIELDS` says of each of vLLM's own fields what becomes of it; a test holds the table
against the fields of the release that it was made for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from coldstream.engine.request import Grammar, SamplingParams
from coldstream.errors import InvalidRequest

RELEASE = "0.32.0"
"""The release whose fields are below."""

LEAST_TEMPERATURE = 0.01
MOST_TEMPERATURE = 2.0
MOST_PENALTY = 2.0
MOST_NESTING = 64
"""What vLLM refuses beyond, or changes silently: it computes with no temperature between 0 and 0.01."""

OURS, NOT_OFFERED = "ours", "not offered"
FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repetition_penalty",
        "presence_penalty": "presence_penalty",
        "frequency_penalty": "frequency_penalty",
        "seed": "seed",
        "max_tokens": "max_tokens",
        "logprobs": "logprobs",
        "prompt_logprobs": "prompt_logprobs",
        "logit_bias": "logit_bias",
        "stop_token_ids": "stop_token_ids, ignore_eos",
        "structured_outputs": "grammar",
        # What our side does, on tokens that vLLM gives out as they are drawn.
        "n": OURS,
        "stop": OURS,
        "include_stop_str_in_output": OURS,
        "ignore_eos": OURS,
        "detokenize": OURS,
        "skip_special_tokens": OURS,
        "spaces_between_special_tokens": OURS,
        "output_kind": OURS,
        "skip_reading_prefix_cache": OURS,
        "skip_clone": OURS,
        # No field of a request of ours means these: they keep vLLM's defaults.
        "allowed_token_ids": NOT_OFFERED,
        "bad_words": NOT_OFFERED,
        "extra_args": NOT_OFFERED,
        "flat_logprobs": NOT_OFFERED,
        "logprob_token_ids": NOT_OFFERED,
        "min_tokens": NOT_OFFERED,
        "prompt_logprob_start": NOT_OFFERED,
        "prompt_logprob_token_ids": NOT_OFFERED,
        "repetition_detection": NOT_OFFERED,
        "routed_experts_prompt_start": NOT_OFFERED,
        "stream_interval": NOT_OFFERED,
        "thinking_token_budget": NOT_OFFERED,
        "trace_decode_token_ids": NOT_OFFERED,
        "watermarking": NOT_OFFERED,
        # What vLLM keeps there for itself.
        "output_text_buffer_length": NOT_OFFERED,
    }
)
"""vLLM's field -> the fields of our `SamplingParams` that it comes from, or why it comes from none."""


def check(params: SamplingParams) -> None:
    """Refuse what vLLM does not compute, or would compute with another value.

    Raises:
        InvalidRequest: it names the field and what is allowed.
    """
    for name, is_right, allowed in _limits(params):
        if not is_right:
            value = getattr(params, name)
            raise InvalidRequest(f"{name} = {value!r}; allowed on the vllm engine: {allowed}", field=name)
    if params.grammar is not None:
        _check_grammar(params.grammar)


def arguments(params: SamplingParams, *, stop_ids: frozenset[int], room: int) -> dict[str, Any]:
    """Keywords for vLLM's SamplingParams; `structured_outputs` are keywords for its StructuredOutputsParams.

    `stop_ids` are the model's own, `room` the tokens that still fit in the context. vLLM is told to ignore its eos, and
    given all ids that end this request, so that which those are is decided in one place.
    """
    ends = params.stop_token_ids | (frozenset() if params.ignore_eos else stop_ids)
    greedy = params.top_p == 0.0  # the best token alone is in it
    found: dict[str, Any] = {
        "temperature": params.temperature,
        "top_p": 1.0 if greedy else params.top_p,
        "top_k": 1 if greedy else params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "seed": None if params.seed is None else params.seed % (1 << 64),  # -1 is none to vLLM; torch reads both alike
        "max_tokens": max(1, min(params.max_tokens, room)),
        "logprobs": params.logprobs,
        "prompt_logprobs": params.prompt_logprobs,
        "logit_bias": dict(params.logit_bias) or None,
        "stop_token_ids": sorted(ends),
        "ignore_eos": True,
        "detokenize": False,
    }
    if params.grammar is not None:
        found["structured_outputs"] = structured(params.grammar)
    return found


def structured(grammar: Grammar) -> dict[str, Any]:
    """Keywords for vLLM's StructuredOutputsParams, for its `guidance` backend: the library that the native engine has.

    JSON is written without blanks between its parts: the library's releases before 1.8, which vLLM wants, do not keep
    to a bound of them, and a small model left alone with blanks would write them for ever.
    """
    value = grammar.value
    if grammar.kind == "choice":
        return {"choice": list(value)}
    if grammar.kind == "json_schema":
        schema = json.loads(str(value))
        return {"json": {"x-guidance": {"whitespace_flexible": False}, **schema}}
    return {"grammar" if grammar.kind == "lark" else "regex": value}


def _limits(params: SamplingParams) -> tuple[tuple[str, bool, str], ...]:
    warm = LEAST_TEMPERATURE <= params.temperature <= MOST_TEMPERATURE
    return (
        ("temperature", params.temperature == 0.0 or warm, f"0, or {LEAST_TEMPERATURE} to {MOST_TEMPERATURE:g}"),
        ("presence_penalty", abs(params.presence_penalty) <= MOST_PENALTY, "between -2 and 2"),
        ("frequency_penalty", abs(params.frequency_penalty) <= MOST_PENALTY, "between -2 and 2"),
    )


def _check_grammar(grammar: Grammar) -> None:
    field, value = grammar.field, grammar.value
    if grammar.kind == "json_schema" and _nesting(json.loads(str(value))) > MOST_NESTING:
        message = f"{field}: objects and arrays of the schema nest deeper than {MOST_NESTING}, the most for vLLM"
        raise InvalidRequest(message, field=field)
    if grammar.kind == "regex" and "\0" in value:
        raise InvalidRequest(f"{field}: vLLM takes no NUL in a regular expression", field=field)
    if grammar.kind == "lark" and _reads_as_gbnf(str(value)):
        message = f"{field}: vLLM would read this grammar as GBNF; write it without '::=' and with 'start:'"
        raise InvalidRequest(message, field=field)


def _reads_as_gbnf(text: str) -> bool:
    from llguidance.gbnf_to_lark import is_lark_syntax

    return not is_lark_syntax(text)


def _nesting(value: Any) -> int:
    """How deep objects and arrays lie in one another, without recursion."""
    depth, level = 0, [value]
    while level:
        nested = [item for item in level if isinstance(item, dict | list)]
        depth += bool(nested)
        level = [child for item in nested for child in (item.values() if isinstance(item, dict) else item)]
    return depth
