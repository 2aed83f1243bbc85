"""An engine, a tokenizer and a model that do what a test tells them, behind the seams of `coldstream.serve.state`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from coldstream.engine.request import FinishReason, Request, SamplingParams, TokenEvent, TokenLogprob, Usage
from coldstream.errors import ColdstreamError, EngineError
from coldstream.timeline import Timeline

Script = Callable[[Request], Sequence[str]]


@dataclass(frozen=True)
class Stats:
    """What a real engine's stats may look like."""

    running: int
    waiting: int = 0
    steps: int = 0
    blocks_total: int = 64
    kind: str = "scripted"
    died: bool = False


class LetterTokenizer:
    """One token a character; ids are code points. Its chat template is Gemma's in miniature."""

    vocab_size = 0x110000
    special_texts: Mapping[str, int] = {}

    def __init__(self, *, chat: bool = True, system: bool = True, tools: bool = False) -> None:
        self.has_chat_template = chat
        self.chat_template = "<tool_call>" if tools else ""
        self.template_uses_tools = tools
        self._system = system

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))

    def offsets(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(range(len(text)))

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()

    def longest_text(self, tokens: int) -> int | None:
        return tokens

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        from coldstream.errors import InvalidRequest

        if not self._system and any(message["role"] == "system" for message in messages):
            raise InvalidRequest("the chat template refuses: System role not supported", field="messages")
        head = f"tools\n{[tool['function']['name'] for tool in tools]}\n" if tools else ""
        turns = "".join(f"{message['role']}\n{message['content']}\n" for message in messages)
        return head + turns + ("model\n" if add_generation_prompt else "")


class ScriptedEngine:
    """Gives each request its script's pieces, one a step, on a thread of its own.

    `manual`: a step happens when the test calls `step()`, which returns when its events were delivered.
    """

    def __init__(self, script: Script = lambda request: list("hello"), *, manual: bool = False) -> None:
        self._script = script
        self._manual = manual
        self._lock = threading.Condition()
        self._running: dict[str, tuple[Request, Callable[[TokenEvent], None], list[str], int, float]] = {}
        self._allowed = 0
        self._steps = 0
        self._stop = False
        self.submitted: list[Request] = []
        self.cancelled: list[str] = []
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()

    def submit(self, request: Request, deliver: Callable[[TokenEvent], None]) -> None:
        with self._lock:
            self.submitted.append(request)
            self._running[request.id] = (request, deliver, list(self._script(request)), 0, time.monotonic())
            self._lock.notify_all()

    def cancel(self, request_id: str) -> None:
        with self._lock:
            found = self._running.pop(request_id, None)
            if found is not None:
                self.cancelled.append(request_id)
                found[1](TokenEvent(request_id, finish_reason="cancelled", usage=Usage()))
            self._lock.notify_all()

    def stats(self) -> Stats:
        return Stats(running=len(self._running), steps=self._steps)

    def step(self, count: int = 1) -> None:
        with self._lock:
            self._allowed += count
            goal = self._steps + count
            self._lock.notify_all()
            assert self._lock.wait_for(lambda: self._steps >= goal, timeout=5)

    def close(self) -> None:
        with self._lock:
            self._stop = True
            self._lock.notify_all()
        self.thread.join(5)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._lock:
            assert self._lock.wait_for(condition, timeout=5)

    def _loop(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._stop or (self._allowed if self._manual else self._running))
                if self._stop:
                    return
                self._allowed -= 1
                for request_id in list(self._running):
                    self._advance(request_id)
                self._steps += 1
                self._lock.notify_all()

    def _advance(self, request_id: str) -> None:
        request, deliver, pieces, done, begun = self._running[request_id]
        limit = request.sampling.max_tokens
        if done < min(len(pieces), limit):
            piece = pieces[done]
            if piece == "<error>":
                self._end(request_id, "error", done, error=EngineError("the script says so"))
                return
            self._running[request_id] = (request, deliver, pieces, done + 1, begun)
            prompt = () if done else _prompt_logprobs(request)
            scored = _logprobs(request, piece, offset=len("".join(pieces[:done])))
            deliver(TokenEvent(request_id, piece, (ord(piece[0]),), scored, prompt_logprobs=prompt))
        if self._running[request_id][3] >= min(len(pieces), limit):
            self._end(request_id, "stop" if len(pieces) <= limit else "length", min(len(pieces), limit))

    def _end(
        self, request_id: str, reason: FinishReason, completion: int, error: ColdstreamError | None = None
    ) -> None:
        request, deliver, _, _, begun = self._running.pop(request_id)
        seconds = time.monotonic() - begun
        usage = Usage(len(request.prompt_ids), 0, completion, 0.0, seconds if completion else None, seconds)
        deliver(TokenEvent(request_id, finish_reason=reason, usage=usage, error=error))


def _logprobs(request: Request, piece: str, offset: int) -> tuple[TokenLogprob, ...]:
    if request.sampling.logprobs is None:
        return ()
    top = tuple(
        TokenLogprob(ord(piece[0]) + rank, chr(ord(piece[0]) + rank), -0.5 - rank)
        for rank in range(request.sampling.logprobs)
    )
    return (TokenLogprob(ord(piece[0]), piece, -0.5, top, offset=offset),)


def _prompt_logprobs(request: Request) -> tuple[TokenLogprob | None, ...]:
    count = request.sampling.prompt_logprobs
    if count is None:
        return ()
    alone = [TokenLogprob(item, chr(item), -1.0) for item in request.prompt_ids[1:]]
    return (None, *(replace(item, top=(item,)[:count]) for item in alone))


class ScriptedModel:
    """A served model; `loading=True` keeps `ready()` waiting until `loaded()` or `failed()`."""

    def __init__(
        self,
        engine: ScriptedEngine,
        *,
        name: str = "default",
        tokenizer: LetterTokenizer | None = None,
        max_context: int = 4096,
        defaults: SamplingParams | None = None,
        loading: bool = False,
        images: Any = None,
    ) -> None:
        self.name, self.uri, self.created, self.revision = name, f"gs://bucket/{name}", 1_700_000_000, "abc123"
        self.engine, self.tokenizer = engine, tokenizer or LetterTokenizer()
        self.max_context, self.defaults = max_context, defaults or SamplingParams()
        self.images = images
        self.is_ready = not loading
        self._done = asyncio.Event()
        self.error: ColdstreamError | None = None
        if not loading:
            self._done.set()

    async def ready(self) -> None:
        await self._done.wait()
        if self.error is not None:
            raise self.error

    def retry_after(self) -> float:
        return 7.2

    def loaded(self) -> None:
        self.is_ready = True
        self._done.set()

    def failed(self, error: ColdstreamError) -> None:
        self.error = error
        self._done.set()


class ScriptedStart:
    """The start of scripted models: as far as they are; the part of `serve.startup.Startup` that the surface asks."""

    def __init__(self, models: Mapping[str, ScriptedModel]) -> None:
        self._models = models
        self.timeline = Timeline()

    @property
    def status(self) -> str:
        phases = {self._phase(model) for model in self._models.values()}
        if phases <= {"ready"}:
            return "ready"
        if phases == {"failed"}:
            return "failed"
        return "degraded" if phases == {"ready", "failed"} else "loading"

    def state(self) -> dict[str, Any]:
        models = {name: self._state(model) for name, model in self._models.items()}
        return {"status": self.status, "phase": "streaming", "bytes": 1, "total_bytes": 4, "models": models}

    def retry_after(self) -> float:
        return max(model.retry_after() for model in self._models.values())

    def spans(self) -> list[dict[str, Any]]:
        return [asdict(span) for span in self.timeline.spans()]

    def _phase(self, model: ScriptedModel) -> str:
        return "failed" if model.error is not None else "ready" if model.is_ready else "streaming"

    def _state(self, model: ScriptedModel) -> dict[str, Any]:
        error = (
            {} if model.error is None else {"error": {"type": type(model.error).__name__, "message": str(model.error)}}
        )
        return {"phase": self._phase(model), **error}
