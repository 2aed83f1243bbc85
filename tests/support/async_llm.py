"""A library's asynchronous engine without the library: what vLLM's AsyncLLM says, in the shape in which it says it.

`ScriptedLlm` answers as vLLM does, with what a script draws; `RecordedLlm` says again what vLLM itself said, from a
recording (`tests/engines/vllm/record.py` makes one). Both are asked with the keywords that the adapter makes.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from coldstream.engines.vllm.engine import Served, VllmEngine
from coldstream.engines.vllm.stats import SchedulerView
from coldstream.workers.workers import Workers


@dataclass
class Completion:
    """vLLM's CompletionOutput: the new tokens, a stop token included, and why it ends."""

    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[dict[int, Any]] | None = None


@dataclass
class Output:
    """vLLM's RequestOutput with `output_kind` DELTA."""

    outputs: list[Completion]
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    metrics: Any = None
    prompt_logprobs: list[dict[int, Any] | None] | None = None
    finished: bool = field(default=False)


class ScriptedLlm:
    """Says the tokens that the request favours. `pause` is awaited before each; an output may bring several."""

    def __init__(self, pause: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        self.aborted: list[str] = []
        self.asked: list[Mapping[str, Any]] = []
        self.is_shut_down = False
        self.errored = False
        self._pause = pause

    async def generate(
        self, prompt: Mapping[str, Any], sampling_params: Mapping[str, Any], request_id: str
    ) -> AsyncGenerator[Output, None]:
        self.asked.append(sampling_params)
        ids, unsent = list(prompt["prompt_token_ids"]), list[int]()
        said = list(sampling_params["logit_bias"])
        is_whole = False
        try:
            for place in range(sampling_params["max_tokens"]):
                await self._pause(place)
                unsent.append(said[sum(ids, start=7 * place) % len(said)])
                is_stop = unsent[-1] in sampling_params["stop_token_ids"]
                is_last = is_stop or place + 1 == sampling_params["max_tokens"]
                if is_last or place % 3 != 1:  # two at once
                    reason = "stop" if is_stop else "length" if is_last else None
                    is_whole = is_last
                    completion = Completion(unsent, reason, unsent[-1] if is_stop else None)
                    yield Output([completion], ids, metrics=SimpleNamespace(scheduled_ts=time.monotonic()))
                    unsent = []
                if is_last:
                    return
        finally:
            if not is_whole:
                self.aborted.append(request_id)

    def shutdown(self, timeout: float | None = None) -> None:
        self.is_shut_down = True


class RecordedLlm:
    """Answers each request that was recorded with what vLLM answered it; `asked` must be what was asked then."""

    def __init__(self, recording: Path) -> None:
        self.said: Mapping[str, Any] = json.loads(recording.read_text())
        self.asked: dict[str, Mapping[str, Any]] = {}
        self.errored = False

    async def generate(
        self, prompt: Mapping[str, Any], sampling_params: Mapping[str, Any], request_id: str
    ) -> AsyncGenerator[Output, None]:
        self.asked[request_id] = sampling_params
        for item in self.said["requests"][request_id]["outputs"]:
            completion = Completion(**{**item["completion"], "logprobs": _logprobs(item["completion"]["logprobs"])})
            yield Output(
                [completion],
                item["prompt_token_ids"],
                item["num_cached_tokens"],
                SimpleNamespace(scheduled_ts=time.monotonic()),
                _logprobs(item["prompt_logprobs"]),
            )

    def shutdown(self, timeout: float | None = None) -> None:
        """It has no processes."""


def _logprobs(recorded: list[Any] | None) -> Any:
    if recorded is None:
        return None
    return [
        place and {int(token): SimpleNamespace(logprob=value[0], rank=value[1]) for token, value in place.items()}
        for place in recorded
    ]


def serve(
    llm: Any,
    tokenizer: Any,
    *,
    vocab_size: int,
    max_context: int,
    workers: Workers | None = None,
    parameters: Callable[[Mapping[str, Any]], Any] = dict,
) -> VllmEngine:
    """The adapter on such an engine, with its loop on a thread."""
    loop = asyncio.new_event_loop()

    def run() -> None:
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=run, name="async-llm", daemon=True)
    thread.start()
    served = Served(llm, loop, thread, parameters, SchedulerView(), vocab_size, max_context)
    return VllmEngine(served, tokenizer, workers=workers or Workers(), name="library")
