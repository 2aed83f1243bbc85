"""POST /v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

from starlette.responses import Response

from coldstream.errors import ColdstreamError
from coldstream.serve.api import sse
from coldstream.serve.middleware import errors as failures
from coldstream.serve.middleware.record import RequestRecord
from coldstream.serve.openai.answer import Speaker, choice
from coldstream.serve.openai.asked import AskedChat, understand
from coldstream.serve.openai.calls import TAGS
from coldstream.serve.openai.common import Envelope, Streamed, envelope, scores, text_of, usage
from coldstream.serve.openai.prompt import encode, grammar
from coldstream.serve.openai.schema import ChatRequest
from coldstream.serve.requests.inference import Inference, Job
from coldstream.serve.state import ServerState

PATH = "/v1/chat/completions"


async def chat(state: ServerState, inference: Inference, body: ChatRequest, record: RequestRecord) -> Response:
    """Answer the request."""
    asked = understand(state, body, inference.images)
    note(state, asked, record)
    if body.stream:
        return await sse.opened(_frames(asked, inference, record))
    async with inference.start(job(asked), record) as running:
        results = await running.collect()
    frame = envelope("chatcmpl", "chat.completion", body.model, asked.target.model)

    def written() -> bytes:
        choices = [choice(asked, index, result) for index, result in enumerate(results)]
        return sse.dumps_long(frame.wrap(choices, usage=usage(running.job, results)))

    return sse.json_reply(await sse.made(scores(results, body.top_logprobs), written))


def note(state: ServerState, asked: AskedChat, record: RequestRecord) -> None:
    """What the log may say of a request."""
    record.task = asked.target.task.name if asked.target.task else None
    if state.settings.server.log_prompts:
        record.prompt = "\n".join(text_of(message.content) for message in asked.body.messages)


def job(asked: AskedChat) -> Job:
    """What the model is to do."""
    return Job(
        model=asked.target.model,
        encode=lambda model: [encode(model, asked)],
        given=asked.given,
        grammar=(lambda model: grammar(model, asked)) if asked.tools.functions or asked.answer else None,
        characters=_characters(asked),
        longest=_texts(asked),
        samples=asked.body.n or 1,
        fill_context=True,
        task=asked.target.sampling,
        images=asked.images,
        shows=TAGS if asked.tools.functions and not asked.tools.forced else (),
    )


def _texts(asked: AskedChat) -> int:
    """Characters of the messages: the prompt has no fewer."""
    return sum(len(text_of(message.content)) for message in asked.body.messages)


def _characters(asked: AskedChat) -> int:
    """About as many as the template reads and writes."""
    turns = _TURN * len(asked.body.messages)
    return _texts(asked) + turns + sum(len(json.dumps(tool, ensure_ascii=False)) for tool in asked.tools.told)


_TURN = 100


async def _frames(asked: AskedChat, inference: Inference, record: RequestRecord) -> AsyncGenerator[bytes, None]:
    begun = False
    try:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(inference.start(job(asked), record))
            frame: Envelope = envelope("chatcmpl", "chat.completion.chunk", asked.body.model, asked.target.model)
            speakers = [Speaker(asked, index) for index in range(running.job.sequences)]
            counted = Streamed(asked.body.stream_options, running, [speaker.result for speaker in speakers])
            async for batch in running.events:
                made = [chunk for index, event in batch for chunk in speakers[index].chunks(event)]
                if made:
                    yield b"".join(sse.frame(frame.wrap([item], **counted.beside())) for item in made)
                    begun = True
            if counted.is_wanted:
                yield sse.frame(frame.wrap([], usage=usage(running.job, counted.results), **counted.timings()))
    except ColdstreamError as error:
        if not begun:
            raise
        record.error = type(error).__name__
        yield sse.frame(failures.body(error, PATH))
    yield sse.DONE
