"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from coldstream.engine.request import Grammar, TokenEvent, TokenLogprob
from coldstream.errors import ColdstreamError, InvalidRequest
from coldstream.serve.api import sse
from coldstream.serve.api.generate import expanded, sources
from coldstream.serve.images.decode import ImageLoader, ImageSource
from coldstream.serve.middleware import errors as failures
from coldstream.serve.middleware.record import RequestRecord
from coldstream.serve.openai import logprobs, tools
from coldstream.serve.openai.calls import TAGS
from coldstream.serve.openai.common import Envelope, Target, envelope, sampling, target, text_of, usage
from coldstream.serve.openai.constraint import constraint, from_schema
from coldstream.serve.openai.messages import Turn, folded, images, task_turns, turns, with_instruction
from coldstream.serve.openai.schema import ChatRequest, ToolChoice
from coldstream.serve.requests.inference import Inference, Job, Result
from coldstream.serve.state import ServedModel, ServerState

PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request. `forced`: the output is a call by grammar; `named`: the one function it must call."""

    functions: tuple[dict[str, Any], ...] = ()
    forced: bool = False
    named: str | None = None
    parallel: bool = True

    @property
    def names(self) -> list[str]:
        """The functions' names."""
        return [function["name"] for function in self.functions]

    def reader(self) -> tools.CallReader:
        """What finds calls in an answer."""
        return tools.CallReader(self.names, {item["name"]: tools.parameters(item) for item in self.functions})

    @property
    def grammar(self) -> Grammar | None:
        """What forces the call: only the arguments, where the function is given."""
        if not self.forced:
            return None
        schema = tools.parameters(self.functions[0]) if self.named else tools.forced_schema(self.functions)
        return from_schema(schema, "tool_choice")


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat request that has been understood."""

    body: ChatRequest
    target: Target
    tools: Tools
    grammar: Grammar | None
    images: tuple[ImageSource, ...] = ()

    def job(self) -> Job:
        """What the model is to do."""
        body = self.body
        given = sampling(body) | {
            "max_tokens": _max_tokens(body),
            "logprobs": _logprobs(body),
            "grammar": self.grammar,
        }
        return Job(
            model=self.target.model,
            encode=lambda model: [encode(model, self)],
            given=given,
            characters=sum(len(text_of(message.content)) for message in body.messages),
            samples=body.n or 1,
            fill_context=True,
            task=self.target.sampling,
            images=self.images,
            shows=TAGS if self.tools.functions and not self.tools.forced else (),
        )


def understand(state: ServerState, body: ChatRequest, loader: ImageLoader) -> Asked:
    """Everything that can be refused before a tokenizer is there.

    Raises:
        UnknownTask, InvalidRequest: naming the field.
    """
    chosen = _tools(body)
    wanted = constraint(body)
    if chosen.forced and wanted is not None:
        raise InvalidRequest(f"{wanted.field} and a forced tool_choice exclude each other", field="tool_choice")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream = true", field="stream_options")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs = true", field="top_logprobs")
    named = target(state, body)
    found = images(named.task, body.messages, body.inputs or {})
    return Asked(body, named, chosen, chosen.grammar or wanted, sources(loader, found))


async def chat(state: ServerState, inference: Inference, body: ChatRequest, record: RequestRecord) -> Response:
    """Answer the request."""
    asked = understand(state, body, inference.images)
    record.task = asked.target.task.name if asked.target.task else None
    if state.settings.server.log_prompts:
        record.prompt = "\n".join(text_of(message.content) for message in body.messages)
    if body.stream:
        return await sse.opened(_frames(asked, inference, record))
    async with inference.start(asked.job(), record) as running:
        results = await running.collect()
    frame = envelope("chatcmpl", "chat.completion", body.model, asked.target.model)
    choices = [_choice(asked, index, result) for index, result in enumerate(results)]
    return sse.JsonReply(frame.wrap(choices, usage=usage(running.job, results)))


def encode(model: ServedModel, asked: Asked) -> list[int]:
    """The prompt's ids, through the model's chat template.

    Raises:
        InvalidRequest: the model has no chat template, or it refuses the messages or knows no tools.
    """
    tokenizer = model.tokenizer
    chosen, task = asked.tools, asked.target.task
    if chosen.functions and not chosen.forced and not tokenizer.template_uses_tools:
        message = f"the chat template of {model.name!r} knows no tools; force a call with tool_choice, or send none"
        raise InvalidRequest(message, field="tools", allowed=("required", "none"))
    if task is not None:
        messages = task_turns(task, asked.body.messages, asked.body.inputs or {})
    else:
        messages = turns(asked.body.messages, knows_tools=tokenizer.template_uses_tools)
    given = None
    if chosen.functions:
        given = [{"type": "function", "function": function} for function in chosen.functions]
        if not tokenizer.template_uses_tools:
            given, messages = None, with_instruction(messages, tools.instruction(chosen.functions))
    text = expanded(model, _template(model, messages, given), len(asked.images))
    return tokenizer.encode(text, add_special_tokens=False)


def _template(model: ServedModel, messages: list[Turn], given: Sequence[dict[str, Any]] | None) -> str:
    try:
        return model.tokenizer.apply_chat_template(messages, tools=given)
    except InvalidRequest:
        if not model.tokenizer.has_chat_template or messages[0]["role"] != "system":
            raise
        return model.tokenizer.apply_chat_template(folded(messages), tools=given)


def _tools(body: ChatRequest) -> Tools:
    choice = body.tool_choice
    if not body.tools:
        for name in ("tool_choice", "parallel_tool_calls"):
            if getattr(body, name) not in (None, "none"):
                raise InvalidRequest(f"{name} needs tools", field=name)
        return Tools()
    if choice == "none":
        return Tools()
    functions = tuple(tool.function.model_dump(exclude_none=True, exclude={"strict"}) for tool in body.tools)
    if any(tool.function.strict for tool in body.tools) and choice in (None, "auto"):
        message = "strict functions need a forced call here: tool_choice = required, or a named function"
        raise InvalidRequest(message, field="tools", allowed=("required",))
    parallel = body.parallel_tool_calls is not False
    if isinstance(choice, ToolChoice):
        named = tuple(function for function in functions if function["name"] == choice.function.name)
        if not named:
            names = tuple(function["name"] for function in functions)
            message = f"tool_choice names {choice.function.name[:64]!r}; the tools are: {', '.join(names)}"
            raise InvalidRequest(message, field="tool_choice", allowed=names)
        return Tools(named[:1], forced=True, named=named[0]["name"], parallel=parallel)
    return Tools(functions, forced=choice == "required", parallel=parallel)


def _max_tokens(body: ChatRequest) -> int | None:
    both = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(both) > 1:
        raise InvalidRequest("max_tokens and max_completion_tokens differ; send one", field="max_tokens")
    return next(iter(both), None)


def _logprobs(body: ChatRequest) -> int | None:
    return (body.top_logprobs or 0) if body.logprobs else None


# -- answers -----------------------------------------------------------------------------------------------------------


def _choice(asked: Asked, index: int, result: Result) -> dict[str, Any]:
    text, calls = _split(asked.tools, result)
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if calls:
        message["tool_calls"] = [call.as_json() for call in calls]
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs.chat(result.logprobs) if asked.body.logprobs else None,
        "finish_reason": _finish(asked.tools, result, calls),
    }


def _split(chosen: Tools, result: Result) -> tuple[str, list[tools.Call]]:
    """What of the output is text, and what are calls."""
    if chosen.named is not None:
        return "", [tools.Call(chosen.named, result.text)]
    if chosen.forced:
        call = tools.forced_call(result.text)
        return ("", [call]) if call else (result.text, [])
    if not chosen.functions:
        return result.text, []
    reader = chosen.reader()
    text = reader.push(result.text)
    rest, calls = reader.end()
    return text + rest, calls if chosen.parallel else calls[:1]


def _finish(chosen: Tools, result: Result, calls: Sequence[tools.Call]) -> str:
    """A named function's call ends in "stop", as OpenAI's do; a call that was cut off ends in "length"."""
    if calls and result.finish_reason == "stop" and chosen.named is None:
        return "tool_calls"
    return str(result.finish_reason)


# -- streams -----------------------------------------------------------------------------------------------------------


class _Speaker:
    """Turns one sequence's events into the deltas of its choice."""

    def __init__(self, asked: Asked, index: int) -> None:
        self._asked = asked
        self._index = index
        self._reader = asked.tools.reader()
        self._begun = False
        self.result = Result()

    def chunks(self, event: TokenEvent) -> list[dict[str, Any]]:
        """The choices that this event makes, one a chunk."""
        self.result.add(event)
        made: list[dict[str, Any]] = []
        for delta in self._deltas(event.text):
            made.append(self._choice(delta, event.logprobs if not made else ()))
        if not made and event.logprobs:
            made.append(self._choice({}, event.logprobs))
        if event.finish_reason is not None:
            made += self._last()
        return made

    def _deltas(self, text: str) -> list[dict[str, Any]]:
        chosen = self._asked.tools
        opening: list[dict[str, Any]] = []
        if not self._begun:
            self._begun = True
            opening = [{"role": "assistant", "content": None if chosen.forced else "", "refusal": None}]
            if chosen.named is not None:
                opening.append(_call_delta(0, tools.Call(chosen.named, "")))
        if chosen.named is not None:
            return [*opening, _arguments_delta(text)] if text else opening
        certain = "" if chosen.forced else self._reader.push(text) if chosen.functions else text
        return [*opening, {"content": certain}] if certain else opening

    def _last(self) -> list[dict[str, Any]]:
        chosen = self._asked.tools
        calls: list[tools.Call] = []
        made: list[dict[str, Any]] = []
        if chosen.named is None and chosen.functions:
            rest, calls = self._rest()
            if rest:
                made.append(self._choice({"content": rest}))
            made += [self._choice(_call_delta(place, call)) for place, call in enumerate(calls)]
        finish = _finish(chosen, self.result, calls)
        return [*made, self._choice({}, finish=finish)]

    def _rest(self) -> tuple[str, list[tools.Call]]:
        chosen = self._asked.tools
        if chosen.forced:
            call = tools.forced_call(self.result.text)
            return ("", [call]) if call else (self.result.text, [])
        rest, calls = self._reader.end()
        return rest, calls if chosen.parallel else calls[:1]

    def _choice(
        self, delta: dict[str, Any], scored: Sequence[TokenLogprob] = (), *, finish: str | None = None
    ) -> dict[str, Any]:
        shown = logprobs.chat(scored) if self._asked.body.logprobs and scored else None
        return {"index": self._index, "delta": delta, "logprobs": shown, "finish_reason": finish}


def _call_delta(place: int, call: tools.Call) -> dict[str, Any]:
    return {"tool_calls": [{"index": place, **call.as_json()}]}


def _arguments_delta(text: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}


async def _frames(asked: Asked, inference: Inference, record: RequestRecord) -> AsyncGenerator[bytes, None]:
    begun = False
    options = asked.body.stream_options
    shows_usage = bool(options and options.include_usage)
    no_usage = {"usage": None} if shows_usage else {}
    try:
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(inference.start(asked.job(), record))
            frame: Envelope = envelope("chatcmpl", "chat.completion.chunk", asked.body.model, asked.target.model)
            speakers = [_Speaker(asked, index) for index in range(running.job.sequences)]
            async for batch in running.events:
                made = [chunk for index, event in batch for chunk in speakers[index].chunks(event)]
                if made:
                    yield b"".join(sse.frame(frame.wrap([choice], **no_usage)) for choice in made)
                    begun = True
            if shows_usage:
                counted = usage(running.job, [speaker.result for speaker in speakers])
                yield sse.frame(frame.wrap([], usage=counted))
    except ColdstreamError as error:
        if not begun:
            raise
        record.error = type(error).__name__
        yield sse.frame(failures.body(error, PATH))
    yield sse.DONE
