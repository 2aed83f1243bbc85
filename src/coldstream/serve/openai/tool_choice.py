"""Which tools a request offers, and what it wants of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coldstream.engine.request import Grammar
from coldstream.errors import InvalidRequest
from coldstream.serve.openai import tool_grammar, tools
from coldstream.serve.openai.schema import AllowedChoice, ChatRequest, ToolChoice


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

    @property
    def told(self) -> list[dict[str, Any]]:
        """What the model is told of them: `strict` is not its business, and without `parameters` there are none."""
        none = {"type": "object", "properties": {}}
        functions = [{"parameters": none, **function} for function in self.functions]
        return [{"type": "function", "function": _without(function, "strict")} for function in functions]

    def reader(self) -> tools.CallReader:
        """What finds calls in an answer."""
        schemas = {function["name"]: tool_grammar.parameters(function) for function in self.functions}
        return tools.CallReader(self.names, schemas)

    @property
    def is_strict(self) -> bool:
        """Whether arguments must be held to a schema where a call is the model's own choice."""
        return not self.forced and any(function.get("strict") for function in self.functions)

    @property
    def grammar(self) -> Grammar | None:
        """What forces the call: only the arguments, where the function is given."""
        if not self.forced:
            return None
        if self.named:
            return tool_grammar.only_arguments(self.functions[0])
        return tool_grammar.one_call(self.functions)


def _without(function: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in function.items() if key != name}


def chosen_tools(body: ChatRequest) -> Tools:
    """The tools that may be called.

    Raises:
        InvalidRequest: a choice without tools, or of a function that is none of them.
    """
    choice = body.tool_choice
    if not body.tools:
        harmless = (None, "none", "auto") if body.tools is not None else (None, "none")
        if choice not in harmless:
            raise InvalidRequest("tool_choice needs tools", field="tool_choice")
        if body.parallel_tool_calls is not None and body.tools is None:
            raise InvalidRequest("parallel_tool_calls needs tools", field="parallel_tool_calls")
        return Tools()
    if choice == "none":
        return Tools()
    functions = tuple(tool.function.model_dump(exclude_none=True, exclude={"cache_control"}) for tool in body.tools)
    parallel = body.parallel_tool_calls is not False
    if isinstance(choice, ToolChoice):
        named = _named(functions, [choice.function.name], "tool_choice")
        return Tools(named, forced=True, named=named[0]["name"], parallel=parallel)
    if isinstance(choice, AllowedChoice):
        allowed = choice.allowed_tools
        names = [tool.function.name for tool in allowed.tools]
        return Tools(_named(functions, names, "tool_choice"), forced=allowed.mode == "required", parallel=parallel)
    return Tools(functions, forced=choice == "required", parallel=parallel)


def _named(functions: Sequence[dict[str, Any]], names: Sequence[str], field: str) -> tuple[dict[str, Any], ...]:
    known = tuple(function["name"] for function in functions)
    for name in names:
        if name not in known:
            message = f"{field} names {name[:64]!r}; the tools are: {', '.join(known)}"
            raise InvalidRequest(message, field=field, allowed=known)
    return tuple(function for function in functions if function["name"] in names)
