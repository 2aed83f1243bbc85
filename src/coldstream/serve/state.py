"""What the HTTP application serves: settings, models, keys, and whether the server is closing.

The engine, the tokenizer and the model are protocols here, so that the application needs neither torch nor weights to
be imported, and tests put a scripted engine in their place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from coldstream.engine.request import PromptImage, SamplingParams
from coldstream.engines.protocol import Answers
from coldstream.serve.middleware.auth import ApiKeys
from coldstream.serve.requests.event_bridge import Stream
from coldstream.settings import Settings
from coldstream.timeline import Timeline
from coldstream.workers.workers import Workers

if TYPE_CHECKING:
    from coldstream.model.image_processor import Resizing
    from coldstream.serve.images.decode import Picture


class Tokenizes(Protocol):
    """The part of `coldstream.engine.tokenizer.tokenizer.Tokenizer` that a request needs."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def template_uses_tools(self) -> bool: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def offsets(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def longest_text(self, tokens: int) -> int | None: ...

    @property
    def special_texts(self) -> Mapping[str, int]: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str: ...


class TakesImages(Protocol):
    """The part of `coldstream.engine.vision.prompt.ImagePrompt` that a request needs."""

    @property
    def marker(self) -> str: ...

    @property
    def processor(self) -> Resizing: ...

    def expand(self, text: str, images: int) -> str: ...

    def place(self, ids: Sequence[int], pictures: Sequence[Picture]) -> tuple[PromptImage, ...]: ...


class ServedModel(Protocol):
    """One model of the server, which may still be loading.

    Only `name`, `uri`, `created`, `is_ready`, `retry_after` and `ready` may be used before `ready()` has returned.
    `defaults` are the sampling parameters of its generation_config.
    """

    @property
    def name(self) -> str: ...
    @property
    def uri(self) -> str: ...
    @property
    def created(self) -> int:
        """Unix time, as OpenAI's model objects carry it."""

    @property
    def is_ready(self) -> bool: ...
    @property
    def revision(self) -> str: ...
    @property
    def tokenizer(self) -> Tokenizes: ...
    @property
    def engine(self) -> Answers: ...
    @property
    def max_context(self) -> int: ...
    @property
    def defaults(self) -> SamplingParams: ...
    @property
    def images(self) -> TakesImages | None:
        """How images stand in its prompts; None where it takes text only."""

    async def ready(self) -> None:
        """Wait until requests can be accepted; raise the error of the load, or NotReady, where it failed."""

    def retry_after(self) -> float:
        """Seconds until the model is expected to be ready, from the measured rate of its load."""


class Lifecycle:
    """Which streams are open, and whether new work is still taken. Touched on the event loop only."""

    def __init__(self) -> None:
        self.closing = False
        self.ended = asyncio.Event()
        self.streams: set[Stream] = set()
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """A request begins."""
        self._requests += 1
        self._idle.clear()

    def leave(self) -> None:
        """A request has been answered completely, or its client is gone."""
        self._requests -= 1
        if not self._requests:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until no request is open."""
        await self._idle.wait()


@dataclass(frozen=True)
class ServerState:
    """Everything that `create_app` needs. Build it on the event loop that will serve."""

    settings: Settings
    models: Mapping[str, ServedModel]
    keys: ApiKeys = field(default_factory=ApiKeys)
    timeline: Timeline | None = None
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    workers: Workers = field(default_factory=Workers)

    def begin_shutdown(self) -> None:
        """Take no new work: requests from now on get 503. Those that run go on."""
        self.lifecycle.closing = True

    async def shut_down(self, grace: float | None = None) -> None:
        """Take no new work, let what runs finish within `grace` seconds (default: the settings'), then end the rest.

        When it returns, every open response whose client reads has had its valid last event.
        """
        self.begin_shutdown()
        grace = self.settings.server.grace if grace is None else grace
        try:
            await asyncio.wait_for(self.lifecycle.idle(), grace)
        except TimeoutError:
            self.lifecycle.ended.set()
            for stream in tuple(self.lifecycle.streams):
                stream.end()
            with suppress(TimeoutError):  # who does not read its last event is hung up on
                await asyncio.wait_for(self.lifecycle.idle(), _LAST_WORDS)
        await asyncio.to_thread(self.workers.close)


_LAST_WORDS = 1.0
"""Seconds in which ended requests may still write their last event; a client that does not read is not waited for."""
