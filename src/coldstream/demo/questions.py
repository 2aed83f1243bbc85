"""What the demo asks, and when an answer is right. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coldstream.demo.sql_pairs import SqlPair, sql_pairs

_MARKERS = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "user\n", "assistant\n", "model\n")


@dataclass(frozen=True, slots=True)
class DemoQuestion:
    """A body of POST /generate. The answer must be `exactly` this text, or must contain `containing`."""

    body: Mapping[str, Any]
    exactly: str | None = None
    containing: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the demo knows what the answer has to be."""
        return self.exactly is not None or bool(self.containing)

    @property
    def text(self) -> str:
        """What is asked, as a person reads it."""
        return str(self.body.get("prompt") or self.body["inputs"]["question"])

    def curl(self, url: str) -> str:
        """The shell command that asks the same."""
        body = shlex.quote(json.dumps(self.body, ensure_ascii=False))
        return f"curl -s {url}/generate -H 'content-type: application/json' -d {body}"


@dataclass(frozen=True, slots=True)
class DemoAnswer:
    """What came back: the text as users' clients get it, its seconds, and the same request again with `details`."""

    text: str
    seconds: float
    details: Mapping[str, Any]


def questions() -> tuple[DemoQuestion, ...]:
    """One or two for each task; the sql and Korean ones as users send them."""
    pairs = sql_pairs()
    korean = next(pair for pair in pairs if not pair.question.isascii() and pair.answer != pairs[0].answer)
    return (
        _sql(pairs[0]),
        _sql(korean),
        DemoQuestion(
            {"type": "text", "prompt": "What is the capital of France?", "max_tokens": 50}, containing="Paris"
        ),
        DemoQuestion({"type": "text", "prompt": "Google Cloud Run의 장점은 무엇인가요?", "max_tokens": 150}),
        DemoQuestion({"type": "product", "prompt": "test", "max_tokens": 1000}, containing="red mug"),
    )


def _sql(pair: SqlPair) -> DemoQuestion:
    body = {"type": "sql", "inputs": {"context": pair.context, "question": pair.question}}
    return DemoQuestion(body, exactly=pair.answer)


def fault(question: DemoQuestion, answer: DemoAnswer) -> str | None:
    """What is wrong with an answer; None when it is right."""
    text = answer.text
    if question.exactly is not None and text != question.exactly:
        return f"expected exactly {question.exactly!r}"
    if question.containing not in text:
        return f"expected {question.containing!r} in it"
    if not text.strip():
        return "it is empty"
    if text.lstrip().startswith((question.text, *_MARKERS)):
        return "it begins with the prompt"
    if answer.details.get("text") != text:
        return "with details the text is another one"
    return _reason_fault(question, answer)


def _reason_fault(question: DemoQuestion, answer: DemoAnswer) -> str | None:
    reason = answer.details.get("finish_reason")
    tokens = answer.details.get("usage", {}).get("completion_tokens", 0)
    limit = question.body.get("max_tokens")
    if reason not in ("stop", "length"):
        return f"finish_reason is {reason!r}"
    if limit is not None and (tokens > limit or (reason == "length") != (tokens == limit)):
        return f"finish_reason is {reason!r} after {tokens} of at most {limit} tokens"
    if question.exactly is not None and reason != "stop":
        return f"finish_reason is {reason!r} where the model ends its turn"
    return None
