"""The chat templates of one checkpoint: which one is taken, which form of content it reads, that it loses no text.

A checkpoint may bring several templates: transformers takes `tool_use` for a request with tools, `default` else. Some
templates read a message's content as text, some as a list of parts, and either writes nothing where it gets the other.
So before a prompt is made, the template is tried with a word in place of each message's text: a word that is not in
what it writes is a text that the model would never see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coldstream.engine.tokenizer.control_tokens import ControlTokens
from coldstream.engine.tokenizer.template import ChatTemplate
from coldstream.engine.tokenizer.template_files import DEFAULT, TOOL_USE, default_text
from coldstream.errors import InvalidRequest

Message = Mapping[str, Any]

# Whose text may never be lost. An assistant's thoughts are, by many templates.
_KEPT_ROLES = frozenset({"system", "developer", "user", "tool"})


@dataclass(frozen=True, slots=True)
class _Call:
    """One rendering but for its messages."""

    template: ChatTemplate
    add_generation_prompt: bool
    tools: Sequence[Mapping[str, Any]] | None
    variables: Mapping[str, Any]

    def render(self, messages: Sequence[Message]) -> str:
        return self.template.render(
            messages, add_generation_prompt=self.add_generation_prompt, tools=self.tools, variables=self.variables
        )


class ChatTemplates:
    """Compiled templates by name. `special` are the texts of the tokenizer's special tokens, `added` of all its added
    ones; with `keeps_control_tokens` those in messages are control tokens, as if the template had written them.

    Raises:
        TokenizerError: a text is not a Jinja template.
    """

    def __init__(
        self,
        texts: Mapping[str, str],
        *,
        special: Iterable[str] = (),
        added: Iterable[str] = (),
        keeps_control_tokens: bool = False,
        source: str,
    ) -> None:
        self._source = source
        self._templates = {name: ChatTemplate(text, source=source) for name, text in texts.items()}
        every = self._templates.values()
        literal = "\0".join(template.literals for template in every)
        looked_for = "\0".join(template.looked_for for template in every)
        # What ends turns is not special in every tokenizer (DeepSeek's), but stands in the template.
        control = {*special, *(text for text in added if text in literal and not text.isspace())}
        if keeps_control_tokens:
            control = set()
        self._control = ControlTokens(control)
        # An earlier answer may hold what the template takes out of it, as </think>.
        self._answers = ControlTokens(text for text in control if text not in looked_for)

    def __bool__(self) -> bool:
        return bool(self._templates)

    @property
    def text(self) -> str | None:
        """The text of the default template, or of the only one."""
        return default_text({name: template.text for name, template in self._templates.items()})

    def pick(self, *, tools: bool) -> ChatTemplate:
        """The template for a request.

        Raises:
            InvalidRequest: there is none, or only ones for something else.
        """
        for name in (TOOL_USE, DEFAULT) if tools else (DEFAULT,):
            if name in self._templates:
                return self._templates[name]
        if not self._templates:
            raise InvalidRequest(
                f"{self._source} has no chat template; send a plain prompt to /v1/completions or /generate",
                field="messages",
            )
        names = ", ".join(sorted(self._templates))
        raise InvalidRequest(
            f"{self._source} has chat templates ({names}), but none that is the default", field="messages"
        )

    @property
    def uses_tools(self) -> bool:
        """Whether the template for requests with tools looks at `tools` at all."""
        try:
            return "tools" in self.pick(tools=True).variables
        except InvalidRequest:
            return False

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        special: Mapping[str, str],
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt's text, with control tokens marked where they are the messages' (see `control_tokens`).

        `special` are the tokens that the template may name, `variables` what the request gives it.

        Raises:
            InvalidRequest: the template refuses these messages, fails on them, or leaves the text of one out.
        """
        marked = {**special, **self._control.mark(variables)}
        call = _Call(self.pick(tools=tools is not None), add_generation_prompt, self._control.mark(tools), marked)
        shaped = self._shaped(messages, call)
        return call.render([self._marked(message) for message in shaped])

    def _marked(self, message: Message) -> Message:
        tokens = self._answers if message.get("role") == "assistant" else self._control
        marked: Message = tokens.mark(message)
        return marked

    def _shaped(self, messages: Sequence[Message], call: _Call) -> Sequence[Message]:
        """The messages with their content in the form that the template reads."""
        lost = _lost(messages, call)
        if lost == []:
            return messages
        roles = {messages[place].get("role") for place in (range(len(messages)) if lost is None else lost)}
        parted = [_in_parts(message) if message.get("role") in roles else message for message in messages]
        still = _lost(parted, call)
        if still is None and lost is None:
            return messages  # it refuses both, and will say why
        if still is not None:
            unread = {messages[place].get("role") for place in still}
            parted = [
                message if message.get("role") in unread else part
                for message, part in zip(messages, parted, strict=True)
            ]
            still = _lost(parted, call)
        self._check(messages, lost if still is None else still)
        return messages if still is None else parted

    def _check(self, messages: Sequence[Message], lost: Iterable[int] | None) -> None:
        for place in lost or ():
            role = messages[place].get("role")
            if role in _KEPT_ROLES:
                raise InvalidRequest(
                    f"the model's chat template leaves out message {place} ({role}): nothing of its text would reach "
                    "the model; put it into another message",
                    field="messages",
                )


def _lost(messages: Sequence[Message], call: _Call) -> list[int] | None:
    """The messages whose text would leave no trace in the prompt; None where the template cannot be tried."""
    words = {place: f"zq{place}wort{place}qz" for place, message in enumerate(messages) if _has_text(message)}
    tried = [_with_text(message, words[place]) if place in words else message for place, message in enumerate(messages)]
    try:
        written = call.render(tried).lower()
    except InvalidRequest:
        return None
    return [place for place, word in words.items() if word not in written or _is_dumped(word, written)]


def _is_dumped(word: str, written: str) -> bool:
    """Whether a list of parts was written out as Python or JSON would, which is no text of the message."""
    return f"'text': '{word}'" in written or f'"text": "{word}"' in written


def _has_text(message: Message) -> bool:
    content = message.get("content")
    if isinstance(content, str):
        return bool(content.strip())
    return isinstance(content, list) and any(str(part.get("text") or "").strip() for part in content)


def _with_text(message: Message, word: str) -> Message:
    """The message with this text; parts that have none stay."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": word}
    parts = [{**part, "text": word} if part.get("text") else part for part in content]
    return {**message, "content": parts}


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}] if content else []}
