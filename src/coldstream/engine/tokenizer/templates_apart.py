"""The chat templates of one checkpoint, compiled and rendered in a worker, which is ended when they cost too much.

What a template computes is the checkpoint's to say and its input a stranger's: there is no bound to what one expression
takes, so that no thread of ours evaluates it.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coldstream.engine.tokenizer.template_files import default_text
from coldstream.errors import TokenizerError, TooCostly
from coldstream.workers.limits import Limits
from coldstream.workers.workers import Workers

if TYPE_CHECKING:
    from coldstream.engine.tokenizer.chat_templates import ChatTemplates

LIMITS = Limits(seconds=3.0, memory=256 * 1024 * 1024, output=64 * 1024 * 1024)
_WORK = "coldstream.engine.tokenizer.templates_apart:Templates"
_BESIDE = 2
"""Processes, so that short conversations do not wait for a long one."""
_KEPT = 16
"""Checkpoints whose templates a worker keeps compiled."""


def begin(workers: Workers) -> None:
    """Start a process for templates, and do not wait."""
    workers.begin(_WORK, beside=_BESIDE)


class TemplatesApart:
    """See `ChatTemplates`, whose parameters these are; they are compiled before this returns.

    Raises:
        TokenizerError: a text is not a Jinja template, or takes more than the limits to compile.
    """

    def __init__(
        self,
        texts: Mapping[str, str],
        *,
        special: Iterable[str] = (),
        added: Iterable[str] = (),
        keeps_control_tokens: bool = False,
        source: str,
        workers: Workers,
        limits: Limits = LIMITS,
    ) -> None:
        self._texts, self._source, self._workers, self._limits = dict(texts), source, workers, limits
        self._made = {
            "texts": self._texts,
            "special": list(special),
            "added": list(added),
            "keeps_control_tokens": keeps_control_tokens,
            "source": source,
        }
        self._key = hashlib.sha256(json.dumps(self._made).encode()).hexdigest()
        self.uses_tools = self._compile()

    def __bool__(self) -> bool:
        return bool(self._texts)

    @property
    def text(self) -> str | None:
        """The text of the default template, or of the only one."""
        return default_text(self._texts)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        special: Mapping[str, str],
        variables: Mapping[str, Any],
    ) -> str:
        """See `ChatTemplates.render`.

        Raises:
            TooCostly: with these messages, the template takes more than the limits.
        """
        asked = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "tools": tools,
            "special": dict(special),
            "variables": dict(variables),
        }
        answer = self._ask({"render": asked})
        if answer is None:  # another process than the one that compiled them
            answer = self._ask({"render": asked, "made": self._made})
        text: str = answer
        return text

    def _compile(self) -> bool:
        if not self._texts:
            return False
        try:
            uses_tools: bool = self._ask({"made": self._made})
        except TooCostly as exc:
            raise TokenizerError(f"{self._source}: {exc} to compile; mend it, or upload another one") from exc
        return uses_tools

    def _ask(self, argument: dict[str, Any]) -> Any:
        return self._workers.call(
            _WORK,
            {"key": self._key, **argument},
            limits=self._limits,
            subject="the model's chat template",
            field="messages" if "render" in argument else None,
            beside=_BESIDE,
        )


class Templates:
    """The worker's side: the templates by their keys."""

    def __init__(self) -> None:
        from coldstream.engine.tokenizer import chat_templates  # noqa: F401  before the limits, and only there

        self._kept: OrderedDict[str, ChatTemplates] = OrderedDict()

    def __call__(self, argument: Any, data: bytes) -> Any:
        """The prompt's text; without messages whether tools are read; None where the templates are not known here."""
        templates = self._known(argument["key"], argument.get("made"))
        if templates is None:
            return None
        return templates.render(**argument["render"]) if "render" in argument else templates.uses_tools

    def _known(self, key: str, made: Mapping[str, Any] | None) -> ChatTemplates | None:
        if key not in self._kept:
            if made is None:
                return None
            from coldstream.engine.tokenizer.chat_templates import ChatTemplates

            self._kept[key] = ChatTemplates(**made)
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]
