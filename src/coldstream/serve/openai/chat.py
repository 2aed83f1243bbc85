"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

from starlette.responses import Response

from coldstream.errors import ColdstreamError
from coldstream.serve import failures, sse
from coldstream.serve.inference import Inference, Job
from coldstream.serve.openai.answer import Speaker, choice
from coldstream.serve.openai.asked import Asked, understand
from coldstream.serve.openai.common import Envelope, Streamed, envelope, text_of, usage
from coldstream.serve.openai.prompt import encode, grammar
from coldstream.serve.openai.schema import ChatRequest
from coldstream.serve.state import ServerState
from coldstream.serve.trail import Trail

PATH = "/v1/chat/completions"


async def chat(state: ServerState, inference: Inference, body: ChatRequest, trail: Trail) -> Response:
    """Answer the request."""
    asked = understand(state, body, inference.images)
    note(state, asked, trail)
    if body.stream:
        return await sse.opened(_frames(asked, inference, trail))
    async with inference.start(job(asked), trail) as running:
        results = await running.collect()
    frame = envelope("chatcmpl", "chat.completion", body.model, asked.target.model)
    choices = [choice(asked, index, result) for index, result in enumerate(results)]
    return sse.JsonReply(frame.wrap(choices, usage=usage(running.job, results)))


def note(state: ServerState, asked: Asked, trail: Trail) -> None:
    """What the log may say of a request."""
    trail.task = asked.target.task.name if asked.target.task else None
    if state.settings.server.log_prompts:
        trail.prompt = "\n".join(text_of(message.content) for message in asked.body.messages)


def job(asked: Asked) -> Job:
    """What the model is to do."""
    return Job(
        model=asked.target.model,
        encode=lambda model: [encode(model, asked)],
        given=asked.given,
        grammar=(lambda model: grammar(model, asked)) if asked.tools.functions or asked.answer else None,
        characters=_characters(asked),
        samples=asked.body.n or 1,
        fill_context=True,
        task=asked.target.sampling,
        images=asked.images,
    )


def _characters(asked: Asked) -> int:
    """About as many as the template reads and writes; calls and tools are made of more than they are worth counting."""
    body = asked.body
    texts = sum(len(text_of(message.content)) + _TURN for message in body.messages)
    return texts + _TOOL * len(asked.tools.functions)


_TURN, _TOOL = 100, 2000


async def _frames(asked: Asked, inference: Inference, trail: Trail) -> AsyncGenerator[bytes, None]:
    begun = False
    try:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(inference.start(job(asked), trail))
            frame: Envelope = envelope("chatcmpl", "chat.completion.chunk", asked.body.model, asked.target.model)
            speakers = [Speaker(asked, index) for index in range(running.job.sequences)]
            counted = Streamed(asked.body.stream_options, running, [speaker.result for speaker in speakers])
            async for batch in running.events:
                made = [chunk for index, event in batch for chunk in speakers[index].chunks(event)]
                if made:
                    yield b"".join(sse.frame(frame.wrap([item], **counted.beside())) for item in made)
                    begun = True
            if counted.is_wanted:
                yield sse.frame(frame.wrap([], usage=usage(running.job, counted.results)))
    except ColdstreamError as error:
        if not begun:
            raise
        trail.error = type(error).__name__
        yield sse.frame(failures.body(error, PATH))
    yield sse.DONE
