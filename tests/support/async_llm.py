"""A sketch: a library's asynchronous engine, as vLLM's AsyncLLM is one, behind our protocol.

`ScriptedLlm` answers as such a library does: an asynchronous generator a request, of outputs whose token ids are all
that there are so far; it ends with a reason, or raises. `AsyncLlmEngine` makes our events of that.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from coldstream.engine import limits
from coldstream.engine.request import Deliver, FinishReason, Request, TokenEvent, Usage
from coldstream.engine.tokenizer.detokenize import Detokenizer
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.errors import ColdstreamError, DeadlineExceeded, EngineError, InvalidRequest


@dataclass(frozen=True)
class Completion:
    """`token_ids` are all so far; `finish_reason` "stop" or "length" ends it, `stop_reason` is the token that did."""

    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | None = None


class ScriptedLlm:
    """Says the tokens that the request favours. `pause` is awaited before each; an output may bring several."""

    def __init__(self, pause: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        self.aborted: list[str] = []
        self._pause = pause

    async def generate(self, request: Request) -> AsyncIterator[Completion]:
        ids: list[int] = []
        said = [token for token, _ in request.sampling.logit_bias]
        for place in range(request.sampling.max_tokens):
            await self._pause(place)
            ids.append(said[sum(request.prompt_ids, start=7 * place) % len(said)])
            if ids[-1] in request.sampling.stop_token_ids:
                yield Completion(ids[:-1], "stop", ids[-1])
                return
            if place % 3 != 1:  # two at once
                yield Completion(list(ids), "length" if len(ids) == request.sampling.max_tokens else None)
        yield Completion(ids, "length")

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


@dataclass(frozen=True)
class Stats:
    running: int
    steps: int
    waiting: int = 0
    died: bool = False


@dataclass
class _Open:
    request: Request
    deliver: Deliver
    text: Detokenizer
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    taken: int = 0
    is_closed: bool = False
    task: asyncio.Task[None] | None = None
    handing_over: Any = field(default_factory=threading.RLock)


class AsyncLlmEngine:
    """The library's loop runs on a thread of its own, on which events are delivered."""

    def __init__(self, llm: ScriptedLlm, tokenizer: Tokenizer, *, vocab_size: int, max_context: int) -> None:
        self.max_context = max_context
        self._llm, self._tokenizer, self._vocab_size = llm, tokenizer, vocab_size
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._open: dict[str, _Open] = {}
        self._refusal: ColdstreamError | None = None
        self._steps = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="async-llm", daemon=True)
        self._thread.start()

    def validate(self, request: Request) -> None:
        limits.check(request, vocab_size=self._vocab_size, max_context=self.max_context)

    def submit(self, request: Request, deliver: Deliver) -> None:
        self.validate(request)
        mine = _Open(request, deliver, Detokenizer(self._tokenizer, request.prompt_ids))
        with self._lock:
            refusal = self._refusal
            if refusal is None:
                if request.id in self._open:
                    raise InvalidRequest(f"there is a request {request.id!r} already; ids must differ", field="id")
                self._open[request.id] = mine
                self._loop.call_soon_threadsafe(self._begin, mine)
        if refusal is not None:
            deliver(TokenEvent(request.id, finish_reason="error", error=refusal))

    def cancel(self, request_id: str) -> None:
        with self._lock:
            mine = self._open.get(request_id)
        if mine is not None:
            self._end(mine, "cancelled")
            self._loop.call_soon_threadsafe(self._give_up, mine)

    def drain(self, grace: float) -> None:
        with self._idle:
            self._refuse()
            self._idle.wait_for(lambda: not self._open, grace)
        self.stop()

    def stop(self, timeout: float = 5.0) -> None:
        with self._lock:
            self._refuse()
            left = list(self._open)
        for request_id in left:
            self.cancel(request_id)
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._all_given_up(), self._loop).result(timeout)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout)
            self._loop.close()

    def stats(self) -> Stats:
        return Stats(running=len(self._open), steps=self._steps)

    def _refuse(self) -> None:
        self._refusal = self._refusal or EngineError(
            "the engine is shutting down; send the request to another instance"
        )

    def _begin(self, mine: _Open) -> None:
        if not mine.is_closed:
            mine.task = self._loop.create_task(self._answer(mine))

    def _give_up(self, mine: _Open) -> None:
        if mine.task is not None:
            mine.task.cancel()

    async def _all_given_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, mine: _Open) -> None:
        request = mine.request
        try:
            async with asyncio.timeout_at(request.deadline):  # a loop's clock is `time.monotonic()`
                async for output in self._llm.generate(request):
                    self._steps += 1
                    self._take(mine, output)
                    if output.finish_reason is not None:
                        return
        except TimeoutError:
            late = DeadlineExceeded("the request's deadline passed before it was finished; raise it or ask for less")
            self._end(mine, "deadline", error=late)
        except Exception as exc:  # whatever the library raises, the request must hear of it
            error = exc if isinstance(exc, ColdstreamError) else EngineError(f"the library failed: {exc!r}")
            self._end(mine, "error", error=error)
        finally:
            await self._llm.abort(request.id)

    def _take(self, mine: _Open, output: Completion) -> None:
        new, mine.taken = output.token_ids[mine.taken :], len(output.token_ids)
        if new and mine.first is None:
            mine.first = time.monotonic()
        text = "".join(map(mine.text.push, new))
        match output.finish_reason:
            case "stop" | "length" as reason:
                self._end(mine, reason, text + mine.text.flush(), tuple(new), stop_match=output.stop_reason)
            case _ if new:
                self._hand_over(mine, TokenEvent(mine.request.id, text, tuple(new)))

    def _end(self, mine: _Open, reason: FinishReason, text: str = "", ids: tuple[int, ...] = (), **more: Any) -> None:
        now = time.monotonic()
        first = None if mine.first is None else mine.first - mine.began
        usage = Usage(len(mine.request.prompt_ids), 0, mine.taken, 0.0, first, now - mine.began)
        self._hand_over(mine, TokenEvent(mine.request.id, text, ids, finish_reason=reason, usage=usage, **more))

    def _hand_over(self, mine: _Open, event: TokenEvent) -> None:
        with mine.handing_over:
            if mine.is_closed:
                return
            if event.finish_reason is not None:
                mine.is_closed = True
                with self._idle:
                    self._open.pop(event.request_id, None)
                    self._idle.notify_all()
            try:
                mine.deliver(event)
            except Exception:
                self.cancel(event.request_id)
