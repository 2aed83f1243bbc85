"""`EngineProtocol` on a vLLM AsyncLLM: requests in, its outputs as our events. Knows vLLM by its methods alone.

The library's loop runs on a thread of its own, on which events are delivered; a request is a task there. vLLM draws
tokens and schedules; text, stop strings, logprobs' names and usage are made of them where the native engine makes them
(`engine.generation`), so that a request reads the same from either.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from coldstream.engine import limits
from coldstream.engine.generation import Finish, Generation
from coldstream.engine.grammar_check import checked
from coldstream.engine.outbox import Outbox, Verified
from coldstream.engine.request import Deliver, Grammar, Request, TokenEvent
from coldstream.engine.tokenizer.tokenizer import Tokenizer
from coldstream.engines.vllm import outputs, sampling
from coldstream.engines.vllm.stats import SchedulerView, Tally, VllmStats
from coldstream.errors import ColdstreamError, DeadlineExceeded, EngineError, InvalidRequest, PromptTooLong
from coldstream.workers.workers import Workers

_log = logging.getLogger(__name__)

_KEPT_GRAMMARS = 256


class AsyncLlm(Protocol):
    """What is used of `vllm.v1.engine.async_llm.AsyncLLM`."""

    def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> AsyncGenerator[Any, None]:
        """Its outputs, each of new tokens only; closing the generator aborts the request."""
        ...

    def shutdown(self, timeout: float | None = None) -> None:
        """End its processes."""
        ...

    @property
    def errored(self) -> bool:
        """Whether its processes have ended, or it no longer hears of them."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """An AsyncLLM that runs on `loop`, which runs on `thread`. `parameters` makes vLLM's SamplingParams of keywords.

    `max_context` in tokens; `scheduler` is what its scheduler says; `marker` stands for an image in a prompt's text,
    None where the model takes text only; `dtype` is what it computes in.
    """

    llm: AsyncLlm
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    parameters: Callable[[Mapping[str, Any]], Any]
    scheduler: SchedulerView
    vocab_size: int
    max_context: int
    marker: str | None = None
    dtype: str = "auto"


class VllmEngine:
    """One model's engine; `served` becomes its own. `workers` find out what a grammar costs before vLLM compiles it."""

    def __init__(self, served: Served, tokenizer: Tokenizer, *, workers: Workers, name: str = "engine") -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.max_context = served.max_context
        self._served, self._workers = served, workers
        self._stop_ids = frozenset(number for number in tokenizer.stop_ids if 0 <= number < served.vocab_size)
        self._tally = Tally(served.scheduler)
        self._outbox = Outbox(name, self._tally.meter, verified=Verified.ALL, broken=self.cancel)
        self._idle = threading.Condition()
        self._refusal: ColdstreamError | None = None
        self._died = False
        self._grammars: OrderedDict[Grammar, None] = OrderedDict()
        self._grammars_lock = threading.Lock()
        # The loop's own.
        self._tasks: dict[Generation, asyncio.Task[None]] = {}

    # -- from any thread -----------------------------------------------------------------------------------------------

    def validate(self, request: Request) -> None:
        """Raise what `submit` would raise for the request's own values; a new grammar is tried out, which takes long.

        Raises:
            PromptTooLong: the prompt leaves no room for a token.
            InvalidRequest: a value is out of range, or vLLM does not compute it.
            TooCostly: compiling the grammar takes more than the limits.
        """
        limits.check(request, vocab_size=self._served.vocab_size, max_context=self.max_context)
        sampling.check(request.sampling)
        if request.images and self._served.marker is None:
            raise InvalidRequest("this model takes text only; leave the image out", field="images")
        if request.sampling.grammar is not None:
            self._check_grammar(request.sampling.grammar)

    def submit(self, request: Request, deliver: Deliver) -> None:
        """See `EngineProtocol.submit`."""
        self.validate(request)
        generation = Generation(
            request, deliver, tokenizer=self.tokenizer, stop_ids=self._stop_ids, max_context=self.max_context
        )
        with self._idle:
            refusal = self._refusal
            if refusal is None:
                self._outbox.add(generation)
                self._served.loop.call_soon_threadsafe(self._begin, generation)
        if refusal is not None:
            deliver(TokenEvent(request.id, finish_reason="error", error=refusal))

    def cancel(self, request_id: str) -> None:
        """See `EngineProtocol.cancel`; vLLM gives up its work with its next step."""
        generation = self._outbox.find(request_id)
        if generation is not None:
            self._close(generation, Finish("cancelled"))
            self._on_loop(self._give_up, generation)

    def drain(self, grace: float) -> None:
        """See `EngineProtocol.drain`."""
        with self._idle:
            self._refuse(self._shutting_down())
            self._idle.wait_for(lambda: not len(self._outbox), grace)
        self.stop()

    def stop(self, timeout: float = 10.0) -> None:
        """See `EngineProtocol.stop`. vLLM's processes get `timeout` seconds to end."""
        with self._idle:
            self._refuse(self._shutting_down())
        self._outbox.close_all(Finish("cancelled"))
        served = self._served
        if not served.thread.is_alive() or served.thread is threading.current_thread():
            return
        ended = asyncio.run_coroutine_threadsafe(self._end(timeout), served.loop)
        try:
            ended.result(timeout + 5.0)
        except TimeoutError:
            _log.warning("%s: vLLM did not end within %.0f s", self.name, timeout)
        served.loop.call_soon_threadsafe(served.loop.stop)
        served.thread.join(timeout)

    def stats(self) -> VllmStats:
        """A snapshot; cheap."""
        is_stopped = self._refusal is not None
        died = self._died or (not is_stopped and self._served.llm.errored)
        return self._tally.snapshot(len(self._outbox), died=died)

    def _check_grammar(self, grammar: Grammar) -> None:
        with self._grammars_lock:
            if grammar in self._grammars:
                self._grammars.move_to_end(grammar)
                return
        checked(grammar, self._workers, self.tokenizer.special_texts)
        with self._grammars_lock:
            self._grammars[grammar] = None
            while len(self._grammars) > _KEPT_GRAMMARS:
                self._grammars.popitem(last=False)

    def _refuse(self, error: ColdstreamError) -> None:
        self._refusal = self._refusal or error

    def _shutting_down(self) -> EngineError:
        return EngineError(f"{self.name} is shutting down; send the request to another instance")

    def _close(self, generation: Generation, finish: Finish) -> None:
        self._outbox.close(generation, generation.last_event(finish))
        with self._idle:
            self._idle.notify_all()

    def _on_loop(self, work: Callable[..., None], *arguments: Any) -> None:
        if self._served.thread.is_alive():
            self._served.loop.call_soon_threadsafe(work, *arguments)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _begin(self, generation: Generation) -> None:
        if not generation.is_closed:
            task = self._served.loop.create_task(self._answer(generation))
            self._tasks[generation] = task
            task.add_done_callback(lambda _: self._tasks.pop(generation, None))

    def _give_up(self, generation: Generation) -> None:
        task = self._tasks.get(generation)
        if task is not None:
            task.cancel()

    async def _end(self, patience: float) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._served.llm.shutdown, patience)

    async def _answer(self, generation: Generation) -> None:
        """Follow a request to its end; the request hears of all that the library raises."""
        try:
            async with asyncio.timeout_at(generation.request.deadline):  # this loop's clock is `time.monotonic()`
                finish = await self._follow(generation)
        except TimeoutError:
            late = DeadlineExceeded("the request's deadline passed before it was finished; raise it or ask for less")
            finish = Finish("deadline", error=late)
        except asyncio.CancelledError:
            finish = Finish("cancelled")
        except Exception as exc:  # see above
            finish = Finish("error", error=self._as_error(exc))
        self._close(generation, finish)

    async def _follow(self, generation: Generation) -> Finish:
        request = generation.request
        room = self.max_context - len(request.prompt_ids)
        wanted = sampling.arguments(request.sampling, stop_ids=self._stop_ids, room=room)
        arriving = self._served.llm.generate(outputs.prompt(request), self._served.parameters(wanted), request.id)
        try:
            async for output in arriving:
                finish = self._take(generation, output)
                if finish is not None:
                    return finish
        finally:
            await arriving.aclose()
        raise EngineError(f"{self.name}: vLLM ended a request without a reason; send it again")

    def _take(self, generation: Generation, output: Any) -> Finish | None:
        """An output's tokens, as events; why the request ends with it, if it does."""
        begun = outputs.begin(generation, output)
        if begun is not None:
            self._tally.prompt_read(*begun)
        drawn = outputs.drawn(generation, output)
        self._tally.drawn(len(drawn))
        for sampled in drawn:
            event, finish = generation.push(sampled)
            if event is not None:
                self._outbox.send(generation, event)
            if finish is not None:
                return finish
        return outputs.ending(output)

    def _as_error(self, exc: Exception) -> ColdstreamError:
        if isinstance(exc, ColdstreamError):
            return exc
        kinds = {kind.__name__ for kind in type(exc).__mro__}
        if kinds & {"VLLMClientError", "ValueError"}:
            return _refused(exc)
        if "EngineDeadError" in kinds:
            self._died = True
            error = EngineError(f"{self.name}: vLLM's process has ended; its log says why. Start the server again")
            with self._idle:
                self._refuse(error)
            return error
        _log.error("%s: a request failed in vLLM", self.name, exc_info=exc)
        cause = exc.__cause__ or exc
        return EngineError(f"{self.name} failed while generating: {cause!r}")


def _refused(exc: Exception) -> ColdstreamError:
    """vLLM's own refusal of a request."""
    field = str(getattr(exc, "parameter", None) or "request")
    if "maximum model length" in str(exc) or "maximum context length" in str(exc):
        return PromptTooLong(f"the prompt is too long: {exc}", field="prompt")
    return InvalidRequest(f"{field}: vLLM takes it not: {exc}", field=field)
