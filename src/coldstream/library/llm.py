"""`coldstream.LLM`: a checkpoint in a bucket, asked from Python on the engine that a server has."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeAlias, Unpack, cast, overload

from coldstream.engine.request import Request
from coldstream.engine.sampling import from_generation_config
from coldstream.errors import EngineError, InvalidRequest, PromptTooLong
from coldstream.library import options as asked
from coldstream.library.batch import answers, pieces
from coldstream.library.completion import Completion
from coldstream.library.conversation import prompt_text
from coldstream.library.held_model import HeldModel, settings_of
from coldstream.library.options import SamplingOptions
from coldstream.loading.loaded_model import LoadedModel
from coldstream.progress_line import ProgressLine, duration

Message: TypeAlias = Mapping[str, Any]
Conversation: TypeAlias = Sequence[Message]

_AHEAD = 4
"""Batches of the engine's size that are with it: it never waits for the next prompt, and holds no thousands of them."""


class LLM:
    """A model that answers in this process. Safe to use from several threads; close it, or use it in a `with` block.

        with coldstream.LLM("gs://bucket/model") as llm:
            print(llm.generate("The capital of France is", max_tokens=8).text)

    Args:
        uri: the checkpoint's folder.
        progress: whether a line on stderr tells of loads and batches; None: on a terminal and in a notebook.
        settings: keys of [models.NAME], [engine] and [load] of coldstream.toml, as `precision="int8"`.

    Raises:
        SettingsError: a setting is unknown, of another type or out of its range.
        ColdstreamError: what the load failed with.
    """

    def __init__(self, uri: str, *, progress: bool | None = None, **settings: Any) -> None:
        chosen = settings_of(uri, settings)
        self._progress = progress
        self._numbers = itertools.count()
        self._window = _AHEAD * chosen.engine.max_sequences
        self._is_closed = False
        self._held = HeldModel(chosen, self._line())
        self._defaults = from_generation_config(self._model.tokenizer.generation_defaults)

    @property
    def max_context(self) -> int:
        """Prompt and answer together, in tokens."""
        return self._model.max_context

    @property
    def revision(self) -> str:
        """Changes with the checkpoint's objects."""
        return self._model.revision

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts as well
        self, prompts: str, **options: Unpack[SamplingOptions]
    ) -> Completion: ...
    @overload
    def generate(self, prompts: Sequence[str], **options: Unpack[SamplingOptions]) -> list[Completion]: ...
    def generate(
        self, prompts: str | Sequence[str], **options: Unpack[SamplingOptions]
    ) -> Completion | list[Completion]:
        """Continue a text, or many at once: their answers are in their order. Without `max_tokens`: 256, or what the
        checkpoint's generation_config says.

        Raises:
            InvalidRequest: an option is unknown or out of range.
            PromptTooLong: a prompt leaves no room for an answer. Nothing was computed then.
            EngineError: generating failed; the other prompts are given up.
        """
        if isinstance(prompts, str):
            return self._answers([self._ids(prompts)], options, fills=False)[0]
        for place, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise InvalidRequest(f"prompts[{place}] must be text, not {prompt!r}", field="prompts")
        return self._answers(_each(self._ids, prompts, "prompts"), options, fills=False)

    @overload
    def chat(self, messages: Conversation, **options: Unpack[SamplingOptions]) -> Completion: ...
    @overload
    def chat(self, messages: Sequence[Conversation], **options: Unpack[SamplingOptions]) -> list[Completion]: ...
    def chat(
        self, messages: Conversation | Sequence[Conversation], **options: Unpack[SamplingOptions]
    ) -> Completion | list[Completion]:
        """Answer a conversation, or many at once, through the checkpoint's chat template: dicts with `role` and
        `content`. Without `max_tokens` an answer may fill the context.

        Raises:
            InvalidRequest: as `generate`; or a message cannot be read, or the template refuses them.
            PromptTooLong, EngineError: as `generate`.
        """
        if _is_one(messages):
            return self._answers([self._chat_ids(cast(Conversation, messages))], options, fills=True)[0]
        return self._answers(_each(self._chat_ids, messages, "messages"), options, fills=True)

    def stream(self, prompt: str | Conversation, **options: Unpack[SamplingOptions]) -> Iterator[str]:
        """The answer's text as it comes, of a text as in `generate` or a conversation as in `chat`. A caller that
        leaves the loop ends the request, once the iterator is closed or forgotten.

        Raises:
            InvalidRequest, PromptTooLong: at once.
            EngineError: generating failed, when it does.
        """
        is_text = isinstance(prompt, str)
        ids = self._ids(prompt) if isinstance(prompt, str) else self._chat_ids(prompt)
        request = self._requests([ids], options, fills=not is_text)[0]
        return pieces(self._model.engine, request)

    def close(self) -> None:
        """End what runs, and let the model's memory, threads and processes go. Twice does no harm."""
        self._is_closed = True
        self._held.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _model(self) -> LoadedModel:
        if self._is_closed:
            raise EngineError("this LLM is closed; make another one")
        return self._held.loaded

    def _line(self) -> ProgressLine:
        return ProgressLine(wanted=self._progress)

    def _ids(self, prompt: str) -> list[int]:
        return self._model.tokenizer.encode(prompt)

    def _chat_ids(self, messages: Conversation) -> list[int]:
        tokenizer = self._model.tokenizer
        return tokenizer.encode(prompt_text(tokenizer, messages), add_special_tokens=False)

    def _answers(self, prompts: Sequence[list[int]], options: SamplingOptions, *, fills: bool) -> list[Completion]:
        requests = self._requests(prompts, options, fills=fills)
        count = _Count(len(requests), self._line())
        made = answers(self._model.engine, requests, window=self._window, ended=count.add)
        count.end()
        return made

    def _requests(self, prompts: Sequence[list[int]], options: SamplingOptions, *, fills: bool) -> list[Request]:
        """One for each prompt, all of them checked before the first is computed."""
        given, grammar = asked.read(options)
        requests = []
        for place, ids in enumerate(prompts):
            room = self.max_context - len(ids)
            if not ids or room < 1:
                raise _unfit(place, len(ids), self.max_context)
            params = asked.sampling(self._defaults, given, grammar, room=room, fills=fills)
            requests.append(Request(f"llm-{next(self._numbers)}", tuple(ids), params))
        for request in requests[:1]:  # what they are asked with is the same for all
            self._model.engine.validate(request)
        return requests


class _Count:
    """How many prompts are answered, as a line; one prompt alone has none."""

    def __init__(self, prompts: int, line: ProgressLine) -> None:
        self._prompts, self._line = prompts, line
        self._done = self._tokens = 0
        self._start = time.monotonic()

    def add(self, completion: Completion) -> None:
        self._done += 1
        self._tokens += len(completion.token_ids)
        if self._prompts > 1:
            self._line.show(self._text)

    def end(self) -> None:
        if self._prompts > 1:
            self._line.end(self._text())

    def _text(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-3)
        left = seconds / self._done * (self._prompts - self._done)
        rate = f"{self._tokens / seconds:.0f} tokens/s"
        return f"{self._done} of {self._prompts} prompts  {rate}  {duration(seconds)}, {duration(left)} left"


def _each(encode: Callable[[Any], list[int]], prompts: Sequence[Any], name: str) -> list[list[int]]:
    made = []
    for place, prompt in enumerate(prompts):
        try:
            made.append(encode(prompt))
        except (InvalidRequest, PromptTooLong) as exc:
            raise type(exc)(f"{name}[{place}]: {exc}", field=exc.field, allowed=exc.allowed) from exc
    return made


def _unfit(place: int, tokens: int, context: int) -> InvalidRequest | PromptTooLong:
    if not tokens:
        return InvalidRequest(f"prompt {place} has no tokens; there is nothing to begin with", field="prompt")
    message = f"prompt {place} has {tokens} tokens, but the context holds {context}, of which one must be left"
    return PromptTooLong(f"{message} for the answer; shorten it", field="prompt")


def _is_one(messages: Any) -> bool:
    """Whether it is a conversation, not several."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequest(f"messages must be a list of dicts, or a list of such lists, not {messages!r}")
    return not messages or isinstance(messages[0], Mapping)
