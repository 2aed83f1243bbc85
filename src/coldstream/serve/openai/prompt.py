"""From an understood chat request to the prompt's ids, and to what the output must obey; the tokenizer is there."""

from __future__ import annotations

from coldstream.engine.request import Grammar
from coldstream.engine.tokenizer.fit import Turn, fitted
from coldstream.errors import InvalidRequest
from coldstream.serve.api.generate import expanded
from coldstream.serve.openai import tool_grammar, tools
from coldstream.serve.openai.asked import AskedChat
from coldstream.serve.openai.messages import task_turns, turns, with_instruction
from coldstream.serve.state import ServedModel, Tokenizes

_AS_XML = "<function="
"""Qwen3-Coder writes this within the tags."""
_END = "\N{END OF TRANSMISSION BLOCK}\N{SUBSTITUTE}"
"""Marks where the last message ends; templates trim blanks, and these are none."""


def encode(model: ServedModel, asked: AskedChat) -> list[int]:
    """The prompt's ids, through the model's chat template.

    Raises:
        InvalidRequest: the model has no chat template, or it refuses the messages in every form, or writes another end.
    """
    tokenizer = model.tokenizer
    given = asked.tools.told if tokenizer.template_uses_tools and asked.tools.functions else None

    def render(form: list[Turn]) -> str:
        return tokenizer.apply_chat_template(
            form, add_generation_prompt=asked.adds_generation_prompt, tools=given, variables=asked.variables
        )

    said = _said(asked, knows_tools=tokenizer.template_uses_tools)
    text = fitted(said, render) if tokenizer.has_chat_template else render(said)
    if asked.continues:
        text = _begun(text)
    return tokenizer.encode(expanded(model, text, len(asked.images)), add_special_tokens=False)


def grammar(model: ServedModel, asked: AskedChat) -> Grammar | None:
    """What the output must obey: a forced call; an answer's format, or a call; calls to strict functions.

    A model's own calls are followed where they stand in <tool_call> tags, as its template or `instruction` says; where
    they have another form, `strict` binds forced calls only.

    Raises:
        InvalidRequest: the answer's form cannot be joined with calls.
    """
    chosen, answer = asked.tools, asked.answer
    if chosen.forced or not chosen.functions:
        return chosen.grammar or answer
    tagged = _opening(model.tokenizer)
    if answer is not None:
        functions = chosen.functions
        return tool_grammar.answer_or_calls(functions, answer, tagged=tagged, parallel=chosen.parallel)
    if tagged is not None and chosen.is_strict:
        return tool_grammar.text_with_calls(chosen.functions, tagged=tagged)
    return None


def _opening(tokenizer: Tokenizes) -> str | None:
    """How a grammar spells the tag that this model's calls begin with; None where calls are no JSON in such tags."""
    template = tokenizer.chat_template or ""
    if tokenizer.template_uses_tools and (tools.OPEN not in template or _AS_XML in template):
        return None
    ids = tokenizer.encode(tools.OPEN, add_special_tokens=False)
    return tool_grammar.opening(is_special=len(ids) == 1 and not tokenizer.decode(ids))


def _said(asked: AskedChat, *, knows_tools: bool) -> list[Turn]:
    """The turns, those that tell of tools included; the last one marked, where it is to be continued."""
    body, task, chosen = asked.body, asked.target.task, asked.tools
    if task is not None:
        said = task_turns(task, body.messages, body.inputs or {}, knows_tools=knows_tools)
    else:
        said = turns(body.messages, knows_tools=knows_tools)
    if chosen.functions and not knows_tools:
        said = with_instruction(said, tools.instruction(chosen.told, forced=chosen.forced))
    last = said[-1]
    if asked.continues:
        return [*said[:-1], {**last, "content": _marked(last["content"])}]
    is_empty = last["role"] == "assistant" and not last["content"] and "tool_calls" not in last
    return said[:-1] if is_empty and len(said) > 1 and asked.adds_generation_prompt else said


def _begun(text: str) -> str:
    begun, marked, _ = text.rpartition(_END)
    if not marked:
        message = "the model's chat template does not write the last message as it stands, so it cannot be continued"
        raise InvalidRequest(message, field="continue_final_message")
    return begun


def _marked(content: str | list[Turn]) -> str | list[Turn]:
    return content + _END if isinstance(content, str) else [*content, {"type": "text", "text": _END}]
