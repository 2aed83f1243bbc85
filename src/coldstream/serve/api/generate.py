"""POST /generate: a task and its inputs in, text out.

"SELECT ..."                                        by default: a JSON string, nothing but the generated text
{"text": ..., "finish_reason": ..., "usage": ...}   with `details`
data: {"text": "SEL"} ... data: [DONE]              with `stream`; the last event before [DONE] says how it ended
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from coldstream.engine.request import Grammar, Usage
from coldstream.engine.sampling import Given
from coldstream.errors import ColdstreamError, InvalidRequest
from coldstream.serve.api import sse
from coldstream.serve.api.schema import GenerateRequest, stops
from coldstream.serve.api.tasks import GivenImage, Rendered, find_task, render
from coldstream.serve.images.decode import ImageLoader, ImageSource
from coldstream.serve.middleware import errors as failures
from coldstream.serve.middleware.record import RequestRecord
from coldstream.serve.requests.inference import Inference, Job, Result, Running, timings
from coldstream.serve.sql.grammar import select_grammar
from coldstream.serve.state import ServedModel, ServerState
from coldstream.settings import TaskSettings

_PATH = "/generate"
_SAMPLING = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)


@dataclass(frozen=True, slots=True)
class AskedTask:
    """A request that has been understood, and what its answer must look like."""

    body: GenerateRequest
    task: TaskSettings
    rendered: Rendered
    model: ServedModel
    images: tuple[ImageSource, ...] = ()

    def job(self) -> Job:
        """What the model is to do."""
        return Job(
            model=self.model,
            encode=lambda model: [encode(model, self.rendered)],
            given=_given(self.body),
            characters=len(self.rendered.text),
            task=self.task.sampling,
            images=self.images,
            grammar=self._grammar if self.task.sql_schema is not None else None,
        )

    def _grammar(self, _: ServedModel) -> Grammar | None:
        """One SELECT over the schema that came; None, and the model is free, where it shows no tables."""
        values = self.rendered.values
        schema = values.get(self.task.sql_schema or "", "")
        question = " ".join(text for name, text in values.items() if name != self.task.sql_schema)
        text = select_grammar(schema, question)
        return None if text is None else Grammar("lark", text, f"inputs.{self.task.sql_schema}")

    def details(self, result: Result) -> dict[str, Any]:
        """Everything but the text."""
        return {
            "finish_reason": result.finish_reason,
            "usage": _usage(result.usage),
            "timings": timings(result.usage),
            "model": self.model.name,
            "revision": self.model.revision,
            "task": self.task.name,
            "inputs_defaulted": list(self.rendered.defaulted),
        }


def understand(state: ServerState, body: GenerateRequest, loader: ImageLoader) -> AskedTask:
    """Find the task and fill its template.

    Raises:
        UnknownTask, InvalidRequest: naming the field.
    """
    task = find_task(state.settings, body.type)
    rendered = render(task, body.prompt, body.inputs, _images(body))
    return AskedTask(body, task, rendered, state.models[task.model], sources(loader, rendered.images))


def sources(loader: ImageLoader, images: Sequence[GivenImage]) -> tuple[ImageSource, ...]:
    """Where the images come from.

    Raises:
        InvalidRequest: one that cannot be taken, or too many.
    """
    if images:
        loader.count(len(images), images[-1].field)
    return tuple((loader.default if item.is_default else loader.source)(item.text, item.field) for item in images)


def _images(body: GenerateRequest) -> list[GivenImage]:
    if body.image is not None and body.images is not None:
        raise InvalidRequest("image and images say the same thing; send one of them", field="image")
    if body.image is not None:
        return [GivenImage("image", body.image)]
    return [GivenImage(f"images.{place}", text) for place, text in enumerate(body.images or ())]


async def generate(state: ServerState, inference: Inference, body: GenerateRequest, record: RequestRecord) -> Response:
    """Answer the request; errors that come before the first event are raised, and become a status."""
    asked = understand(state, body, inference.images)
    record.task = asked.task.name
    if state.settings.server.log_prompts:
        record.prompt = asked.rendered.text
    if body.stream:
        return await sse.opened(_frames(asked, inference, record))
    async with inference.start(asked.job(), record) as running:
        (result,) = await running.collect()
        text = await _echo(asked, running) + result.text
    return sse.JsonReply({"text": text, **asked.details(result)} if body.details else text)


async def _frames(asked: AskedTask, inference: Inference, record: RequestRecord) -> AsyncGenerator[bytes, None]:
    begun = False
    try:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(inference.start(asked.job(), record))
            result = Result()
            async for batch in running.events:
                text = "".join(event.text for _, event in batch)
                if not begun:
                    text = await _echo(asked, running) + text
                for _, event in batch:
                    result.add(event)
                if text:
                    yield sse.frame({"text": text})
                    begun = True
            last = asked.details(result) if asked.body.details else {"finish_reason": result.finish_reason}
            yield sse.frame({"text": "", **last})
    except ColdstreamError as error:
        if not begun:
            raise
        record.error = type(error).__name__
        yield sse.frame(failures.body(error, _PATH))
    yield sse.DONE


def encode(model: ServedModel, rendered: Rendered) -> list[int]:
    """The prompt's ids: through the model's chat template where it has one, else as plain text."""
    tokenizer = model.tokenizer
    if not tokenizer.has_chat_template:
        marker = model.images.marker if model.images is not None else ""
        return tokenizer.encode(expanded(model, rendered.marked(marker), len(rendered.images)))
    try:
        text = tokenizer.apply_chat_template(rendered.messages)
    except InvalidRequest:
        if rendered.system is None:
            raise
        # The template refuses a system turn, as Gemma 2's and the first Mistrals' do.
        text = tokenizer.apply_chat_template(rendered.folded)
    return tokenizer.encode(expanded(model, text, len(rendered.images)), add_special_tokens=False)


def expanded(model: ServedModel, text: str, images: int) -> str:
    """The prompt's text with image tokens where its markers are."""
    return model.images.expand(text, images) if images and model.images is not None else text


def _given(body: GenerateRequest) -> Given:
    return {name: getattr(body, name) for name in _SAMPLING} | {"stop": stops(body.stop)}


async def _echo(asked: AskedTask, running: Running) -> str:
    if not asked.body.echo:
        return ""
    return await asyncio.to_thread(asked.model.tokenizer.decode, running.prompt_ids[0])


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
    }
