"""Chat templates: messages -> prompt text, in Jinja's sandbox, with what transformers offers to a template.

A template comes with the checkpoint and its input from strangers, so a rendering is bounded: in time, in characters
and in loop steps, which names what most templates do wrong. No sandbox can bound what one expression costs: a server
compiles and renders in a worker (`templates_apart`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from coldstream.engine.tokenizer.control_tokens import unescaped
from coldstream.errors import InvalidRequest, TokenizerError

MAX_SECONDS = 2.0
MAX_CHARACTERS = 8 * 1024 * 1024
MAX_LOOP_STEPS = 1_000_000


class _OverBudget(SecurityError):
    """A rendering took too long or grew too large."""


class _Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self.deadline = time.monotonic() + MAX_SECONDS
        self.steps = MAX_LOOP_STEPS
        self.characters = MAX_CHARACTERS

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise _OverBudget(f"the chat template ran for more than {MAX_SECONDS:g} s")

    def spend_steps(self, count: int) -> None:
        self.steps -= count
        if self.steps < 0:
            raise _OverBudget(f"the chat template loops more than {MAX_LOOP_STEPS:,} times")

    def spend_characters(self, count: int) -> None:
        self.characters -= count
        if self.characters < 0:
            raise _OverBudget(f"the chat template writes more than {MAX_CHARACTERS:,} characters")


class _Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012  declared so by jinja2

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox; every attribute, item and call checks the clock, every range and product its size."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.budget: ContextVar[_Budget] = ContextVar("budget")
        self.filters["tojson"] = _tojson
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            range=self._range,
        )

    def _range(self, *bounds: int) -> range:
        steps = range(*bounds)
        self.budget.get().spend_steps(len(steps))
        return steps

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.budget.get().check_time()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.budget.get().check_time()
        return super().getitem(obj, argument)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.budget.get().check_time()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [value if isinstance(value, int) else len(value) for value in (left, right) if _has_size(value)]
        if operator == "**" or any(abs(size) > MAX_CHARACTERS for size in sizes):
            raise _OverBudget(f"the chat template computes something too large with {operator}")
        if not all(isinstance(value, (int, float)) for value in (left, right)) and len(sizes) == 2:
            self.budget.get().spend_characters(abs(sizes[0] * sizes[1]))
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """One compiled template. `source` is the checkpoint's URI, for messages.

    `literals` are all texts that stand in it, `looked_for` those that it looks for in messages, divided by NUL.

    Raises:
        TokenizerError: the text is not a Jinja template.
    """

    def __init__(self, text: str, *, source: str) -> None:
        self.text = text
        self._environment = _Environment()
        try:
            tree = self._environment.parse(text)
            self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
            self.literals = "\0".join(_literals(tree))
            self.looked_for = "\0".join(_looked_for(tree))
            self._template = self._environment.from_string(text)
        except MemoryError:
            raise
        except Exception as exc:  # Python's own compiler reads what jinja makes of it, and has limits of its own
            raise TokenizerError(f"{source}: the chat template cannot be compiled: {exc}") from exc

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt's text.

        Raises:
            InvalidRequest: the template refuses these messages (its own words are in the message), or fails on them.
        """
        budget = _Budget()
        token = self._environment.budget.set(budget)
        values = {**variables, "messages": list(messages), "tools": tools, "documents": None}
        try:
            pieces = []
            for piece in self._template.generate(values, add_generation_prompt=add_generation_prompt):
                budget.spend_characters(len(piece))
                budget.check_time()
                pieces.append(piece)
            return "".join(pieces)
        except jinja2.TemplateError as exc:
            raise InvalidRequest(f"the model's chat template refuses these messages: {exc}", field="messages") from exc
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError, ArithmeticError) as exc:
            raise InvalidRequest(
                f"the model's chat template cannot read these messages ({type(exc).__name__}: {exc})", field="messages"
            ) from exc
        finally:
            self._environment.budget.reset(token)


# Methods of a text that look for another one in it.
_LOOKING = frozenset(
    {"split", "rsplit", "partition", "rpartition", "replace", "startswith", "endswith", "find", "count", "strip"}
)


def _literals(tree: jinja2.nodes.Template) -> Iterator[str]:
    for data in tree.find_all(jinja2.nodes.TemplateData):
        yield data.data
    yield from _texts(tree.find_all(jinja2.nodes.Const))


def _looked_for(tree: jinja2.nodes.Template) -> Iterator[str]:
    for call in tree.find_all(jinja2.nodes.Call):
        if isinstance(call.node, jinja2.nodes.Getattr) and call.node.attr in _LOOKING:
            yield from _texts(call.args)
    for compare in tree.find_all(jinja2.nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compare.ops):
            yield from _texts([compare.expr])


def _texts(nodes: Iterable[jinja2.nodes.Node]) -> Iterator[str]:
    return (node.value for node in nodes if isinstance(node, jinja2.nodes.Const) and isinstance(node.value, str))


def _has_size(value: Any) -> bool:
    return isinstance(value, (int, str, list, tuple)) and not isinstance(value, bool)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes HTML."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return unescaped(text) if ensure_ascii else text


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
